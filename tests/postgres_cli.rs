//! The command with locks that PostgreSQL keeps.

mod cli_support;
mod postgres_locks;
mod postgres_support;
mod server_support;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use cli_support::{STAY, code, lockkeeper, output, stderr, stdout, text};
use lockkeeper::AsyncPostgresLock;
use postgres_locks::{grant, of_lock, stand};
use postgres_support::{PASSWORD, ROLE, Server, is_there};
use serde_json::Value;
use support::{Process, eventually, on_tmpfs};
use tempfile::TempDir;

/// A server with the table, and where its role's password is.
struct Ground {
    server: Server,
    directory: TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = on_tmpfs();
        let this = Self { server: postgres_locks::server(), directory };
        std::fs::write(this.passwords(), format!("*:*:*:{ROLE}:{PASSWORD}\n")).unwrap();
        std::fs::set_permissions(this.passwords(), PermissionsExt::from_mode(0o600)).unwrap();
        this
    }

    fn passwords(&self) -> PathBuf {
        self.directory.path().join("pgpass")
    }

    fn url(&self, query: &str) -> String {
        format!("postgres://{ROLE}@{}/postgres?reconnect=10s{query}", self.server.address())
    }

    /// The lock `import`, to look at from outside.
    fn lock(&self) -> AsyncPostgresLock {
        AsyncPostgresLock::new(postgres_locks::text(self.server.address()), "import").unwrap()
    }

    /// The command, without what the environment of the tests says of PostgreSQL.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = lockkeeper();
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("PGPASSFILE", self.passwords()).args(arguments);
        command
    }

    fn run(&self, url: &str, flags: &[&str], script: &str) -> Command {
        let mut command = self.command(&["run", "--at", url]);
        command.args(flags).args(["import", "--", "sh", "-c", script]);
        command
    }

    /// `lockkeeper run`, once it holds the lock, until its standard input is closed. Its session
    /// is not probed for long.
    fn holder(&self, flags: &[&str]) -> Process {
        let holder = Process::start(self.run(&self.url("&lease=1h"), flags, STAY));
        holder.expect("inside");
        holder
    }

    fn status(&self, names: &[&str]) -> (Option<i32>, Value) {
        let mut command = self.command(&["status", "--json", "--at", &self.url("")]);
        let shown = output(command.args(names));
        (shown.status.code(), serde_json::from_slice(&shown.stdout).expect("JSON"))
    }

    /// `lockkeeper break`, and its exit code with what it says.
    fn broken(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.command(&["break", "--at", &self.url("")]);
        let broken = output(command.args(arguments).arg("import"));
        (broken.status.code(), stdout(&broken) + &stderr(&broken))
    }

    /// The server's process that holds the lock.
    fn session(&self) -> String {
        self.server
            .value(&format!("select pid from pg_locks where granted and {}", of_lock(&self.lock())))
    }
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    for word in words {
        assert!(text.contains(word), "{text} lacks {word}");
    }
}

#[test]
fn run_holds_the_lock_and_tells_its_command_of_it() {
    if !is_there() {
        return;
    }
    let ground = Ground::new();
    let script = format!(
        "echo \"@$LOCKKEEPER_RESOURCE $LOCKKEEPER_SERVER $LOCKKEEPER_HOLD_ID \
         $LOCKKEEPER_FENCING_TOKEN ${{LOCKKEEPER_PATH-none}}\"; {STAY}"
    );
    let mut holder = Process::start(ground.run(&ground.url(""), &["--note", "nightly"], &script));
    let line = holder.next();
    let words: Vec<&str> = line.split(' ').collect();
    holder.expect("inside");
    assert_eq!(words[0], "import");
    assert_eq!(words[1], format!("postgres://{ROLE}@{}/postgres", ground.server.address()));
    assert_eq!(words[2], ground.server.value("select owner from lockkeeper.lock"));
    let counter: u64 = ground.server.value("select counter from lockkeeper.lock").parse().unwrap();
    assert_eq!(words[3].parse::<u64>().unwrap() & 0xff_ffff_ffff, counter, "{line}");
    assert_eq!(words[4], "none");
    let (code, shown) = ground.status(&["import"]);
    assert_eq!((code, shown[0]["state"].as_str()), (Some(1), Some("held")), "{shown}");
    assert_eq!(shown[0]["resource"], "import");
    assert_eq!(shown[0]["name"], "sh", "the name of CMD");
    assert_eq!(shown[0]["note"], "nightly");
    assert_eq!(shown[0]["hold_id"], words[2]);
    assert_eq!(shown[0]["session"].to_string(), ground.session());
    assert!(holder.wait().success());
    stand(&ground.server, &ground.lock(), 0, 0);
    assert_eq!(ground.status(&["import"]).0, Some(0));
}

#[test]
fn run_waits_for_psql_and_status_shows_both() {
    if !is_there() {
        return;
    }
    let ground = Ground::new();
    let lock = ground.lock();
    let psql = ground.server.session();
    psql.query(&format!("select pg_advisory_lock({})", lock.key())).unwrap();
    assert_eq!(code(&mut ground.run(&ground.url(""), &["-nq"], "true")), 73);
    let log = ground.directory.path().join("log");
    let mut waiting = ground.run(&ground.url(""), &["--note", "second"], STAY);
    waiting.stderr(std::fs::File::create(&log).unwrap());
    let mut ours = Process::start(waiting);
    stand(&ground.server, &lock, 1, 1);
    eventually("it says for whom it waits", || text(&log).contains("the session "));
    let (code, shown) = ground.status(&["import", "export"]);
    assert_eq!(code, Some(1));
    assert_eq!(shown[0]["session"].to_string(), ground.session());
    assert_eq!(shown[0]["waiters"].as_array().map(Vec::len), Some(1), "{shown}");
    let waiter = &shown[0]["waiters"][0];
    let name = waiter["name"].as_str().unwrap();
    assert!(name.contains(&format!("(lockkeeper: sh (pid {} on ", ours.id())), "{shown}");
    assert!(waiter["since"].is_string(), "{shown}");
    assert_eq!((&shown[1]["state"], &shown[1]["session"]), (&"free".into(), &Value::Null));
    let mut command = ground.command(&["status", "--at", &ground.url(""), "import"]);
    let printed = stdout(&output(&mut command));
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].contains("\"import\" at postgres://"), "{printed}");
    assert!(lines[0].contains(&format!("; session {})", ground.session())), "{printed}");
    assert!(lines[1].starts_with("  then the session "), "{printed}");
    ours.expect_quiet();
    psql.query(&format!("select pg_advisory_unlock({})", lock.key())).unwrap();
    ours.expect("inside");
    assert!(ours.wait().success());
}

#[test]
fn break_ends_the_session_that_is_named_and_says_what_else_it_did() {
    if !is_there() {
        return;
    }
    let ground = Ground::new();
    let lock = ground.lock();
    assert_eq!(ground.broken(&["--force", "7"]).0, Some(0), "it is free");
    let mut ended = ground.holder(&["-q"]);
    let next = Process::start(ground.run(&ground.url("&takeover=at_once"), &["-q"], STAY));
    stand(&ground.server, &lock, 1, 1);
    let (code, said) = ground.broken(&["--force", "7"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("--force {}", ground.session())), "{said}");
    stand(&ground.server, &lock, 1, 1);
    let (code, said) = ground.broken(&["--force", &ground.session()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("of sh (pid ") && said.contains("it did nothing else"), "{said}");
    next.expect("inside");
    assert_eq!(ended.wait().code(), Some(74), "its CMD was ended");
    drop(next);
    stand(&ground.server, &lock, 0, 0);

    let other = postgres_support::Session::open(&ground.server.config()).expect("a session");
    other.query(&format!("select pg_advisory_lock({}), pg_advisory_lock(7)", lock.key())).unwrap();
    other.query("begin").unwrap();
    other.query("create temp table half_done ()").unwrap();
    let (code, said) = ground.broken(&["--force", &ground.session()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("other advisory locks that it held: 1"), "{said}");
    assert!(said.contains("rolled back: create temp table half_done"), "{said}");
    stand(&ground.server, &lock, 0, 0);

    // As a session of lockkeeper's is while it is probed.
    let probed = postgres_support::Session::open(&ground.server.config()).expect("a session");
    probed.query(&format!("select pg_advisory_lock({})", lock.key())).unwrap();
    let _probe = probed.start("select pg_sleep(3600), 'lockkeeper.session'");
    let sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    ground.server.wait_for(sleeping, "1");
    let (code, said) = ground.broken(&["--force", &ground.session()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("it did nothing else"), "{said}");
    stand(&ground.server, &lock, 0, 0);

    // A role that may end another's session, and may not see what it does.
    ground.server.create_role("other", "secret");
    ground.server.sql(&format!("grant pg_signal_backend to {ROLE}"));
    let hidden = ground.server.config_of("other", "secret");
    let hidden = postgres_support::Session::open(&hidden).expect("a session");
    hidden.query(&format!("select pg_advisory_lock({})", lock.key())).unwrap();
    let (code, said) = ground.broken(&["--force", &ground.session()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("not shown to this role") && !said.contains("nothing else"), "{said}");
}

#[test]
fn break_needs_the_right_to_end_the_session() {
    if !is_there() {
        return;
    }
    let ground = Ground::new();
    let of_superuser = ground.server.superuser().expect("a session");
    of_superuser.query(&format!("select pg_advisory_lock({})", ground.lock().key())).unwrap();
    let (code, said) = ground.broken(&["--force", &ground.session()]);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("import") && said.contains("superuser"), "{said}");
    for (arguments, word) in [
        (&["--revoke"][..], "--force PID"),
        (&[], "--force PID"),
        (&["--force", "soon"], "status shows it"),
        (&["--force", "0"], "status shows it"),
    ] {
        let (code, said) = ground.broken(arguments);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn the_schema_is_what_a_database_needs_and_its_absence_says_so() {
    if !is_there() {
        return;
    }
    let (server, directory) = (Server::start(), on_tmpfs());
    let ground = Ground { server, directory };
    std::fs::write(ground.passwords(), format!("*:*:*:{ROLE}:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(ground.passwords(), PermissionsExt::from_mode(0o600)).unwrap();
    let url = ground.url("");
    refused(
        &output(&mut ground.run(&url, &[], "true")),
        69,
        &["\"import\" at postgres://", "postgres-schema", "table=none"],
    );
    let bare = output(&mut ground.run(&ground.url("&table=none"), &[], "echo done"));
    assert_eq!(stdout(&bare), "done\n", "{bare:?}");
    let printed = stdout(&output(&mut ground.command(&["postgres-schema"])));
    ground.server.sql(&printed);
    refused(&output(&mut ground.run(&url, &[], "true")), 69, &["permission denied"]);
    grant(&ground.server, ROLE);
    let ran = output(&mut ground.run(&url, &[], "echo done"));
    assert_eq!(stdout(&ran), "done\n", "{ran:?}");
}

#[test]
fn the_environment_names_the_place_as_for_psql() {
    if !is_there() {
        return;
    }
    let ground = Ground::new();
    let address = ground.server.address();
    let mut command = ground.command(&["run", "import", "--", "echo", "done"]);
    command.env("LOCKKEEPER_AT", "postgres:///").envs([
        ("PGHOST", address.ip().to_string()),
        ("PGPORT", address.port().to_string()),
        ("PGUSER", ROLE.to_owned()),
        ("PGDATABASE", "postgres".to_owned()),
    ]);
    let ran = output(&mut command);
    assert_eq!(stdout(&ran), "done\n", "{ran:?}");
}

#[test]
fn a_server_that_cannot_be_reached_is_no_held_lock() {
    if !is_there() {
        return;
    }
    let ground = Ground::new();
    let url = "postgres://app@127.0.0.1:1/app?reconnect=0";
    refused(&output(&mut ground.run(url, &[], "true")), 69, &["import", "127.0.0.1:1", "reached"]);
    refused(&output(&mut ground.command(&["status", "--at", url, "import"])), 69, &["reached"]);
    std::fs::write(ground.passwords(), format!("*:*:*:{ROLE}:hunter2\n")).unwrap();
    let ran = output(&mut ground.run(&ground.url(""), &[], "true"));
    refused(&ran, 69, &["import", "password authentication failed"]);
    assert!(!stderr(&ran).contains("hunter2"), "{ran:?}");
    let mut secret = ground.url("").replacen(ROLE, &format!("{ROLE}:hunter2"), 1);
    secret.push_str("&table=none");
    let ran = output(&mut ground.run(&secret, &[], "true"));
    refused(&ran, 64, &["password"]);
    assert!(!stderr(&ran).contains("hunter2"), "{ran:?}");
}
