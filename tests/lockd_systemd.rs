//! The daemon under systemd: it says when it is ready, takes its socket over, and its
//! units are what systemd takes. systemd itself need not run.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
mod serve_support;
mod server_support;

// What `cli_support` calls so.
use lockd_support::support;

use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};

use cli_support::lockkeeper;
use lockd_support::{Client, with_last_words};
use rustix::process::Signal;
use serde_json::json;
use serve_support::{Serve, let_read, make_unread, token, write_tokens};
use server_support::Claim;
use support::{QUIET, VERY_LONG, eventually, on_tmpfs};

const ACTIVATE: &str = "systemd-socket-activate";

/// What systemd listens at.
struct Told(UnixDatagram);

impl Told {
    fn at(address: &UnixAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).expect("a socket");
        socket.set_read_timeout(Some(VERY_LONG)).expect("a setting");
        Self(socket)
    }

    /// The next word, as lines.
    #[track_caller]
    fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).expect("a word");
        let text = std::str::from_utf8(&bytes[..length]).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    fn has_none(&self) -> bool {
        self.0.set_read_timeout(Some(QUIET)).expect("a setting");
        self.0.recv(&mut [0; 16]).is_err()
    }
}

fn command(notify: &str) -> Command {
    let mut command = lockkeeper();
    command.env("NOTIFY_SOCKET", notify);
    command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0"]);
    command
}

#[test]
fn systemd_is_told_when_it_is_ready_reloads_and_stops() {
    let home = on_tmpfs();
    let path = home.path().join("notify");
    let name = format!("lockkeeper-test-{}", std::process::id());
    for (address, shown) in [
        (UnixAddr::from_pathname(&path).unwrap(), path.display().to_string()),
        (UnixAddr::from_abstract_name(&name).unwrap(), format!("@{name}")),
    ] {
        let told = Told::at(&address);
        let mut daemon = Serve::run(command(&shown), on_tmpfs());
        let ready = told.next();
        assert_eq!(ready[0], "READY=1");
        assert!(ready[1].starts_with("STATUS=") && ready[1].contains(&daemon.url), "{ready:?}");
        assert_eq!(daemon.acquire("r", "c", "").status, 200);

        daemon.signal(Signal::HUP);
        let reloading = told.next();
        assert_eq!(reloading[0], "RELOADING=1");
        let at = reloading[1].strip_prefix("MONOTONIC_USEC=").expect("a time");
        assert!(at.parse::<u64>().expect("a number") > 0);
        assert_eq!(told.next()[0], "READY=1");

        daemon.signal(Signal::TERM);
        assert_eq!(told.next()[0], "STOPPING=1");
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn it_is_not_ready_before_it_has_its_directory() {
    let home = on_tmpfs();
    let path = home.path().join("notify");
    let told = Told::at(&UnixAddr::from_pathname(&path).unwrap());
    let first = Serve::start(&[]);
    let locks = first.log_file().with_file_name("locks");
    let mut second = command(&path.display().to_string());
    let output = second.arg("--dir").arg(locks).output().expect("it runs");
    assert_eq!(output.status.code(), Some(73));
    assert!(told.has_none());
}

#[test]
fn a_socket_of_systemd_that_is_not_there_stops_nothing() {
    let mut daemon = Serve::run(command("/nowhere/notify"), on_tmpfs());
    daemon.expect_log("systemd could not be told so");
    assert_eq!(daemon.acquire("r", "c", "").status, 200);
    assert_eq!(daemon.stop().code(), Some(0));
}

/// Which no other program takes until this one ends.
fn free_address() -> SocketAddr {
    Box::leak(Box::new(Claim::new())).at(0)
}

/// systemd's own program listens at these addresses, and starts the daemon with the
/// first connection.
fn activated(addresses: &[SocketAddr]) -> Command {
    let mut command = Command::new(ACTIVATE);
    for address in addresses {
        command.args(["--listen", &address.to_string()]);
    }
    command.arg(env!("CARGO_BIN_EXE_lockkeeper")).args(["serve", "--no-sync"]);
    command
}

/// A connection, as soon as a process listens there.
fn first_connection(address: SocketAddr) -> std::thread::JoinHandle<TcpStream> {
    std::thread::spawn(move || {
        let deadline = std::time::Instant::now() + VERY_LONG;
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => return stream,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    })
}

#[test]
fn the_socket_of_systemd_is_taken_over_with_what_waits_there() {
    let address = free_address();
    let connecting = first_connection(address);
    let mut daemon = Serve::run(activated(&[address]), on_tmpfs());
    assert_eq!(daemon.address, address);
    // The connection that started it is answered.
    let mut client = Client::over(connecting.join().expect("a connection"));
    client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.answer().text(), "ok\n");
    assert_eq!(daemon.acquire("r", "c", "").status, 200);
    assert_eq!(daemon.stop().code(), Some(0));
}

/// How a daemon ends that was started so, and what it says.
fn refused(command: Command, address: SocketAddr) -> (Option<i32>, String) {
    let home = on_tmpfs();
    // One that serves ends too.
    let mut limited = Command::new("timeout");
    limited.arg(VERY_LONG.as_secs().to_string()).arg(command.get_program());
    limited.args(command.get_args()).arg("--dir").arg(home.path()).stdin(Stdio::null());
    let mut command = limited;
    with_last_words(|| {
        let connecting = first_connection(address);
        let output = command.output().expect("systemd: run tests/setup.sh");
        drop(connecting.join());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("lockkeeper: ") { Ok((output.status.code(), said)) } else { Err(said) }
    })
}

#[test]
fn sockets_that_cannot_be_served_are_refused() {
    let one = free_address();
    let mut both = activated(&[one]);
    both.args(["--listen", "127.0.0.1:0"]);
    let (code, said) = refused(both, one);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("leave --listen out"), "{said}");

    let two = [free_address(), free_address()];
    let (code, said) = refused(activated(&two), two[0]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("passed 2 sockets") && said.contains("one ListenStream"), "{said}");
}

/// Strangers may reach it: whether they may is asked of the socket's own address.
#[test]
fn a_socket_that_others_reach_needs_what_others_need() {
    let here = free_address();
    let everywhere = SocketAddr::from(([0, 0, 0, 0], here.port()));
    let (code, said) = refused(activated(&[everywhere]), here);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("can be reached from other machines"), "{said}");
}

#[test]
fn a_socket_that_was_passed_to_another_process_is_none() {
    let mut command = lockkeeper();
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0"]);
    let daemon = Serve::run(command, on_tmpfs());
    assert_eq!(daemon.acquire("r", "c", "").status, 200);
}

fn analyze(arguments: &[&str], units: &[&Path]) -> String {
    let output = Command::new("systemd-analyze").args(arguments).args(units).output();
    let output = output.expect("systemd: run tests/setup.sh");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_units_are_what_systemd_takes() {
    let home = on_tmpfs();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd");
    let [service, socket] = ["lockkeeper.service", "lockkeeper.socket"].map(|name| {
        let text = std::fs::read_to_string(from.join(name)).expect("a unit");
        // Where it is installed.
        let text = text.replace("/usr/bin/lockkeeper", env!("CARGO_BIN_EXE_lockkeeper"));
        let unit = home.path().join(name);
        std::fs::write(&unit, text).expect("a file");
        unit
    });
    let said = analyze(&["verify", "--man=no"], &[&service, &socket]);
    assert!(!said.contains("lockkeeper."), "{said}");
    // Of 100; a service without hardening has 96.
    let text = std::fs::read_to_string(&service).expect("a unit");
    assert!(text.contains("\nLogRateLimitIntervalSec=0\n"), "{text}");
    analyze(&["security", "--offline=yes", "--threshold=20"], &[&service]);
}

/// Files that are read again until after its end has begun.
#[test]
fn it_is_not_ready_again_after_it_stops() {
    let home = on_tmpfs();
    let [path, file] = ["notify", "tokens.json"].map(|name| home.path().join(name));
    let told = Told::at(&UnixAddr::from_pathname(&path).unwrap());
    let (web, sha256) = token();
    let line = json!({ "name": "web", "sha256": sha256, "clients": ["*"] });
    write_tokens(&file, std::slice::from_ref(&line));
    let mut command = command(&path.display().to_string());
    command.arg("--tokens").arg(&file);
    let mut daemon = Serve::run(command, on_tmpfs());
    assert_eq!(told.next()[0], "READY=1");
    make_unread(&file);
    daemon.signal(Signal::HUP);
    assert_eq!(told.next()[0], "RELOADING=1");
    // While this is being read it does not end.
    let body = r#"{"client":"c","resource":"r"}"#;
    let mut slow = Client::connect(daemon.address);
    slow.send(format!(
        "POST /v1/acquire HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {web}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    ));
    slow.read_until("100 Continue\r\n\r\n");
    daemon.signal(Signal::TERM);
    assert_eq!(told.next()[0], "STOPPING=1");
    let_read(&file, &[line]);
    eventually("they were read", || daemon.threads("lockkeeper-relo") == 0);
    daemon.expect_log("tokens read again");
    slow.send(body);
    assert_eq!(slow.answer().status, 200);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(told.has_none());
}
