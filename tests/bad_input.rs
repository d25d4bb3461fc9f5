//! What is not a lock file is refused and stays as it is; what could be one is
//! judged. Never a hang.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use futures::future::join_all;
use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, Evidence, FileOptions, Offload, Proof, Status,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::{NOBODY, Process, VERY_LONG, become_user, has_two_users, names_in, with_mode};
use tempfile::TempDir;
use tokio::time::timeout;

const PINS: [Proof; 2] = [Proof::Auto, Proof::Process];

fn every_kind() -> impl Iterator<Item = FileOptions> {
    PINS.into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always]
            .map(|offload| FileOptions::default().proof(pin).offload(offload))
    })
}

fn lock_with(path: &Path, options: &FileOptions) -> AsyncFileLock {
    AsyncFileLock::with_options(path, options.clone()).unwrap()
}

/// Everything about a file that a careless lock could change, and its content.
fn fingerprint(path: &Path) -> Option<(String, Vec<u8>)> {
    let meta = fs::symlink_metadata(path).ok()?;
    let (links, size) = (meta.nlink(), meta.size());
    let changed = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    let about = format!("{} {:o} {links} {size} {changed:?}", meta.ino(), meta.mode());
    let content = match meta.file_type() {
        kind if kind.is_symlink() => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        kind if kind.is_file() && size < 1 << 20 => fs::read(path).unwrap_or_default(),
        _ => Vec::new(),
    };
    Some((about, content))
}

/// Every verb gives an error that `is_right` accepts and that names the path,
/// and nothing is touched.
async fn is_refused(path: &Path, is_right: impl Fn(&Error) -> bool) {
    for options in every_kind() {
        is_refused_with(path, &options, &is_right).await;
    }
}

async fn is_refused_with(path: &Path, options: &FileOptions, is_right: impl Fn(&Error) -> bool) {
    let lock = lock_with(path, options);
    let before = fingerprint(path);
    let beside = names_beside(path);
    let verbs = async {
        vec![
            ("acquire", lock.acquire().await.err()),
            ("acquire_timeout", lock.acquire_timeout(Duration::ZERO).await.err()),
            ("try_acquire", lock.try_acquire().await.err()),
            ("break_stale", lock.break_stale().await.err()),
            ("holder", lock.holder().await.err()),
            ("is_locked", lock.is_locked().await.err()),
            ("status", lock.status().await.err()),
            ("revoke", lock.revoke().await.err()),
        ]
    };
    let _watchdog = Watchdog::of(path);
    let answers = timeout(VERY_LONG, verbs).await.unwrap_or_else(|_| panic!("{path:?} hangs"));
    for (verb, error) in answers {
        let error = error.unwrap_or_else(|| panic!("{verb} accepts {path:?} with {options:?}"));
        assert!(is_right(&error), "{verb} of {path:?}: {error:?}");
        assert_eq!(error.path(), Some(lock.path()), "{verb}: {error:?}");
        let shown = [path.display().to_string(), format!("{:?}", path.as_os_str())];
        let text = error.to_string();
        assert!(shown.iter().any(|shown| text.contains(shown.as_str())), "{verb}: {text}");
    }
    assert_eq!(fingerprint(path), before, "{path:?} was touched");
    assert_eq!(names_beside(path), beside, "something was left beside {path:?}");
}

/// Ends the tests when a system call hangs: a timeout of the runtime that it
/// stops would never be seen.
struct Watchdog(#[expect(dead_code, reason = "dropped at the end")] mpsc::Sender<()>);

impl Watchdog {
    fn of(path: &Path) -> Self {
        let (end, ended) = mpsc::channel();
        let path = path.to_owned();
        std::thread::spawn(move || {
            if ended.recv_timeout(2 * VERY_LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("a system call hangs on {path:?}");
                std::process::abort();
            }
        });
        Self(end)
    }
}

/// Where only this test makes files and it may look.
fn names_beside(path: &Path) -> Option<Vec<String>> {
    let directory = path.parent().filter(|directory| directory.starts_with("/dev/shm/"))?;
    fs::read_dir(directory).is_ok().then(|| names_in(directory))
}

fn is_bad_path(error: &Error) -> bool {
    matches!(error, Error::BadPath { .. })
}

fn is_not_a_lock_file(error: &Error) -> bool {
    matches!(error, Error::NotALockFile { .. })
}

fn is_io(kind: std::io::ErrorKind) -> impl Fn(&Error) -> bool {
    move |error| matches!(error, Error::Io { source, .. } if source.kind() == kind)
}

#[tokio::test]
async fn a_path_that_names_no_file_is_refused() {
    let directory = support::on_tmpfs();
    let in_directory = |name: &str| PathBuf::from(format!("{}/{name}", directory.path().display()));
    fs::create_dir(in_directory("inner")).unwrap();
    File::create(in_directory("file")).unwrap();
    for path in ["", "/", "//", ".", "..", "./", "../..", "a/..", "a/."] {
        is_refused(Path::new(path), is_bad_path).await;
    }
    for name in
        ["inner/", "new/", "file/", "inner/.", "inner/..", "file/..", "nul\0", "\0", "x/\0/y"]
    {
        is_refused(&in_directory(name), is_bad_path).await;
    }
    for (path, why) in [("", "empty"), ("a\0", "NUL"), ("a/", "directory")] {
        let error = AsyncFileLock::new(path).acquire().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_directory_that_is_none_is_refused() {
    let directory = support::on_tmpfs();
    let at = |name: &str| directory.path().join(name);
    let is_missing = |error: &Error| matches!(error, Error::NoDirectory { .. });
    is_refused(&at("missing/a.lock"), is_missing).await;
    is_refused(&at("missing/../a.lock"), is_missing).await;
    assert!(names_in(directory.path()).is_empty(), "directories are not made");
    symlink("nowhere", at("dangling")).unwrap();
    is_refused(&at("dangling/a.lock"), is_missing).await;
    symlink("loop", at("loop")).unwrap();
    is_refused(&at("loop/a.lock"), |error| matches!(error, Error::Io { .. })).await;
    File::create(at("file")).unwrap();
    is_refused(&at("file/a.lock"), is_bad_path).await;
    is_refused(&at("file/inner/a.lock"), is_bad_path).await;
    is_refused(Path::new("/dev/null/a.lock"), is_bad_path).await;
}

#[tokio::test]
async fn a_name_that_is_too_long_is_refused() {
    for directory in [support::on_tmpfs(), support::on_disk()] {
        is_refused_with_a_long_name(&directory).await;
    }
}

async fn is_refused_with_a_long_name(directory: &TempDir) {
    is_refused(&directory.path().join("x".repeat(256)), is_bad_path).await;
    is_refused(&directory.path().join("x".repeat(5000)), is_bad_path).await;
    let deep = directory.path().join("x/".repeat(5000)).join("a.lock");
    is_refused(&deep, |error| matches!(error, Error::BadPath { .. } | Error::Io { .. })).await;
    // The longest name leaves no room for the names the portable protocol puts beside it.
    let longest = directory.path().join("x".repeat(255));
    let pinned = lock_with(&longest, &FileOptions::default()).acquire().await;
    if cfg!(lockkeeper_generic_unix) {
        // There each candidate has a name beside it.
        assert!(is_bad_path(&pinned.unwrap_err()));
    } else {
        pinned.unwrap().release().await.unwrap();
    }
    let portable = lock_with(&longest, &FileOptions::default().proof(Proof::Process));
    let error = portable.acquire().await.unwrap_err();
    assert!(is_bad_path(&error), "{error:?}");
    assert!(names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn any_other_name_will_do() {
    let names: [&[u8]; 9] = [
        b" ",
        b"two words.lock",
        b"two\nlines",
        b"-rf",
        b"...",
        b"%s%n\x1b[2J",
        "\u{1f512}".as_bytes(),
        b"\xff\xfe not UTF-8",
        b"a.lock.new.00000000000000000000000000000000",
    ];
    for directory in [support::on_tmpfs(), support::on_disk()] {
        for (name, options) in names.iter().flat_map(|name| every_kind().map(move |o| (name, o))) {
            let path = directory.path().join(OsStr::from_bytes(name));
            let lock = lock_with(&path, &options);
            let guard = lock.acquire().await.unwrap();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
            assert!(path.exists());
            assert!(lock.is_locked().await.unwrap());
            lock.revoke().await.unwrap().unwrap();
            guard.release().await.unwrap();
            assert!(names_in(directory.path()).is_empty());
        }
    }
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused() {
    let directory = support::on_tmpfs();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/file"), "data").unwrap();
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(at("socket")).unwrap();
    drop(UnixListener::bind(at("dead socket")).unwrap());
    for name in ["directory", "full", "fifo", "socket", "dead socket"] {
        is_refused(&at(name), is_not_a_lock_file).await;
    }
    for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random"] {
        is_refused(Path::new(device), is_not_a_lock_file).await;
        let beside = names_in(Path::new("/dev"));
        let prefix = format!("{}.", device.strip_prefix("/dev/").unwrap());
        assert!(beside.iter().all(|name| !name.starts_with(&prefix)));
    }
}

/// Somebody at the other end is what an opened fifo waits for.
#[tokio::test]
async fn a_fifo_in_use_is_refused_and_loses_nothing() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut fifo = File::options().read(true).write(true).open(&path).unwrap();
    fifo.write_all(b"4194304\nworker\n").unwrap();
    let _watchdog = Watchdog::of(&path);
    for options in every_kind() {
        let acquired = timeout(VERY_LONG, lock_with(&path, &options).acquire()).await.unwrap();
        assert!(is_not_a_lock_file(&acquired.unwrap_err()));
    }
    let mut read = [0; 15];
    fifo.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"4194304\nworker\n");
}

#[tokio::test]
async fn a_symbolic_link_is_refused_and_not_followed() {
    let directory = support::on_tmpfs();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("data"), "data").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::create_dir(at("inner")).unwrap();
    let targets = ["data", "empty", "inner", "nowhere", "itself", "/dev/null", "/dev/zero"];
    for (number, target) in targets.iter().enumerate() {
        let link = at(&format!("link{number}"));
        let target = if *target == "itself" { link.clone() } else { PathBuf::from(target) };
        symlink(&target, &link).unwrap();
        let before = fingerprint(&at("data")).zip(fingerprint(&at("empty")));
        is_refused(&link, is_not_a_lock_file).await;
        assert_eq!(fingerprint(&at("data")).zip(fingerprint(&at("empty"))), before);
        assert!(!at("nowhere").exists());
    }
}

/// Content that nobody but its owner may judge.
fn data_files() -> Vec<Vec<u8>> {
    let mut files: Vec<Vec<u8>> = [
        b"hello".as_slice(),
        b"SQLite format 3\0",
        b"\n",
        b" ",
        b"\0\0\0x",
        b"0",
        b"0\n",
        b"0\nworker\n",
        b"-1\n",
        b"-1\nworker\n",
        b"+1\nworker\n",
        b"99999999999\nworker\n",
        b"99999999999999999999999999999999999999\n",
        b"4194305\nworker\n",
        b"0x10\nworker\n",
        b"1e3\nworker\n",
        b"1 2\nworker\n",
        b"4194304,\nworker\n",
        b"4194304\nna\nme\n",
        b"4194304\nworker\n\n\n",
        b"4194304\nwor\x07ker\n",
        b"4194304\nwor\0ker\n",
        b"4194304\nwor\x1b[2Jker\n",
        b"4194304\n\xff\xfe\n",
        b"\xff\xfe4\x001\0",
        b"\xef\xbb\xbf4194304\nworker\n",
        b"4194304\nworker\nsome more of mine\n",
        b"4194304\nworker\ntokens: none\n",
        b"#!/bin/sh\nexit\n",
        b"{\"pid\": 4194304}\n",
        b"1\n2\n3\n4\n5\n",
        &[0; 513],
        &[b'1'; 512],
        &[b'\n'; 512],
        &[0x7f; 512],
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    // A record, and then more: longer than any of ours.
    let mut longer =
        b"4194304\nworker\ntoken: 00000000000000000000000000000001\npin: flock\n".to_vec();
    longer.resize(513, b'\n');
    files.push(longer);
    files
}

#[tokio::test]
async fn data_is_refused_and_untouched() {
    for directory in [support::on_tmpfs(), support::on_disk()] {
        for content in data_files() {
            let path = directory.path().join("data");
            fs::write(&path, &content).unwrap();
            is_refused(&path, is_not_a_lock_file).await;
            assert_eq!(fs::read(&path).unwrap(), content);
            fs::remove_file(&path).unwrap();
        }
    }
}

#[tokio::test]
async fn a_huge_file_is_refused_unread() {
    let directory = support::on_disk();
    let path = directory.path().join("huge");
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    is_refused(&path, is_not_a_lock_file).await;
}

/// The record of a holder that was killed.
fn record_of_the_dead(path: &Path, pin: Proof) -> Vec<u8> {
    let role = if pin == Proof::Process { "portable" } else { "pinned" };
    let mut holder = Process::play(HOLDER, role, path);
    holder.expect("held");
    holder.kill();
    let record = fs::read(path).unwrap();
    assert_eq!(record.len(), 512);
    record
}

const HOLDER: &str = "holds_until_it_is_killed";

#[test]
fn holds_until_it_is_killed() {
    if let Some((role, path)) = support::role() {
        let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
        let guard =
            lock_with(&path, &FileOptions::default().proof(pin)).blocking_acquire().unwrap();
        support::tell("held");
        support::told();
        drop(guard);
    }
}

/// Each waits until the file is no longer young: hence all at once.
#[tokio::test]
async fn a_torn_record_is_the_dead_holders() {
    let directory = support::on_disk();
    let mut cases = Vec::new();
    for pin in PINS {
        let path = directory.path().join("a.lock");
        let record = record_of_the_dead(&path, pin);
        fs::remove_file(&path).unwrap();
        for cut in (0..=512).step_by(16) {
            let mut torn = vec![0; 512];
            torn[..cut].copy_from_slice(&record[..cut]);
            cases.push((pin, format!("{pin:?}.{cut}"), torn));
            if cut > 0 {
                cases.push((pin, format!("{pin:?}.{cut}.short"), record[..cut].to_vec()));
            }
        }
    }
    let every = cases.into_iter().map(|(pin, name, content)| {
        let path = directory.path().join(&name);
        async move {
            fs::write(&path, &content).unwrap();
            let lock = lock_with(&path, &FileOptions::default().proof(pin));
            let status = timeout(VERY_LONG, lock.status()).await.unwrap();
            assert!(matches!(status, Ok(Status::Stale(_))), "{name}: {status:?}");
            assert_eq!(fs::read(&path).unwrap(), content, "{name}: looking changes nothing");
            let guard = timeout(VERY_LONG, lock.acquire()).await.unwrap();
            let guard = guard.unwrap_or_else(|error| panic!("{name}: {error}"));
            let dead = guard.recovered_from().unwrap_or_else(|| panic!("{name}: nobody"));
            assert_eq!(dead.pid.is_some(), content[0] != 0, "{name}");
            guard.release().await.unwrap();
            assert!(!path.exists());
        }
    });
    join_all(every).await;
    assert!(names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn a_torn_record_of_a_living_process_is_busy() {
    let text = format!("{}\nbad_input\ntoken: 0123", std::process::id());
    let mut torn = text.clone().into_bytes();
    torn.resize(512, 0);
    for options in every_kind() {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        fs::write(&path, &torn).unwrap();
        let lock = lock_with(&path, &options);
        let acquired = timeout(VERY_LONG, lock.try_acquire()).await.unwrap().unwrap();
        assert!(acquired.is_none());
        assert_eq!(lock.holder().await.unwrap().unwrap().evidence, Evidence::ProcessRuns);
        assert_eq!(fs::read(&path).unwrap(), torn);
    }
}

/// Whatever `argv[0]` is, the record is a record.
#[test]
fn a_program_with_a_strange_name_can_hold() {
    let long = format!("/bin/{}", "n".repeat(300));
    let cases = [
        ("/usr/bin/a\nb\tc\x07d", "abcd"),
        ("\n", "unnamed"),
        ("", "unnamed"),
        ("/", "unnamed"),
        ("worker.py", "worker"),
        ("-bash", "-bash"),
        ("token: 5", "token: 5"),
        (long.as_str(), &long[5..5 + 64]),
    ];
    for ((argv0, name), pin) in cases.iter().flat_map(|case| PINS.map(|pin| (case, pin))) {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let role = if pin == Proof::Process { "portable" } else { "pinned" };
        let mut command = support::player(HOLDER, role, &path);
        command.arg0(argv0);
        let mut holder = Process::start(command);
        holder.expect("held");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lock = lock_with(&path, &FileOptions::default().proof(pin));
        let seen = runtime.block_on(lock.holder()).unwrap().unwrap();
        assert_eq!((seen.pid, seen.name.as_deref()), (Some(holder.id()), Some(*name)), "{argv0:?}");
        assert!(!seen.is_foreign());
        holder.kill();
        let guard = runtime.block_on(timeout_acquire(&lock));
        assert_eq!(guard.recovered_from().unwrap().name.as_deref(), Some(*name));
    }
}

async fn timeout_acquire(lock: &AsyncFileLock) -> lockkeeper::FileGuard {
    timeout(VERY_LONG, lock.acquire()).await.expect("it hangs").unwrap()
}

/// Play `role` of `test` without privileges.
fn play_nobody(test: &str, role: &str, path: &Path) {
    let mut child = Process::play(test, role, path);
    child.expect("done");
    assert!(child.wait().success());
}

fn as_nobody(task: impl Future<Output = ()>) {
    become_user(NOBODY);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(VERY_LONG, task).await.expect("it hangs") });
    support::tell("done");
}

#[test]
fn without_permission_nothing_is_had_and_nothing_changes() {
    const TEST: &str = "without_permission_nothing_is_had_and_nothing_changes";
    let is_denied = is_io(std::io::ErrorKind::PermissionDenied);
    if let Some((role, path)) = support::role() {
        return as_nobody(async {
            if role == "refused" {
                return is_refused(&path, is_denied).await;
            }
            // To look is allowed, to make a file is not.
            for options in every_kind() {
                let lock = lock_with(&path, &options);
                assert_eq!(lock.status().await.unwrap(), Status::Free);
                assert_eq!(lock.revoke().await.unwrap(), None);
                for error in
                    [lock.acquire().await.unwrap_err(), lock.try_acquire().await.unwrap_err()]
                {
                    assert!(is_denied(&error), "{error:?}");
                    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
                }
            }
        });
    }
    if !has_two_users() {
        return;
    }
    let closed = with_mode(0o700);
    play_nobody(TEST, "refused", &closed.path().join("a.lock"));
    let unwritable = with_mode(0o755);
    play_nobody(TEST, "unwritable", &unwritable.path().join("a.lock"));
    assert!(names_in(unwritable.path()).is_empty());
}

#[test]
fn another_users_file_in_a_sticky_directory_cannot_be_taken_over() {
    const TEST: &str = "another_users_file_in_a_sticky_directory_cannot_be_taken_over";
    if let Some((role, path)) = support::role() {
        return as_nobody(async {
            let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
            for offload in [Offload::Never, Offload::Always] {
                let lock = lock_with(&path, &FileOptions::default().proof(pin).offload(offload));
                let Status::Stale(left_by) = lock.status().await.unwrap() else { panic!() };
                // There is no limit, and it must not wait for ever.
                for error in [
                    lock.acquire().await.unwrap_err(),
                    lock.try_acquire().await.unwrap_err(),
                    lock.break_stale().await.unwrap_err(),
                ] {
                    let Error::CannotTakeOver { lock: named, owner, stale, source } = &error else {
                        panic!("{error:?}")
                    };
                    assert_eq!((named.path(), *owner), (Some(lock.path()), 0));
                    assert_eq!(stale.pid, left_by.pid);
                    assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
                    let text = error.to_string();
                    assert!(text.contains(path.to_str().unwrap()) && text.contains("user id 0"));
                }
            }
        });
    }
    if !has_two_users() {
        return;
    }
    for (pin, role) in [(Proof::Auto, "pinned"), (Proof::Process, "portable")] {
        let directory = with_mode(0o1777);
        let path = directory.path().join("a.lock");
        record_of_the_dead(&path, pin);
        let before = fingerprint(&path);
        play_nobody(TEST, role, &path);
        assert_eq!(fingerprint(&path), before);
        assert_eq!(names_in(directory.path()), ["a.lock"]);
    }
}

#[test]
fn another_users_file_that_may_be_removed_is_taken_over_with_the_news() {
    const TEST: &str = "another_users_file_that_may_be_removed_is_taken_over_with_the_news";
    if let Some((role, path)) = support::role() {
        return as_nobody(async {
            let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
            let lock = lock_with(&path, &FileOptions::default().proof(pin));
            let Status::Stale(left_by) = lock.status().await.unwrap() else { panic!() };
            let guard = timeout_acquire(&lock).await;
            let dead = guard.recovered_from().expect("it died holding the lock");
            assert_eq!(dead.pid, left_by.pid);
            guard.release().await.unwrap();
        });
    }
    if !has_two_users() {
        return;
    }
    for (pin, role) in [(Proof::Auto, "pinned"), (Proof::Process, "portable")] {
        let directory = with_mode(0o777);
        let path = directory.path().join("a.lock");
        record_of_the_dead(&path, pin);
        play_nobody(TEST, role, &path);
        assert!(names_in(directory.path()).is_empty());
    }
}

/// Its program may have renamed another file to the path since it was looked
/// at: by name we would remove that one.
#[test]
fn another_users_foreign_file_is_not_taken_over_by_name() {
    const TEST: &str = "another_users_foreign_file_is_not_taken_over_by_name";
    if let Some((_, path)) = support::role() {
        return as_nobody(async {
            let lock = lock_with(&path, &FileOptions::default());
            for error in [lock.acquire().await.unwrap_err(), lock.try_acquire().await.unwrap_err()]
            {
                assert!(matches!(error, Error::CannotTakeOver { owner: 0, .. }), "{error:?}");
            }
        });
    }
    if !has_two_users() {
        return;
    }
    for mode in [0o777, 0o1777] {
        let directory = with_mode(mode);
        let path = directory.path().join("a.lock");
        let mut dead = Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        fs::write(&path, format!("{}\nworker\n", dead.id())).unwrap();
        let before = fingerprint(&path);
        play_nobody(TEST, "contender", &path);
        assert_eq!(fingerprint(&path), before);
        assert_eq!(names_in(directory.path()), ["a.lock"]);
    }
}

#[test]
fn another_users_living_holder_is_busy() {
    const TEST: &str = "another_users_living_holder_is_busy";
    if let Some((role, path)) = support::role() {
        return as_nobody(async {
            let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
            let lock = lock_with(&path, &FileOptions::default().proof(pin));
            assert!(lock.try_acquire().await.unwrap().is_none());
            assert!(lock.is_locked().await.unwrap());
        });
    }
    if !has_two_users() {
        return;
    }
    for (pin, role) in [(Proof::Auto, "pinned"), (Proof::Process, "portable")] {
        let directory = with_mode(0o1777);
        let path = directory.path().join("a.lock");
        let guard =
            lock_with(&path, &FileOptions::default().proof(pin)).blocking_acquire().unwrap();
        play_nobody(TEST, role, &path);
        drop(guard);
        assert!(names_in(directory.path()).is_empty());
    }
}

/// A tmpfs of its own, in a mount namespace that goes with the process.
#[test]
fn a_read_only_file_system_is_a_clear_error() {
    const TEST: &str = "a_read_only_file_system_is_a_clear_error";
    if let Some((role, directory)) = support::role() {
        let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
        let is_read_only = is_io(std::io::ErrorKind::ReadOnlyFilesystem);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = FileOptions::default().proof(pin);
            let free = lock_with(&directory.join("free.lock"), &options);
            let error = timeout(VERY_LONG, free.acquire()).await.unwrap().unwrap_err();
            assert!(is_read_only(&error), "{error:?}");
            assert!(error.to_string().contains("free.lock"), "{error}");
            assert_eq!(free.status().await.unwrap(), Status::Free);
            is_refused_with(&directory.join("data"), &options, is_not_a_lock_file).await;
            let stale = lock_with(&directory.join("stale.lock"), &options);
            assert!(matches!(stale.status().await.unwrap(), Status::Stale(_)));
            let error = timeout(VERY_LONG, stale.acquire()).await.unwrap().unwrap_err();
            let says_so = is_read_only(&error)
                || matches!(&error, Error::CannotTakeOver { source, .. }
                    if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem);
            assert!(says_so, "{error:?}");
            assert!(error.to_string().contains("stale.lock"), "{error}");
        });
        return support::tell("done");
    }
    let may_mount = Command::new("unshare").args(["-m", "true"]).output();
    if !may_mount.is_ok_and(|output| output.status.success()) {
        return println!("skipped: this process may not make a mount namespace");
    }
    for (pin, role) in [(Proof::Auto, "pinned"), (Proof::Process, "portable")] {
        let (mount, made) = (support::on_tmpfs(), support::on_tmpfs());
        record_of_the_dead(&made.path().join("stale.lock"), pin);
        fs::write(made.path().join("data"), "data").unwrap();
        let played = support::player(TEST, role, mount.path());
        let script = "mount -t tmpfs none \"$1\" && cp \"$2\"/* \"$1\" && \
                      mount -o remount,ro \"$1\" && shift 2 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).args([mount.path(), made.path()]);
        command.arg(played.get_program()).args(played.get_args());
        command.envs(played.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let mut child = Process::start(command);
        child.expect("done");
        assert!(child.wait().success());
        assert!(names_in(mount.path()).is_empty(), "it was mounted here as well");
    }
}

/// Whoever waits for a reader at the other end would be let go by one that leaves.
#[tokio::test]
async fn a_look_at_a_fifo_lets_nobody_go() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let (at, (begins, has_begun)) = (path.clone(), mpsc::channel());
    let writer = std::thread::spawn(move || {
        begins.send(()).unwrap();
        File::options().write(true).open(at).unwrap().write_all(b"content")
    });
    has_begun.recv().unwrap();
    // It opens the fifo now, which cannot be seen.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..10 {
        let told = AsyncFileLock::new(&path).status().await;
        assert!(matches!(told, Err(Error::NotALockFile { .. })), "{told:?}");
        let told = AsyncKernelLock::new(&path).status().await;
        assert!(matches!(told, Err(Error::NotALockFile { .. })), "{told:?}");
    }
    // Not waiting for a writer, who may have been let go.
    let flags = nix::libc::O_NONBLOCK;
    let mut reader = File::options().read(true).custom_flags(flags).open(&path).unwrap();
    writer.join().unwrap().expect("it was let go");
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, b"content");
}
