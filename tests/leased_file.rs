//! A lock file that another program has a lease of, fcntl(2), cannot be opened until that
//! gives it back. So the lock counts as held, and is waited for.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, Evidence, FileOptions, KernelOptions, Status};
use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};

#[allow(unsafe_code)]
fn set_lease(file: &File, kind: libc::c_int) {
    // SAFETY: the command takes a number and no memory.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test]
async fn a_file_under_a_lease_is_waited_for() {
    // The kernel's word that the lease is wanted back would end the process.
    // SAFETY: nothing runs in place of the default.
    #[allow(unsafe_code)]
    unsafe { signal(Signal::SIGIO, SigHandler::SigIgn) }.unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("leased.lock");
    std::fs::write(&path, "4194304\ngone\n").unwrap();
    let leased = File::open(&path).unwrap();
    set_lease(&leased, libc::F_RDLCK);

    let options = FileOptions::default().retry_period(Duration::from_millis(20));
    let lock = AsyncFileLock::with_options(&path, options).unwrap();
    // The program is dead, so that the file is to be opened for writing.
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    let seen = lock.status().await.unwrap();
    assert!(matches!(seen, Status::Stale(_) | Status::Held(_)), "{seen:?}");
    // Longer than a dead program's file is left alone.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished(), "a file under a lease was taken, or an error");
    set_lease(&leased, libc::F_UNLCK);
    let guard = waiting.await.unwrap().unwrap();
    let dead = guard.recovered_from().map(|dead| dead.pid);
    assert_eq!(dead, Some(Some(4_194_304)));
    guard.release().await.unwrap();

    // One for writing keeps readers out as well.
    std::fs::write(&path, "4194304\ngone\n").unwrap();
    let leased = File::options().write(true).open(&path).unwrap();
    set_lease(&leased, libc::F_WRLCK);
    let Status::Held(holder) = lock.status().await.unwrap() else { panic!("it is free") };
    assert!(matches!(holder.evidence, Evidence::Unknown(_)), "{holder:?}");
    assert!(lock.try_acquire().await.unwrap().is_none());
    set_lease(&leased, libc::F_UNLCK);

    // The file that a kernel lock is on may be another program's, as it is here.
    set_lease(&leased, libc::F_WRLCK);
    let options = KernelOptions::default().retry_period(Duration::from_millis(20));
    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished(), "a file under a lease was locked, or an error");
    set_lease(&leased, libc::F_UNLCK);
    waiting.await.unwrap().unwrap().release().await.unwrap();
}
