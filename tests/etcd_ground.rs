//! The ground that the tests of locks in etcd stand on: clusters that start, lose members and
//! come back, and a network that fails as it is told.

mod etcd_support;
mod server_support;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use etcd_support::{Cluster, Proxy, Tls, To, Version, is_there};
use support::{HOUR, Process, QUIET, VERY_LONG, eventually, role, tell};

#[test]
fn one_member_starts_and_says_what_it_keeps() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    cluster.etcdctl(&["put", "a/later", "with \"quotes\" and ü"]);
    let lease = cluster.etcdctl(&["lease", "grant", "600"]);
    let lease = lease.split(' ').nth(1).expect("an id");
    cluster.etcdctl(&["put", "a/first", "", "--lease", lease]);
    cluster.etcdctl(&["put", "b", ""]);
    let keys = cluster.keys("a/");
    let names: Vec<&str> = keys.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(names, ["a/later", "a/first"], "in the order of creation");
    assert_eq!(keys[0].value, "with \"quotes\" and ü");
    assert_eq!((keys[0].lease, keys[0].create_revision), (0, 2));
    assert_eq!(format!("{:016x}", keys[1].lease), lease);
    assert!(cluster.metric(0, "etcd_server_proposals_applied_total", "") > 0.0);
    assert_eq!(cluster.leader(), 0);
}

#[test]
fn of_three_members_a_new_one_leads_when_the_leader_is_killed() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::builder(3).fast_elections().start();
    cluster.etcdctl(&["put", "a", "before"]);
    let first = cluster.leader();
    cluster.kill(first);
    let second = cluster.leader();
    assert_ne!(first, second);
    eventually("it is written again", || cluster.try_etcdctl(&["put", "a", "after"]).is_ok());
    // Until it serves reads.
    cluster.restart(first);
    assert_eq!(cluster.keys("a")[0].value, "after");
}

#[test]
fn a_leader_that_is_stopped_is_replaced_and_comes_back_as_a_follower() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(3);
    let first = cluster.leader();
    cluster.stop(first);
    let second = cluster.leader();
    assert_ne!(first, second);
    cluster.resume(first);
    eventually("it hears of the new leader", || {
        cluster.status(first).is_some_and(|status| status.leader != status.member)
    });
}

#[test]
fn a_member_that_is_cut_off_answers_no_linearizable_read_and_then_does_again() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(3).partitions().start();
    cluster.etcdctl(&["put", "a", "before"]);
    let cut = cluster.leader();
    eventually("it has what was stored", || cluster.reads(cut).is_ok());
    cluster.partition(cut);
    let other = cluster.next_leader(cut);
    cluster.etcdctl(&["--endpoints", &cluster.endpoint(other), "put", "a", "after"]);
    std::thread::sleep(QUIET);
    let endpoint = cluster.endpoint(cut);
    let stored = || {
        let get = ["get", "--consistency=s", "--print-value-only", "a"];
        cluster.etcdctl(&[&["--endpoints", &endpoint][..], &get].concat())
    };
    assert_eq!(stored(), "before\n", "its clients still reach it");
    eventually("it has no leader", || cluster.status(cut).is_some_and(|status| status.leader == 0));
    assert!(cluster.reads(cut).is_err());
    cluster.heal();
    eventually("it can read", || cluster.reads(cut).is_ok());
    assert_eq!(stored(), "after\n");
}

#[test]
fn two_clusters_at_a_time_do_not_meet() {
    if !is_there(Version::V3_4) {
        return;
    }
    let [one, other] = [Cluster::start(1), Cluster::start(1)];
    one.etcdctl(&["put", "a", "1"]);
    assert_eq!(other.keys("a"), []);
    assert_ne!(one.endpoints(), other.endpoints());
}

#[test]
fn etcd_3_5_serves_three_members() {
    if !is_there(Version::V3_5) {
        return;
    }
    let cluster = Cluster::builder(3).version(Version::V3_5).start();
    assert!(cluster.etcdctl(&["version"]).contains("3.5."));
    cluster.etcdctl(&["put", "a", "1"]);
    assert_eq!(cluster.keys("a").len(), 1);
    assert!(cluster.metrics(0).contains("server_version=\"3.5."));
}

#[test]
fn an_etcd_that_is_too_old_serves_too() {
    if !is_there(Version::V3_3) {
        return;
    }
    let cluster = Cluster::builder(1).version(Version::V3_3).start();
    assert!(cluster.etcdctl(&["version"]).contains("3.3."));
    assert_eq!(cluster.leader(), 0);
}

#[test]
fn a_certificate_is_asked_for_and_shown_directly_and_through_a_proxy() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(1).tls(Tls::Mutual).start();
    let proxy = cluster.proxy(0);
    let endpoint = proxy.endpoint();
    cluster.etcdctl(&["--endpoints", &endpoint, "put", "a", "1"]);
    assert!(proxy.bytes(To::Server) > 0 && proxy.bytes(To::Client) > 0);
    let health = |more: &[&str]| {
        let files = cluster.certificates();
        let mut curl = std::process::Command::new("curl");
        curl.arg("-sS").arg("--cacert").arg(&files.ca).args(more);
        curl.arg(format!("https://{endpoint}/health")).output().expect("curl").status.success()
    };
    let files = cluster.certificates();
    let [certificate, key] =
        [&files.client, &files.client_key].map(|path| path.to_str().expect("a path"));
    assert!(health(&["--cert", certificate, "--key", key]));
    assert!(!health(&[]), "without a certificate");
}

#[test]
fn a_user_may_only_use_the_prefix() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.enable_auth("jobs/", "worker", "secret");
    cluster.etcdctl(&["put", "others/a", ""]);
    let worker = |key: &str, password: &str| {
        let mut command = cluster.etcdctl_command(&["put", key, ""]);
        let output = command.args(["--user", &format!("worker:{password}")]).output();
        let output = output.expect("etcdctl");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(worker("jobs/a", "secret").0);
    assert!(worker("others/a", "secret").1.contains("permission denied"));
    assert!(worker("jobs/a", "wrong").1.contains("authentication failed"));
}

#[test]
fn a_full_database_refuses_to_write() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(1).quota(64 * 1024).start();
    let much = "x".repeat(40_000);
    eventually("it is full", || {
        let put = cluster.try_etcdctl(&["put", "a", &much]);
        put.is_err_and(|error| error.contains("database space exceeded"))
    });
    assert!(cluster.try_etcdctl(&["del", "a"]).is_ok());
}

#[test]
fn a_restored_snapshot_has_the_old_revisions_and_a_new_cluster_only_if_asked() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(3);
    let id = |cluster: &Cluster| {
        let said = cluster.etcdctl(&["get", "a", "-w=json"]);
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        said["header"]["cluster_id"].as_u64().expect("an id")
    };
    cluster.etcdctl(&["put", "a", "stored"]);
    let stored = cluster.keys("a");
    let snapshot = cluster.snapshot("snapshot");
    cluster.etcdctl(&["put", "a", "later"]);
    let before = id(&cluster);
    assert_eq!(cluster.keys("a")[0].value, "later");
    cluster.restore(&snapshot, None);
    assert_eq!(cluster.keys("a"), stored);
    assert_eq!(id(&cluster), before);
    cluster.restore(&snapshot, Some("a new one"));
    assert_eq!(cluster.keys("a")[0].value, "stored");
    assert_ne!(id(&cluster), before);
}

#[test]
fn a_learner_follows_and_does_not_serve_reads() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.etcdctl(&["put", "a", "1"]);
    let learner = cluster.add_learner();
    assert!(cluster.reads(learner).is_err_and(|error| error.contains("learner")));
    assert!(cluster.reads(0).is_ok());
}

/// How many processes have this in their command line.
fn processes_with(text: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let has = |directory: &Path| {
        let line = std::fs::read(directory.join("cmdline")).unwrap_or_default();
        line.windows(text.len()).any(|window| window == text.as_bytes())
    };
    all.filter(|entry| has(&entry.path())).count()
}

#[test]
fn members_are_gone_with_the_cluster_and_with_a_process_that_was_killed() {
    if !is_there(Version::V3_4) {
        return;
    }
    let test = "members_are_gone_with_the_cluster_and_with_a_process_that_was_killed";
    if role().is_some() {
        // Another thread than that which stays.
        let mut cluster = std::thread::spawn(|| Cluster::start(2)).join().expect("it starts");
        cluster.stop(1);
        tell(&cluster.endpoint(1));
        tell(cluster.home().to_str().expect("a path"));
        std::thread::sleep(HOUR);
    }
    let mut process = Process::play(test, "starts", Path::new(""));
    let (theirs, home) = (process.next(), process.next());
    let ours = Cluster::start(1);
    let endpoint = ours.endpoint(0);
    assert!(processes_with(&theirs) > 0 && processes_with(&endpoint) > 0);
    drop(ours);
    assert_eq!(processes_with(&endpoint), 0);
    process.kill();
    eventually("its members are gone", || processes_with(&theirs) == 0);
    eventually("its files are gone", || !Path::new(&home).exists());
}

/// A connection through a proxy: its two ends.
fn connected() -> (Proxy, TcpStream, TcpStream) {
    let server = TcpListener::bind("127.0.0.1:0").expect("an address");
    let proxy = Proxy::to(server.local_addr().expect("its address"));
    let client = TcpStream::connect(proxy.address()).expect("a connection");
    let (server, _) = server.accept().expect("the other end");
    for end in [&client, &server] {
        end.set_read_timeout(Some(VERY_LONG)).expect("a limit");
    }
    (proxy, client, server)
}

fn expect(mut from: &TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    from.read_exact(&mut bytes).expect("bytes");
    assert_eq!(String::from_utf8(bytes).expect("text"), text);
}

fn send(mut to: &TcpStream, text: &str) {
    to.write_all(text.as_bytes()).expect("it takes them");
}

/// The length of what is read.
fn read(mut end: &TcpStream) -> Result<usize, ErrorKind> {
    loop {
        match end.read(&mut [0]).map_err(|error| error.kind()) {
            // A limit for reads makes them end so when the process is stopped and goes on.
            Err(ErrorKind::Interrupted) => {}
            read => return read,
        }
    }
}

fn is_silent(end: &TcpStream) -> bool {
    end.set_read_timeout(Some(QUIET)).expect("a limit");
    let read = read(end);
    end.set_read_timeout(Some(VERY_LONG)).expect("a limit");
    read == Err(ErrorKind::WouldBlock)
}

#[track_caller]
fn expect_reset(end: &TcpStream) {
    assert_eq!(read(end), Err(ErrorKind::ConnectionReset));
}

#[track_caller]
fn expect_closed(end: &TcpStream) {
    assert_eq!(read(end), Ok(0));
}

#[test]
fn a_proxy_carries_and_counts() {
    let (proxy, client, server) = connected();
    send(&client, "request");
    expect(&server, "request");
    send(&server, "ok");
    expect(&client, "ok");
    eventually("they are counted", || (proxy.bytes(To::Server), proxy.bytes(To::Client)) == (7, 2));
    assert_eq!((proxy.accepted(), proxy.open()), (1, 1));
    drop(client);
    expect_closed(&server);
    drop(server);
    eventually("it is closed", || proxy.open() == 0);
}

#[test]
fn a_proxy_delays_one_way_and_delivers_what_a_client_that_left_has_sent() {
    const DELAY: Duration = Duration::from_millis(300);
    let (proxy, client, server) = connected();
    proxy.delay(To::Server, DELAY);
    let sent = Instant::now();
    send(&client, "request");
    send(&server, "unasked");
    expect(&client, "unasked");
    drop(client);
    expect(&server, "request");
    assert!(sent.elapsed() >= DELAY);
    expect_closed(&server);
}

#[test]
fn a_proxy_stalls_and_goes_on() {
    let (proxy, client, server) = connected();
    proxy.stall_to(To::Client);
    send(&client, "request");
    expect(&server, "request");
    send(&server, "answer");
    assert!(is_silent(&client));
    proxy.stall();
    send(&client, "another");
    assert!(is_silent(&server));
    proxy.go_on();
    expect(&client, "answer");
    expect(&server, "another");
}

#[test]
fn a_proxy_resets_one_end_or_both() {
    let (proxy, client, server) = connected();
    proxy.reset(To::Client);
    expect_reset(&client);
    assert!(is_silent(&server), "the server is not told");
    proxy.drop_all();
    expect_reset(&server);

    let (proxy, client, server) = connected();
    proxy.reset(To::Server);
    expect_reset(&server);
    assert!(is_silent(&client), "the client is not told");
    proxy.reset(To::Client);
    expect_reset(&client);

    let (proxy, client, server) = connected();
    proxy.drop_all();
    expect_reset(&client);
    expect_reset(&server);
    eventually("it is closed", || proxy.open() == 0);
}

#[test]
fn a_proxy_closes_one_way() {
    let (proxy, client, server) = connected();
    proxy.half_close(To::Client);
    expect_closed(&client);
    send(&client, "request");
    expect(&server, "request");
}

#[test]
fn a_proxy_refuses_new_connections_and_takes_them_again() {
    let (proxy, client, server) = connected();
    proxy.refuse();
    let refused = TcpStream::connect(proxy.address());
    assert!(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    send(&client, "request");
    expect(&server, "request");
    proxy.accept();
    TcpStream::connect(proxy.address()).expect("a connection");
}
