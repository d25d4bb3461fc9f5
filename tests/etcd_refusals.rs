//! What keeps an etcd lock from being acquired, and what the error says: which lock, what
//! is wrong, and nothing secret.

mod etcd_support;
mod server_support;
mod support;

use std::time::Duration;

use etcd_support::{Certificates, Cluster, Tls, Version, is_there};
use lockkeeper::{AsyncEtcdLock, Error, EtcdLocks, EtcdOptions, Evidence, Lock, Status};
use support::{VERY_LONG, block_on, eventually};

const SECRET: &str = "correct horse";

/// Ridden out for a moment alone.
fn hasty() -> EtcdOptions {
    EtcdOptions::default().reconnect(Duration::from_millis(300))
}

/// Patient, so that only what is final ends an acquisition.
fn patient() -> EtcdOptions {
    EtcdOptions::default().reconnect(VERY_LONG)
}

#[track_caller]
fn refused(endpoints: impl AsRef<str>, options: EtcdOptions) -> Error {
    let lock = AsyncEtcdLock::with_options(endpoints, "import", options).expect("options");
    let acquired = block_on(async { tokio::time::timeout(VERY_LONG, lock.acquire()).await });
    let error = acquired.expect("it is told in time").expect_err("it is refused");
    // Its key is deleted in the background.
    block_on(lock.flush());
    let text = format!("{} {error:?}", chain(&error));
    assert_eq!(error.lock(), Some(&lock.name()), "{text}");
    assert!(text.contains("import") && !text.contains(SECRET), "{text}");
    error
}

/// An error with its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn no_member_answers() {
    let error = refused("127.0.0.1:1,localhost:2", hasty());
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let text = chain(&error);
    assert!(text.contains("127.0.0.1:1") && text.contains("localhost:2"), "{text}");
}

#[test]
fn a_limit_that_no_member_answered_in_is_no_timeout() {
    let lock = AsyncEtcdLock::with_options("127.0.0.1:1", "import", patient()).expect("options");
    let limited = block_on(lock.acquire_timeout(Duration::from_millis(50)));
    assert!(matches!(limited, Err(Error::Unreachable { .. })), "{limited:?}");
    let lock = AsyncEtcdLock::with_options("127.0.0.1:1", "import", hasty()).expect("options");
    let tried = block_on(lock.try_acquire());
    assert!(matches!(tried, Err(Error::Unreachable { .. })), "{tried:?}");
    let status = block_on(lock.status());
    assert!(matches!(status, Err(Error::Unreachable { .. })), "{status:?}");
}

/// As many as would take a minute, each in its turn.
#[test]
fn a_limit_is_kept_though_no_member_answers() {
    let members: Vec<_> = (0..30)
        .map(|host| std::net::TcpListener::bind(format!("127.0.7.{}:0", host + 1)).expect("a port"))
        .collect();
    let addresses = members.iter().map(|member| member.local_addr().expect("one").to_string());
    let endpoints = addresses.collect::<Vec<_>>().join(",");
    let lock = AsyncEtcdLock::with_options(endpoints, "import", patient()).expect("options");
    block_on(async {
        let patient = tokio::spawn(lock.acquire().into_future());
        tokio::task::yield_now().await;
        let limited = lock.acquire_timeout(Duration::from_millis(50));
        let limited = tokio::time::timeout(Duration::from_secs(30), limited).await;
        let limited = limited.expect("it ends soon after its limit");
        assert!(matches!(limited, Err(Error::Unreachable { .. })), "{limited:?}");
        patient.abort();
    });
}

#[test]
fn one_of_three_is_enough() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let endpoints = format!("127.0.0.1:1,{},localhost:2", cluster.endpoint(0));
    let lock = AsyncEtcdLock::with_options(endpoints, "import", patient()).expect("options");
    block_on(async {
        lock.acquire().await.expect("the lock").release().await.expect("it was held")
    });
}

#[test]
fn credentials_and_rights() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    cluster.enable_auth("jobs/", "worker", SECRET);
    let at = cluster.endpoints();
    for (options, part) in [
        (patient().prefix("jobs").user("worker", "wrong"), "authentication failed"),
        (patient().prefix("jobs").user("nobody", SECRET), "authentication failed"),
        (patient().prefix("jobs"), "user name is empty"),
        (patient().prefix("elsewhere").user("worker", SECRET), "permission denied"),
    ] {
        let error = refused(&at, options);
        assert!(matches!(error, Error::Forbidden { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
    // A role on the prefix is all that is needed.
    let options = patient().prefix("jobs").user("worker", SECRET);
    let locks = EtcdLocks::with_options(&at, options).expect("options");
    assert!(!format!("{locks:?}").contains(SECRET));
    block_on(async {
        let lock = locks.lock("import").expect("a name");
        let guard = lock.acquire().await.expect("the lock");
        assert!(lock.is_locked().await.expect("a status"));
        assert!(lock.waiters().await.expect("them").is_empty());
        assert!(lock.revoke().await.expect("it is asked").is_some());
        guard.lost().await;
        guard.release().await.expect("it was still held");
    });
}

#[test]
fn members_without_users_take_no_login() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let error = refused(cluster.endpoints(), patient().user("worker", SECRET));
    assert!(matches!(&error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("authentication is not enabled"), "{error}");
}

#[test]
fn tls() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(1).tls(Tls::Mutual).start();
    let (at, own) = (cluster.address(0).to_string(), cluster.certificates());
    let secret = format!("https://{at}");
    let identity = |options: EtcdOptions| options.identity(&own.client, &own.client_key);

    let error = refused(&secret, identity(patient()));
    assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");
    assert!(chain(&error).contains("UnknownIssuer"), "{}", chain(&error));

    let named = identity(patient()).ca_file(&own.ca).server_name("elsewhere");
    let error = refused(&secret, named);
    assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");

    // It closes the connection, as one that is being restarted does.
    let error = refused(&at, hasty());
    assert!(chain(&error).contains("etcd+tls://"), "{}", chain(&error));

    // Without a certificate of the client's, or with one of another authority.
    let error = refused(&secret, patient().ca_file(&own.ca));
    assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");
    assert!(chain(&error).contains("ertificate"), "{}", chain(&error));
    let directory = support::on_tmpfs();
    let other = Certificates::make(directory.path(), std::net::Ipv4Addr::LOCALHOST, "etcd.test");
    let stranger = hasty().ca_file(&own.ca).identity(&other.client, &other.client_key);
    let error = refused(&secret, stranger);
    assert!(chain(&error).contains("ertificate"), "{}", chain(&error));

    for options in [patient(), patient().server_name("etcd.test")] {
        let options = identity(options).ca_file(&own.ca);
        // TLS without a scheme, as one of its files is named.
        let lock = AsyncEtcdLock::with_options(&at, "import", options).expect("options");
        assert!(lock.server().starts_with("etcd+tls://"), "{}", lock.server());
        block_on(async {
            lock.acquire().await.expect("the lock").release().await.expect("it was held");
        });
    }
}

#[test]
fn tls_is_spoken_to_a_member_that_speaks_none() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let error = refused(format!("https://{}", cluster.address(0)), hasty());
    let text = chain(&error);
    assert!(text.contains("without TLS the URL begins with etcd://"), "{text}");
}

#[test]
fn what_is_no_etcd() {
    let web = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = web.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for tcp in web.incoming() {
            let mut tcp = tcp.expect("a connection");
            let _ = tcp.read(&mut [0; 64]);
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let error = refused(at, patient());
    assert!(matches!(error, Error::NotAServer { .. }), "{error:?}");
    assert!(error.to_string().contains("HTTP/1"), "{error}");
}

#[test]
fn an_etcd_that_is_too_old() {
    if !is_there(Version::V3_3) {
        return;
    }
    let cluster = Cluster::builder(1).version(Version::V3_3).start();
    let error = refused(cluster.endpoints(), patient());
    assert!(matches!(error, Error::NotAServer { .. }), "{error:?}");
    assert!(error.to_string().contains("too old"), "{error}");
}

#[test]
fn a_learner_is_passed_over() {
    if !is_there(Version::V3_4) {
        return;
    }
    let mut cluster = Cluster::start(1);
    let learner = cluster.add_learner();
    let error = refused(cluster.endpoint(learner), hasty());
    assert!(chain(&error).contains("learner"), "{}", chain(&error));
    let both = format!("{},{}", cluster.endpoint(learner), cluster.endpoint(0));
    let lock = AsyncEtcdLock::with_options(both, "import", patient()).expect("options");
    block_on(async {
        lock.acquire().await.expect("the lock").release().await.expect("it was held")
    });
}

#[test]
fn a_member_of_another_cluster_is_not_used() {
    if !is_there(Version::V3_4) {
        return;
    }
    let (mut one, other) = (Cluster::start(1), Cluster::start(1));
    let both = format!("{},{}", one.endpoint(0), other.endpoint(0));
    let options =
        EtcdOptions::default().reconnect(Duration::from_secs(1)).ttl(Duration::from_secs(2));
    let lock = AsyncEtcdLock::with_options(both, "import", options).expect("options");
    let guard = block_on(lock.acquire()).expect("the lock");
    one.kill(0);
    let lost = block_on(guard.lost());
    drop(guard);
    let error = block_on(lock.acquire()).expect_err("its cluster is away");
    assert!(chain(&error).contains("another cluster"), "after {lost}: {}", chain(&error));
    assert!(other.keys("").is_empty(), "nothing was asked of the other one");
}

#[test]
fn a_key_that_no_release_removes() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    for key in ["import/left", "import/", "import/deeper/key"] {
        let lease = cluster.etcdctl(&["lease", "grant", "3600"]);
        let lease = lease.split_whitespace().nth(1).expect("its number").to_owned();
        match key.contains("deeper") {
            true => cluster.etcdctl(&["put", key, "\u{1b}[31m", "--lease", &lease]),
            false => cluster.etcdctl(&["put", key, "x"]),
        };
        let error = refused(cluster.endpoints(), patient());
        let Error::Foreign { key: found, .. } = &error else { panic!("{error:?}") };
        assert_eq!(found, key);
        let lock = AsyncEtcdLock::new(cluster.endpoints(), "import").expect("a lock");
        let tried = block_on(lock.try_acquire());
        assert!(matches!(tried, Err(Error::Foreign { .. })), "{tried:?}");
        let Status::Held(holder) = block_on(lock.status()).expect("a status") else {
            panic!("{key} stands first")
        };
        assert!(matches!(holder.evidence, Evidence::Unknown(_)), "{holder:?}");
        block_on(lock.flush());
        assert_eq!(cluster.keys("import/").len(), 1, "nothing of ours is left, and theirs is");
        cluster.etcdctl(&["del", key]);
    }
}

#[test]
fn the_database_is_full() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(1).quota(1024 * 1024).start();
    let held = AsyncEtcdLock::with_options(cluster.endpoints(), "held", patient());
    let held = held.expect("options");
    let guard = block_on(held.acquire()).expect("the lock");
    let much = "x".repeat(100_000);
    eventually("it is full", || {
        let put = cluster.try_etcdctl(&["put", "much", &much]);
        put.is_err_and(|said| said.contains("database space exceeded"))
    });
    let error = refused(cluster.endpoints(), patient());
    let Error::Refused { code, .. } = &error else { panic!("{error:?}") };
    assert_eq!(code, "no_space");
    assert!(error.to_string().contains("alarm disarm"), "{error}");
    // What frees a lock needs no space.
    block_on(guard.release()).expect("it was held");
    assert!(cluster.keys("held/").is_empty());
}

#[test]
fn options_and_names() {
    let wrong = |made: Result<AsyncEtcdLock, Error>, part: &str| {
        let error = made.expect_err(part).to_string();
        assert!(error.contains(part) && !error.contains(SECRET), "{part}: {error}");
    };
    let with = |options| AsyncEtcdLock::with_options("h:1", "import", options);
    let ttl = |millis| with(EtcdOptions::default().ttl(Duration::from_millis(millis)));
    wrong(ttl(1999), "at least 2 s");
    wrong(ttl(0), "at least 2 s");
    wrong(ttl(2500), "whole seconds");
    wrong(with(EtcdOptions::default().prefix("a/../b")), "..");
    wrong(with(EtcdOptions::default().raw_key("a/")), "raw_key");
    wrong(with(EtcdOptions::default().ca_file("/nowhere")), "/nowhere");
    wrong(with(EtcdOptions::default().identity("/nowhere", "/nothing")), "/nothing");
    for name in ["", " ", "a/b", ".lockkeeper", "a\u{7}"] {
        wrong(AsyncEtcdLock::new("h:1", name), "name");
    }
    for endpoints in ["", "h1,,h2", "h:0", "ftp://h:1", "user:correct horse@h:1"] {
        wrong(AsyncEtcdLock::new(endpoints, "import"), "endpoints");
    }
}

#[test]
fn a_prefix_is_the_same_with_its_slashes_and_without() {
    let prefix = |prefix| EtcdOptions::default().prefix(prefix);
    assert_eq!(prefix("jobs"), prefix("/jobs/"));
    assert_eq!(prefix(""), prefix("/"));
}
