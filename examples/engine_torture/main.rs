//! Torture an engine that keeps locks for many machines, and see whether two ever hold the
//! same lock.
//!
//! ```sh
//! cargo run --release --features etcd --example engine_torture -- etcd --minutes 10
//! cargo run --release --features etcd --example engine_torture -- etcd --at h1:2379,h2:2379
//! cargo run --release --features postgres --example engine_torture -- postgres --minutes 10
//! cargo run --release --features postgres --example engine_torture -- postgres \
//!     --at postgres://app@db/app
//! ```
//!
//! Servers run on this machine, each behind a proxy: three members of etcd, or a primary of
//! PostgreSQL and its synchronous standby. Client processes, each with several tasks, acquire,
//! hold, release, drop, time out and cancel. Meanwhile servers and clients are killed (SIGKILL)
//! and stopped (SIGSTOP), for longer than a lease as well, and the proxies delay, stall, reset
//! and cut connections. Of PostgreSQL that is the postmaster, all of its processes or a single
//! session; it is restarted, and the standby is promoted. With `--at` the servers are running
//! ones, and only clients are killed and stopped. It needs `etcd` and `etcdctl`, or the programs
//! of PostgreSQL; those servers need the table (`lockkeeper postgres-schema`).
//!
//! Each client writes down, by a clock that all processes share, when it was told that it
//! holds and when it still held. The moment is taken before the guard is asked, and is
//! written only if the guard says that the lock is not lost. So what is written is what the
//! guards have promised, also where a process is stopped between any two instructions. When
//! all is over that is all that is looked at, and none of it uses this crate:
//!
//! 1. of a lock, no two of these intervals overlap;
//! 2. in their order, the fencing tokens grow;
//! 3. when the tasks of the clients have ended, and leases of killed ones are over, nothing is
//!    left of the locks: no key in etcd, no advisory lock and no row of a holder in PostgreSQL;
//!    when the clients have ended, no key below the prefix and no session of theirs.
//!
//! With `--takeover at_once` (PostgreSQL) a holder that is cut off and the next may overlap, as
//! documented: for less than a lease. Such overlaps are counted apart, and longer ones are
//! faults.
//!
//! With `--break blind` the clients do not ask their guards, and write on. Then the check must
//! find overlaps, or it checks nothing.

// Not each engine needs all of it.
#![cfg_attr(not(all(feature = "etcd", feature = "postgres")), allow(dead_code))]

mod client;
mod conductor;
mod dice;
mod due;
mod engine;
#[cfg(feature = "etcd")]
mod etcd;
mod network;
mod oracle;
#[cfg(feature = "postgres")]
mod postgres;
mod process;
mod proxy;
mod settings;

use std::process::ExitCode;

use settings::Part;

fn main() -> ExitCode {
    match settings::parse(std::env::args().skip(1)) {
        Ok(Part::Client(job)) => job.engine.run_client(&job),
        Ok(Part::Conductor(settings)) => return conductor::run(&settings),
        Ok(Part::Help) => println!("{}", settings::USAGE),
        Err(why) => {
            eprintln!("engine_torture: {why}\n{}", settings::USAGE);
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
