//! What options are refused, and what they change.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lockkeeper::{
    AsyncFileLock, Error, Evidence, FileGuard, FileOptions, Holder, Lost, LostReason, Offload,
    Proof, Status,
};
use nix::sys::stat::{Mode, umask};
use support::{Process, VERY_LONG, names_in};
use tokio_util::sync::CancellationToken;

fn assert_task<T: Send + 'static>(_: &T) {}
fn assert_shared<T: Send + Sync + 'static>() {}

/// Compiling is the test.
#[allow(dead_code)]
fn what_is_sent_between_threads_can_be(lock: &'static AsyncFileLock, guard: &'static FileGuard) {
    assert_shared::<AsyncFileLock>();
    assert_shared::<FileGuard>();
    assert_shared::<FileOptions>();
    assert_shared::<Error>();
    assert_shared::<Lost>();
    assert_shared::<LostReason>();
    assert_shared::<Holder>();
    assert_shared::<Status>();
    assert_task(&lock.acquire());
    assert_task(&lock.acquire_timeout(Duration::ZERO));
    assert_task(&lock.try_acquire());
    assert_task(&lock.holder());
    assert_task(&lock.is_locked());
    assert_task(&lock.status());
    assert_task(&lock.break_stale());
    assert_task(&lock.revoke());
    assert_task(&guard.lost());
    assert_task(&lockkeeper::flush());
    let token: &'static CancellationToken = Box::leak(Box::default());
    assert_task(&lock.acquire_with(token));
}

#[allow(dead_code)]
fn a_release_can_be_spawned(guard: FileGuard) {
    assert_task(&guard.release());
}

#[test]
fn a_lock_can_be_cloned_and_printed() {
    fn assert_is<T: Clone + std::fmt::Debug>() {}
    assert_is::<AsyncFileLock>();
    let text = format!("{:?}", AsyncFileLock::new("/tmp/a.lock"));
    assert!(text.contains("/tmp/a.lock"), "{text}");
}

fn refused(option: &str, options: FileOptions) {
    let error = AsyncFileLock::with_options("a.lock", options.clone()).unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option: named, .. } if *named == option));
    assert!(error.to_string().contains(option), "{error}");
    assert_eq!(error.path(), None);
    let before = FileOptions::default();
    let error = FileOptions::set_process_default(options).unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option: named, .. } if *named == option));
    assert_eq!(FileOptions::default(), before, "nothing changes");
}

#[test]
fn impossible_values_are_refused() {
    let options = FileOptions::default;
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    refused("retry_period", options().retry_period(Duration::ZERO));
    refused("retry_period", options().retry_period(century));
    refused("retry_period", options().retry_period(Duration::MAX));
    refused("race_delay", options().race_delay(century));
    refused("race_delay", options().race_delay(Duration::MAX));
    refused("tries", options().tries(0));
    for mode in [0o000, 0o200, 0o400, 0o444, 0o1644, 0o2644, 0o4644, 0o10_0644, u32::MAX] {
        refused("mode", options().mode(mode));
    }
    refused("openlock_compat", options().openlock_compat(true).proof(Proof::Process));
    refused("race_delay", options().openlock_compat(true).race_delay(Duration::ZERO));
    refused("note", options().note("x".repeat(129)));
    refused("note", options().note("é".repeat(65)));
    for note in ["two\nlines", "carriage\r", "nul\0", "escape\x1b[2J", "tab\t", "next line\u{85}"] {
        refused("note", options().note(note));
    }
}

#[test]
fn extreme_but_possible_values_are_taken() {
    let directory = support::on_tmpfs();
    let options = FileOptions::default;
    let possible = [
        options().retry_period(Duration::from_nanos(1)),
        options().race_delay(Duration::ZERO),
        options().tries(u32::MAX),
        options().timeout(Duration::ZERO),
        options().timeout(Duration::MAX),
        options().timeout(Duration::MAX).timeout(None),
        options().mode(0o600),
        options().mode(0o777),
        options().note(""),
        options().note("x".repeat(128)),
        options().proof(Proof::KernelLock),
    ];
    for options in possible {
        let path = directory.path().join("a.lock");
        let lock = AsyncFileLock::with_options(path, options).unwrap();
        let guard = lock.blocking_acquire().unwrap();
        drop(guard);
        assert!(names_in(directory.path()).is_empty());
    }
}

#[test]
fn the_defaults_are_as_documented() {
    let documented = FileOptions::default()
        .timeout(None)
        .retry_period(Duration::from_millis(300))
        .race_delay(Duration::from_millis(200))
        .tries(2)
        .slow_system(lockkeeper::SlowSystem::Warn)
        .mode(0o644)
        .proof(Proof::Auto)
        .openlock_compat(false)
        .at_exit(lockkeeper::AtExit::Leave)
        .offload(Offload::Auto);
    assert_eq!(FileOptions::default(), documented);
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The umask is the process's, so this needs one.
#[test]
fn the_mode_is_subject_to_the_umask() {
    const TEST: &str = "the_mode_is_subject_to_the_umask";
    if let Some((_, path)) = support::role() {
        for (mask, asked, had) in [
            (0o000, 0o644, 0o644),
            (0o000, 0o777, 0o777),
            (0o022, 0o666, 0o644),
            (0o077, 0o644, 0o600),
            (0o027, 0o660, 0o640),
        ] {
            umask(Mode::from_bits_truncate(mask));
            for pin in [Proof::Auto, Proof::Process] {
                let options = FileOptions::default().mode(asked).proof(pin);
                let lock = AsyncFileLock::with_options(&path, options).unwrap();
                let _guard = lock.blocking_acquire().unwrap();
                assert_eq!(mode_of(&path), had, "{asked:o} under {mask:o}, {pin:?}");
            }
        }
        return support::tell("done");
    }
    for directory in [support::on_tmpfs(), support::on_disk()] {
        let mut child = Process::play(TEST, "masked", &directory.path().join("a.lock"));
        child.expect("done");
        assert!(child.wait().success());
    }
}

#[tokio::test]
async fn the_holder_is_shown_with_its_note() {
    let longest = "é".repeat(64);
    for note in [None, Some(""), Some("nightly: import #7"), Some(longest.as_str())] {
        for pin in [Proof::Auto, Proof::Process] {
            for offload in [Offload::Never, Offload::Always] {
                let directory = support::on_tmpfs();
                let path = directory.path().join("a.lock");
                let options = FileOptions::default().proof(pin).offload(offload);
                let noted = match note {
                    Some(note) => options.clone().note(note),
                    None => options.clone(),
                };
                let before = SystemTime::now();
                let lock = AsyncFileLock::with_options(&path, noted).unwrap();
                let guard = lock.acquire().await.unwrap();
                let asking = AsyncFileLock::with_options(&path, options).unwrap();
                let holder = asking.holder().await.unwrap().unwrap();
                assert_eq!(holder.note.as_deref(), note);
                assert_eq!(holder.pid, Some(std::process::id()));
                assert!(!holder.is_foreign());
                assert_eq!(holder.hold_id, Some(guard.hold_id()));
                assert_eq!(guard.hold_id().len(), 32);
                assert!(guard.hold_id().bytes().all(|digit| digit.is_ascii_hexdigit()));
                let uname = nix::sys::utsname::uname().unwrap();
                assert_eq!(holder.host.as_deref(), uname.nodename().to_str());
                let since = holder.since.unwrap();
                assert!(since <= SystemTime::now());
                assert!(since + Duration::from_secs(1) > before, "in whole seconds");
                let evidence = match pin {
                    Proof::Process => Evidence::ProcessRuns,
                    _ => Evidence::KernelLock,
                };
                assert_eq!(holder.evidence, evidence);
                assert_eq!(asking.status().await.unwrap(), Status::Held(holder.clone()));
                assert!(asking.is_locked().await.unwrap());
                let shown = holder.to_string();
                assert!(shown.contains(note.unwrap_or_default()), "{shown}");
                assert!(shown.contains(&std::process::id().to_string()), "{shown}");
                guard.release().await.unwrap();
                assert_eq!(asking.holder().await.unwrap(), None);
                assert_eq!(asking.status().await.unwrap(), Status::Free);
                assert!(!asking.is_locked().await.unwrap());
            }
        }
    }
}

#[tokio::test]
async fn each_acquisition_has_a_token_of_its_own() {
    let directory = support::on_tmpfs();
    let lock = AsyncFileLock::new(directory.path().join("a.lock"));
    let mut tokens = std::collections::HashSet::new();
    for _ in 0..100 {
        let guard = lock.acquire().await.unwrap();
        assert!(tokens.insert(guard.hold_id()));
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn only_a_pinned_lock_has_a_pin() {
    let directory = support::on_tmpfs();
    for (pin, has_one) in [(Proof::Auto, true), (Proof::KernelLock, true), (Proof::Process, false)]
    {
        let options = FileOptions::default().proof(pin);
        let path = directory.path().join("a.lock");
        let guard = AsyncFileLock::with_options(&path, options).unwrap().acquire().await.unwrap();
        assert_eq!(guard.lock_fd().is_some(), has_one, "{pin:?}");
        assert_eq!(guard.path(), path);
        let debug = format!("{guard:?}");
        assert!(debug.contains("a.lock"), "{debug}");
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn clones_are_the_same_lock() {
    let directory = support::on_tmpfs();
    let lock = AsyncFileLock::new(directory.path().join("a.lock"));
    let clone = lock.clone();
    assert_eq!(lock.path(), clone.path());
    let guard = lock.acquire().await.unwrap();
    assert!(clone.try_acquire().await.unwrap().is_none());
    drop(guard);
    let guard = tokio::time::timeout(VERY_LONG, clone.acquire()).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

/// The working directory is the process's, so this needs one.
#[test]
fn a_relative_path_is_taken_from_the_directory_of_that_moment() {
    const TEST: &str = "a_relative_path_is_taken_from_the_directory_of_that_moment";
    if let Some((_, directory)) = support::role() {
        let (first, second) = (directory.join("first"), directory.join("second"));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        std::env::set_current_dir(&first).unwrap();
        let lock = AsyncFileLock::new("a.lock");
        std::env::set_current_dir(&second).unwrap();
        assert_eq!(lock.path(), first.join("a.lock"));
        let guard = lock.blocking_acquire().unwrap();
        assert_eq!(names_in(&first), ["a.lock"]);
        std::env::set_current_dir("/").unwrap();
        drop(guard);
        assert!(names_in(&first).is_empty() && names_in(&second).is_empty());
        return support::tell("done");
    }
    let directory = support::on_tmpfs();
    let mut child = Process::play(TEST, "wanderer", directory.path());
    child.expect("done");
    assert!(child.wait().success());
}

#[tokio::test]
async fn the_latest_limit_and_the_longest_delay_can_be_asked_for() {
    let directory = support::on_tmpfs();
    let thirty_years = Duration::from_secs(30 * 365 * 24 * 3600);
    let options = FileOptions::default().race_delay(thirty_years).tries(u32::MAX);
    let path = directory.path().join("a.lock");
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    for limit in [thirty_years, Duration::MAX, Duration::from_secs(6_000_000_000_000_000_000)] {
        drop(lock.acquire_timeout(limit).await.unwrap());
    }
}
