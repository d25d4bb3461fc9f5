//! A machine that exports a local directory over a network and uses the locks in it
//! itself. The `flock` of an NFS client is a range lock on the server, and that of a
//! virtual machine may be none at all: that nobody is seen to have the file locked
//! proves nothing of them.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, Evidence, FileOptions, Holder, KernelOptions, Primitive,
    Proof, Status,
};

/// By how it is pinned, and what a record says of that.
const KINDS: [(Proof, &str); 2] = [(Proof::Auto, "flock"), (Proof::Process, "none")];

fn lock(pin: Proof, path: &Path) -> AsyncFileLock {
    AsyncFileLock::with_options(path, FileOptions::default().proof(pin)).unwrap()
}

fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

const ANOTHER_BOOT: &str = "2b0f5a64-6d2e-4f37-8a3e-111111111111";

/// What a process that is not there any more, or never was here, left at `path`.
fn leave(path: &Path, boot: &str, pin: &str, more: &str) {
    let pid_namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let text = format!(
        "4194304\nworker\ntoken: {:032x}\nhost: client-7\nboot: {boot}\npidns: {pid_namespace}\n\
         started: 1\npin: {pin}\n{more}",
        7
    );
    fs::write(path, format!("{text:\n<512}")).unwrap();
}

async fn refusal(lock: &AsyncFileLock) -> Holder {
    match lock.acquire_timeout(std::time::Duration::ZERO).await {
        Err(Error::Timeout { holder, .. }) => *holder.expect("somebody stands in the way"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_of_this_machine_is_not_dead_because_nobody_here_has_the_file_locked() {
    for (pin, recorded) in KINDS {
        let directory = support::on_disk();
        let path = directory.path().join("a.lock");
        leave(&path, ANOTHER_BOOT, recorded, "");
        let before = fs::read(&path).unwrap();
        let holder = refusal(&lock(pin, &path)).await;
        let Evidence::Unknown(why) = &holder.evidence else { panic!("{holder:?}") };
        assert!(why.contains("client-7") && why.contains("remove the file"), "{why}");
        let status = lock(pin, &path).status().await.unwrap();
        assert!(matches!(status, Status::Held(_)), "{status:?}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

/// Whatever it was called: a container has another name each time.
#[tokio::test]
async fn a_holder_of_an_earlier_boot_is_dead_if_it_had_the_file_on_a_local_file_system() {
    for (pin, recorded) in KINDS {
        let directory = support::on_disk();
        let path = directory.path().join("a.lock");
        leave(&path, ANOTHER_BOOT, recorded, "local: yes\n");
        let status = lock(pin, &path).status().await.unwrap();
        assert!(matches!(status, Status::Stale(_)), "{status:?}");
        let guard = lock(pin, &path).try_acquire().await.unwrap().expect("its holder is dead");
        assert_eq!(guard.recovered_from().unwrap().host.as_deref(), Some("client-7"));
    }
}

/// As one that has the directory mounted from itself.
#[tokio::test]
async fn a_holder_of_this_boot_that_came_over_the_network_is_judged_by_its_process() {
    let directory = support::on_disk();
    let path = directory.path().join("a.lock");
    leave(&path, &this_boot(), "flock", "");
    let guard = lock(Proof::Auto, &path).try_acquire().await.unwrap().expect("its process is gone");
    let evidence = &guard.recovered_from().unwrap().evidence;
    assert!(matches!(evidence, Evidence::ProcessGone(_)), "{evidence:?}");
    guard.release().await.unwrap();
    // Process 1 runs.
    leave(&path, &this_boot(), "flock", "");
    let text = fs::read_to_string(&path).unwrap().replacen("4194304", "1", 1);
    let text = text.replace("started: 1\n", "");
    fs::write(&path, format!("{text:\n<512}")).unwrap();
    assert_eq!(refusal(&lock(Proof::Auto, &path)).await.evidence, Evidence::ProcessRuns);
}

#[tokio::test]
async fn whoever_has_a_range_lock_on_the_file_holds_it() {
    let directory = support::on_disk();
    let path = directory.path().join("a.lock");
    for more in ["", "local: yes\n"] {
        leave(&path, ANOTHER_BOOT, "flock", more);
        // What the NFS server does for a client.
        let server = KernelOptions::default().primitive(Primitive::Ofd);
        let server = AsyncKernelLock::with_options(&path, server).unwrap();
        let held = server.acquire().await.unwrap();
        let evidence = refusal(&lock(Proof::Auto, &path)).await.evidence;
        assert!(matches!(evidence, Evidence::KernelLock | Evidence::Inherited), "{evidence:?}");
        let status = lock(Proof::Auto, &path).status().await.unwrap();
        assert!(matches!(status, Status::Held(_)), "{status:?}");
        held.release().await.unwrap();
    }
    assert!(lock(Proof::Auto, &path).try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn a_record_says_that_it_was_written_on_a_local_file_system() {
    for (pin, _) in KINDS {
        for directory in [support::on_tmpfs(), support::on_disk()] {
            let path = directory.path().join("a.lock");
            let guard = lock(pin, &path).acquire().await.unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains("\nlocal: yes\n"), "{text}");
            guard.release().await.unwrap();
        }
    }
}
