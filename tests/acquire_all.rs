//! Several locks at once: all or nothing, without deadlock.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, FileOptions, acquire_all, acquire_all_timeout};
use support::Process;

fn locks(directory: &Path, names: &[&str]) -> Vec<AsyncFileLock> {
    let options = FileOptions::default().retry_period(Duration::from_millis(5));
    let lock = |name: &&str| AsyncFileLock::with_options(directory.join(name), options.clone());
    names.iter().map(|name| lock(name).unwrap()).collect()
}

#[tokio::test]
async fn all_are_held_in_the_order_they_were_asked_for_and_none_afterwards() {
    let directory = support::on_tmpfs();
    let locks = locks(directory.path(), &["b", "a", "c"]);
    let guards = acquire_all(&locks).await.unwrap();
    let paths: Vec<_> = guards.iter().map(|guard| guard.path().to_owned()).collect();
    assert_eq!(paths, ["b", "a", "c"].map(|name| directory.path().join(name)));
    assert_eq!(support::names_in(directory.path()), ["a", "b", "c"]);
    guards.release().await.unwrap();
    assert!(support::names_in(directory.path()).is_empty());
    drop(acquire_all(&locks).await.unwrap());
    assert!(support::names_in(directory.path()).is_empty());
    assert!(acquire_all([]).await.unwrap().iter().next().is_none());
}

#[tokio::test]
async fn the_same_lock_twice_is_refused_whatever_it_is_called() {
    let directory = support::on_tmpfs();
    let real = directory.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, directory.path().join("alias")).unwrap();
    let locks = locks(directory.path(), &["real/a", "real/b", "alias/a"]);
    let refused = acquire_all(&locks).await.unwrap_err();
    assert!(matches!(refused, Error::SameLockTwice { .. }), "{refused}");
    assert!(support::names_in(&real).is_empty());
}

#[tokio::test]
async fn a_busy_one_keeps_none_of_the_others_busy() {
    let directory = support::on_tmpfs();
    let locks = locks(directory.path(), &["a", "b", "c"]);
    let busy = locks[1].acquire().await.unwrap();
    let limit = Duration::from_millis(200);
    let late = acquire_all_timeout(&locks, limit).await.unwrap_err();
    let Error::Timeout { lock: named, .. } = late else { panic!("{late}") };
    assert_eq!(named, directory.path().join("b"));
    assert_eq!(support::names_in(directory.path()), ["b"]);

    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { acquire_all(&locks).await }
    });
    // While it waits for the busy one the others can be had.
    for _ in 0..20 {
        for other in [&locks[0], &locks[2]] {
            drop(other.acquire_timeout(support::VERY_LONG).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!waiting.is_finished());
    drop(busy);
    drop(waiting.await.unwrap().unwrap());
    assert!(support::names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn dropping_the_future_gives_back_what_it_had() {
    let directory = support::on_tmpfs();
    let locks = locks(directory.path(), &["a", "b"]);
    let busy = locks[1].acquire().await.unwrap();
    for _ in 0..20 {
        let acquire = acquire_all(&locks);
        let limit = Duration::from_millis(2);
        assert!(tokio::time::timeout(limit, acquire).await.is_err());
        assert_eq!(support::names_in(directory.path()), ["b"]);
    }
    drop(busy);
}

#[tokio::test(flavor = "multi_thread")]
async fn contenders_in_every_order_get_through_and_exclude_each_other() {
    const TEST: &str = "contenders_in_every_order_get_through_and_exclude_each_other";
    const ORDERS: [[&str; 3]; 4] =
        [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"], ["a", "c", "b"]];
    const TIMES: u32 = 30;
    if let Some((_, path)) = support::role() {
        return contend(&path, &ORDERS, TIMES).await;
    }
    let directory = support::on_tmpfs();
    let mut others: Vec<Process> =
        (0..2).map(|_| Process::play(TEST, "contender", directory.path())).collect();
    contend(directory.path(), &ORDERS, TIMES).await;
    for other in &mut others {
        assert!(other.wait().success());
    }
    assert!(support::names_in(directory.path()).is_empty());
}

async fn contend(directory: &Path, orders: &[[&str; 3]], times: u32) {
    let inside = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = orders
        .iter()
        .map(|order| {
            let (locks, inside) = (locks(directory, order), Arc::clone(&inside));
            let witness = directory.join("inside");
            tokio::spawn(async move {
                for _ in 0..times {
                    let guards = acquire_all(&locks).await.unwrap();
                    std::fs::File::create_new(&witness).expect("nobody else is inside");
                    inside.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    std::fs::remove_file(&witness).unwrap();
                    guards.release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(support::VERY_LONG, task).await.expect("a deadlock").unwrap();
    }
    assert_eq!(inside.load(Ordering::Relaxed), times * u32::try_from(orders.len()).unwrap());
}
