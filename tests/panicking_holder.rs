//! A panic releases what the task holds, and the next holder is not told: there is
//! no poison. A panic that ends the process is a death, of which it is told.

mod support;

use std::path::Path;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, FileOptions, Offload, Proof, Status};
use support::{Process, VERY_LONG, names_in};
use tokio::sync::oneshot;
use tokio::time::timeout;

fn every_kind() -> impl Iterator<Item = FileOptions> {
    [Proof::Auto, Proof::Process].into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always]
            .map(|offload| FileOptions::default().proof(pin).offload(offload))
    })
}

fn pin_of(role: &str) -> FileOptions {
    FileOptions::default().proof(if role.contains("portable") {
        Proof::Process
    } else {
        Proof::Auto
    })
}

#[tokio::test]
async fn a_task_that_panics_releases_and_the_next_is_not_told() {
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let lock = AsyncFileLock::with_options(directory.path().join("a.lock"), options).unwrap();
        let (holds, held) = oneshot::channel();
        let (panics, panic) = oneshot::channel();
        let holder = lock.clone();
        let holder = tokio::spawn(async move {
            let _guard = holder.acquire().await.unwrap();
            holds.send(()).unwrap();
            panic.await.unwrap();
            panic!("on purpose");
        });
        held.await.unwrap();
        let waiter = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire().await.unwrap() }
        });
        panics.send(()).unwrap();
        assert!(holder.await.unwrap_err().is_panic());
        let guard = timeout(VERY_LONG, waiter).await.expect("it is not released").unwrap();
        assert_eq!(guard.recovered_from(), None);
        guard.release().await.unwrap();
        assert_eq!(lock.status().await.unwrap(), Status::Free);
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn a_task_that_panics_releases_a_kernel_lock() {
    for offload in [Offload::Never, Offload::Always] {
        let directory = support::on_tmpfs();
        let options = lockkeeper::KernelOptions::default().offload(offload);
        let path = directory.path().join("table");
        let lock = AsyncKernelLock::with_options(path, options).unwrap();
        let holder = lock.clone();
        let holder = tokio::spawn(async move {
            let _guard = holder.acquire().await.unwrap();
            panic!("on purpose");
        });
        assert!(holder.await.unwrap_err().is_panic());
        let acquired = timeout(VERY_LONG, lock.acquire()).await.expect("it is not released");
        acquired.unwrap().release().await.unwrap();
    }
}

/// Its main thread panics: the guard goes with the stack, and then the process.
fn panic_while_it_holds(role: &str, path: &Path) -> ! {
    let lock = AsyncFileLock::with_options(path, pin_of(role)).unwrap();
    support::block_on(async {
        let _guard = lock.acquire().await.unwrap();
        support::tell("held");
        support::told();
        if role.contains("aborts") {
            // What a panic comes to with `panic = "abort"`.
            std::process::abort();
        }
        panic!("on purpose");
    })
}

#[tokio::test]
async fn a_process_that_panics_releases_and_one_that_aborts_dies() {
    const TEST: &str = "a_process_that_panics_releases_and_one_that_aborts_dies";
    if let Some((role, path)) = support::role() {
        return tokio::task::spawn_blocking(move || panic_while_it_holds(&role, &path))
            .await
            .unwrap();
    }
    for role in ["unwinds", "unwinds portable", "aborts", "aborts portable"] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, role, &path);
        holder.expect("held");
        let lock = AsyncFileLock::with_options(&path, pin_of(role)).unwrap();
        let waiter = tokio::spawn(async move { lock.acquire().await.unwrap() });
        holder.hang_up();
        assert!(!holder.wait().success());
        let guard = timeout(VERY_LONG, waiter).await.expect("it is not released").unwrap();
        let dead = guard.recovered_from().map(|dead| dead.pid);
        assert_eq!(dead, role.contains("aborts").then_some(Some(holder.id())), "{role}");
        guard.release().await.unwrap();
    }
}
