//! Locks of etcd beside the bare requests that they are made of, in one run.
//!
//! ```sh
//! cargo bench --features etcd --bench etcd                    # all rows
//! cargo bench --features etcd --bench etcd -- pair hand-over  # some
//! ```
//!
//! One member is started for each row, with its data on tmpfs, and for rows that write once
//! more on the disk of `target`. `ENGINE_SECONDS` (1) is the length of one turn, `ENGINE_TURNS`
//! (5) how often each has its turn. Compare ratios: times depend on the machine.

mod bare;
#[path = "../engines/cost.rs"]
mod cost;
mod crowd;
#[path = "../engines/figures.rs"]
mod figures;
mod hand_over;
mod pair;
mod rates;
mod recovery;
#[path = "../engines/role.rs"]
mod role;
mod server;
#[path = "../engines/settings.rs"]
mod settings;
/// The messages are those of the engine.
#[allow(dead_code, reason = "the bench needs some of the messages")]
#[path = "../../src/etcd/wire.rs"]
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use server::Member;

const TMPFS: &str = "/dev/shm";

const ROWS: [(&str, fn()); 6] = [
    ("pair", pair),
    ("hand-over", hand_over),
    ("rates", rates),
    ("one-lock", one_lock),
    ("crowd", crowd),
    ("recovery", recovery),
];

fn main() {
    if let Some(role) = role::mine() {
        return play(&role);
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|name| name != "--bench").collect();
    for name in &asked {
        assert!(
            ROWS.iter().any(|(row, _)| row == name),
            "no row {name}: {:?}",
            ROWS.map(|it| it.0)
        );
    }
    for (name, run) in ROWS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            run();
        }
    }
}

/// Be one of several processes of a row.
fn play(role: &str) {
    let parts: Vec<&str> = role.split(' ').collect();
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        match parts[..] {
            ["hand-over", at, _, turn] => hand_over::holder(address(at), turn).await,
            ["bare-hand-over", at, number, turn] => {
                hand_over::watcher(address(at), number.parse().expect("a number"), turn).await;
            }
            ["one-lock", at, name] => rates::one_of_many(address(at), name).await,
            ["recovery", at, ttl, name] => {
                recovery::hold(address(at), ttl.parse().expect("seconds"), name).await;
            }
            [role, at] => crowd::one_of_them(at, role).await,
            ["bare-pairs", at, name] => pair::bare_in_a_process(address(at), name).await,
            ["pairs", at, name] => pair::in_a_process(address(at), name).await,
            _ => panic!("no role {role}"),
        }
    });
}

fn on_disk() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()
}

fn pair() {
    pair::run(Member::start(Path::new(TMPFS)).address, "tmpfs");
    pair::run(Member::start(&on_disk()).address, "disk");
}

fn hand_over() {
    hand_over::run(Member::start(Path::new(TMPFS)).address, "tmpfs");
}

fn rates() {
    rates::run(Member::start(Path::new(TMPFS)).address, "tmpfs");
    rates::run(Member::start(&on_disk()).address, "disk");
}

fn one_lock() {
    rates::one_lock(Member::start(Path::new(TMPFS)).address, "tmpfs");
    rates::one_lock(Member::start(&on_disk()).address, "disk");
}

fn crowd() {
    crowd::run(&Member::start(Path::new(TMPFS)));
}

fn recovery() {
    recovery::run(Member::start(Path::new(TMPFS)).address);
}
