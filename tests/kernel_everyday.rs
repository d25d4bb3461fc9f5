//! What a user writes most: spawned acquisitions, locks compared and in sets, guards that
//! a panic passes through.

mod support;

use std::collections::HashSet;
use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncKernelLock, Error, KernelGuard, KernelOptions, Primitive};
use tokio_util::sync::CancellationToken;

use support::{VERY_LONG, block_on, on_tmpfs};

fn is_open(path: &Path) -> bool {
    let mut descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    descriptors.any(|each| std::fs::read_link(each.unwrap().path()).is_ok_and(|at| at == path))
}

/// Also where no waiters of other processes can be seen, and no close of a file is an event.
#[tokio::test]
async fn a_file_that_is_to_be_kept_open_is_open_as_long_as_its_lock() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.data");
    let options = KernelOptions::default().keep_open(true);
    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
    for _ in 0..2 {
        lock.acquire().await.unwrap().release().await.unwrap();
        assert!(is_open(&path));
    }
    drop(lock);
    assert!(!is_open(&path));
}

/// Each may be moved to where the lock is not.
#[tokio::test]
async fn acquisitions_can_be_spawned() {
    let directory = on_tmpfs();
    let token = CancellationToken::new();
    let spawn = |name: &str| {
        let lock = AsyncKernelLock::new(directory.path().join("a.lock"));
        match name {
            "acquire" => tokio::spawn(lock.acquire()),
            "acquire_shared" => tokio::spawn(lock.acquire_shared()),
            "acquire_timeout" => tokio::spawn(lock.acquire_timeout(VERY_LONG)),
            "acquire_shared_timeout" => tokio::spawn(lock.acquire_shared_timeout(VERY_LONG)),
            "acquire_with" => tokio::spawn(lock.acquire_with(&token)),
            "acquire_shared_with" => tokio::spawn(lock.acquire_shared_with(&token)),
            "try_acquire" => {
                let trying = lock.try_acquire();
                tokio::spawn(async { Ok(trying.await?.expect("it is free")) })
            }
            "try_acquire_shared" => {
                let trying = lock.try_acquire_shared();
                tokio::spawn(async { Ok(trying.await?.expect("it is free")) })
            }
            other => panic!("{other}?"),
        }
    };
    for name in [
        "acquire",
        "acquire_shared",
        "acquire_timeout",
        "acquire_shared_timeout",
        "acquire_with",
        "acquire_shared_with",
        "try_acquire",
        "try_acquire_shared",
    ] {
        let guard = spawn(name).await.unwrap().unwrap();
        assert_eq!(guard.is_shared(), name.contains("shared"), "{name}");
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_limit_that_is_borrowed_does_not_keep_an_acquisition_from_being_spawned() {
    struct Borrowed<'a>(&'a Duration);
    impl From<Borrowed<'_>> for Option<Duration> {
        fn from(limit: Borrowed<'_>) -> Self {
            Some(*limit.0)
        }
    }
    let directory = on_tmpfs();
    let lock = AsyncKernelLock::new(directory.path().join("a.lock"));
    let limit = VERY_LONG;
    let acquiring = lock.acquire_timeout(Option::<Duration>::from(Borrowed(&limit)));
    drop(tokio::spawn(acquiring).await.unwrap().unwrap());
}

#[test]
#[cfg_attr(lockkeeper_generic_unix, ignore = "only Linux has locks of ranges")]
#[allow(clippy::mutable_key_type, reason = "what changes in a lock is not compared")]
fn locks_of_one_path_with_equal_options_are_equal() {
    let of = |path: &str, options: KernelOptions| {
        AsyncKernelLock::with_options(Path::new("/tmp").join(path), options).unwrap()
    };
    let ofd = KernelOptions::default().primitive(Primitive::Ofd);
    let lock = of("a", ofd.clone());
    assert_eq!(lock, lock.clone());
    assert_eq!(lock, of("a", ofd.clone()));
    let others = [
        of("b", ofd.clone()),
        of("a", KernelOptions::default()),
        of("a", ofd.clone().range(0..10)),
        of("a", ofd.clone().keep_open(true)),
    ];
    for other in &others {
        assert_ne!(&lock, other);
    }
    let mut set = HashSet::from([lock.clone(), of("a", ofd.clone())]);
    assert_eq!(set.len(), 1);
    set.extend(others);
    assert_eq!(set.len(), 5);
    // A path that can name no lock is compared as it was given.
    assert_eq!(of("..", ofd.clone()), of("..", ofd.clone()));
    assert_ne!(of("..", ofd.clone()), of("../..", ofd));
}

#[test]
fn locks_and_guards_may_pass_a_panic() {
    fn must_be<T: UnwindSafe + RefUnwindSafe>() {}
    must_be::<AsyncKernelLock>();
    must_be::<KernelGuard>();
    let directory = on_tmpfs();
    let lock = AsyncKernelLock::new(directory.path().join("a.lock"));
    let guard = block_on(lock.acquire()).unwrap();
    let panicked = catch_unwind(|| {
        let _guard = guard;
        assert!(matches!(
            block_on(lock.acquire_timeout(Duration::ZERO)),
            Err(Error::Timeout { .. })
        ));
        panic!("as a user's code may");
    });
    assert!(panicked.is_err());
    drop(block_on(lock.try_acquire()).unwrap().expect("the panic released it"));
}
