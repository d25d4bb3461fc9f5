//! Locks by URL.

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
        ("zookeeper://host/jobs", &["zookeeper", "file", "lockd+http"]),
        ("http://host:8000", &["lockd+http://"]),
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
