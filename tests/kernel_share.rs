//! A locked file passes from task to task within a process for a moment, and
//! never where that would show.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::poll;
use lockkeeper::{AsyncKernelLock, Error, KernelGuard, KernelOptions, Primitive};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use support::{eventually, names_in, on_tmpfs};
use tokio::time::timeout;

/// How often a hold must have been seen to pass. It does so only within a
/// millisecond, which a busy machine may be late for.
const PASSES: u32 = 10;

type Waiter = Pin<Box<dyn Future<Output = Result<KernelGuard, Error>> + Send>>;

/// One who waits, surely in the queue.
async fn waiter(lock: &AsyncKernelLock, is_shared: bool) -> Waiter {
    let lock = lock.clone();
    let mut waiter: Waiter = Box::pin(async move {
        if is_shared { lock.acquire_shared().await } else { lock.acquire().await }
    });
    assert!(poll!(&mut waiter).is_pending());
    waiter
}

async fn had(waiter: Waiter) -> KernelGuard {
    timeout(support::VERY_LONG, waiter).await.expect("it is woken").unwrap()
}

/// As another program sees it.
fn is_free(path: &Path) -> bool {
    match flock(File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(Errno::WOULDBLOCK) => false,
        Err(error) => panic!("{error}"),
    }
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[tokio::test]
async fn it_is_locked_while_it_passes_and_free_after_the_last() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    let passing = async {
        let mut passes = 0;
        while passes < PASSES {
            let lock = AsyncKernelLock::new(&path);
            let guard = lock.acquire().await.unwrap();
            let next = waiter(&lock, false).await;
            guard.release().await.unwrap();
            passes += u32::from(!is_free(&path));
            let guard = had(next).await;
            assert!(!is_free(&path));
            drop(guard);
            assert!(is_free(&path));
        }
    };
    timeout(support::VERY_LONG, passing).await.expect("it never passes");
}

#[tokio::test]
async fn a_file_that_is_removed_at_release_stays_while_it_passes() {
    let (directory, elsewhere) = (on_tmpfs(), on_tmpfs());
    let [path, other] = [&directory, &elsewhere].map(|directory| directory.path().join("table"));
    let options = KernelOptions::default().delete_on_release(true);
    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
    let passing = async {
        let mut passes = 0;
        while passes < PASSES {
            let guard = lock.acquire().await.unwrap();
            if passes >= PASSES / 2 {
                // Its path has to be looked at then.
                fs::hard_link(&path, &other).unwrap();
            }
            let (next, first) = (waiter(&lock, false).await, inode(&path));
            guard.release().await.unwrap();
            let guard = had(next).await;
            passes += u32::from(inode(&path) == first);
            guard.release().await.unwrap();
            assert!(names_in(directory.path()).is_empty());
            let _ = fs::remove_file(&other);
        }
    };
    timeout(support::VERY_LONG, passing).await.expect("it never passes");
}

#[tokio::test]
async fn each_holder_reads_from_the_start_with_a_file_of_its_own() {
    let directory = on_tmpfs();
    for keep_open in [false, true] {
        for later in [false, true] {
            let path = directory.path().join(format!("{keep_open} {later}"));
            let options = KernelOptions::default().keep_open(keep_open);
            let lock = AsyncKernelLock::with_options(&path, options).unwrap();
            let guard = lock.acquire().await.unwrap();
            let next = if later { None } else { Some(waiter(&lock, false).await) };
            let mut copy = guard.file().try_clone().unwrap();
            guard.file().write_all(b"forty-two").unwrap();
            guard.release().await.unwrap();
            let guard = match next {
                Some(next) => had(next).await,
                None => lock.acquire().await.unwrap(),
            };
            let mut content = String::new();
            guard.file().read_to_string(&mut content).unwrap();
            assert_eq!(content, "forty-two", "kept open: {keep_open}, later: {later}");
            if !keep_open {
                copy.write_all(b"!").unwrap();
                assert_eq!(guard.file().read(&mut [0]).unwrap(), 1, "they share a position");
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_is_not_passed_on() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    let lock = AsyncKernelLock::new(&path);
    for replaced in [false, true] {
        for _ in 0..PASSES {
            let guard = lock.acquire().await.unwrap();
            let (next, first) = (waiter(&lock, false).await, inode(&path));
            // A name of it elsewhere keeps its inode from being given away.
            let other = directory.path().join("other");
            fs::hard_link(&path, &other).unwrap();
            fs::remove_file(&path).unwrap();
            let theirs = replaced.then(|| File::create(&path).unwrap());
            fs::remove_file(&other).unwrap();
            guard.release().await.unwrap();
            let guard = had(next).await;
            let mine = guard.file().metadata().unwrap().ino();
            assert_eq!(mine, inode(&path));
            if let Some(theirs) = theirs {
                assert_eq!(mine, theirs.metadata().unwrap().ino());
                assert_ne!(mine, first);
            }
        }
    }
}

#[tokio::test]
async fn a_reader_after_a_writer_shares() {
    let directory = on_tmpfs();
    let lock = AsyncKernelLock::new(directory.path().join("table"));
    for _ in 0..PASSES {
        let guard = lock.acquire().await.unwrap();
        let (one, other) = (waiter(&lock, true).await, waiter(&lock, true).await);
        guard.release().await.unwrap();
        let one = had(one).await;
        let other = had(other).await;
        assert!(one.is_shared() && other.is_shared());
        let theirs = File::open(lock.path()).unwrap();
        flock(theirs, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(!is_free(lock.path()));
    }
    assert!(is_free(lock.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_takes_is_given_up() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    let lock = AsyncKernelLock::new(&path);
    for round in 0..2000u32 {
        let guard = lock.acquire().await.unwrap();
        let waits = lock.clone();
        let waiter = tokio::spawn(async move {
            let _ = timeout(Duration::from_micros(u64::from(round % 50)), waits.acquire()).await;
        });
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
        let release = tokio::spawn(async move { drop(guard) });
        if round % 2 == 0 {
            waiter.abort();
        }
        let _ = waiter.await;
        release.await.unwrap();
        // A hand-off may just be ending on its own thread.
        eventually(&format!("it is free after round {round}"), || is_free(&path));
    }
}

#[test]
fn a_runtime_that_goes_down_gives_the_lock_up() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    for _ in 0..200 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let lock = AsyncKernelLock::new(&path);
        for _ in 0..8 {
            let lock = lock.clone();
            runtime.spawn(async move {
                loop {
                    drop(lock.acquire().await.unwrap());
                }
            });
        }
        std::thread::sleep(Duration::from_millis(1));
        drop(runtime);
        eventually("it is free", || !path.exists() || is_free(&path));
    }
}

#[tokio::test]
async fn a_file_that_is_replaced_before_it_is_taken_is_not_taken() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    let lock = AsyncKernelLock::new(&path);
    for _ in 0..PASSES {
        let guard = lock.acquire().await.unwrap();
        let next = waiter(&lock, false).await;
        guard.release().await.unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = File::create(&path).unwrap().metadata().unwrap().ino();
        let guard = had(next).await;
        assert_eq!(guard.file().metadata().unwrap().ino(), theirs);
    }
}

#[tokio::test]
async fn it_passes_for_no_longer_than_a_share() {
    // A longer one than a millisecond counts as that.
    for times in [(1, 2), (3_600_000, 2), (0, 0)] {
        let (share, hold) = (Duration::from_millis(times.0), Duration::from_millis(times.1));
        let directory = on_tmpfs();
        let path = directory.path().join("table");
        let options = KernelOptions::default().local_handoff(share);
        let lock = AsyncKernelLock::with_options(&path, options).unwrap();
        for _ in 0..PASSES {
            let guard = lock.acquire().await.unwrap();
            let next = waiter(&lock, false).await;
            std::thread::sleep(hold);
            guard.release().await.unwrap();
            assert!(is_free(&path), "of {share:?} after {hold:?}");
            had(next).await.release().await.unwrap();
        }
    }
}

/// Whoever has the turn is not polled: no runtime does anything here meanwhile.
#[tokio::test]
async fn who_does_not_take_it_in_time_keeps_nobody_out() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    let lock = AsyncKernelLock::new(&path);
    let mut passes = 0;
    while passes < PASSES {
        let guard = lock.acquire().await.unwrap();
        let (next, mut last) = (waiter(&lock, false).await, waiter(&lock, false).await);
        guard.release().await.unwrap();
        had(next).await.release().await.unwrap();
        passes += u32::from(!is_free(&path));
        support::eventually("it is given up", || is_free(&path));
        let theirs = File::open(&path).unwrap();
        flock(&theirs, FlockOperation::LockExclusive).unwrap();
        assert!(poll!(&mut last).is_pending(), "two have it");
        drop(theirs);
        had(last).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_not_taken_in_time_is_removed_all_the_same() {
    let directory = on_tmpfs();
    let path = directory.path().join("table");
    let options = KernelOptions::default().delete_on_release(true);
    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
    let mut passes = 0;
    while passes < PASSES {
        let guard = lock.acquire().await.unwrap();
        let next = waiter(&lock, false).await;
        guard.release().await.unwrap();
        passes += u32::from(path.exists());
        support::eventually("it is removed", || !path.exists());
        had(next).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn it_does_not_pass_to_another_path_of_the_file() {
    let directory = on_tmpfs();
    let [first, second, link] = ["1", "2", "link"].map(|name| directory.path().join(name));
    for each in [&first, &second] {
        fs::create_dir(each).unwrap();
    }
    for _ in 0..PASSES {
        std::os::unix::fs::symlink(&first, &link).unwrap();
        let guard = AsyncKernelLock::new(first.join("table")).acquire().await.unwrap();
        let next = waiter(&AsyncKernelLock::new(link.join("table")), false).await;
        // In one step: a path that leads nowhere when a wait begins is an error.
        let turned = directory.path().join("turned");
        std::os::unix::fs::symlink(&second, &turned).unwrap();
        fs::rename(&turned, &link).unwrap();
        guard.release().await.unwrap();
        let guard = had(next).await;
        assert!(!is_free(&link.join("table")));
        drop(guard);
        fs::remove_file(&link).unwrap();
    }
}

/// Only Linux has the second.
const PRIMITIVES: &[Primitive] = match cfg!(lockkeeper_generic_unix) {
    true => &[Primitive::Flock],
    false => &[Primitive::Flock, Primitive::Ofd],
};

/// The last reader removes the file, and none may come to share it in that moment.
#[test]
fn readers_are_not_left_with_a_file_that_another_removes() {
    const HOLDS: u32 = 5000;
    for &primitive in PRIMITIVES {
        let directory = on_tmpfs();
        let options = KernelOptions::default().primitive(primitive).delete_on_release(true);
        let lock = AsyncKernelLock::with_options(directory.path().join("a"), options).unwrap();
        let read = async || {
            for _ in 0..HOLDS {
                let guard = lock.acquire_shared().await.unwrap();
                let named = fs::symlink_metadata(lock.path()).map(|file| file.ino());
                let mine = guard.file().metadata().unwrap().ino();
                assert_eq!(named.ok(), Some(mine), "{primitive:?}");
                guard.release().await.expect("it is where it was");
            }
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let read = || runtime().unwrap().block_on(read());
        std::thread::scope(|scope| [0, 1, 2].map(|_| scope.spawn(read)).map(drop));
        assert!(names_in(directory.path()).is_empty());
    }
}

/// Each may find that the other is still there.
#[tokio::test]
async fn one_of_two_readers_that_end_together_removes_the_file() {
    const ROUNDS: usize = 500;
    let directory = on_tmpfs();
    let path = directory.path().join("lock");
    for &primitive in PRIMITIVES {
        let options = KernelOptions::default().primitive(primitive).delete_on_release(true);
        let lock = AsyncKernelLock::with_options(&path, options).unwrap();
        let mut left = 0;
        for _ in 0..ROUNDS {
            let share = async || lock.acquire_shared().await.unwrap();
            let guards = [share().await, share().await];
            let ready = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for guard in guards {
                    let ready = &ready;
                    scope.spawn(move || {
                        ready.fetch_add(1, Ordering::SeqCst);
                        while ready.load(Ordering::SeqCst) < 2 {
                            std::thread::yield_now();
                        }
                        drop(guard);
                    });
                }
            });
            left += usize::from(fs::remove_file(&path).is_ok());
        }
        assert_eq!(left, 0, "times of {ROUNDS} that the file was left, {primitive:?}");
    }
}
