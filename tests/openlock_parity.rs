//! Each thing that a user of openlock expects to find here.

mod support;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::join_all;
use lockkeeper::{
    AsyncFileLock, Error, Evidence, FileGuard, FileOptions, Proof, SlowSystem, Status,
};
use support::{Process, QUIET, VERY_LONG, names_in};
use tempfile::TempDir;
use tokio::time::timeout;

const PINS: [Proof; 2] = [Proof::Auto, Proof::Process];

/// Young is what changed within so long, as this contender sees it.
const YOUTH: Duration = Duration::from_secs(2);

/// How long our file is watched where another thread must do something to it
/// meanwhile, also on a machine that is busy.
const WATCHED: Duration = Duration::from_secs(2);

fn lock_in(directory: &TempDir, options: FileOptions) -> AsyncFileLock {
    AsyncFileLock::with_options(directory.path().join("a.lock"), options).unwrap()
}

/// The id of a process that is gone.
fn dead_process() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

fn foreign(pid: u32, name: &str) -> String {
    format!("{pid}\n{name}\n")
}

/// A program that lives until this is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let words = format!("/proc/{}/cmdline", child.id());
        support::eventually("it shows its command line", || {
            std::fs::read(&words).is_ok_and(|words| !words.is_empty())
        });
        Self(child)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another program that does something to the lock file each time we have taken it.
struct Meddler {
    deeds: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Meddler {
    fn new(path: &Path, mut deed: impl FnMut(&Path) + Send + 'static) -> Self {
        let (deeds, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (path, counter, end) = (path.to_owned(), deeds.clone(), is_over.clone());
        let ours = format!("{}\n", std::process::id());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with(&ours)) {
                    deed(&path);
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Self { deeds, is_over, thread: Some(thread) }
    }

    fn deeds(&self) -> usize {
        self.deeds.load(Ordering::Relaxed)
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn the_default_path_is_openlock_lock_in_the_working_directory() {
    let here = std::env::current_dir().unwrap();
    assert_eq!(AsyncFileLock::default().path(), here.join("openlock.lock"));
}

#[tokio::test]
async fn the_limit_of_the_options_holds_where_none_is_given() {
    let directory = support::on_tmpfs();
    let short = Duration::from_millis(30);
    let impatient = lock_in(&directory, FileOptions::default().timeout(short));
    let patient = lock_in(&directory, FileOptions::default().timeout(VERY_LONG * 10));
    let _guard = impatient.acquire().await.unwrap();
    let waited = |error: Error| match error {
        Error::Timeout { waited, lock: named, .. } if named == *impatient.path() => waited,
        error => panic!("{error}"),
    };
    let acquired = timeout(VERY_LONG, impatient.acquire()).await.unwrap();
    assert!(waited(acquired.unwrap_err()) >= short);
    let acquired = timeout(VERY_LONG, patient.acquire_timeout(short)).await.unwrap();
    assert!(waited(acquired.unwrap_err()) >= short);
    assert!(timeout(QUIET, impatient.acquire_timeout(VERY_LONG)).await.is_err());
    assert!(timeout(QUIET, patient.acquire()).await.is_err());
}

#[tokio::test]
async fn there_is_a_last_try_at_the_deadline() {
    const TEST: &str = "there_is_a_last_try_at_the_deadline";
    if let Some((_, path)) = support::role() {
        let guard = AsyncFileLock::new(path).acquire().await.unwrap();
        support::tell("held");
        support::told();
        return guard.release().await.unwrap();
    }
    let directory = support::on_tmpfs();
    // No look between the first and the last, and no events.
    let options = FileOptions::default().retry_period(10 * VERY_LONG);
    let lock = lock_in(&directory, options.offload(lockkeeper::Offload::Always));
    let mut holder = Process::play(TEST, "holder", lock.path());
    holder.expect("held");
    let acquire = tokio::spawn(async move { lock.acquire_timeout(5 * QUIET).await });
    tokio::time::sleep(QUIET).await;
    assert!(holder.wait().success());
    let guard = timeout(VERY_LONG, acquire).await.unwrap().unwrap().unwrap();
    assert_eq!(guard.recovered_from(), None);
}

#[test]
fn defaults_are_set_for_the_whole_process() {
    const TEST: &str = "defaults_are_set_for_the_whole_process";
    if let Some((_, path)) = support::role() {
        let old = AsyncFileLock::new(&path);
        let built_in = FileOptions::default();
        let limit = Duration::from_millis(30);
        FileOptions::set_process_default(FileOptions::default().timeout(limit).note("by default"))
            .unwrap();
        let set = built_in.clone().timeout(limit).note("by default");
        assert_eq!(FileOptions::process_default(), set);
        assert_eq!(FileOptions::default(), built_in);
        let guard = AsyncFileLock::new(&path).blocking_acquire().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let holder = runtime.block_on(old.holder()).unwrap().unwrap();
        assert_eq!(holder.note.as_deref(), Some("by default"));
        let thread = std::thread::spawn(move || AsyncFileLock::new(path).blocking_acquire());
        let error = thread.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout { waited, .. } if waited >= limit));
        assert!(FileOptions::set_process_default(FileOptions::default().tries(0)).is_err());
        assert_eq!(FileOptions::process_default(), set);
        // A lock that was made before keeps what it was made with.
        runtime.block_on(async {
            assert!(timeout(QUIET, old.acquire()).await.is_err());
        });
        drop(guard);
        return support::tell("done");
    }
    let directory = support::on_tmpfs();
    let mut child = Process::play(TEST, "alone", &directory.path().join("a.lock"));
    child.expect("done");
    assert!(child.wait().success());
}

#[tokio::test]
async fn the_first_two_lines_are_pid_and_program() {
    let argv0 = PathBuf::from(std::env::args_os().next().unwrap());
    let program = argv0.file_stem().unwrap().to_str().unwrap();
    for pin in PINS {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, FileOptions::default().proof(pin));
        let guard = lock.acquire().await.unwrap();
        let text = std::fs::read_to_string(lock.path()).unwrap();
        let lines: Vec<_> = text.lines().take(3).collect();
        let expected =
            [&std::process::id().to_string(), program, &format!("token: {}", guard.hold_id())];
        assert_eq!(lines, expected);
        assert_eq!(text.len(), 512);
        assert_eq!(lock.holder().await.unwrap().unwrap().pid, Some(std::process::id()));
        assert_eq!(lock.holder().await.unwrap().unwrap().name.as_deref(), Some(program));
    }
}

/// A foreign file, and whom it is judged to be left by: `Err` is a live holder.
type Judgement = (String, Result<(Option<u32>, Option<&'static str>), u32>);

fn judgements(sleeper: &Sleeper, zombie: u32) -> Vec<Judgement> {
    let (live, dead) = (sleeper.0.id(), dead_process());
    vec![
        (foreign(live, "sleep"), Err(live)),
        (foreign(live, "SLEEP"), Err(live)),
        (foreign(live, "1000"), Err(live)),
        (foreign(live, ""), Err(live)),
        (format!("{live}"), Err(live)),
        (format!("{live}\n"), Err(live)),
        (format!("       {live}\n"), Err(live)),
        (foreign(live, "no such program"), Ok((Some(live), Some("no such program")))),
        (foreign(dead, "sleep"), Ok((Some(dead), Some("sleep")))),
        (foreign(zombie, "true"), Ok((Some(zombie), Some("true")))),
        (format!("{dead}"), Ok((Some(dead), None))),
        (format!("{dead}\n"), Ok((Some(dead), None))),
        (String::new(), Ok((None, None))),
        ("\0".repeat(17), Ok((None, None))),
        ("\0".repeat(512), Ok((None, None))),
    ]
}

async fn is_judged(pin: Proof, (text, expected): Judgement) {
    let directory = support::on_tmpfs();
    let lock = lock_in(&directory, FileOptions::default().proof(pin).race_delay(QUIET));
    std::fs::write(lock.path(), &text).unwrap();
    let status = lock.status().await.unwrap();
    assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), text, "looking changes nothing");
    let acquired = timeout(VERY_LONG, lock.try_acquire()).await.expect("it hangs").unwrap();
    match expected {
        Err(live) => {
            assert!(acquired.is_none(), "{text:?}");
            let Status::Held(holder) = status else { panic!("{text:?}: {status:?}") };
            assert_eq!((holder.pid, holder.evidence), (Some(live), Evidence::ProcessRuns));
            assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), text);
        }
        Ok((pid, name)) => {
            assert!(matches!(status, Status::Stale(_)), "{text:?}: {status:?}");
            let guard = acquired.unwrap_or_else(|| panic!("{text:?} was not taken over"));
            let stale = guard.recovered_from().expect("whom it was recovered from");
            assert_eq!((stale.pid, stale.name.as_deref()), (pid, name));
            assert!(stale.is_foreign());
            let is_dead =
                matches!(stale.evidence, Evidence::ProcessGone(_) | Evidence::NobodyNamed);
            assert!(is_dead, "{:?}", stale.evidence);
            let ours = std::fs::read_to_string(lock.path()).unwrap();
            assert!(ours.starts_with(&format!("{}\n", std::process::id())));
            assert_eq!(ours.len(), 512);
            guard.release().await.unwrap();
            assert!(names_in(directory.path()).is_empty());
        }
    }
}

/// Such files are watched for two seconds: hence all at once.
#[tokio::test]
async fn a_file_is_stale_when_its_process_is_gone_or_another() {
    let sleeper = Sleeper::new();
    let mut zombie = Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", zombie.id());
    support::eventually("it is a zombie", || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    });
    let every = PINS.into_iter().flat_map(|pin| {
        judgements(&sleeper, zombie.id())
            .into_iter()
            .map(move |judgement| is_judged(pin, judgement))
    });
    join_all(every).await;
    zombie.wait().unwrap();
}

#[tokio::test]
async fn a_foreign_file_that_keeps_changing_is_not_taken() {
    let every = PINS.map(|pin| async move {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, FileOptions::default().proof(pin));
        let text = |change: u32| foreign(dead_process(), &format!("worker{change}"));
        std::fs::write(lock.path(), text(0)).unwrap();
        let mut acquire = lock.acquire().boxed();
        let mut last_change = Instant::now();
        for change in 1..=8 {
            if timeout(QUIET, &mut acquire).await.is_ok() {
                // Only where this machine stood still for so long.
                return assert!(last_change.elapsed() >= YOUTH, "it was young");
            }
            last_change = Instant::now();
            let changed = text(change);
            std::fs::write(lock.path(), &changed).unwrap();
            assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), changed);
        }
        let guard = timeout(VERY_LONG, acquire).await.expect("it is old now").unwrap();
        assert_eq!(guard.recovered_from().unwrap().name.as_deref(), Some("worker8"));
    });
    join_all(every).await;
}

#[tokio::test]
async fn a_taken_file_is_watched_for_race_delay() {
    let directory = support::on_tmpfs();
    let race_delay = 2 * QUIET;
    let lock = lock_in(&directory, FileOptions::default().race_delay(race_delay));
    std::fs::write(lock.path(), foreign(dead_process(), "worker")).unwrap();
    let acquire = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await.map(|guard| (guard, Instant::now())) }
    });
    let ours = format!("{}\n", std::process::id());
    // When it was surely not ours yet.
    let mut not_taken = Instant::now();
    loop {
        let before = Instant::now();
        if std::fs::read_to_string(lock.path()).unwrap().starts_with(&ours) {
            break;
        }
        not_taken = before;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (guard, acquired) = timeout(VERY_LONG, acquire).await.unwrap().unwrap().unwrap();
    assert!(acquired - not_taken >= race_delay);
    guard.release().await.unwrap();
}

/// openlock replaces by renaming: whoever did that first has the lock.
#[tokio::test]
async fn whoever_replaces_our_file_while_it_is_watched_has_the_lock() {
    let every = PINS.map(|pin| async move {
        let sleeper = Sleeper::new();
        let directory = support::on_tmpfs();
        let options = FileOptions::default().proof(pin).race_delay(WATCHED);
        let lock = lock_in(&directory, options);
        std::fs::write(lock.path(), foreign(dead_process(), "worker")).unwrap();
        let winner = foreign(sleeper.0.id(), "sleep");
        let meddler = Meddler::new(lock.path(), {
            let winner = winner.clone();
            move |path| {
                let other = path.with_extension("other");
                std::fs::write(&other, &winner).unwrap();
                std::fs::rename(&other, path).unwrap();
            }
        });
        let acquired = timeout(VERY_LONG, lock.try_acquire()).await.unwrap().unwrap();
        assert!(acquired.is_none());
        assert_eq!(meddler.deeds(), 1);
        assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), winner);
        assert_eq!(names_in(directory.path()), ["a.lock"]);
    });
    join_all(every).await;
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// Acquire over a stale file, and have `deed` done once while it is watched.
async fn meddled_with(pin: Proof, tries: u32, deed: fn(&Path)) -> MeddledWith {
    let directory = support::on_tmpfs();
    let options = FileOptions::default().proof(pin).race_delay(WATCHED).tries(tries);
    let lock = lock_in(&directory, options);
    std::fs::write(lock.path(), foreign(dead_process(), "worker")).unwrap();
    let mut is_done = false;
    let meddler = Meddler::new(lock.path(), move |path| {
        if !std::mem::replace(&mut is_done, true) {
            deed(path);
        }
    });
    let acquired = timeout(VERY_LONG, lock.acquire()).await.unwrap();
    assert!(meddler.deeds() > 0);
    MeddledWith { directory, lock, acquired }
}

struct MeddledWith {
    directory: TempDir,
    lock: AsyncFileLock,
    acquired: Result<FileGuard, Error>,
}

#[tokio::test]
async fn a_file_that_does_not_stay_is_invalid_after_as_many_tries_as_told() {
    let every = PINS.map(|pin| async move {
        let [once, twice] = [1, 2].map(|tries| meddled_with(pin, tries, remove));
        let (once, twice) = futures::join!(once, twice);
        let path = once.lock.path();
        let error = once.acquired.unwrap_err();
        assert!(
            matches!(&error, Error::InvalidLockFile { lock: named, tries: 1 } if named == path),
            "{error}"
        );
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(names_in(once.directory.path()).is_empty());
        // The second try finds nothing at the path, which needs no watching.
        assert!(twice.acquired.is_ok() && twice.lock.path().exists());
    });
    join_all(every).await;
}

#[tokio::test]
async fn whoever_overwrites_our_file_while_it_is_watched_keeps_what_he_wrote() {
    let data = |path: &Path| std::fs::write(path, "something else").unwrap();
    let nothing = |path: &Path| std::fs::write(path, "").unwrap();
    let every = PINS.map(|pin| async move {
        let (data, nothing) =
            futures::join!(meddled_with(pin, 1, data), meddled_with(pin, 1, nothing));
        let error = data.acquired.unwrap_err();
        assert!(matches!(error, Error::NotALockFile { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(data.lock.path()).unwrap(), "something else");
        assert_eq!(names_in(data.directory.path()), ["a.lock"]);
        // An empty file is nobody's, after a while.
        let guard = nothing.acquired.unwrap();
        assert_eq!(guard.recovered_from().unwrap().evidence, Evidence::NobodyNamed);
        guard.release().await.unwrap();
        assert!(names_in(nothing.directory.path()).is_empty());
    });
    join_all(every).await;
}

/// With openlock every acquisition is watched, so each try can fail. It needs
/// a process that openlock could see.
#[tokio::test]
async fn next_to_openlock_every_try_can_fail() {
    const TEST: &str = "next_to_openlock_every_try_can_fail";
    const TRIES: u32 = 3;
    if let Some((role, path)) = support::role() {
        let race_delay = WATCHED;
        let options =
            FileOptions::default().openlock_compat(true).tries(TRIES).race_delay(race_delay);
        let lock = AsyncFileLock::with_options(path, options).unwrap();
        if role == "invisible" {
            let error = lock.acquire().await.unwrap_err();
            let Error::InvisibleToOpenlock { lock: named, .. } = &error else { panic!("{error}") };
            assert_eq!(named.path(), Some(lock.path()));
            assert!(error.to_string().contains("python"), "{error}");
            assert!(!lock.path().exists());
        } else {
            let started = Instant::now();
            let guard = lock.try_acquire().await.unwrap().unwrap();
            assert!(started.elapsed() >= race_delay, "also a try is watched");
            let first = std::fs::read_to_string(lock.path()).unwrap();
            assert_eq!(first.lines().nth(1), Some("python-worker"));
            guard.release().await.unwrap();
            let meddler = Meddler::new(lock.path(), remove);
            let error = timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap_err();
            assert!(matches!(error, Error::InvalidLockFile { tries: TRIES, .. }), "{error}");
            assert_eq!(meddler.deeds(), TRIES as usize);
        }
        return support::tell("done");
    }
    for (role, argv0) in [("visible", "/usr/bin/python-worker.py"), ("invisible", "worker")] {
        let directory = support::on_tmpfs();
        let mut command = support::player(TEST, role, &directory.path().join("a.lock"));
        command.arg0(argv0);
        let mut child = Process::start(command);
        child.expect("done");
        assert!(child.wait().success());
        assert!(names_in(directory.path()).is_empty());
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn subscriber(&self, level: tracing::Level) -> impl tracing::Subscriber + use<> {
        let log = self.clone();
        let to_log = move || log.clone();
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(to_log)
            .finish()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Within a nanosecond nothing can be written.
fn too_slow() -> FileOptions {
    FileOptions::default().race_delay(Duration::from_nanos(1)).offload(lockkeeper::Offload::Never)
}

#[tokio::test]
async fn a_slow_system_is_an_error_where_asked() {
    let every = PINS.map(|pin| async move {
        let directory = support::on_tmpfs();
        let lock = lock_in(&directory, too_slow().proof(pin).slow_system(SlowSystem::Error));
        std::fs::write(lock.path(), foreign(dead_process(), "worker")).unwrap();
        let error = timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap_err();
        let Error::SlowSystem { lock: named, took, race_delay } = &error else { panic!("{error}") };
        assert_eq!(named.path(), Some(lock.path()));
        assert!(took > race_delay);
        assert!(error.to_string().contains(lock.path().to_str().unwrap()), "{error}");
        // The lock is given back, and the next one is told of the dead holder.
        let Status::Stale(dead) = lock.status().await.unwrap() else { panic!() };
        assert_eq!(dead.name.as_deref(), Some("worker"));
        std::fs::remove_file(lock.path()).unwrap();
        // What is not watched can be slow.
        lock.try_acquire().await.unwrap().unwrap().release().await.unwrap();
    });
    join_all(every).await;
}

#[tokio::test]
async fn a_slow_system_is_a_warning_by_default() {
    let log = Log::default();
    let _subscribed = support::subscribe(log.subscriber(tracing::Level::WARN));
    let directory = support::on_tmpfs();
    let lock = lock_in(&directory, too_slow());
    std::fs::write(lock.path(), foreign(dead_process(), "worker")).unwrap();
    let guard = timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap();
    assert!(guard.recovered_from().is_some());
    let text = log.text();
    assert!(text.contains("WARN") && text.contains("race_delay"), "{text}");
    assert!(text.contains(lock.path().to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn a_fast_system_is_not_warned_of() {
    let log = Log::default();
    let _subscribed = support::subscribe(log.subscriber(tracing::Level::WARN));
    let directory = support::on_tmpfs();
    let lock = lock_in(&directory, too_slow().race_delay(Duration::from_secs(5)));
    std::fs::write(lock.path(), foreign(dead_process(), "worker")).unwrap();
    drop(timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap());
    assert_eq!(log.text(), "");
}

/// A look is a log line; between two of them lie at least three quarters of the
/// period. The file of another program gives no event while it lives.
#[tokio::test]
async fn a_busy_lock_is_looked_at_each_retry_period() {
    let log = Log::default();
    let _subscribed = support::subscribe(log.subscriber(tracing::Level::TRACE));
    let directory = support::on_tmpfs();
    let sleeper = Sleeper::new();
    let period = Duration::from_millis(25);
    let options = FileOptions::default().retry_period(period).fallback_period(period);
    let lock = lock_in(&directory, options);
    std::fs::write(lock.path(), foreign(sleeper.0.id(), "sleep")).unwrap();
    let started = Instant::now();
    let is_looked_at = || log.text().matches(" busy ").count() >= 2;
    tokio::select! {
        _ = lock.acquire() => panic!("it is held"),
        () = async {
            tokio::time::sleep(QUIET).await;
            support::eventually_async("it is looked at", is_looked_at).await;
        } => {}
    }
    let looks = log.text().lines().filter(|line| line.contains(" busy ")).count();
    let most = started.elapsed().as_millis() / (period * 3 / 4).as_millis() + 2;
    assert!(looks as u128 <= most, "{looks} looks, at most {most}");
    std::fs::remove_file(lock.path()).unwrap();
    timeout(VERY_LONG, lock.acquire()).await.unwrap().unwrap().release().await.unwrap();
}
