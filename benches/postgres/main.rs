//! Locks of PostgreSQL beside the bare statements that they are made of, in one run.
//!
//! ```sh
//! tests/setup.sh                                                      # PostgreSQL, once
//! cargo bench --features postgres --bench postgres                    # all rows
//! cargo bench --features postgres --bench postgres -- pair hand-over  # some
//! ```
//!
//! A server is started for each row, with its data on tmpfs, and for rows that commit once
//! more on the disk of `target`. `ENGINE_SECONDS` (1) is the length of one turn,
//! `ENGINE_TURNS` (5) how often each has its turn. Compare ratios: times depend on the machine.

mod bare;
#[path = "../engines/cost.rs"]
mod cost;
mod crowd;
#[path = "../engines/figures.rs"]
mod figures;
mod hand_over;
mod pair;
#[path = "../../tests/postgres_support/mod.rs"]
mod postgres_support;
mod rates;
mod recovery;
#[path = "../engines/role.rs"]
mod role;
#[path = "../../tests/server_support/mod.rs"]
mod server_support;
#[path = "../engines/settings.rs"]
mod settings;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;

use lockkeeper::PostgresLocks;
use postgres_support::{PASSWORD, ROLE, Server};

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
    if !postgres_support::is_there() {
        return;
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
            ["bare-hand-over", at, _, turn] => hand_over::bare(address(at), turn).await,
            ["one-lock", at, name] => rates::one_of_many(address(at), name).await,
            ["recovery", at, takeover, name] => {
                recovery::hold(address(at), takeover, name).await;
            }
            [role, at] => crowd::one_of_them(address(at), role).await,
            _ => panic!("no role {role}"),
        }
    });
}

/// How clients reach it.
fn text(address: SocketAddr) -> String {
    let (host, port) = (address.ip(), address.port());
    format!("host={host} port={port} user={ROLE} password='{PASSWORD}' dbname=postgres")
}

/// With the table, and one for bare commits.
fn server(is_on_disk: bool) -> Server {
    let builder = Server::builder().max_connections(600);
    let server = if is_on_disk { builder.on_disk() } else { builder }.start();
    server.sql(PostgresLocks::SCHEMA);
    server.sql(&format!(
        "GRANT USAGE ON SCHEMA lockkeeper TO {ROLE}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA lockkeeper TO {ROLE}; \
         CREATE TABLE bare (key bigint PRIMARY KEY, counter bigint NOT NULL, text text) \
             WITH (fillfactor = 50); \
         GRANT SELECT, INSERT, UPDATE, DELETE ON bare TO {ROLE}"
    ));
    server
}

fn pair() {
    pair::run(server(false).address(), "tmpfs");
    pair::run(server(true).address(), "disk");
}

fn hand_over() {
    hand_over::run(server(false).address(), "tmpfs");
}

fn rates() {
    rates::run(server(false).address(), "tmpfs");
    rates::run(server(true).address(), "disk");
}

fn one_lock() {
    rates::one_lock(server(false).address(), "tmpfs");
    rates::one_lock(server(true).address(), "disk");
}

fn crowd() {
    crowd::run(&server(false));
}

fn recovery() {
    recovery::run(server(false).address());
}
