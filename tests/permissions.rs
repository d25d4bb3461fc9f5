//! Users who may not do everything: a wait that would be in vain is refused at once,
//! and a file that may not be read is busy until it is gone.

mod support;

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, Evidence, FileOptions, KernelOptions, Offload,
    Primitive, Proof, Status,
};
use nix::sys::stat::{Mode, umask};
use support::{HOUR, NOBODY, Process, VERY_LONG, become_user, block_on, has_two_users, with_mode};
use tokio::time::timeout;

/// The user who makes files, and another, whom they may not concern.
const OWNER: u32 = NOBODY;
const OTHER: u32 = 1;

const SHORT: Duration = Duration::from_millis(50);

fn options(role: &str) -> FileOptions {
    let pin = if role.contains("portable") { Proof::Process } else { Proof::Auto };
    match role.contains("lane") {
        true => FileOptions::default().proof(pin).offload(Offload::Always).retry_period(SHORT),
        // Only events can end a wait.
        false => FileOptions::default().proof(pin).retry_period(HOUR),
    }
}

fn lock(role: &str, path: &Path) -> AsyncFileLock {
    AsyncFileLock::with_options(path, options(role)).unwrap()
}

const KINDS: [&str; 4] = ["pinned", "pinned lane", "portable", "portable lane"];

/// Hold until told, as another user.
fn hold(user: u32, role: &str, path: &Path) {
    become_user(user);
    block_on(async {
        let guard = lock(role, path).acquire().await.unwrap();
        support::tell("held");
        support::told();
        // A file that cannot be removed is marked as released.
        assert!(matches!(guard.release().await, Ok(()) | Err(Error::NotRemoved { .. })));
    });
    support::tell("released");
}

#[test]
fn a_wait_that_would_be_in_vain_is_refused_at_once() {
    const TEST: &str = "a_wait_that_would_be_in_vain_is_refused_at_once";
    if let Some((role, path)) = support::role() {
        become_user(OTHER);
        block_on(async {
            let lock = lock(&role, &path);
            for refused in [
                timeout(VERY_LONG, lock.acquire()).await.expect("it waits"),
                timeout(VERY_LONG, lock.acquire_timeout(HOUR)).await.expect("it waits"),
            ] {
                let error = refused.unwrap_err();
                let Error::MayNotWrite { directory, owner: 0, mode: 0o755, .. } = &error else {
                    panic!("{role}: {error:?}")
                };
                assert_eq!(
                    (error.path(), directory.as_path()),
                    (Some(lock.path()), path.parent().unwrap())
                );
                let text = error.to_string();
                for word in
                    [path.to_str().unwrap(), directory.to_str().unwrap(), "user id 0", "0755"]
                {
                    assert!(text.contains(word), "{text}");
                }
            }
            // To ask whether it is free is no wait.
            assert!(lock.try_acquire().await.unwrap().is_none());
            assert!(lock.is_locked().await.unwrap());
        });
        return support::tell("done");
    }
    if !has_two_users() {
        return;
    }
    for role in KINDS {
        let directory = with_mode(0o755);
        let path = directory.path().join("a.lock");
        let guard = lock(role, &path).blocking_acquire().unwrap();
        if role.contains("portable") {
            // Which a portable contender would not write in place.
            support::chmod(&path, 0o666);
        }
        let mut child = Process::play(TEST, role, &path);
        child.expect("done");
        assert!(child.wait().success());
        drop(guard);
    }
}

/// Where it could be made but is another user's, it is gone after the release.
#[test]
fn a_wait_where_a_file_may_be_made_or_written_is_none_in_vain() {
    const TEST: &str = "a_wait_where_a_file_may_be_made_or_written_is_none_in_vain";
    if let Some((role, path)) = support::role() {
        return match role.strip_prefix("root ") {
            Some(kind) => hold(0, kind, &path),
            None => hold(OTHER, &role, &path),
        };
    }
    if !has_two_users() {
        return;
    }
    for role in KINDS {
        let directory = with_mode(0o777);
        let path = directory.path().join("a.lock");
        waits_for_its_turn(TEST, &format!("root {role}"), role, &path);
    }
    // A portable contender could not take such a file over.
    for role in ["pinned", "pinned lane"] {
        let directory = with_mode(0o755);
        let path = directory.path().join("a.lock");
        fs::write(&path, "").unwrap();
        support::chmod(&path, 0o666);
        waits_for_its_turn(TEST, role, role, &path);
        assert!(path.exists(), "nobody may remove it");
    }
}

fn waits_for_its_turn(test: &str, holder: &str, waiter: &str, path: &Path) {
    let mut holder = Process::play(test, holder, path);
    holder.expect("held");
    let mut waiter = Process::play(test, waiter, path);
    waiter.expect_quiet();
    holder.hang_up();
    holder.expect("released");
    waiter.expect("held");
    waiter.hang_up();
    waiter.expect("released");
}

/// The file of a holder with umask 077.
#[test]
fn a_file_that_may_not_be_read_is_busy_until_it_is_gone() {
    const TEST: &str = "a_file_that_may_not_be_read_is_busy_until_it_is_gone";
    if let Some((role, path)) = support::role() {
        if let Some(kind) = role.strip_prefix("holds ") {
            umask(Mode::from_bits_truncate(0o077));
            return hold(OWNER, kind, &path);
        }
        return wait_beside_what_may_not_be_read(&role, &path);
    }
    if !has_two_users() {
        return;
    }
    for role in KINDS {
        let directory = with_mode(0o1777);
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, &format!("holds {role}"), &path);
        holder.expect("held");
        let mut waiter = Process::play(TEST, role, &path);
        waiter.expect("waits");
        waiter.expect_quiet();
        holder.hang_up();
        waiter.expect("held");
        assert!(waiter.wait().success(), "{role}");
    }
}

fn wait_beside_what_may_not_be_read(role: &str, path: &Path) {
    become_user(OTHER);
    let is_told = |text: &str| {
        let words = [path.to_str().unwrap(), &format!("user id {OWNER}"), "mode 0600"];
        words.iter().all(|word| text.contains(word))
    };
    block_on(async {
        let lock = lock(role, path);
        let holder = lock.holder().await.unwrap().unwrap();
        assert_eq!(lock.status().await.unwrap(), Status::Held(holder.clone()));
        let Evidence::Unknown(why) = &holder.evidence else { panic!("{holder:?}") };
        assert!(is_told(why), "{why}");
        assert!(lock.is_locked().await.unwrap());
        assert!(lock.try_acquire().await.unwrap().is_none());
        for limit in [Duration::ZERO, SHORT] {
            let error = lock.acquire_timeout(limit).await.unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            assert!(is_told(&error.to_string()), "{error}");
        }
        let error = lock.revoke().await.unwrap_err();
        assert!(matches!(error, Error::CannotAsk { .. }) && is_told(&error.to_string()), "{error}");
        support::tell("waits");
        let guard = lock.acquire().await.unwrap();
        assert!(guard.recovered_from().is_none());
        support::tell("held");
        guard.release().await.unwrap();
    });
}

#[test]
fn a_dead_holders_file_that_may_not_be_read_is_not_taken_for_dead() {
    const TEST: &str = "a_dead_holders_file_that_may_not_be_read_is_not_taken_for_dead";
    if let Some((role, path)) = support::role() {
        if let Some(kind) = role.strip_prefix("holds ") {
            umask(Mode::from_bits_truncate(0o077));
            return hold(OWNER, kind, &path);
        }
        return hold(OTHER, &role, &path);
    }
    if !has_two_users() {
        return;
    }
    for role in ["pinned", "portable"] {
        // It could be removed by anybody.
        let directory = with_mode(0o777);
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, &format!("holds {role}"), &path);
        holder.expect("held");
        let waiter = Process::play(TEST, role, &path);
        holder.kill();
        waiter.expect_quiet();
        // Root may read it, and brings the news.
        let guard = lock(role, &path).blocking_acquire().unwrap();
        assert_eq!(guard.recovered_from().unwrap().pid, Some(holder.id()));
        drop(guard);
        waiter.expect("held");
    }
}

/// The claim that a portable contender left when it was killed.
#[test]
fn a_claim_that_may_not_be_read_is_busy() {
    const TEST: &str = "a_claim_that_may_not_be_read_is_busy";
    if let Some((role, path)) = support::role() {
        if role == "dies portable" {
            return hold(OWNER, &role, &path);
        }
        become_user(OTHER);
        let error = block_on(lock(&role, &path).acquire_timeout(Duration::ZERO)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(".break.") && text.contains("mode 0600"), "{text}");
        return support::tell("done");
    }
    if !has_two_users() {
        return;
    }
    let directory = with_mode(0o777);
    let path = directory.path().join("a.lock");
    let mut dead = Process::play(TEST, "dies portable", &path);
    dead.expect("held");
    dead.kill();
    let Status::Stale(left) = block_on(lock("portable", &path).status()).unwrap() else { panic!() };
    let claim = directory.path().join(format!("a.lock.break.{}", left.hold_id.unwrap()));
    fs::copy(&path, &claim).unwrap();
    support::chmod(&claim, 0o600);
    chown(&claim, Some(OWNER), Some(OWNER)).unwrap();
    let mut child = Process::play(TEST, "portable", &path);
    child.expect("done");
    assert!(child.wait().success());
}

#[test]
fn a_kernel_lock_whose_file_may_not_be_opened_is_refused_at_once() {
    const TEST: &str = "a_kernel_lock_whose_file_may_not_be_opened_is_refused_at_once";
    if let Some((_, path)) = support::role() {
        become_user(OTHER);
        block_on(async {
            for primitive in [Primitive::Flock, Primitive::Ofd] {
                for offload in [Offload::Never, Offload::Always] {
                    let options = KernelOptions::default().primitive(primitive).offload(offload);
                    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
                    for error in [
                        timeout(VERY_LONG, lock.acquire()).await.expect("it waits").unwrap_err(),
                        lock.acquire_shared().await.unwrap_err(),
                        lock.try_acquire().await.unwrap_err(),
                        lock.status().await.unwrap_err(),
                    ] {
                        let Error::MayNotOpen { owner: OWNER, mode: 0o600, .. } = &error else {
                            panic!("{error:?}")
                        };
                        let text = error.to_string();
                        for word in [path.to_str().unwrap(), "user id 65534", "mode 0600"] {
                            assert!(text.contains(word), "{text}");
                        }
                    }
                }
            }
        });
        return support::tell("done");
    }
    if !has_two_users() {
        return;
    }
    let directory = with_mode(0o777);
    let path = directory.path().join("table");
    fs::write(&path, "content").unwrap();
    support::chmod(&path, 0o600);
    chown(&path, Some(OWNER), Some(OWNER)).unwrap();
    let _guard = AsyncKernelLock::new(&path).blocking_acquire().unwrap();
    let mut child = Process::play(TEST, "other", &path);
    child.expect("done");
    assert!(child.wait().success());
}
