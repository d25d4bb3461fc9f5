//! Locks by URL.

#[cfg(feature = "etcd")]
mod etcd_support;
#[cfg(feature = "etcd")]
mod server_support;
mod support;

use std::time::Duration;

use lockkeeper::{Error, Guard, Lock, LockName, Status, open};

/// What a URL, or a name at it, is refused with.
fn refused(url: &str, name: &str) -> String {
    let error = open(url).and_then(|locks| locks.lock(name)).expect_err(url);
    assert!(matches!(error, Error::InvalidOption { .. }), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn each_url_of_this_machine_names_the_lock_that_it_says() {
    let directory = support::on_tmpfs();
    let at = directory.path().to_str().unwrap();
    for (url, file) in [
        (at.to_owned(), "a.lock"),
        (format!("file://{at}"), "a.lock"),
        (format!("file://localhost{at}"), "a.lock"),
        (format!("flock://{at}"), "a"),
        (format!("ofd://{at}"), "a"),
    ] {
        let lock = open(&url).unwrap().lock("a").unwrap();
        assert_eq!(lock.name(), LockName::from(directory.path().join(file)), "{url}");
        let guard = lock.acquire().await.unwrap();
        assert!(directory.path().join(file).exists(), "{url}");
        assert!(lock.try_acquire().await.unwrap().is_none(), "{url}");
        assert!(matches!(lock.status().await.unwrap(), Status::Held(_)), "{url}");
        guard.release().await.unwrap();
        assert_eq!(lock.status().await.unwrap(), Status::Free, "{url}");
    }
}

#[tokio::test]
async fn keys_of_the_url_are_options() {
    let directory = support::on_tmpfs();
    let at = directory.path().to_str().unwrap();
    let locks = open(format!("file://{at}?timeout=20ms&note=by+night%21")).unwrap();
    let lock = locks.lock("a").unwrap();
    let guard = lock.acquire().await.unwrap();
    let error = lock.acquire().await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let holder = lock.holder().await.unwrap().unwrap();
    assert_eq!(holder.note.as_deref(), Some("by night!"));
    assert_eq!(Some(holder.hold_id.unwrap()), guard.hold_id());
}

#[test]
fn escaped_characters_of_a_path_are_read() {
    let lock = open("flock:///tmp/a%20b%3F").unwrap().lock("c d").unwrap();
    assert_eq!(lock.name(), LockName::from("/tmp/a b?/c d"));
}

#[test]
fn what_is_wrong_with_a_url_is_said_with_what_to_write() {
    for (url, words) in [
        ("", &["empty", "file:///run/lock"][..]),
        ("file:/run/lock", &["file://"]),
        ("lockd+http:/host", &["lockd+http://"]),
        ("/run/lock?timeout=3s", &["file://"]),
        ("zookeeper://host/jobs", &["zookeeper", "file", "lockd+http", "etcd+tls"]),
        ("etcd:h1:2379/jobs", &["etcd://"]),
        ("http://host:8000", &["lockd+http://", "etcd+tls://"]),
        ("file://run/lock", &["host", "file:///run/lock"]),
        ("file://", &["names no directory"]),
        ("flock:///run/lock#1", &["%23"]),
        ("file:///run/lock?time=3s", &["\"time\"", "timeout"]),
        ("file:///run/lock?timeout=soon", &["timeout", "soon", "30s"]),
        ("file:///run/lock?timeout=3s&timeout=4s", &["timeout", "twice"]),
        ("file:///run/lock?proof=maybe", &["proof", "kernel_lock"]),
        ("file:///run/lock?mode=999", &["mode", "number"]),
        ("flock:///run/lock?race_delay=1s", &["race_delay", "keep_open"]),
        ("ofd:///run/lock?keep_open=yes", &["keep_open", "true or false"]),
        ("flock:///run/lock?keep_open=true&delete_on_release=true", &["keep_open"]),
    ] {
        let text = refused(url, "a");
        for word in words {
            assert!(text.contains(word), "{url}: {text} lacks {word}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_name_is_said() {
    for name in ["", " ", ".", "..", "a/b", "a\0b", "../a"] {
        for url in ["/run/lock", "flock:///run/lock"] {
            let text = refused(url, name);
            assert!(text.contains("name") && text.contains(&format!("{name:?}")), "{text}");
        }
    }
}

/// A URL shows in process lists and logs.
#[test]
fn no_secret_is_taken_from_a_url_or_shown() {
    for url in [
        "lockd+http://me:hunter2@host:8000",
        "lockd+https://host?bearer_token=hunter2",
        "file:///run/lock?password=hunter2",
    ] {
        let text = refused(url, "a");
        let is_off = cfg!(not(feature = "lockd-client")) && text.contains("feature");
        assert!(text.contains("token_file") || is_off, "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    for url in [
        "etcd://me:hunter2@h1:2379/jobs",
        "etcd+tls://h1,me:hunter2@h2/jobs",
        "etcd://h1/jobs?user=me:hunter2",
        "etcd://h1/jobs?user=me%3Ahunter2",
        "etcd://h1/jobs?password=hunter2",
        "etcd://h1/jobs?user=me&key=hunter2",
    ] {
        let text = refused(url, "a");
        let is_off = cfg!(not(feature = "etcd")) && text.contains("feature");
        assert!(text.contains("password_file") || is_off, "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// What a lock of this URL is made of, as its `Debug` shows it.
#[cfg(feature = "etcd")]
fn shown(url: &str) -> String {
    format!("{:?}", open(url).expect(url).lock("a").expect(url))
}

#[cfg(feature = "etcd")]
#[test]
fn a_url_of_etcd_names_hosts_and_a_prefix() {
    for (url, name) in [
        ("etcd://h1:1,h2,[::1]:3/jobs", "\"a\" at etcd://h1:1,h2:2379,[::1]:3/jobs/"),
        ("etcd://h1//jobs/", "\"a\" at etcd://h1:2379/jobs/"),
        ("etcd://h1/a%20b/c", "\"a\" at etcd://h1:2379/a b/c/"),
        // Decoded once.
        ("etcd://h1/%252e", "\"a\" at etcd://h1:2379/%2e/"),
        ("etcd://h1", "\"a\" at etcd://h1:2379/"),
        ("etcd+tls://h1,h2/jobs", "\"a\" at etcd+tls://h1:2379,h2:2379/jobs/"),
    ] {
        assert_eq!(open(url).unwrap().lock("a").unwrap().name().to_string(), name, "{url}");
    }
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn the_locks_of_one_url_of_etcd_share_a_lease() {
    use etcd_support::{Cluster, Version, is_there};
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let locks = open(format!("etcd://{}/jobs?ttl=10s&note=both", cluster.endpoints())).unwrap();
    let [one, other] = ["a", "b"].map(|name| locks.clone().lock(name).unwrap());
    let (one, other) = (one.acquire().await.unwrap(), other.acquire().await.unwrap());
    let keys = cluster.keys("jobs/");
    let places = keys.iter().filter(|entry| entry.value.contains("\"note\":\"both\""));
    assert_eq!(places.count(), 2, "{keys:?}");
    assert_eq!(keys.iter().filter(|entry| entry.key.starts_with("jobs/.lockkeeper/")).count(), 1);
    assert!(keys.iter().all(|entry| entry.lease == keys[0].lease), "{keys:?}");
    let lease = format!("{:x}", keys[0].lease);
    let shown = cluster.etcdctl(&["lease", "timetolive", &lease]);
    assert!(shown.contains("granted with TTL(10s)"), "{shown}");
    one.release().await.unwrap();
    other.release().await.unwrap();
}

#[cfg(feature = "etcd")]
#[test]
fn each_key_of_a_url_of_etcd_is_an_option() {
    let directory = support::on_tmpfs();
    let file = directory.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let file = file.display();
    for (query, option) in [
        ("ttl=10s", "ttl: 10s"),
        ("ttl=1m", "ttl: 60s"),
        ("timeout=1500ms", "timeout: Some(1.5s)"),
        ("reconnect=0", "reconnect: 0ns"),
        ("note=by+night%21", "note: Some(\"by night!\")"),
        ("server_name=etcd.example", "server_name: Some(\"etcd.example\")"),
        (&format!("user=me&password_file={file}"), "user: Some(\"me\")"),
    ] {
        let text = shown(&format!("etcd://h1/jobs?{query}"));
        assert!(text.contains(option) && !text.contains("hunter2"), "{query}: {text}");
    }
    // Which certificates are meant shows in what is wrong with them.
    for (query, option) in [
        ("ca_file=/none/ca.pem", "/none/ca.pem"),
        ("cert_file=/none/cert.pem&key_file=/none/key.pem", "/none/key.pem"),
    ] {
        let text = refused(&format!("etcd+tls://h1/jobs?{query}"), "a");
        assert!(text.contains(option), "{query}: {text}");
    }
}

#[cfg(feature = "etcd")]
#[test]
fn what_is_wrong_with_a_url_of_etcd_is_said_with_what_to_write() {
    let directory = support::on_tmpfs();
    let at = directory.path().display();
    for (name, text) in [("empty", "\n"), ("lines", "one\ntwo\n"), ("good", "hunter2")] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    for (url, words) in [
        ("etcd:///jobs", &["no host", "etcd://h1:2379", "ETCDCTL_ENDPOINTS"][..]),
        ("etcd://?ttl=5s", &["no host"]),
        ("etcd://h1,,h2/jobs", &["empty host"]),
        ("etcd://h1,/jobs", &["empty host"]),
        ("etcd://:2379/jobs", &["no host"]),
        ("etcd://h1:x/jobs", &["\"x\" is no port"]),
        ("etcd://h1:0/jobs", &["no port"]),
        ("etcd://::1/jobs", &["in [ ]"]),
        ("etcd://[::1,h2]/jobs", &["within [ ]"]),
        ("etcd://h1%2Ch2/jobs", &["no %"]),
        ("etcd://h1, h2/jobs", &["white space"]),
        ("etcd://http://h1:2379,http://h2:2379", &["scheme", "etcd+tls://"]),
        ("etcd://h1/jobs/../x", &["prefix", ".."]),
        ("etcd://h1/jobs/%2e%2E/x", &["prefix", ".."]),
        ("etcd://h1/a%00b", &["prefix", "control character"]),
        ("etcd://h1/a%ffb", &["prefix", "UTF-8"]),
        ("etcd://h1/jobs#1", &["%23"]),
        ("etcd://h1/jobs?ttl=2500ms", &["ttl", "2.5s", "whole seconds"]),
        ("etcd://h1/jobs?ttl=1s", &["ttl", "at least 2 s"]),
        ("etcd://h1/jobs?ttl=soon", &["ttl", "soon", "30s"]),
        ("etcd://h1/jobs?ttl=", &["ttl", "no value"]),
        ("etcd://h1/jobs?ttl=5s&ttl=6s", &["ttl", "twice"]),
        ("etcd://h1/jobs?lease=5s", &["\"lease\"", "ttl", "server_name"]),
        ("etcd://h1/jobs?raw_key=a", &["\"raw_key\"", "ttl"]),
        ("etcd://h1/jobs?user=me", &["\"me\" has no password", "password_file"]),
        ("etcd://h1/jobs?user=", &["user", "no value"]),
        (&format!("etcd://h1/jobs?password_file={at}/good"), &["no user", "ETCDCTL_USER"]),
        (&format!("etcd://h1/jobs?user=me&password_file={at}/none"), &["/none", "read"]),
        (&format!("etcd://h1/jobs?user=me&password_file={at}/empty"), &["/empty", "empty"]),
        (&format!("etcd://h1/jobs?user=me&password_file={at}/lines"), &["one line"]),
        ("etcd://h1/jobs?cert_file=/none/cert.pem", &["cert_file", "key_file", "ETCDCTL_KEY"]),
        ("etcd://h1/jobs?key_file=/none/key.pem", &["cert_file", "key_file"]),
    ] {
        let text = refused(url, "a");
        for word in words {
            assert!(text.contains(word), "{url}: {text} lacks {word}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
    for name in ["", " ", "a/b", "..", "a\nb"] {
        let text = refused("etcd://h1/jobs", name);
        assert!(text.contains("name") && text.contains(&format!("{name:?}")), "{text}");
    }
}

#[cfg(not(feature = "etcd"))]
#[test]
fn etcd_that_is_not_built_in_says_which_feature_it_needs() {
    for scheme in ["etcd", "etcd+tls"] {
        let text = refused(&format!("{scheme}://h1:2379/jobs"), "a");
        assert!(text.contains("feature etcd") && text.contains("cargo add"), "{text}");
    }
}

#[cfg(not(feature = "lockd-client"))]
#[test]
fn a_kind_that_is_not_built_in_says_which_feature_it_needs() {
    let text = refused("lockd+http://host:8000", "a");
    assert!(text.contains("lockd-client") && text.contains("cargo add"), "{text}");
}

#[tokio::test]
async fn work_under_a_lock_says_whether_it_was_done_or_the_lock_lost() {
    let directory = support::on_tmpfs();
    let locks = open(directory.path().to_str().unwrap()).unwrap();
    let lock = locks.lock("a").unwrap();
    let done = lock.run(async { 7 }).await.unwrap();
    assert_eq!(done.in_safety().unwrap(), 7);
    let path = directory.path().join("a.lock");
    let work = async {
        std::fs::remove_file(&path).unwrap();
        std::future::pending::<()>().await;
    };
    let ran = tokio::time::timeout(Duration::from_secs(60), lock.run(work)).await.unwrap().unwrap();
    assert!(ran.in_safety().unwrap_err().is_lost());
    let ran = lock.run(async { std::fs::remove_file(&path).unwrap() }).await.unwrap();
    assert!(ran.in_safety().unwrap_err().is_lost(), "it was gone before the release");
}

/// Neither borrows the lock.
#[tokio::test]
async fn futures_of_any_lock_can_be_spawned() {
    let directory = support::on_tmpfs();
    let locks = open(directory.path().to_str().unwrap()).unwrap();
    let spawned = {
        let lock = locks.lock("a").unwrap();
        tokio::spawn(lock.acquire())
    };
    let guard = spawned.await.unwrap().unwrap();
    tokio::spawn(guard.release()).await.unwrap().unwrap();
}

#[test]
fn a_fencing_token_that_cannot_be_compared_is_older() {
    use lockkeeper::FencingToken;
    let token = |number, domain| FencingToken::new(number, domain);
    assert!(token(3, "http://a").is_older_than(&token(4, "http://a")));
    assert!(!token(4, "http://a").is_older_than(&token(4, "http://a")));
    assert!(!token(5, "http://a").is_older_than(&token(4, "http://a")));
    assert!(token(5, "http://b").is_older_than(&token(4, "http://a")));
    assert!(token(5, "http://b").partial_cmp(&token(4, "http://a")).is_none());
}
