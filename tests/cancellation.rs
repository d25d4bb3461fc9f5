//! A future that is dropped at any await point leaves nothing behind.

mod support;

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, FileGuard, FileOptions, Offload, Proof, Status,
};
use nix::fcntl::{Flock, FlockArg};
use support::{Process, QUIET, VERY_LONG, names_in};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    Free,
    HeldByTask,
    HeldByProcess,
    ForeignStale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Acquire,
    AcquireTimeout,
    AcquireWith,
    TryAcquire,
    BreakStale,
    Holder,
    IsLocked,
    Status,
    Revoke,
}

impl Verb {
    const ALL: [Verb; 9] = [
        Verb::Acquire,
        Verb::AcquireTimeout,
        Verb::AcquireWith,
        Verb::TryAcquire,
        Verb::BreakStale,
        Verb::Holder,
        Verb::IsLocked,
        Verb::Status,
        Verb::Revoke,
    ];

    fn waits(self) -> bool {
        matches!(self, Verb::Acquire | Verb::AcquireTimeout | Verb::AcquireWith)
    }

    /// Errors are answers here: a busy lock cannot be broken.
    fn call(self, lock: &AsyncFileLock) -> BoxFuture<'static, Option<FileGuard>> {
        let lock = lock.clone();
        async move {
            match self {
                Verb::Acquire => Some(lock.acquire().await.unwrap()),
                Verb::AcquireTimeout => Some(lock.acquire_timeout(VERY_LONG).await.unwrap()),
                Verb::AcquireWith => {
                    Some(lock.acquire_with(&CancellationToken::new()).await.unwrap())
                }
                Verb::TryAcquire => lock.try_acquire().await.unwrap(),
                Verb::BreakStale => lock.break_stale().await.ok().and(None),
                Verb::Holder => lock.holder().await.map(|_| None).unwrap(),
                Verb::IsLocked => lock.is_locked().await.map(|_| None).unwrap(),
                Verb::Status => lock.status().await.map(|_| None).unwrap(),
                Verb::Revoke => lock.revoke().await.ok().and(None),
            }
        }
        .boxed()
    }
}

fn every_kind() -> Vec<FileOptions> {
    let kinds = [Proof::Auto, Proof::Process].into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always]
            .map(|offload| FileOptions::default().proof(pin).offload(offload))
    });
    kinds.collect()
}

fn runtimes() -> [Runtime; 2] {
    let current_thread = Builder::new_current_thread().enable_all().build();
    let multi_thread = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    [current_thread.unwrap(), multi_thread.unwrap()]
}

/// As a task, so that a runtime of several threads uses them.
fn run<T: Send + 'static>(runtime: &Runtime, task: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(task).await.unwrap() })
}

/// The id of a process that is gone.
fn dead_process() -> u32 {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

async fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(VERY_LONG, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// Poll as often as told, or to the end; `linger` before giving up, so that
/// what was waited for may have come unseen.
async fn poll_times<F: Future + Unpin>(
    mut future: F,
    times: usize,
    linger: Duration,
) -> Option<F::Output> {
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.poll_unpin(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left > 0 => Poll::Pending,
            Poll::Pending => {
                std::thread::sleep(linger);
                Poll::Ready(None)
            }
        }
    })
    .await
}

struct Stage {
    scene: Scene,
    directory: TempDir,
    lock: AsyncFileLock,
    guard: Option<FileGuard>,
    other: Option<Process>,
    is_held_by_other: bool,
    foreign: String,
}

impl Stage {
    fn new(scene: Scene, options: FileOptions, foreign: &str) -> Self {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let is_pinned = options != options.clone().proof(Proof::Process);
        let other = (scene == Scene::HeldByProcess).then(|| {
            let role = if is_pinned { "pinned" } else { "portable" };
            Process::play(HELD_BY_PROCESS, role, &path)
        });
        Self {
            scene,
            lock: AsyncFileLock::with_options(path, options).unwrap(),
            directory,
            guard: None,
            other,
            is_held_by_other: false,
            foreign: foreign.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.lock.path().to_owned()
    }

    async fn set(&mut self) {
        match self.scene {
            Scene::Free => {}
            Scene::HeldByTask => self.guard = Some(self.lock.acquire().await.unwrap()),
            Scene::HeldByProcess => {
                let other = self.other.as_mut().unwrap();
                other.tell("hold");
                other.expect("held");
                self.is_held_by_other = true;
            }
            Scene::ForeignStale => std::fs::write(self.path(), &self.foreign).unwrap(),
        }
    }

    /// The holder lets go.
    fn open_up(&mut self) {
        self.guard = None;
        if std::mem::take(&mut self.is_held_by_other) {
            let other = self.other.as_mut().unwrap();
            other.tell("release");
            other.expect("released");
        }
    }

    /// Nothing of the cancelled call is left, and the lock can be had.
    async fn nothing_is_left(&mut self) {
        self.open_up();
        lockkeeper::flush().await;
        let path = self.path();
        if self.scene == Scene::ForeignStale {
            self.the_stale_file_is_gone_or_stale(&path).await;
        }
        soon("no file is left", || names_in(self.directory.path()).is_empty()).await;
        let lock = &self.lock;
        let acquire = async {
            loop {
                match lock.try_acquire().await.unwrap() {
                    Some(guard) => return guard,
                    None => sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let guard = timeout(VERY_LONG, acquire).await.expect("no place in the queue is left");
        guard.release().await.unwrap();
        assert!(names_in(self.directory.path()).is_empty());
    }

    /// What was cancelled before anybody was told of the dead holder leaves
    /// the file for the next to tell.
    async fn the_stale_file_is_gone_or_stale(&mut self, path: &Path) {
        let is_told = |path: &Path| {
            std::fs::read(path).map_or(true, |text| text.starts_with(self.foreign.as_bytes()))
        };
        soon("our record is gone", || is_told(path)).await;
        let Ok(file) = File::open(path) else { return };
        let mut file = Some(file);
        soon("no kernel lock is left", || {
            match Flock::lock(file.take().unwrap(), FlockArg::LockExclusiveNonblock) {
                Ok(_) => true,
                Err((back, _)) => {
                    file = Some(back);
                    false
                }
            }
        })
        .await;
        let status = self.lock.status().await.unwrap();
        assert!(matches!(status, Status::Stale(_)), "{status:?}");
        std::fs::remove_file(path).unwrap();
    }

    /// Drop `verb` after no poll, one, two, and so on until it ends by itself;
    /// how often that cancelled something.
    async fn cancel_everywhere(&mut self, verb: Verb, linger: Duration) -> usize {
        /// Time for some polls before the holder lets go.
        const HELD_FOR: Duration = Duration::from_millis(8);
        let mut cancelled = 0;
        for polls in 0.. {
            self.set().await;
            let ended = {
                let mut call = pin!(poll_times(verb.call(&self.lock), polls, linger));
                tokio::select! {
                    biased;
                    () = sleep(HELD_FOR), if verb.waits() => {
                        self.open_up();
                        call.await
                    }
                    ended = &mut call => ended,
                }
            };
            let is_over = ended.is_some();
            drop(ended);
            self.nothing_is_left().await;
            if is_over {
                break;
            }
            cancelled += usize::from(polls > 0);
        }
        cancelled
    }
}

/// Cancel each verb in a scene, everywhere, in every way; how often, by verb.
///
/// An offloaded job may end before it is waited for, and so spare a poll:
/// hence the rounds, and more where that spared all of them.
fn cancel_in(scene: Scene, rounds: usize) -> Vec<(FileOptions, Verb, usize)> {
    let foreign = format!("{}\nworker\n", dead_process());
    let mut counts = Vec::new();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for options in every_kind() {
            // Where nothing polls but time passes, verbs wait side by side.
            let groups: Vec<Vec<Verb>> = match scene {
                Scene::ForeignStale => Verb::ALL.map(|verb| vec![verb]).to_vec(),
                _ => vec![Verb::ALL.to_vec()],
            };
            for (verbs, runtime) in
                groups.iter().flat_map(|verbs| runtimes().map(|rt| (verbs.clone(), rt)))
            {
                let (options, foreign) = (options.clone(), foreign.clone());
                threads.push(scope.spawn(move || {
                    let retry = match scene {
                        Scene::ForeignStale => Duration::from_millis(600),
                        _ => Duration::from_millis(2),
                    };
                    let timed =
                        options.clone().retry_period(retry).race_delay(Duration::from_millis(20));
                    run(&runtime, async move {
                        let mut stage = Stage::new(scene, timed, &foreign);
                        let mut counts = Vec::new();
                        for verb in verbs {
                            let mut cancelled = 0;
                            for (round, linger) in
                                LINGERS.iter().cycle().take(ROUNDS_MAX).enumerate()
                            {
                                let was_hit = cancelled > 0 || !is_offloaded(&options);
                                if round >= rounds && was_hit {
                                    break;
                                }
                                cancelled += stage.cancel_everywhere(verb, *linger).await;
                            }
                            counts.push((options.clone(), verb, cancelled));
                        }
                        counts
                    })
                }));
            }
        }
        for thread in threads {
            counts.extend(thread.join().unwrap());
        }
    });
    counts
}

/// `inline` says which verbs have an await point where nothing is offloaded.
#[track_caller]
fn something_was_cancelled(counts: &[(FileOptions, Verb, usize)], inline: impl Fn(Verb) -> bool) {
    let cancelled = |verb, offloaded| -> usize {
        let of_this_kind = counts
            .iter()
            .filter(|(options, of, _)| *of == verb && is_offloaded(options) == offloaded);
        of_this_kind.map(|(.., cancelled)| cancelled).sum()
    };
    for verb in Verb::ALL {
        let (here, elsewhere) = (cancelled(verb, false), cancelled(verb, true));
        println!("{verb:?}: cancelled {here} times inline, {elsewhere} times offloaded");
        assert!(elsewhere > 0);
        assert!(here > 0 || !inline(verb));
    }
}

fn is_offloaded(options: &FileOptions) -> bool {
    *options == options.clone().offload(Offload::Always)
}

const LINGERS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(2)];

/// So often the thread of offloaded jobs cannot always be faster than we are.
const ROUNDS_MAX: usize = 200;

/// Again, where the thread of offloaded jobs was faster each time.
#[track_caller]
fn until_cancelled(mut round: impl FnMut() -> usize) {
    assert!((0..ROUNDS_MAX).any(|_| round() > 0), "nothing was cancelled");
}

#[test]
fn on_a_free_lock_nothing_is_left() {
    let counts = cancel_in(Scene::Free, 20);
    // Inline there is no await point: the first poll is the last.
    something_was_cancelled(&counts, |_| false);
}

#[test]
fn behind_another_task_nothing_is_left() {
    let counts = cancel_in(Scene::HeldByTask, 4);
    something_was_cancelled(&counts, Verb::waits);
}

const HELD_BY_PROCESS: &str = "behind_another_process_nothing_is_left";

#[test]
fn behind_another_process_nothing_is_left() {
    if let Some((role, path)) = support::role() {
        let pin = if role == "portable" { Proof::Process } else { Proof::Auto };
        let options = FileOptions::default().proof(pin).retry_period(Duration::from_millis(1));
        let lock = AsyncFileLock::with_options(path, options).unwrap();
        while support::told().is_some() {
            let guard = lock.blocking_acquire().unwrap();
            support::tell("held");
            support::told();
            drop(guard);
            support::tell("released");
        }
        return;
    }
    let counts = cancel_in(Scene::HeldByProcess, 4);
    something_was_cancelled(&counts, Verb::waits);
}

/// Also during the probation, when the foreign file is ours already.
#[test]
fn while_a_foreign_file_is_watched_nothing_is_left() {
    let counts = cancel_in(Scene::ForeignStale, 1);
    something_was_cancelled(&counts, |verb| {
        verb.waits() || matches!(verb, Verb::TryAcquire | Verb::BreakStale)
    });
}

/// A request to let go that nobody can see any more is left by nobody.
#[test]
fn a_cancelled_request_to_let_go_does_not_outlive_the_holder() {
    let mut cancelled = 0;
    for options in every_kind() {
        let [runtime, _] = runtimes();
        for polls in 1..8 {
            for released_after in 0..polls {
                let options = options.clone();
                cancelled += run(&runtime, async move {
                    let directory = support::on_tmpfs();
                    let lock = AsyncFileLock::with_options(
                        directory.path().join("a.lock"),
                        options.clone(),
                    )
                    .unwrap();
                    let inline = options.offload(Offload::Never);
                    let holder = AsyncFileLock::with_options(lock.path(), inline).unwrap();
                    let mut guard = Some(holder.acquire().await.unwrap());
                    let revoke = lock.clone();
                    let mut revoke = async move { revoke.revoke().await.map(drop) }.boxed();
                    // After a poll, the job it began has time to end.
                    let linger = Duration::from_millis(1);
                    let mut is_over = false;
                    for poll in 0..polls {
                        if poll == released_after {
                            guard = None;
                        }
                        is_over = poll_times(&mut revoke, 1, linger).await.is_some();
                        if is_over {
                            break;
                        }
                    }
                    drop(revoke);
                    drop(guard);
                    lockkeeper::flush().await;
                    soon("the request is gone", || names_in(directory.path()).is_empty()).await;
                    usize::from(!is_over)
                });
            }
        }
    }
    assert!(cancelled > 0);
}

#[test]
fn a_release_goes_on_when_it_is_cancelled() {
    until_cancelled(|| {
        let mut cancelled = 0;
        for (options, linger) in
            every_kind().into_iter().flat_map(|kind| LINGERS.map(|l| (kind.clone(), l)))
        {
            for runtime in runtimes() {
                for polls in 0..4 {
                    let mut stage = Stage::new(Scene::Free, options.clone(), "");
                    cancelled += run(&runtime, async move {
                        let guard = stage.lock.acquire().await.unwrap();
                        let release = async move { guard.release().await.unwrap() }.boxed();
                        let ended = poll_times(release, polls, linger).await;
                        lockkeeper::flush().await;
                        assert!(names_in(stage.directory.path()).is_empty());
                        stage.nothing_is_left().await;
                        usize::from(polls > 0 && ended.is_none())
                    });
                }
            }
        }
        cancelled
    });
}

#[test]
fn waiting_for_the_loss_of_a_lock_can_be_dropped() {
    let mut cancelled = 0;
    for options in every_kind() {
        for runtime in runtimes() {
            for polls in 0..6 {
                let timed = options.clone().retry_period(Duration::from_millis(1));
                let mut stage = Stage::new(Scene::Free, timed, "");
                cancelled += run(&runtime, async move {
                    let guard = stage.lock.acquire().await.unwrap();
                    let ended = poll_times(guard.lost().boxed(), polls, Duration::ZERO).await;
                    assert!(ended.is_none(), "nothing was lost");
                    guard.release().await.unwrap();
                    stage.nothing_is_left().await;
                    usize::from(polls > 0)
                });
            }
        }
    }
    assert!(cancelled > 0);
}

#[test]
fn waiting_for_deletions_can_be_dropped() {
    until_cancelled(|| {
        let mut cancelled = 0;
        for runtime in runtimes() {
            for polls in 0..6 {
                let options = FileOptions::default().offload(Offload::Always);
                let mut stage = Stage::new(Scene::Free, options, "");
                cancelled += run(&runtime, async move {
                    drop(stage.lock.acquire().await.unwrap());
                    let ended =
                        poll_times(lockkeeper::flush().boxed(), polls, Duration::ZERO).await;
                    stage.nothing_is_left().await;
                    usize::from(polls > 0 && ended.is_none())
                });
            }
        }
        cancelled
    });
}

fn with_offload(path: &Path, offload: Offload) -> AsyncFileLock {
    let options = FileOptions::default().offload(offload).retry_period(Duration::from_millis(5));
    AsyncFileLock::with_options(path, options).unwrap()
}

#[tokio::test]
async fn timeout_and_select_compose() {
    for offload in [Offload::Never, Offload::Always] {
        let directory = support::on_tmpfs();
        let lock = with_offload(&directory.path().join("a.lock"), offload);
        let guard = lock.acquire().await.unwrap();
        assert!(timeout(Duration::from_millis(20), lock.acquire()).await.is_err());
        tokio::select! {
            _ = lock.acquire() => panic!("the lock is held"),
            () = sleep(Duration::from_millis(20)) => {}
        }
        guard.release().await.unwrap();
        assert!(names_in(directory.path()).is_empty());
        let guard = timeout(VERY_LONG, lock.acquire()).await.expect("no place is left").unwrap();
        drop(guard);
        lockkeeper::flush().await;
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn the_token_ends_the_wait() {
    for offload in [Offload::Never, Offload::Always] {
        let directory = support::on_tmpfs();
        let lock = with_offload(&directory.path().join("a.lock"), offload);
        let guard = lock.acquire().await.unwrap();
        let token = CancellationToken::new();
        let waiter = tokio::spawn({
            let (lock, token) = (lock.clone(), token.clone());
            async move { lock.acquire_with(&token).await.map(drop) }
        });
        sleep(Duration::from_millis(20)).await;
        assert!(!waiter.is_finished());
        token.cancel();
        let error = timeout(VERY_LONG, waiter).await.unwrap().unwrap().unwrap_err();
        assert!(
            matches!(&error, Error::Cancelled { lock: named } if *named == *lock.path()),
            "{error}"
        );
        assert!(error.to_string().contains(lock.path().to_str().unwrap()));
        guard.release().await.unwrap();
        // The lock is free now, and still a cancelled token wins.
        let error = lock.acquire_with(&token).await.unwrap_err();
        assert!(matches!(error, Error::Cancelled { .. }), "{error}");
        assert!(names_in(directory.path()).is_empty());
    }
}

#[tokio::test]
async fn the_token_covers_only_the_wait() {
    let directory = support::on_tmpfs();
    let lock = with_offload(&directory.path().join("a.lock"), Offload::Never);
    let token = CancellationToken::new();
    let guard = lock.acquire_with(&token).await.unwrap();
    token.cancel();
    assert!(timeout(QUIET, guard.lost()).await.is_err());
    assert!(!guard.lost_token().is_cancelled());
    assert!(lock.try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
}

/// A pool full of tasks that wait for this lock would be a deadlock.
#[test]
fn a_blocked_blocking_pool_stops_nothing() {
    for offload in [Offload::Never, Offload::Always] {
        for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
            let runtime = builder.worker_threads(1).max_blocking_threads(1).enable_all();
            let runtime = runtime.build().unwrap();
            let (unblock, blocked) = mpsc::channel::<()>();
            let (running, runs) = mpsc::channel();
            runtime.spawn_blocking(move || {
                running.send(()).unwrap();
                let _ = blocked.recv();
            });
            runs.recv_timeout(VERY_LONG).unwrap();
            let directory = support::on_tmpfs();
            let path = directory.path().join("a.lock");
            let work = async move {
                let lock = with_offload(&path, offload);
                let guard = lock.acquire().await.unwrap();
                let waiter = tokio::spawn({
                    let lock = lock.clone();
                    async move { lock.acquire().await.unwrap() }
                });
                assert!(timeout(Duration::from_millis(20), lock.acquire()).await.is_err());
                assert!(lock.is_locked().await.unwrap());
                drop(guard);
                let guard = waiter.await.unwrap();
                assert_eq!(lock.revoke().await.unwrap().unwrap().pid, Some(std::process::id()));
                guard.lost().await;
                guard.release().await.unwrap();
                assert_eq!(lock.break_stale().await.unwrap(), None);
                drop(lock.try_acquire().await.unwrap().unwrap());
                lockkeeper::flush().await;
            };
            run(&runtime, async move { timeout(VERY_LONG, work).await.expect("it is stuck") });
            assert!(names_in(directory.path()).is_empty());
            drop(unblock);
        }
    }
}

fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm")).ok()?;
        Some(name.trim().to_owned())
    });
    names.collect()
}

/// Counted in a process of its own: other tests have threads too.
#[test]
fn waiting_tasks_have_no_threads() {
    const TEST: &str = "waiting_tasks_have_no_threads";
    const WAITING: usize = 200;
    if let Some((role, path)) = support::role() {
        let offload = if role == "never" { Offload::Never } else { Offload::Always };
        let [runtime, _] = runtimes();
        runtime.block_on(async {
            let lock = with_offload(&path, offload);
            let guard = lock.acquire().await.unwrap();
            let before = threads();
            let waiters: Vec<_> = (0..WAITING)
                .map(|_| {
                    let lock = lock.clone();
                    tokio::spawn(async move { drop(lock.acquire().await.unwrap()) })
                })
                .collect();
            sleep(QUIET).await;
            let while_waiting = threads();
            let ours = while_waiting.iter().filter(|name| *name == "lockkeeper").count();
            assert!(ours <= 2, "{while_waiting:?}");
            let others =
                |names: &[String]| names.iter().filter(|name| *name != "lockkeeper").count();
            assert_eq!(others(&while_waiting), others(&before), "{while_waiting:?}");
            for waiter in waiters.iter().skip(1) {
                waiter.abort();
            }
            drop(guard);
            for waiter in waiters {
                let _ = waiter.await;
            }
            lockkeeper::flush().await;
            drop(lock.try_acquire().await.unwrap().expect("the aborted ones left the queue"));
            lockkeeper::flush().await;
            // One more for the process that watches what tasks pass on.
            assert!(threads().len() <= while_waiting.len() + 1);
        });
        support::tell("counted");
        return;
    }
    for role in ["never", "always"] {
        let directory = support::on_tmpfs();
        let mut counter = Process::play(TEST, role, &directory.path().join("a.lock"));
        counter.expect("counted");
        assert!(counter.wait().success());
        assert!(names_in(directory.path()).is_empty());
    }
}

/// The first look at a directory is made elsewhere; that thread serves the next one too.
#[test]
fn many_directories_do_not_take_many_threads() {
    const TEST: &str = "many_directories_do_not_take_many_threads";
    const DIRECTORIES: usize = 200;
    if let Some((_, top)) = support::role() {
        let [runtime, _] = runtimes();
        runtime.block_on(async {
            for number in 0..DIRECTORIES {
                let directory = top.join(number.to_string());
                std::fs::create_dir(&directory).unwrap();
                let lock = with_offload(&directory.join("a.lock"), Offload::Auto);
                lock.acquire().await.unwrap().release().await.unwrap();
            }
        });
        let ours = threads().iter().filter(|name| *name == "lockkeeper").count();
        assert!(ours < DIRECTORIES / 10, "{ours} threads for {DIRECTORIES} directories");
        return support::tell("counted");
    }
    let directory = support::on_tmpfs();
    let mut counter = Process::play(TEST, "counter", directory.path());
    counter.expect("counted");
    assert!(counter.wait().success());
}

/// Nothing in the loop ever waits: what is asked for is there at once.
#[test]
fn a_loop_of_a_verb_lets_other_tasks_run() {
    type Verb = fn(AsyncFileLock, AsyncKernelLock) -> BoxFuture<'static, ()>;
    let verbs: [(&str, Verb); 9] = [
        ("acquire", |file, _| async move { drop(file.acquire().await.unwrap()) }.boxed()),
        ("try", |file, _| async move { drop(file.try_acquire().await.unwrap()) }.boxed()),
        ("holder", |file, _| async move { drop(file.holder().await.unwrap()) }.boxed()),
        ("break", |file, _| async move { drop(file.break_stale().await.unwrap()) }.boxed()),
        ("revoke", |file, _| async move { drop(file.revoke().await.unwrap()) }.boxed()),
        ("kernel acquire", |_, kernel| {
            async move { drop(kernel.acquire().await.unwrap()) }.boxed()
        }),
        ("kernel shared", |_, kernel| {
            async move { drop(kernel.acquire_shared().await.unwrap()) }.boxed()
        }),
        ("kernel try", |_, kernel| {
            async move { drop(kernel.try_acquire().await.unwrap()) }.boxed()
        }),
        ("kernel holder", |_, kernel| async move { drop(kernel.holder().await.unwrap()) }.boxed()),
    ];
    for (name, verb) in verbs {
        let directory = support::on_tmpfs();
        let file = AsyncFileLock::new(directory.path().join("a.lock"));
        let kernel = AsyncKernelLock::new(directory.path().join("table"));
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let looping = tokio::spawn(async move {
                    loop {
                        verb(file.clone(), kernel.clone()).await;
                    }
                });
                sleep(Duration::from_millis(2)).await;
                looping.abort();
            });
            ended.send(()).unwrap();
        });
        end.recv_timeout(VERY_LONG).unwrap_or_else(|_| panic!("{name}: nobody else runs"));
    }
}
