//! Looks for two holders at once, for a lock that nobody can get any more, and
//! for files that stay: many processes take one lock over and over while they
//! are killed and stopped at random, and an oracle that does not use this
//! crate checks who is inside.
//!
//! ```text
//! cargo run --release --example torture -- [--seconds 60] [--minutes N] [--processes 8]
//!     [--tasks 2] [--peer NAME] [--pin auto|required|never] [--directory DIR] [--overlay]
//!     [--hold-us 200] [--period-us 2000] [--kill-ms 25] [--stop-ms 60] [--no-kill] [--no-stop]
//!     [--end ask|kill] [--seed N] [--until-violation]
//! ```
//!
//! Exit status: 0 if nobody was inside with another, nobody was stuck, nothing
//! failed and nothing stayed that may not; 1 otherwise; 2 for bad usage.
//!
//! On Windows no process is stopped.
//!
//! # The oracle
//! Who has the lock makes the symbolic link `inside` (it must not exist; its
//! target names process, start time and visit; on Windows it is a file), raises a number that is written
//! in two places with a pause between, and removes the link. A link of a dead
//! process is one that was killed inside; the newcomer repairs and replaces it.
//! A stopped process is alive, so it is still inside.
//!
//! # Other libraries
//! `--peer NAME` puts another library to the same: the same kills, stops and
//! oracle, over Python workers (`peer.py`) that wait for ever for the lock and
//! never cancel. Their libraries come from `tests/peers/run.sh --set-up`. What a
//! peer leaves behind is counted and not judged. A library that assumes that
//! nobody pauses for long may be tried with `--no-stop`, and one that cannot
//! bear kills with `--no-kill`.
//!
//! # Can it fail?
//! A build with `--cfg lockkeeper_proof` can leave out one rule of the protocol
//! and delays its steps at random. For each of the three rules this must find
//! a violation within 30 seconds (status 1), and without `LOCKKEEPER_MUTANT`
//! none (status 0):
//!
//! ```text
//! export RUSTFLAGS="--cfg lockkeeper_proof" CARGO_TARGET_DIR=target/proof LOCKKEEPER_DELAY_US=1000
//! for mutant in no-inode-check close-before-unlink pin-after-link; do
//!     LOCKKEEPER_MUTANT=$mutant cargo run --release --example torture -- --seconds 30 --until-violation
//! done
//! cargo run --release --example torture -- --seconds 30
//! ```

#![allow(unreachable_pub)]

mod conductor;
mod dice;
mod left_overs;
mod oracle;
mod overlay;
mod peer;
#[cfg_attr(windows, path = "process_windows.rs")]
mod process;
mod settings;
mod summary;
#[cfg_attr(windows, path = "system_windows.rs")]
mod system;
mod tally;
mod worker;

use std::process::ExitCode;

use overlay::Overlay;
use settings::{Part, Settings};

fn main() -> ExitCode {
    match settings::parse(std::env::args().skip(1)) {
        Ok(Part::Worker(job)) => {
            worker::run(job);
            ExitCode::SUCCESS
        }
        Ok(Part::Conductor(settings)) => conduct(&settings),
        Ok(Part::Help) => {
            println!("{}", settings::USAGE);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("torture: {why}\n\n{}", settings::USAGE);
            ExitCode::from(2)
        }
    }
}

fn conduct(settings: &Settings) -> ExitCode {
    let place = tempfile::Builder::new().prefix("torture-").tempdir_in(&settings.directory);
    let place = match place {
        Ok(place) => place,
        Err(error) => {
            eprintln!("torture: no directory in {}: {error}", settings.directory.display());
            return ExitCode::from(2);
        }
    };
    let overlay = match settings.overlay.then(|| Overlay::mount(place.path())).transpose() {
        Ok(overlay) => overlay,
        Err(why) => {
            eprintln!("torture: no overlayfs can be mounted here: {why}");
            return ExitCode::from(2);
        }
    };
    let site = overlay.as_ref().map_or(place.path(), Overlay::path);
    let mut summary = conductor::run(settings, site);
    summary.left_overs = left_overs::check(settings, site, &summary);
    println!("{}", summary.text(settings, site));
    drop(overlay);
    if summary.is_good() {
        return ExitCode::SUCCESS;
    }
    println!("what is there is kept in {}", place.keep().display());
    ExitCode::FAILURE
}
