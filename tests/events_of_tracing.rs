//! What a subscriber of `tracing` sees of an acquisition: at debug, under the target
//! `lockkeeper`, each event once.

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, Error, FileOptions};
use support::{Process, VERY_LONG, block_on, on_tmpfs, subscribe, tell, told};
use tokio::time::{sleep, timeout};
use tracing::Level;
use tracing::subscriber::DefaultGuard;

/// A log that can be read while it is written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Of what this thread does until the second value is dropped.
    fn of_this_thread(level: Level) -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(level).with_ansi(false);
        (log, subscribe(subscriber.with_writer(move || writer.clone()).finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The events under the target `lockkeeper`, each with what it says of this lock.
    fn events(&self, path: &Path) -> Vec<(String, String)> {
        let lock = format!(" lock={}", path.display());
        let text = self.text();
        let ours = text.lines().filter_map(|line| line.split_once("DEBUG lockkeeper: "));
        let split = ours.map(|(_, event)| event.split_once(&lock).expect("it names the lock"));
        split.map(|(name, rest)| (name.to_owned(), rest.trim().to_owned())).collect()
    }

    fn names(&self, path: &Path) -> Vec<String> {
        self.events(path).into_iter().map(|(name, _)| name).collect()
    }

    async fn shows(&self, path: &Path, event: &str) {
        let shown = async {
            while !self.names(path).iter().any(|name| name == event) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(VERY_LONG, shown).await.expect("it is shown");
    }
}

const AT_ONCE: [&str; 3] = ["acquiring", "acquired", "released"];
const AFTER_A_WAIT: [&str; 4] = ["acquiring", "waiting", "acquired", "released"];

/// Acquire and release, of both kinds alike.
async fn acquire(kind: &str, path: &Path) {
    match kind {
        "file" => AsyncFileLock::new(path).acquire().await.unwrap().release().await.unwrap(),
        "kernel" => AsyncKernelLock::new(path).acquire().await.unwrap().release().await.unwrap(),
        _ => panic!("{kind}"),
    }
}

#[test]
fn a_free_lock_is_acquired_without_a_wait_and_released() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let (file, kernel) = (AsyncFileLock::new(&path), AsyncKernelLock::new(&path));
    let ways: [(&str, &dyn Fn()); 5] = [
        ("release", &|| block_on(acquire("file", &path))),
        ("drop", &|| drop(block_on(file.acquire_timeout(VERY_LONG)).unwrap())),
        ("try", &|| drop(block_on(file.try_acquire()).unwrap().unwrap())),
        ("kernel release", &|| block_on(acquire("kernel", &path))),
        ("kernel try", &|| drop(block_on(kernel.try_acquire()).unwrap().unwrap())),
    ];
    for (way, go) in ways {
        let (log, _subscribed) = Log::of_this_thread(Level::DEBUG);
        go();
        assert_eq!(log.names(&path), AT_ONCE, "{way}: {}", log.text());
        let (_, acquired) = &log.events(&path)[1];
        assert!(acquired.starts_with("took="), "{way}: {acquired}");
        let _ = std::fs::remove_file(&path);
    }
}

#[test]
fn a_wait_for_another_process_names_it_once() {
    const TEST: &str = "a_wait_for_another_process_names_it_once";
    if let Some((kind, path)) = support::role() {
        let (file, kernel) = (AsyncFileLock::new(&path), AsyncKernelLock::new(&path));
        let _file = (kind == "file").then(|| block_on(file.acquire()).unwrap());
        let _kernel = (kind == "kernel").then(|| block_on(kernel.acquire()).unwrap());
        tell("held");
        told();
        return;
    }
    for kind in ["file", "kernel"] {
        let directory = on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, kind, &path);
        holder.expect("held");
        let (log, _subscribed) = Log::of_this_thread(Level::DEBUG);
        let by = format!("(pid {}", holder.id());
        block_on(async {
            let let_go = async {
                log.shows(&path, "waiting").await;
                holder.hang_up();
            };
            tokio::join!(acquire(kind, &path), let_go);
        });
        assert_eq!(log.names(&path), AFTER_A_WAIT, "{}", log.text());
        let (_, waiting) = &log.events(&path)[1];
        assert!(waiting.starts_with("holder=") && waiting.contains(&by), "{waiting}");
        holder.wait();
    }
}

#[test]
fn a_wait_for_a_task_of_this_process_says_where_that_one_asked() {
    let directory = on_tmpfs();
    for kind in ["file", "kernel"] {
        let path = directory.path().join(kind);
        let (log, _subscribed) = Log::of_this_thread(Level::DEBUG);
        block_on(async {
            let (file, kernel) = (AsyncFileLock::new(&path), AsyncKernelLock::new(&path));
            let file = if kind == "file" { Some(file.acquire().await.unwrap()) } else { None };
            let kernel =
                if kind == "kernel" { Some(kernel.acquire().await.unwrap()) } else { None };
            let let_go = async {
                log.shows(&path, "waiting").await;
                drop((file, kernel));
            };
            tokio::join!(acquire(kind, &path), let_go);
        });
        let events = log.events(&path);
        let of = |name: &str| events.iter().filter(|(event, _)| event == name).count();
        let counts = ["acquiring", "waiting", "acquired", "released"].map(of);
        assert_eq!(counts, [2, 1, 2, 2], "{}", log.text());
        let waiting = events.iter().find(|(event, _)| event == "waiting").unwrap();
        assert!(waiting.1.contains(file!()), "{waiting:?}");
    }
}

#[test]
fn every_acquisition_is_released_once_though_tasks_pass_the_lock_on() {
    const TASKS: usize = 4;
    const TIMES: usize = 50;
    let directory = on_tmpfs();
    for kind in ["file", "kernel"] {
        let path = directory.path().join(kind);
        let (log, _subscribed) = Log::of_this_thread(Level::DEBUG);
        block_on(async {
            let (file, kernel) = (AsyncFileLock::new(&path), AsyncKernelLock::new(&path));
            let task = async || {
                for _ in 0..TIMES {
                    match kind {
                        "file" => drop(file.acquire().await.unwrap()),
                        _ => drop(kernel.acquire().await.unwrap()),
                    }
                    tokio::task::yield_now().await;
                }
            };
            futures::future::join_all((0..TASKS).map(|_| task())).await;
        });
        let events = log.names(&path);
        for name in AT_ONCE {
            let count = events.iter().filter(|event| *event == name).count();
            assert_eq!(count, TASKS * TIMES, "{kind}: {name}");
        }
    }
}

#[test]
fn a_lock_that_was_not_had_says_why() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    let _guard = block_on(lock.acquire()).unwrap();
    let (log, _subscribed) = Log::of_this_thread(Level::DEBUG);
    assert!(block_on(lock.try_acquire()).unwrap().is_none());
    assert_eq!(log.names(&path), ["acquiring", "not acquired"]);
    let error = block_on(lock.acquire_timeout(Duration::from_millis(50))).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }));
    let (name, why) = log.events(&path).pop().unwrap();
    assert_eq!((name.as_str(), why), ("not acquired", format!("why={error}")));
}

#[test]
fn an_acquisition_that_is_watched_for_a_moment_does_not_wait_for_itself() {
    const TEST: &str = "an_acquisition_that_is_watched_for_a_moment_does_not_wait_for_itself";
    if support::role().is_none() {
        // openlock looks for "python" in the command line.
        let directory = on_tmpfs();
        let python = directory.path().join("python");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &python).unwrap();
        let player = support::player(TEST, "python", &directory.path().join("a.lock"));
        let mut command = std::process::Command::new(python);
        command.args(player.get_args());
        command.envs(player.get_envs().filter_map(|(name, value)| Some((name, value?))));
        assert!(Process::start(command).wait().success());
        return;
    }
    let (_, path) = support::role().unwrap();
    let options =
        FileOptions::default().openlock_compat(true).race_delay(Duration::from_millis(300));
    let lock = AsyncFileLock::with_options(&path, options).unwrap();
    let (log, _subscribed) = Log::of_this_thread(Level::DEBUG);
    drop(block_on(lock.acquire()).unwrap());
    assert_eq!(log.names(&path), AT_ONCE, "{}", log.text());
}

#[test]
fn a_subscriber_that_wants_less_sees_nothing() {
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let (log, _subscribed) = Log::of_this_thread(Level::INFO);
    block_on(acquire("file", &path));
    block_on(acquire("kernel", &path));
    assert_eq!(log.text(), "");
}
