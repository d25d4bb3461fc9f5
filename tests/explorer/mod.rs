//! Every interleaving of the shipped protocol, over a simulated disk.
//!
//! The code of [`protocol`](crate::file::protocol) and [`lock_file`](crate::file::protocol::lock_file) is run as it
//! is shipped. Each call of a [`Disk`](crate::file::protocol::disk::Disk) is one step; any
//! process may be slow for ever before any step, and SIGKILL may come before
//! any step, after which the kernel closes what the process had open, one
//! descriptor at a time and in any order. A killed process comes back as
//! another one for the acquisitions it has left. Numbers of freed inodes are
//! given to new files while a process remembers them.
//!
//! # What is checked, in every world that can come about
//!
//! 1. Never do two living processes believe that they hold the lock. A process
//!    believes it from the return of its attempt until it begins to release.
//! 2. No process is stuck: if all others are killed, a process gets in, from
//!    where it is, and so does one that comes anew.
//! 3. No process sees an error, or loses what it holds.
//! 4. At the end of everything, only a killed process has left something: the
//!    lock file; a portable one, a candidate and a claim, too. One more
//!    acquisition and a sweep leave nothing.
//!
//! # How it ends
//!
//! A process is what it was answered ([`replay`]); the same answers are one
//! node of an [`automaton`]. Worlds that differ in names only are one
//! ([`order`]). A step that no other process can notice comes at once with the one before
//! it ([`world`]). A process that begins a round forgets the one before
//! ([`automaton`]). The last two are themselves checked: by small worlds without
//! them, and by walks at random in lock-step with processes that forget nothing.
//!
//! # Running it
//!
//! ```text
//! cargo test --release --lib explorer -- --nocapture
//! cargo test --release --lib -- --exact explorer::larger_worlds_hold --nocapture --ignored
//! RUSTFLAGS="--cfg lockkeeper_proof" cargo test --release --lib explorer::mutants -- --nocapture
//! LOCKKEEPER_EXPLORE=exclusion LOCKKEEPER_WORLD="N2 N2 F1 k3" cargo test --release --lib -- --exact explorer::any --nocapture --ignored
//! ```
//!
//! A world is written as its processes, each a letter and how often it
//! acquires, and the number of kills: `N` pinned, `n` pinned and sometimes
//! cancelled before its user has the lock, `W` pinned with a candidate made while
//! it waits, `H` pinned and handing over to other tasks of its own, `P` at most twice, `F` and `f` portable, `C` with
//! `openlock_compat`, `h` and `c` as `H` and `C` by a clock that jumps, `O`
//! openlock 1.2.1, `R` asks the holder to release the lock, `S` sweeps. `D` is how many
//! portable processes were killed before: one left the lock file, each other a
//! claim on what the one before it left. `L0`: the file system has no hard links. `U0`: it
//! has no files without a name.

mod automaton;
mod faults;
mod hash;
mod order;
mod program;
mod replay;
mod search;
mod trace;
mod vocabulary;
mod walk;
mod world;

use program::Program;
use search::{Report, Scenario};

fn scenario(text: &str) -> Scenario {
    let (mut programs, mut kills, mut dead) = (Vec::new(), 0, 0);
    let (mut has_no_links, mut has_no_unnamed) = (false, false);
    for word in text.split_whitespace() {
        let number = word[1..].parse().expect("a letter and a number");
        let program = match &word[..1] {
            "N" => Program::Pinned,
            "n" => Program::PinnedCancelled,
            "W" => Program::PinnedWaiting,
            "H" => Program::PinnedPassing,
            "F" => Program::Portable,
            "f" => Program::PortableCancelled,
            "P" => Program::PassingTwice,
            "h" => Program::PassingJumping,
            "C" => Program::Compat,
            "c" => Program::CompatJumping,
            "O" => Program::OpenLock,
            "R" => Program::Revoker,
            "S" => Program::Sweeper,
            "k" => {
                kills = number;
                continue;
            }
            "D" => {
                dead = number;
                continue;
            }
            "L" => {
                has_no_links = number == 0;
                continue;
            }
            "U" => {
                has_no_unnamed = number == 0;
                continue;
            }
            other => panic!("no such process: {other}"),
        };
        programs.push((program, number));
    }
    let is_pinned = [
        Program::Pinned,
        Program::PinnedCancelled,
        Program::PinnedWaiting,
        Program::PinnedPassing,
        Program::PassingTwice,
        Program::PassingJumping,
    ];
    let has = |kinds: &[Program]| programs.iter().any(|(program, _)| kinds.contains(program));
    let is_mixed = has(&is_pinned) && has(&[Program::Portable, Program::PortableCancelled]);
    Scenario { is_mixed, dead, has_no_links, has_no_unnamed, ..Scenario::new(&programs, kills) }
}

fn show(what: &str, scenario: &Scenario, report: &Report) {
    let verdict = report.broken.as_ref().map_or("holds", |broken| broken.promise.as_str());
    let Report { worlds, steps, nodes, depth, took, .. } = report;
    println!(
        "{what:<20} {:<58} {worlds:>9} worlds {steps:>9} steps {depth:>3} deep {nodes:>5} nodes {:>6.1} s  {verdict}",
        scenario.name(),
        took.as_secs_f32(),
    );
    for line in report.broken.iter().flat_map(|broken| &broken.trace) {
        println!("    {line}");
    }
}

/// Each world is explored to its end, and every promise holds.
fn all_hold(worlds: &[&str]) {
    for world in worlds {
        holds(world, &scenario(world));
    }
}

fn holds(what: &str, scenario: &Scenario) {
    let report = scenario.explore();
    show(what, scenario, &report);
    assert!(report.broken.is_none(), "{what}: see the trace above");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn pinned_holds() {
    all_hold(&["N2 N2 k2", "N1 N1 N1 N1 k4", "N2 N2 N2 k3", "n2 n2 k3", "n1 n1 n1 k3"]);
}

/// Also with a candidate that was made while there was time.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn waiting_with_a_candidate_holds() {
    all_hold(&["W2 W2 k2", "W1 N1 N1 k2", "W1 W1 W1 k3", "W2 N2 N1 k1"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn passing_on_holds() {
    all_hold(&["H2 H2 k2", "H1 N1 N1 k3", "H1 W1 N1 k2", "H1 F1 F1 k1"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn portable_holds() {
    all_hold(&["F2 F2 k3", "F1 F1 F1 k3", "F2 F1 F1 k2", "F2 F2 F2 k0", "f2 f1 k2"]);
}

/// Where there are no hard links, files are moved to their names instead.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn without_hard_links_holds() {
    all_hold(&["L0 N2 N2 k2", "L0 N1 N1 N1 k3", "L0 W1 N1 N1 k2", "L0 n1 n1 k2"]);
    all_hold(&["L0 F2 F2 k3", "L0 F1 F1 F1 k3", "L0 F2 F1 F1 k1", "L0 N1 F1 F1 k2"]);
    all_hold(&["L0 N1 N1 S1 k2", "L0 F1 F1 S1 k2", "L0 D2 F1 F1 S1 k0", "L0 R1 N1 k1"]);
}

/// Where each candidate has a name of its own, which it loses to the lock's or beside it.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn without_unnamed_files_holds() {
    all_hold(&["U0 N2 N2 k2", "U0 N1 N1 N1 k3", "U0 W1 N1 N1 k2", "U0 n1 n1 k2", "U0 n2 N1 k1"]);
    all_hold(&["U0 H1 N1 N1 k2", "U0 N1 F1 k2", "U0 N1 N1 S1 k2", "U0 R1 N1 N1 k1"]);
    all_hold(&["U0 L0 N2 N2 k2", "U0 L0 N1 N1 S1 k2"]);
}

/// As large for the portable form as `pinned_holds` is for the other: it takes
/// minutes, and over a gigabyte of memory.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn portable_with_three_kills_holds() {
    all_hold(&["F2 F2 F2 k3"]);
}

/// Pinned and portable contenders of one path: exclusion holds, and a
/// contender that follows what the file says gets in.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn mixed_holds() {
    all_hold(&["N2 F2 k2", "N1 N1 F1 k3", "N1 F1 F1 k3", "n1 f1 k2", "N2 N1 F1 k2"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn sweeping_holds() {
    all_hold(&["N1 N1 S1 k2", "F1 F1 S1 k2", "N1 F1 S1 k2", "D2 F1 F1 S1 k0"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn revoking_holds() {
    all_hold(&["R1 N2 k1", "R1 N1 N1 k1", "R1 P1 k1", "R1 P1 N1 k0"]);
}

/// Next to one openlock process, which is assumed to take less than `race_delay`
/// from its last look to its replacing.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn openlock_compat_holds() {
    all_hold(&["C1 C1 O1 k2", "C2 O2 k1", "C2 C1 O1 k1"]);
}

/// A clock that is hours on, at any reading, or stood still over a delay: no
/// process is let in or kept out by that, whatever it found young or old.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn clocks_that_jump_hold() {
    all_hold(&["c1 O1 k1", "c1 C1 O1 k0", "h1 h1 k2", "h1 N1 k2"]);
    for world in ["h1 R1 k1", "c1 O2 k1"] {
        holds(world, &Scenario { only_exclusion: true, ..scenario(world) });
    }
}

/// The same verdicts where no process forgets and every step is a step.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn no_reduction_matters() {
    for world in [
        "N2 N1 k2",
        "F1 F1 k2",
        "F2 F1 k0",
        "N1 F1 k1",
        "L0 N1 N1 k1",
        "L0 F1 F1 k1",
        "U0 N1 N1 k1",
    ] {
        let scenario = Scenario { never_forgets: true, is_stepwise: true, ..scenario(world) };
        holds(&format!("{world}, unreduced"), &scenario);
    }
}

/// Minutes, and gigabytes of memory.
#[test]
#[ignore = "minutes"]
fn larger_worlds_hold() {
    all_hold(&["N2 N2 N2 N2 k3", "N1 N1 N1 N1 N1 k5", "F2 F2 S1 k1", "C1 C1 C1 O1 k1"]);
}

/// `LOCKKEEPER_WORLD` says which processes take part, `LOCKKEEPER_EXPLORE` how: any of the
/// words `unreduced` (no process forgets), `stepwise` (every step is one; not next to
/// openlock) and `exclusion` (look for two holders only). With
/// `--cfg lockkeeper_proof` also `LOCKKEEPER_MUTANT`.
#[test]
#[ignore = "needs LOCKKEEPER_WORLD"]
fn any() {
    let world = std::env::var("LOCKKEEPER_WORLD").expect("LOCKKEEPER_WORLD says who takes part");
    let how = std::env::var("LOCKKEEPER_EXPLORE").unwrap_or_default();
    let (never_forgets, only_exclusion) = (how.contains("unreduced"), how.contains("exclusion"));
    let is_stepwise = how.contains("stepwise");
    holds(&world, &Scenario { never_forgets, is_stepwise, only_exclusion, ..scenario(&world) });
}

#[cfg(lockkeeper_proof)]
mod mutants {
    use super::{Scenario, scenario, show};
    use crate::file::protocol::mutants::{Mutant, with};

    /// Found, in the smallest world that it takes, by a shortest way.
    fn is_found(name: &str, world: &str) {
        let mutant = Mutant::ALL.iter().find(|(known, _)| *known == name).expect("a mutant").1;
        let scenario = Scenario { only_exclusion: true, ..scenario(world) };
        let report = with(mutant, || scenario.explore());
        show(name, &scenario, &report);
        assert!(report.broken.is_some(), "{name} was not found in {world}");
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
    fn every_mutant_is_found() {
        is_found("pin-after-link", "N1 N1 k0");
        is_found("close-before-unlink", "N1 N1 N1 k0");
        is_found("no-inode-check", "N1 N1 N1 N1 k0");
        is_found("take-over-unlocked", "N1 N1 N1 k1");
        is_found("no-second-look", "N1 N1 N1 N1 k1");
        is_found("no-look-after-claim", "F1 F1 F1 k0");
        is_found("claim-removed-first", "F1 F1 F1 k1");
        is_found("dead-claim-unlinked", "F1 F1 F1 F1 k2");
        is_found("sweep-by-path-only", "D2 F1 F1 S1 k0");
        is_found("unlink-unseen", "C1 C1 O1 k0");
        is_found("no-probation", "C1 C1 O1 k0");
        is_found("rename-over", "L0 N1 N1 k0");
        is_found("rename-over", "L0 F1 F1 k0");
        is_found("pin-after-link", "L0 N1 N1 k0");
        is_found("no-look-after-claim", "L0 F1 F1 F1 k0");
        is_found("pin-after-link", "U0 N1 N1 k0");
        is_found("close-before-unlink", "U0 N1 N1 N1 k0");
        is_found("no-inode-check", "U0 N1 N1 N1 N1 k0");
        is_found("take-over-unlocked", "U0 N1 N1 N1 k1");
    }

    /// openlock itself: no kill and no slow process is needed.
    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
    fn two_openlock_processes_both_hold() {
        let scenario = Scenario { only_exclusion: true, ..scenario("O2 O1 k0") };
        let report = scenario.explore();
        show("openlock 1.2.1", &scenario, &report);
        assert!(report.broken.is_some());
    }
}
