//! A holder hears that its lock is lost, and a revoked one that somebody asks for it.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt;
use lockkeeper::{
    AsyncFileLock, Error, Evidence, FileGuard, FileOptions, Lost, LostReason, Offload, Proof,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::{Process, QUIET, VERY_LONG, names_in};
use tokio::time::{sleep, timeout};

fn every_kind() -> impl Iterator<Item = FileOptions> {
    [Proof::Auto, Proof::Process].into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always].map(|offload| {
            FileOptions::default()
                .proof(pin)
                .offload(offload)
                .retry_period(Duration::from_millis(5))
        })
    })
}

fn lock_with(path: impl AsRef<Path>, options: &FileOptions) -> AsyncFileLock {
    AsyncFileLock::with_options(path, options.clone()).unwrap()
}

async fn loss_of(guard: &FileGuard) -> Lost {
    timeout(VERY_LONG, guard.lost()).await.expect("the loss was not noticed")
}

/// Hold a lock in `directory/inner`, do `harm`, and hear of it in both ways.
async fn hear(reason: LostReason, harm: impl AsyncFn(&AsyncFileLock)) {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let inner = directory.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let lock = lock_with(inner.join("a.lock"), &options);
        let guard = lock.acquire().await.unwrap();
        let token = guard.lost_token();
        let mut early = guard.lost().boxed();
        assert!((&mut early).now_or_never().is_none());
        harm(&lock).await;
        let lost = timeout(VERY_LONG, early).await.expect("the loss was not noticed");
        assert_eq!(lost.reason, reason);
        assert_eq!(lost.lock, *lock.path());
        assert!(lost.to_string().contains(lock.path().to_str().unwrap()), "{lost}");
        timeout(VERY_LONG, token.cancelled()).await.expect("the token was not cancelled");
        assert_eq!(loss_of(&guard).await, lost, "asked again, the answer is the same");
        assert!(guard.lost_token().is_cancelled());
    }
}

#[tokio::test]
async fn the_removal_of_the_file_is_noticed() {
    hear(LostReason::Removed, async |lock| std::fs::remove_file(lock.path()).unwrap()).await;
}

#[tokio::test]
async fn another_file_in_its_place_is_noticed() {
    hear(LostReason::Replaced, async |lock| {
        let other = lock.path().with_extension("other");
        std::fs::copy(lock.path(), &other).unwrap();
        std::fs::rename(other, lock.path()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_symbolic_link_to_the_file_is_not_the_file() {
    hear(LostReason::Replaced, async |lock| {
        let (kept, link) = (lock.path().with_extension("kept"), lock.path().with_extension("link"));
        std::fs::hard_link(lock.path(), &kept).unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        std::fs::rename(link, lock.path()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_revocation_is_noticed() {
    hear(LostReason::Revoked, async |lock| {
        let asked = lock.revoke().await.unwrap().expect("somebody holds");
        assert_eq!(asked.pid, Some(std::process::id()));
    })
    .await;
}

#[tokio::test]
async fn a_renamed_ancestor_directory_is_noticed() {
    hear(LostReason::Removed, async |lock| {
        let inner = lock.path().parent().unwrap();
        std::fs::rename(inner, inner.with_extension("away")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_file_in_an_exchanged_directory_is_another() {
    hear(LostReason::Replaced, async |lock| {
        let inner = lock.path().parent().unwrap();
        let other = inner.with_extension("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::copy(lock.path(), other.join("a.lock")).unwrap();
        renameat_with(CWD, inner, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    })
    .await;
}

#[tokio::test]
async fn nothing_is_heard_while_all_is_well() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_with(directory.path().join("a.lock"), &options);
        let guard = lock.acquire().await.unwrap();
        let token = guard.lost_token();
        // What others may do.
        assert!(lock.is_locked().await.unwrap());
        assert!(lock.try_acquire().await.unwrap().is_none());
        std::fs::read(lock.path()).unwrap();
        std::fs::hard_link(lock.path(), directory.path().join("another name")).unwrap();
        std::fs::write(directory.path().join("a.lock.revoke.00"), "").unwrap();
        assert!(timeout(QUIET, guard.lost()).await.is_err());
        assert!(!token.is_cancelled());
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_release_cancels_no_token() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_with(directory.path().join("a.lock"), &options);
        for is_released in [true, false] {
            let guard = lock.acquire().await.unwrap();
            let token = guard.lost_token();
            match is_released {
                true => guard.release().await.unwrap(),
                false => drop(guard),
            }
            sleep(QUIET / 4).await;
            assert!(!token.is_cancelled());
        }
    }
}

/// The watch looks often, and a release may come at any moment of a look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_during_a_look_is_no_loss() {
    let directory = support::on_tmpfs();
    for offload in [Offload::Never, Offload::Always] {
        let options = FileOptions::default().offload(offload).retry_period(Duration::from_nanos(1));
        let lock = lock_with(directory.path().join("a.lock"), &options);
        let mut tokens = Vec::new();
        for _ in 0..200 {
            let guard = lock.acquire().await.unwrap();
            tokens.push(guard.lost_token());
            sleep(Duration::from_millis(1)).await;
            guard.release().await.unwrap();
        }
        sleep(QUIET / 4).await;
        assert!(tokens.iter().all(|token| !token.is_cancelled()));
    }
}

#[tokio::test]
async fn cancelling_a_token_affects_nobody_else() {
    let directory = support::on_tmpfs();
    let options = every_kind().next().unwrap();
    let lock = lock_with(directory.path().join("a.lock"), &options);
    let guard = lock.acquire().await.unwrap();
    let (mine, theirs) = (guard.lost_token(), guard.lost_token());
    mine.cancel();
    assert!(!theirs.is_cancelled());
    assert!(!guard.lost_token().is_cancelled());
    assert!(timeout(QUIET, guard.lost()).await.is_err());
    std::fs::remove_file(lock.path()).unwrap();
    timeout(VERY_LONG, theirs.cancelled()).await.expect("the watch ended with another's token");
}

#[tokio::test]
async fn the_watch_ends_with_the_guard() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let directory = support::on_tmpfs();
    let options = every_kind().next().unwrap();
    let lock = lock_with(directory.path().join("a.lock"), &options);
    let guard = lock.acquire().await.unwrap();
    let before = alive();
    let tokens = [guard.lost_token(), guard.lost_token()];
    assert_eq!(alive(), before + 1, "one task, however many tokens");
    drop(guard);
    let ended = async {
        while alive() > before {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(VERY_LONG, ended).await.expect("the watch goes on");
    assert!(tokens.iter().all(|token| !token.is_cancelled()));
}

#[test]
#[should_panic(expected = "runtime")]
fn a_token_needs_a_runtime() {
    let directory = support::on_tmpfs();
    let guard = AsyncFileLock::new(directory.path().join("a.lock")).blocking_acquire().unwrap();
    let _ = guard.lost_token();
}

#[tokio::test]
async fn nobody_is_asked_where_nobody_holds() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_with(directory.path().join("a.lock"), &options);
        assert_eq!(lock.revoke().await.unwrap(), None);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let stale = format!("{}\nworker\n", child.id());
        std::fs::write(lock.path(), &stale).unwrap();
        assert_eq!(lock.revoke().await.unwrap(), None);
        assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), stale);
        assert_eq!(names_in(directory.path()), ["a.lock"]);
    }
}

#[tokio::test]
async fn a_foreign_holder_cannot_be_asked() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_with(directory.path().join("a.lock"), &options);
        let foreign = format!("{}\n", std::process::id());
        std::fs::write(lock.path(), &foreign).unwrap();
        let error = lock.revoke().await.unwrap_err();
        let Error::CannotAsk { lock: named, holder } = &error else { panic!("{error}") };
        assert_eq!(named.path(), Some(lock.path()));
        assert_eq!(holder.pid, Some(std::process::id()));
        assert_eq!(holder.evidence, Evidence::ProcessRuns);
        assert!(holder.is_foreign());
        assert!(error.to_string().contains(lock.path().to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), foreign);
        assert_eq!(names_in(directory.path()), ["a.lock"]);
    }
}

#[tokio::test]
async fn a_revoked_lock_is_still_held_and_its_release_removes_the_request() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_with(directory.path().join("a.lock"), &options);
        for is_released in [true, false] {
            let guard = lock.acquire().await.unwrap();
            let record = std::fs::read(lock.path()).unwrap();
            let first = lock.revoke().await.unwrap().unwrap();
            let second = lock.revoke().await.unwrap().unwrap();
            assert_eq!(first.hold_id, second.hold_id);
            assert_eq!(first.hold_id, Some(guard.hold_id()));
            let request = format!("a.lock.revoke.{}", guard.hold_id());
            assert_eq!(names_in(directory.path()), ["a.lock", &request]);
            assert_eq!(loss_of(&guard).await.reason, LostReason::Revoked);
            assert_eq!(std::fs::read(lock.path()).unwrap(), record, "the lock file is untouched");
            assert!(lock.try_acquire().await.unwrap().is_none());
            match is_released {
                true => guard.release().await.unwrap(),
                false => drop(guard),
            }
            lockkeeper::flush().await;
            assert!(names_in(directory.path()).is_empty());
        }
        // The next holder is not asked.
        let guard = lock.acquire().await.unwrap();
        assert!(timeout(QUIET / 4, guard.lost()).await.is_err());
    }
}

const REVOKED_ELSEWHERE: &str = "a_request_goes_with_a_revoked_holder_that_was_killed";

#[tokio::test]
async fn a_request_goes_with_a_revoked_holder_that_was_killed() {
    if let Some((role, path)) = support::role() {
        return hold_until_killed(&role, path).await;
    }
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = lock_with(directory.path().join("a.lock"), &options);
        let is_portable = options == options.clone().proof(Proof::Process);
        let role = if is_portable { "portable" } else { "pinned" };
        let mut holder = Process::play(REVOKED_ELSEWHERE, role, lock.path());
        holder.expect("held");
        let asked = lock.revoke().await.unwrap().unwrap();
        assert_eq!(asked.pid, Some(holder.id()));
        holder.expect("Revoked");
        holder.kill();
        let guard = timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap();
        let dead = guard.recovered_from().expect("it died holding the lock");
        assert_eq!(dead.hold_id, asked.hold_id);
        assert_eq!(names_in(directory.path()), ["a.lock"], "the request went with the takeover");
        guard.release().await.unwrap();
        assert!(names_in(directory.path()).is_empty());
    }
}

async fn hold_until_killed(role: &str, path: PathBuf) {
    let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
    let options = FileOptions::default().proof(pin).retry_period(Duration::from_millis(5));
    let guard = lock_with(path, &options).acquire().await.unwrap();
    support::tell("held");
    support::tell(&format!("{:?}", loss_of(&guard).await.reason));
    support::told();
}
