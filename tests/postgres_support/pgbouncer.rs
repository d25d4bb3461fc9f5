//! PgBouncer before a server.

use std::net::SocketAddr;
use std::process::Child;

use tokio_postgres::Config;

use super::home::Home;
use super::programs::programs;
use super::server::{PASSWORD, ROLE, Server, config};
use super::session::Session;
use crate::server_support::Claim;
use crate::support::eventually;

/// When a client's session of the server goes back into the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// When the client leaves.
    Session,
    /// After each transaction.
    Transaction,
    /// After each statement; transactions of several are refused.
    Statement,
}

/// PgBouncer in a process of its own, with the users and passwords of its server.
pub struct PgBouncer {
    claim: Claim,
    process: Child,
    home: Home,
}

impl PgBouncer {
    /// With the settings that PgBouncer has by itself.
    #[track_caller]
    pub fn start(pooling: Pooling, server: &Server) -> Self {
        Self::start_with(pooling, server, &[])
    }

    /// With more settings, each as `key = value`.
    #[track_caller]
    pub fn start_with(pooling: Pooling, server: &Server, settings: &[&str]) -> Self {
        let (home, claim) = (Home::new(), Claim::new());
        // It asks the server for the passwords of all others.
        home.write("users", "\"postgres\" \"\"\n");
        let mode = format!("{pooling:?}").to_lowercase();
        let (sockets, port) = (server.sockets().display(), server.address().port());
        let (address, own) = (claim.at(0), settings.join("\n"));
        let (host, listen, users) = (address.ip(), address.port(), home.path().join("users"));
        let settings = home.write(
            "settings.ini",
            &format!(
                "[databases]\n* = host={sockets} port={port}\n\
                 [pgbouncer]\nlisten_addr = {host}\nlisten_port = {listen}\nunix_socket_dir =\n\
                 auth_type = scram-sha-256\nauth_user = postgres\nauth_file = {}\n\
                 admin_users = postgres\npool_mode = {mode}\n{own}\n",
                users.display()
            ),
        );
        let mut command = home.command("pgbouncer", &programs().pgbouncer());
        let log = std::fs::File::create(home.path().join("log")).expect("a log");
        command.arg(settings).stdout(log.try_clone().expect("a copy")).stderr(log);
        let mut started = Self { claim, process: command.spawn().expect("pgbouncer"), home };
        eventually("PgBouncer serves", || {
            let ended = started.process.try_wait().expect("its status");
            assert!(ended.is_none(), "PgBouncer ended: {ended:?}\n{}", started.log());
            Session::open(&started.config()).is_ok_and(|session| session.query("select 1").is_ok())
        });
        started
    }

    pub fn address(&self) -> SocketAddr {
        self.claim.at(0)
    }

    /// How [`ROLE`] connects through it.
    pub fn config(&self) -> Config {
        config(self.address(), ROLE, PASSWORD)
    }

    /// All that it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- PgBouncer wrote:\n{}", self.log());
        }
        let _ = (self.process.kill(), self.process.wait());
    }
}
