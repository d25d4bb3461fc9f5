//! A lock file that is itself mounted, as by `docker run -v /host/job.lock:/job.lock`:
//! its removal is seen on one side only, so that both sides would get in.

mod strace_support;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, Error, FileOptions, KernelOptions, Proof};
use support::{Process, names_in};

const PINS: [Proof; 2] = [Proof::Auto, Proof::Process];

fn lock(pin: Proof, path: &Path) -> AsyncFileLock {
    AsyncFileLock::with_options(path, FileOptions::default().proof(pin)).unwrap()
}

/// A file of the host, and where it is mounted.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Option<Self> {
        let mounted = Self { directory: support::on_disk() };
        fs::create_dir(mounted.directory.path().join("container")).unwrap();
        let paths = [mounted.host(), mounted.container()];
        paths.iter().for_each(|path| fs::write(path, "").unwrap());
        let mut mount = Command::new("mount");
        mount.arg("--bind").args(&paths);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(mounted);
        }
        eprintln!("SKIPPED: this user may not mount");
        None
    }

    fn host(&self) -> PathBuf {
        self.directory.path().join("job.lock")
    }

    fn container(&self) -> PathBuf {
        self.directory.path().join("container").join("job.lock")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.container()).status();
    }
}

#[track_caller]
fn is_refused(error: &Error) {
    assert!(matches!(error, Error::BadPath { .. }), "{error:?}");
    assert!(error.to_string().contains("mount its directory instead"), "{error}");
}

#[tokio::test]
async fn a_mounted_lock_file_is_refused_while_it_has_a_name_and_after() {
    let Some(mounted) = Mounted::new() else { return };
    for pin in PINS {
        is_refused(&lock(pin, &mounted.container()).try_acquire().await.unwrap_err());
        is_refused(&lock(pin, &mounted.container()).status().await.unwrap_err());
    }
    // The host does not know of it. Its release takes the name away.
    lock(Proof::Auto, &mounted.host()).acquire().await.unwrap().release().await.unwrap();
    let holder = lock(Proof::Auto, &mounted.host()).acquire().await.unwrap();
    for pin in PINS {
        is_refused(&lock(pin, &mounted.container()).try_acquire().await.unwrap_err());
    }
    holder.release().await.unwrap();
}

#[tokio::test]
async fn a_kernel_lock_is_refused_there_only_if_it_would_delete_the_file() {
    let Some(mounted) = Mounted::new() else { return };
    let deleting = KernelOptions::default().delete_on_release(true);
    let deleting = AsyncKernelLock::with_options(mounted.container(), deleting).unwrap();
    is_refused(&deleting.try_acquire().await.unwrap_err());
    let plain = AsyncKernelLock::new(mounted.container());
    let guard = plain.try_acquire().await.unwrap().expect("the refused one has let go");
    let host = AsyncKernelLock::new(mounted.host());
    assert!(host.try_acquire().await.unwrap().is_none(), "it is one lock");
    guard.release().await.unwrap();
}

fn play((role, path): (String, PathBuf)) {
    let play = move || {
        support::block_on(async {
            let refused = match role.as_str() {
                "file" => lock(Proof::Auto, &path).acquire().await.map(drop),
                "release" => match lock(Proof::Auto, &path).acquire().await {
                    Ok(guard) => guard.release().await,
                    Err(error) => Err(error),
                },
                _ => {
                    let options = KernelOptions::default().delete_on_release(true);
                    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
                    lock.acquire().await.map(drop)
                }
            };
            support::tell(&refused.map_or_else(|error| error.to_string(), |()| "held".to_owned()));
        })
    };
    std::thread::spawn(play).join().unwrap();
}

/// A kernel before 5.8, or a sandbox: it shows when the file has been removed outside,
/// and else at the release.
#[test]
fn without_statx_it_shows_by_the_number_of_names_or_at_the_release() {
    const TEST: &str = "without_statx_it_shows_by_the_number_of_names_or_at_the_release";
    if let Some(role) = support::role() {
        return play(role);
    }
    let (true, Some(mounted)) = (strace_support::is_there(), Mounted::new()) else { return };
    let say = |role| {
        let player = support::player(TEST, role, &mounted.container());
        let faults = ["statx:error=ENOSYS".to_owned()];
        Process::start(strace_support::with_faults(&faults, &player)).next()
    };
    let released = say("release");
    assert!(released.contains("mount its directory instead"), "{released}");
    fs::remove_file(mounted.host()).unwrap();
    for role in ["file", "kernel"] {
        let refused = say(role);
        assert!(refused.contains("mount its directory instead"), "{role}: {refused}");
    }
    assert_eq!(names_in(mounted.directory.path()), ["container"]);
}
