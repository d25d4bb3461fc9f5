//! One holder at a time, between tasks and between processes.

mod support;

use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, FileOptions, Offload, Proof};
use support::Process;

fn every_kind() -> impl Iterator<Item = FileOptions> {
    [Proof::Auto, Proof::Process].into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always]
            .map(|offload| FileOptions::default().proof(pin).offload(offload))
    })
}

#[tokio::test]
async fn a_held_lock_is_busy_until_it_is_released() {
    for directory in [support::on_tmpfs(), support::on_disk()] {
        for options in every_kind() {
            let path = directory.path().join("a.lock");
            let lock = AsyncFileLock::with_options(&path, options).unwrap();
            let guard = lock.acquire().await.unwrap();
            assert!(lock.try_acquire().await.unwrap().is_none());
            let limit = Duration::from_millis(20);
            let timeout = lock.acquire_timeout(limit).await.unwrap_err();
            let Error::Timeout { holder, waited, .. } = timeout else { panic!("{timeout}") };
            assert_eq!(holder.unwrap().pid, Some(std::process::id()));
            assert!(waited >= limit);
            guard.release().await.unwrap();
            assert!(support::names_in(directory.path()).is_empty());
            assert!(lock.try_acquire().await.unwrap().is_some());
            lockkeeper::flush().await;
            assert!(support::names_in(directory.path()).is_empty());
        }
    }
}

#[tokio::test]
async fn another_process_excludes_and_its_release_lets_in() {
    const TEST: &str = "another_process_excludes_and_its_release_lets_in";
    if let Some((_, path)) = support::role() {
        let guard = AsyncFileLock::new(path).acquire().await.unwrap();
        support::tell("held");
        support::told();
        return guard.release().await.unwrap();
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut holder = Process::play(TEST, "holder", &path);
    holder.expect("held");
    let lock = AsyncFileLock::new(&path);
    assert!(lock.try_acquire().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().pid, Some(holder.id()));
    holder.hang_up();
    let guard = lock.acquire_timeout(support::VERY_LONG).await.unwrap();
    assert_eq!(guard.recovered_from(), None);
}
