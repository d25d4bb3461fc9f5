//! Who counts as dead: zombies, reused process ids, other namespaces, files
//! that say little. Unknown is never taken for dead.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures::future::join_all;
use lockkeeper::{AsyncFileLock, Error, Evidence, FileOptions, Holder, Proof, Status};
use support::Process;
use tokio::time::timeout;

/// As a role names it.
const PINS: [&str; 2] = ["pinned", "portable"];

/// How long a foreign file is watched before its process counts as dead.
const YOUTH: Duration = Duration::from_secs(2);

fn lock(pin: &str, path: &Path) -> AsyncFileLock {
    let pin = if pin == "pinned" { Proof::KernelLock } else { Proof::Process };
    let options = FileOptions::default().proof(pin).race_delay(Duration::from_millis(10));
    AsyncFileLock::with_options(path, options.retry_period(Duration::from_millis(5))).unwrap()
}

/// Acquire, say so, and hold until told.
fn hold((pin, path): (String, PathBuf)) {
    let hold = move || {
        let _guard = lock(&pin, &path).blocking_acquire().unwrap();
        support::tell("held");
        support::told();
    };
    // Outside of the test's runtime.
    std::thread::spawn(hold).join().unwrap();
}

fn holder(test: &str, pin: &str, path: &Path) -> Process {
    let holder = Process::play(test, pin, path);
    holder.expect("held");
    holder
}

/// Who stands in the way, at the only try.
async fn refusal(lock: &AsyncFileLock) -> Holder {
    match lock.acquire_timeout(Duration::ZERO).await {
        Err(Error::Timeout { holder, .. }) => *holder.expect("somebody stands in the way"),
        other => panic!("{other:?}"),
    }
}

/// From whom it is taken over, at the only try.
async fn predecessor(lock: &AsyncFileLock) -> Holder {
    let guard = lock.try_acquire().await.unwrap().expect("its holder is dead");
    guard.recovered_from().cloned().expect("it was taken over")
}

#[tokio::test]
async fn a_zombie_is_dead() {
    const TEST: &str = "a_zombie_is_dead";
    if let Some(role) = support::role() {
        return hold(role);
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut zombie = holder(TEST, pin, &path);
        zombie.kill_leaving_a_zombie();
        let lock = lock(pin, &path);
        assert!(matches!(lock.status().await.unwrap(), Status::Stale(_)));
        let dead = predecessor(&lock).await;
        assert_eq!(dead.pid, Some(zombie.id()));
        match dead.evidence {
            Evidence::KernelLockFree => assert_eq!(pin, "pinned"),
            Evidence::ProcessGone(why) => assert!(why.contains("zombie"), "{why}"),
            other => panic!("{other}"),
        }
    }
}

/// A record that has this line instead, or no such line.
fn with(record: &str, key: &str, value: Option<&str>) -> String {
    let is_other = |line: &&str| !line.starts_with(&format!("{key}: "));
    let mut lines: Vec<&str> = record.trim_end().lines().filter(is_other).collect();
    assert!(lines.len() < record.trim_end().lines().count() || value.is_none(), "{record}");
    let line = value.map(|value| format!("{key}: {value}"));
    lines.extend(line.as_deref());
    lines.join("\n") + "\n"
}

#[tokio::test]
async fn a_portable_record_is_of_the_process_that_has_its_whole_identity() {
    const TEST: &str = "a_portable_record_is_of_the_process_that_has_its_whole_identity";
    if let Some(role) = support::role() {
        return hold(role);
    }
    let directory = support::on_tmpfs();
    let real = directory.path().join("real.lock");
    let holder = holder(TEST, "portable", &real);
    let record = fs::read_to_string(&real).unwrap();
    let other = Some("1");
    let by_start = with(&record, "pidfd", None);
    let by_boot = |record: &str| with(record, "boot", Some("another boot"));
    let other_start = with(&by_start, "started", other);
    let mut dead = vec![by_boot(&other_start), other_start];
    // A container can show a boot id of its own.
    let mut alive = vec![by_boot(&record), record.clone(), by_start];
    if record.contains("\npidfd: ") {
        dead.push(with(&record, "pidfd", other));
        // The inode in pidfs is exact, clock ticks are not.
        alive.push(with(&record, "started", other));
        // But it counts anew with each boot.
        dead.push(by_boot(&with(&record, "started", other)));
    }
    let path = directory.path().join("a.lock");
    let lock = lock("portable", &path);
    for record in dead {
        fs::write(&path, &record).unwrap();
        let dead = predecessor(&lock).await;
        assert_eq!(dead.pid, Some(holder.id()));
        assert!(matches!(dead.evidence, Evidence::ProcessGone(_)), "{record}");
        assert!(!path.exists());
    }
    for record in alive {
        fs::write(&path, &record).unwrap();
        assert_eq!(refusal(&lock).await.evidence, Evidence::ProcessRuns, "{record}");
        fs::remove_file(&path).unwrap();
    }
    for key in ["pidns", "boot"] {
        fs::write(&path, with(&record, key, None)).unwrap();
        assert!(matches!(refusal(&lock).await.evidence, Evidence::Unknown(_)), "{key}");
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn a_portable_holder_in_another_pid_namespace_is_never_dead_from_here() {
    const TEST: &str = "a_portable_holder_in_another_pid_namespace_is_never_dead_from_here";
    if let Some(role) = support::role() {
        return hold(role);
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let player = support::player(TEST, "portable", &path);
    let Some(command) = support::in_a_pid_namespace(&player) else { return };
    let mut holder = Process::start(command);
    holder.expect("held");
    let lock = lock("portable", &path);
    let is_unknown =
        |evidence| matches!(evidence, Evidence::Unknown(why) if why.contains("namespace"));
    assert!(is_unknown(lock.holder().await.unwrap().unwrap().evidence));
    assert!(is_unknown(refusal(&lock).await.evidence));
    holder.hang_up();
    let guard = lock.acquire_timeout(support::VERY_LONG).await.unwrap();
    assert_eq!(guard.recovered_from(), None);
    drop(guard);

    let mut holder = Process::start(support::in_a_pid_namespace(&player).unwrap());
    holder.expect("held");
    holder.kill();
    assert!(lock.acquire_timeout(support::QUIET).await.is_err(), "it could still be alive");
    assert!(is_unknown(refusal(&lock).await.evidence));
    assert!(lock.break_stale().await.is_err());
    assert_eq!(support::names_in(directory.path()), ["a.lock"]);
}

#[tokio::test]
async fn a_pinned_holder_in_another_pid_namespace_holds_until_it_is_killed() {
    const TEST: &str = "a_pinned_holder_in_another_pid_namespace_holds_until_it_is_killed";
    if let Some(role) = support::role() {
        return hold(role);
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let player = support::player(TEST, "pinned", &path);
    let Some(command) = support::in_a_pid_namespace(&player) else { return };
    let mut holder = Process::start(command);
    holder.expect("held");
    let lock = lock("pinned", &path);
    assert_eq!(refusal(&lock).await.evidence, Evidence::KernelLock);
    assert!(lock.acquire_timeout(support::QUIET).await.is_err());
    holder.kill();
    let guard = lock.acquire_timeout(support::VERY_LONG).await.unwrap();
    let dead = guard.recovered_from().unwrap();
    assert_eq!((dead.pid, &dead.evidence), (Some(1), &Evidence::KernelLockFree));
}

/// A process id that nobody has any more.
fn dead_pid() -> u32 {
    let mut process = Command::new("true").spawn().unwrap();
    process.wait().unwrap();
    process.id()
}

#[tokio::test]
async fn files_that_say_little_are_taken_once_they_are_not_young_any_more() {
    const TEST: &str = "files_that_say_little_are_taken_once_they_are_not_young_any_more";
    if let Some(role) = support::role() {
        return hold(role);
    }
    let directory = support::on_tmpfs();
    let real = directory.path().join("real.lock");
    let mut killed = holder(TEST, "pinned", &real);
    killed.kill();
    let mut torn = fs::read(&real).unwrap();
    torn[100..].fill(0);
    let (dead, alive) = (dead_pid(), std::process::id());
    let files = [
        ("openlock's", Some(dead), format!("{dead}\nworker\n").into_bytes()),
        ("openlock's, pid reused", Some(alive), format!("{alive}\nno such program\n").into_bytes()),
        ("a process id", Some(dead), format!("{dead}\n").into_bytes()),
        ("empty", None, Vec::new()),
        ("NUL bytes", None, vec![0; 512]),
        ("torn", Some(killed.id()), torn),
    ];
    let takes = files.iter().flat_map(|file| PINS.map(|pin| (file, pin))).map(
        async |((what, pid, bytes), pin)| {
            let path = directory.path().join(format!("{what} {pin}"));
            fs::write(&path, bytes).unwrap();
            let started = Instant::now();
            let dead = predecessor(&lock(pin, &path)).await;
            assert!(started.elapsed() >= YOUTH, "{what}: it was young");
            assert_eq!(dead.pid, *pid, "{what}");
            let is_named = matches!(dead.evidence, Evidence::ProcessGone(_));
            assert_eq!(is_named, pid.is_some(), "{what}: {}", dead.evidence);
            assert!(!path.exists(), "{what}");
        },
    );
    join_all(takes).await;
}

#[tokio::test]
async fn a_foreign_file_that_keeps_changing_stays_young() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = lock("pinned", &path);
    let dead = dead_pid();
    let mut acquire = std::pin::pin!(lock.acquire());
    for name in 0..8 {
        fs::write(&path, format!("{dead}\nworker-{name}\n")).unwrap();
        let changed = Instant::now();
        if timeout(YOUTH / 4, &mut acquire).await.is_ok() {
            // Only where this machine stood still for so long.
            return assert!(changed.elapsed() >= YOUTH, "it was taken while it changed");
        }
    }
    drop(timeout(support::VERY_LONG, acquire).await.expect("it is old now").unwrap());
}

#[tokio::test]
async fn a_foreign_file_whose_process_runs_is_busy() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut sleeper = Process::start(command);
    let pid = sleeper.id();
    for text in [format!("{pid}\nsleep\n"), format!("{pid}\n"), format!("{pid}\nSLEEP")] {
        fs::write(&path, &text).unwrap();
        for pin in PINS {
            assert_eq!(refusal(&lock(pin, &path)).await.evidence, Evidence::ProcessRuns);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    sleeper.kill();
    assert_eq!(predecessor(&lock("pinned", &path)).await.pid, Some(pid));
}

#[tokio::test]
async fn a_process_lives_as_long_as_any_of_its_threads() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/python/openlock-1.2.1/bin/python");
    assert!(python.exists(), "{} is missing: run tests/setup.sh", python.display());
    let mut command = Command::new(python);
    command.arg(root.join("tests/openlock/headless.py")).arg(&path);
    let mut headless = Process::start(command);
    headless.expect("headless");
    let stat = format!("/proc/{}/stat", headless.id());
    support::eventually("its first thread is a zombie", || {
        fs::read_to_string(&stat).unwrap().contains(") Z ")
    });
    for pin in PINS {
        assert_eq!(refusal(&lock(pin, &path)).await.evidence, Evidence::ProcessRuns);
    }
    headless.kill();
    assert_eq!(predecessor(&lock("pinned", &path)).await.pid, Some(headless.id()));
}

#[tokio::test]
async fn a_stale_record_of_the_other_protocol_is_busy_until_it_is_broken() {
    const TEST: &str = "a_stale_record_of_the_other_protocol_is_busy_until_it_is_broken";
    if let Some(role) = support::role() {
        return hold(role);
    }
    for [theirs, mine] in [["pinned", "portable"], ["portable", "pinned"]] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut dead = holder(TEST, theirs, &path);
        let lock = lock(mine, &path);
        assert!(lock.break_stale().await.is_err(), "its holder lives");
        dead.kill();
        let record = fs::read(&path).unwrap();
        let Evidence::Unknown(why) = refusal(&lock).await.evidence else { panic!("{theirs}") };
        assert!(why.contains("of the other kind"), "{why}");
        assert!(lock.acquire_timeout(support::QUIET).await.is_err());
        assert_eq!(fs::read(&path).unwrap(), record);
        let broken = lock.break_stale().await.unwrap().expect("it was stale");
        assert_eq!(broken.pid, Some(dead.id()));
        assert!(support::names_in(directory.path()).is_empty());
        assert!(lock.try_acquire().await.unwrap().is_some());
    }
}
