//! What a kernel lock promises within a process and to its user.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use lockkeeper::{
    AsyncKernelLock, Error, KernelGuard, KernelOptions, LostReason, Offload, Primitive, Status,
};
use nix::sys::stat::Mode;
use tokio::task::unconstrained;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use support::{QUIET, VERY_LONG, names_in, on_disk, on_tmpfs};

/// Only Linux has the second.
const ALL: &[Primitive] = match cfg!(lockkeeper_generic_unix) {
    true => &[Primitive::Flock],
    false => &[Primitive::Flock, Primitive::Ofd],
};

fn with(path: &Path, options: KernelOptions) -> AsyncKernelLock {
    AsyncKernelLock::with_options(path, options).expect("possible options")
}

fn of(primitive: Primitive) -> KernelOptions {
    KernelOptions::default().primitive(primitive)
}

/// Every form of an exclusive lock on a whole file.
fn forms() -> Vec<KernelOptions> {
    let forms = ALL.iter().map(|&primitive| {
        let plain = of(primitive);
        let kept = plain.clone().keep_open(true);
        let deleted = plain.clone().delete_on_release(true);
        let offloaded = plain.clone().offload(Offload::Always);
        [plain, kept, deleted, offloaded]
    });
    forms.flatten().collect()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(VERY_LONG, what).await.expect("it takes too long")
}

async fn quiet<T>(what: impl Future<Output = T>) {
    assert!(timeout(QUIET, what).await.is_err(), "it should have waited");
}

#[tokio::test]
async fn one_holder_at_a_time() {
    let directory = on_tmpfs();
    for (number, options) in forms().into_iter().enumerate() {
        let lock = with(&directory.path().join(number.to_string()), options.clone());
        let guard = lock.acquire().await.unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none(), "{options:?}");
        assert!(lock.clone().try_acquire_shared().await.unwrap().is_none(), "{options:?}");
        quiet(lock.acquire()).await;
        guard.release().await.unwrap();
        drop(lock.try_acquire().await.unwrap().expect("it was released"));
        drop(soon(lock.acquire()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_take_turns_and_exclude_each_other() {
    let directory = on_disk();
    for (number, options) in forms().into_iter().enumerate() {
        let lock = with(&directory.path().join(number.to_string()), options);
        let inside = Arc::new(AtomicUsize::new(0));
        let task = |_| {
            let (lock, inside) = (lock.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                for _ in 0..20 {
                    let guard = lock.acquire().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                }
            })
        };
        for task in (0..16).map(task).collect::<Vec<_>>() {
            soon(task).await.unwrap();
        }
    }
}

#[tokio::test]
async fn readers_share_and_writers_do_not() {
    let directory = on_tmpfs();
    for (number, options) in forms().into_iter().enumerate() {
        let lock = with(&directory.path().join(number.to_string()), options.clone());
        let readers = [lock.acquire_shared().await.unwrap(), lock.acquire_shared().await.unwrap()];
        assert!(readers.iter().all(KernelGuard::is_shared));
        assert!(lock.try_acquire().await.unwrap().is_none(), "{options:?}");
        let [first, second] = readers;
        first.release().await.unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none(), "{options:?}");
        second.release().await.unwrap();
        let writer = lock.try_acquire().await.unwrap().expect("all readers are gone");
        assert!(!writer.is_shared());
        writer.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_writer_that_waits_comes_before_readers_that_come_later() {
    let directory = on_tmpfs();
    for &primitive in ALL {
        let lock = with(&directory.path().join(format!("{primitive:?}")), of(primitive));
        let reader = lock.acquire_shared().await.unwrap();
        let writer = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire().await.unwrap() }
        });
        tokio::task::yield_now().await;
        quiet(lock.acquire_shared()).await;
        assert!(lock.try_acquire_shared().await.unwrap().is_none());
        drop(reader);
        let writer = soon(writer).await.unwrap();
        quiet(lock.acquire_shared()).await;
        drop(writer);
        drop(soon(lock.acquire_shared()).await.unwrap());
    }
}

#[tokio::test]
async fn the_file_is_made_with_its_mode_and_stays_as_it_is() {
    let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let directory = on_disk();
    for &primitive in ALL {
        let path = directory.path().join(format!("{primitive:?}"));
        let lock = with(&path, of(primitive));
        let guard = lock.acquire().await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        guard.file().write_all(b"the user's").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        guard.release().await.unwrap();
        drop(lock.acquire_shared().await.unwrap());
        let guard = lock.acquire().await.unwrap();
        let mut content = String::new();
        guard.file().read_to_string(&mut content).unwrap();
        assert_eq!(content, "the user's");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }
    nix::sys::stat::umask(umask);
}

#[tokio::test]
async fn the_file_is_deleted_where_that_is_asked_for() {
    let directory = on_disk();
    for &primitive in ALL {
        for offload in [Offload::Auto, Offload::Always] {
            let options = of(primitive).delete_on_release(true).offload(offload);
            let lock = with(&directory.path().join("deleted.lock"), options);
            lock.acquire().await.unwrap().release().await.unwrap();
            assert!(names_in(directory.path()).is_empty(), "{primitive:?}");
            drop(lock.acquire().await.unwrap());
            lockkeeper::flush().await;
            assert!(names_in(directory.path()).is_empty(), "{primitive:?}");
            let (first, last) =
                (lock.acquire_shared().await.unwrap(), lock.acquire_shared().await.unwrap());
            first.release().await.unwrap();
            assert_eq!(names_in(directory.path()), ["deleted.lock"], "another shares it");
            assert!(lock.try_acquire().await.unwrap().is_none());
            last.release().await.unwrap();
            assert!(names_in(directory.path()).is_empty(), "{primitive:?}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_removed_or_replaced_while_we_wait_is_noticed() {
    let directory = on_tmpfs();
    for &primitive in ALL {
        let path = directory.path().join(format!("{primitive:?}"));
        let lock = with(&path, of(primitive));
        let holder = lock.acquire_shared().await.unwrap();
        let waiter = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire().await.unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!waiter.is_finished());
        fs::write(directory.path().join("new"), "new").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        let waiter = soon(waiter).await.unwrap();
        assert_eq!(waiter.file().metadata().unwrap().ino(), fs::metadata(&path).unwrap().ino());
        assert_eq!(soon(holder.lost()).await.reason, LostReason::Replaced);
        drop(holder);
        fs::remove_file(&path).unwrap();
        assert_eq!(soon(waiter.lost()).await.reason, LostReason::Removed);
        assert!(waiter.file().metadata().unwrap().nlink() == 0);
    }
}

#[tokio::test]
async fn a_lost_token_is_cancelled_when_the_file_goes_and_not_by_a_release() {
    let directory = on_tmpfs();
    let path = directory.path().join("token.lock");
    let lock = with(&path, KernelOptions::default().delete_on_release(true));
    let guard = lock.acquire().await.unwrap();
    let token = guard.lost_token();
    guard.release().await.unwrap();
    assert!(timeout(QUIET, token.cancelled()).await.is_err());
    let guard = lock.acquire().await.unwrap();
    let token = guard.lost_token();
    fs::remove_file(&path).unwrap();
    soon(token.cancelled()).await;
    assert!(matches!(guard.release().await, Err(Error::Lost(_))));
}

#[tokio::test]
async fn already_mine_is_told() {
    let directory = on_tmpfs();
    for &primitive in ALL {
        let lock = with(&directory.path().join(format!("{primitive:?}")), of(primitive));
        let _guard = lock.acquire().await.unwrap();
        let error = lock.acquire_timeout(Duration::ZERO).await.unwrap_err();
        let message = error.to_string();
        let Error::Timeout { lock: named, holder: Some(holder), .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(named.path(), Some(lock.path()));
        assert_eq!(holder.pid, Some(std::process::id()));
        assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
    }
}

#[tokio::test]
async fn the_status_says_free_or_held() {
    let directory = on_tmpfs();
    for &primitive in ALL {
        let lock = with(&directory.path().join(format!("{primitive:?}")), of(primitive));
        assert_eq!(lock.status().await.unwrap(), Status::Free);
        assert!(names_in(directory.path()).is_empty(), "asking makes no file");
        for guard in [lock.acquire().await.unwrap()] {
            assert!(matches!(lock.status().await.unwrap(), Status::Held(_)), "{primitive:?}");
            drop(guard);
        }
        let guard = lock.acquire_shared().await.unwrap();
        assert!(lock.is_locked().await.unwrap(), "{primitive:?}");
        drop(guard);
        assert_eq!(lock.holder().await.unwrap(), None);
        assert!(lock.try_acquire().await.unwrap().is_some());
        fs::remove_file(lock.path()).unwrap();
    }
}

#[tokio::test]
async fn a_wait_ends_by_limit_by_token_and_by_being_dropped_and_leaves_nothing() {
    let directory = on_tmpfs();
    for (number, options) in forms().into_iter().enumerate() {
        let lock = with(&directory.path().join(number.to_string()), options);
        let guard = lock.acquire().await.unwrap();
        let limit = Duration::from_millis(20);
        assert!(matches!(lock.acquire_timeout(limit).await, Err(Error::Timeout { .. })));
        assert!(matches!(lock.acquire_shared_timeout(limit).await, Err(Error::Timeout { .. })));
        let token = CancellationToken::new();
        let (cancelled, ()) = tokio::join!(lock.acquire_with(&token), async {
            tokio::time::sleep(limit).await;
            token.cancel();
        });
        assert!(matches!(cancelled, Err(Error::Cancelled { .. })));
        assert!(timeout(limit, lock.acquire()).await.is_err());
        assert!(timeout(limit, lock.acquire_shared()).await.is_err());
        guard.release().await.unwrap();
        let guard = lock.try_acquire().await.unwrap().expect("nobody is left in the queue");
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_else_is_taken_for_a_lock() {
    let directory = on_tmpfs();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("target"), "content").unwrap();
    symlink(path("target"), path("link")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    fs::create_dir(path("directory")).unwrap();
    for &primitive in ALL {
        for name in ["link", "fifo", "socket"] {
            let lock = with(&path(name), of(primitive));
            let refused = lock.acquire().await;
            assert!(matches!(refused, Err(Error::NotALockFile { .. })), "{name}: {refused:?}");
            let told = lock.status().await;
            assert!(matches!(told, Err(Error::NotALockFile { .. })), "{name}: {told:?}");
        }
        let of_directory = with(&path("directory"), of(primitive)).acquire().await;
        match primitive {
            Primitive::Flock => drop(of_directory.expect("flock locks directories")),
            _ => assert!(matches!(of_directory, Err(Error::NotALockFile { .. }))),
        }
        let missing = with(&path("missing/lock"), of(primitive)).acquire().await;
        assert!(matches!(missing, Err(Error::NoDirectory { .. })), "{missing:?}");
        let below = with(&path("target/lock"), of(primitive)).acquire().await;
        assert!(matches!(below, Err(Error::BadPath { .. })), "{below:?}");
    }
    assert_eq!(fs::read_to_string(path("target")).unwrap(), "content");
    assert_eq!(names_in(directory.path()), ["directory", "fifo", "link", "socket", "target"]);
}

#[tokio::test]
async fn a_directory_that_comes_back_is_another() {
    let directory = on_tmpfs();
    let place = directory.path().join("place");
    let lock = AsyncKernelLock::new(place.join("lock"));
    fs::create_dir(&place).unwrap();
    drop(lock.acquire().await.unwrap());
    fs::rename(&place, directory.path().join("old")).unwrap();
    assert!(matches!(lock.acquire().await, Err(Error::NoDirectory { .. })));
    fs::create_dir(&place).unwrap();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(names_in(&place), ["lock"]);
    drop(guard);
}

#[test]
fn impossible_options_are_refused() {
    let refused = |options: KernelOptions, name: &str| match AsyncKernelLock::with_options(
        "refused.lock",
        options,
    ) {
        Err(Error::InvalidOption { option, .. }) => assert_eq!(option, name),
        other => panic!("{name}: {other:?}"),
    };
    refused(of(Primitive::Flock).range(0..1), "range");
    if ALL.contains(&Primitive::Ofd) {
        refused(of(Primitive::Ofd).range(5..5), "range");
        refused(of(Primitive::Ofd).range(0..u64::MAX), "range");
        refused(of(Primitive::Ofd).range(0..10).delete_on_release(true), "delete_on_release");
    } else {
        refused(of(Primitive::Ofd), "primitive");
    }
    refused(KernelOptions::default().keep_open(true).delete_on_release(true), "keep_open");
    refused(KernelOptions::default().retry_period(Duration::ZERO), "retry_period");
}

#[tokio::test]
#[cfg_attr(lockkeeper_generic_unix, ignore = "only Linux has locks of ranges")]
async fn ranges_exclude_where_they_overlap() {
    let directory = on_tmpfs();
    let primitive = Primitive::Ofd;
    let path = directory.path().join(format!("{primitive:?}"));
    let of_range = |range: std::ops::Range<u64>| with(&path, of(primitive).range(range));
    let low = of_range(0..10).acquire().await.unwrap();
    let high = of_range(10..20).try_acquire().await.unwrap().expect("they do not overlap");
    assert!(of_range(5..15).try_acquire().await.unwrap().is_none());
    assert!(with(&path, of(primitive)).try_acquire().await.unwrap().is_none());
    let waiter = tokio::spawn({
        let both = of_range(5..15);
        async move { both.acquire().await.unwrap() }
    });
    drop(low);
    tokio::time::sleep(QUIET).await;
    assert!(!waiter.is_finished(), "half of it is still locked");
    drop(high);
    drop(soon(waiter).await.unwrap());
}

#[tokio::test]
async fn a_downgrade_lets_readers_in_and_no_writer() {
    let directory = on_tmpfs();
    for &primitive in ALL {
        let lock = with(&directory.path().join(format!("{primitive:?}")), of(primitive));
        let guard = lock.acquire().await.unwrap();
        let reader = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire_shared().await.unwrap() }
        });
        tokio::task::yield_now().await;
        let guard = guard.downgrade().await.unwrap();
        assert!(guard.is_shared());
        let reader = soon(reader).await.unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none());
        let guard = guard.downgrade().await.unwrap();
        drop(guard);
        assert!(lock.try_acquire().await.unwrap().is_none(), "there is no way up");
        drop(reader);
        assert!(lock.try_acquire().await.unwrap().is_some());
    }
}

#[test]
fn a_thread_can_block() {
    let directory = on_tmpfs();
    let lock = AsyncKernelLock::new(directory.path().join("blocking.lock"));
    let guard = lock.blocking_acquire().unwrap();
    let waiter = std::thread::spawn({
        let lock = lock.clone();
        move || lock.blocking_acquire().unwrap().release()
    });
    std::thread::sleep(QUIET);
    assert!(!waiter.is_finished());
    drop(guard);
    drop(waiter.join().unwrap());
}

/// Peers that block a pool's thread for each task never come to an end here.
#[test]
fn six_hundred_tasks_that_use_files_inside_do_not_exhaust_the_pool() {
    let directory = on_tmpfs();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let lock = AsyncKernelLock::new(directory.path().join("pool.lock"));
    let content = directory.path().join("content");
    runtime.block_on(async {
        let task = |_| {
            let (lock, content) = (lock.clone(), content.clone());
            tokio::spawn(async move {
                let _guard = lock.acquire().await.unwrap();
                let old = tokio::fs::read(&content).await.unwrap_or_default();
                tokio::fs::write(&content, [old.as_slice(), b"."].concat()).await.unwrap();
            })
        };
        for task in (0..600).map(task).collect::<Vec<_>>() {
            soon(task).await.unwrap();
        }
        let guard = lock.acquire().await.unwrap();
        let attempt = |_| {
            let lock = lock.clone();
            tokio::spawn(async move { lock.acquire_timeout(Duration::from_millis(10)).await })
        };
        for attempt in (0..600).map(attempt).collect::<Vec<_>>() {
            assert!(matches!(soon(attempt).await.unwrap(), Err(Error::Timeout { .. })));
        }
        // The pool is free, and so is the lock afterwards.
        soon(tokio::task::spawn_blocking(|| ())).await.unwrap();
        guard.release().await.unwrap();
        drop(lock.try_acquire().await.unwrap().expect("nobody acquired it late"));
        let held = lock.acquire().await.unwrap();
        let waiting = lock.clone();
        tokio::spawn(async move { waiting.acquire().await });
        tokio::task::yield_now().await;
        std::mem::forget(held);
    });
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        let _ = tell.send(());
    });
    told.recv_timeout(VERY_LONG).expect("the runtime goes down while somebody waits");
    assert_eq!(fs::read(content).unwrap().len(), 600);
}

#[test]
fn all_of_it_can_be_sent_to_other_threads() {
    fn is_sent<T: Send>(_: &T) {}
    fn is_shared<T: Send + Sync + Clone + std::fmt::Debug + 'static>(_: &T) {}
    fn guard<T: Send + Sync + 'static>() {}
    let lock = AsyncKernelLock::new("unused.lock");
    is_shared(&lock);
    guard::<KernelGuard>();
    is_sent(&lock.acquire());
    is_sent(&lock.acquire_shared());
    is_sent(&lock.try_acquire());
    is_sent(&lock.status());
}

/// Nor does it wait for anything, so Tokio's budget has to see to that.
#[tokio::test]
async fn a_loop_that_finds_all_free_lets_other_tasks_run() {
    let directory = on_tmpfs();
    let lock = |name: &str| AsyncKernelLock::new(directory.path().join(name));
    let held = lock("held");
    // The first look at a directory is waited for.
    let guard = held.acquire().await.unwrap();
    // Each its own, as who takes one over and over gives way at times.
    let locks: Vec<_> = (0..300).map(|number| lock(&number.to_string())).collect();
    for time in ["first", "second"] {
        let other = tokio::spawn(async {});
        for lock in &locks {
            lock.acquire().await.unwrap().release().await.unwrap();
        }
        assert!(other.is_finished(), "after the {time} 300 acquisitions");
    }
    let other = tokio::spawn(async {});
    for _ in 0..300 {
        assert!(held.try_acquire().await.unwrap().is_none());
    }
    assert!(other.is_finished(), "after 300 tries");
    drop(guard);
}

#[tokio::test]
async fn a_file_that_is_kept_open_is_used_again() {
    let directory = on_tmpfs();
    let lock = with(&directory.path().join("kept"), KernelOptions::default().keep_open(true));
    let descriptor = async || {
        let guard = lock.acquire().await.unwrap();
        let descriptor = guard.file().as_raw_fd();
        guard.release().await.unwrap();
        descriptor
    };
    // No other can have the number meanwhile.
    assert_eq!(descriptor().await, descriptor().await);
}

/// A file system that does not answer would stop the runtime's thread.
#[tokio::test]
async fn the_calls_of_an_offloaded_lock_are_made_elsewhere() {
    let directory = on_tmpfs();
    for &primitive in ALL {
        let options = of(primitive).offload(Offload::Always);
        // The other thread can be quicker than one poll is: another is asked for then.
        // One that was never had before, without a budget of Tokio's, has nothing else
        // to wait for.
        let mut has_waited = false;
        for number in 0..1000 {
            let path = directory.path().join(format!("{primitive:?}-{number}"));
            // The directory is known from here on.
            let known = with(&path.with_extension("known"), options.clone());
            known.acquire().await.unwrap().release().await.unwrap();
            let lock = with(&path, options.clone());
            let mut acquired = Box::pin(unconstrained(lock.acquire()));
            let first = futures::poll!(&mut acquired);
            has_waited = first.is_pending();
            let guard = match first {
                Poll::Ready(guard) => guard,
                Poll::Pending => acquired.await,
            };
            guard.unwrap().release().await.unwrap();
            if has_waited {
                break;
            }
        }
        assert!(has_waited, "{primitive:?}");
    }
}

#[tokio::test]
#[cfg_attr(lockkeeper_generic_unix, ignore = "only Linux has locks of ranges")]
async fn a_range_can_include_the_last_byte() {
    const LAST: u64 = i64::MAX as u64;
    let directory = on_tmpfs();
    let primitive = Primitive::Ofd;
    let path = directory.path().join(format!("{primitive:?}"));
    let with = |options| with(&path, options);
    for range in [of(primitive).range(..=LAST), of(primitive).range(LAST..=LAST)] {
        let guard = with(range).acquire().await.unwrap();
        for other in [of(primitive).range(LAST..), of(primitive)] {
            assert!(with(other).try_acquire().await.unwrap().is_none(), "{primitive:?}");
        }
        drop(guard);
    }
    let guard = with(of(primitive).range(10..=LAST)).acquire().await.unwrap();
    let before = with(of(primitive).range(..10)).try_acquire().await.unwrap();
    assert!(before.is_some(), "{primitive:?}: it begins where it was told to");
    drop((guard, before));
}
