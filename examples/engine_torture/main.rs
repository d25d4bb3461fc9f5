//! Torture the engine that keeps locks for many machines, and see whether two ever hold the
//! same lock.
//!
//! ```sh
//! cargo run --release --features etcd --example engine_torture -- etcd --minutes 10
//! cargo run --release --features etcd --example engine_torture -- etcd --at h1:2379,h2:2379
//! ```
//!
//! Three members of etcd run on this machine, each behind a proxy. Client processes, each
//! with several tasks, acquire, hold, release, drop, time out and cancel. Meanwhile members
//! and clients are killed (SIGKILL) and stopped (SIGSTOP), for longer than a lease as well,
//! and the proxies delay, stall and drop connections. With `--at` the cluster is a running
//! one, and only clients are killed and stopped. It needs `etcd` and `etcdctl`.
//!
//! Each client writes down, by a clock that all processes share, when it was told that it
//! holds and when it still held. The moment is taken before the guard is asked, and is
//! written only if the guard says that the lock is not lost. So what is written is what the
//! guards have promised, also where a process is stopped between any two instructions. When
//! all is over that is all that is looked at, and none of it uses this crate:
//!
//! 1. of a lock, no two of these intervals overlap;
//! 2. in their order, the fencing tokens grow;
//! 3. when the tasks of the clients have ended, and leases of killed ones are over, no key is
//!    left below the locks; when the clients have ended, none below the prefix.
//!
//! With `--break blind` the clients do not ask their guards, and write on. Then the check must
//! find overlaps, or it checks nothing.

mod client;
mod conductor;
mod dice;
mod etcd;
mod oracle;
mod process;
mod proxy;
mod settings;

use std::process::ExitCode;

use settings::Part;

fn main() -> ExitCode {
    match settings::parse(std::env::args().skip(1)) {
        Ok(Part::Client(job)) => client::run(&job),
        Ok(Part::Conductor(settings)) => return conductor::run(&settings),
        Ok(Part::Help) => println!("{}", settings::USAGE),
        Err(why) => {
            eprintln!("engine_torture: {why}\n{}", settings::USAGE);
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
