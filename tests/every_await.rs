//! Each public future of the core, dropped after no poll, one, two and so on
//! until it ends by itself: afterwards the lock can be had, nothing is left
//! beside it, and nobody else was disturbed. `cancellation.rs` looks closer at
//! single verbs; here are all of them, alone, among others and behind a dead
//! holder, also while the runtime goes down.

mod support;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lockkeeper::{
    AsyncFileLock, Error, FileGuard, FileOptions, Offload, Proof, acquire_all, flush,
};
use support::{Process, VERY_LONG, names_in};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    Alone,
    /// Two tasks and another process take the lock over and over.
    Among,
    /// A dead holder's file is there.
    Stale,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Acquire,
    AcquireTimeout,
    AcquireWith,
    TryAcquire,
    Release,
    Lost,
    Revoke,
    BreakStale,
    Status,
    AcquireAll,
    Flush,
}

const VERBS: [Verb; 11] = [
    Verb::Acquire,
    Verb::AcquireTimeout,
    Verb::AcquireWith,
    Verb::TryAcquire,
    Verb::Release,
    Verb::Lost,
    Verb::Revoke,
    Verb::BreakStale,
    Verb::Status,
    Verb::AcquireAll,
    Verb::Flush,
];

/// More polls than any of them takes, unless others keep the lock from it.
const POLLS_MAX: usize = 60;

/// The file that who is inside makes and removes.
fn visit(inside: &Path) {
    fs::File::create_new(inside).expect("somebody else is inside");
    fs::remove_file(inside).expect("somebody removed what the holder made");
}

#[derive(Clone)]
struct Site {
    lock: AsyncFileLock,
    second: AsyncFileLock,
    inside: PathBuf,
}

impl Site {
    fn new(directory: &Path, options: &FileOptions) -> Self {
        let lock = |name: &str| {
            let path = directory.join("locks").join(name);
            AsyncFileLock::with_options(path, options.clone()).unwrap()
        };
        Self { lock: lock("a.lock"), second: lock("b.lock"), inside: directory.join("inside") }
    }

    fn names(&self) -> Vec<String> {
        names_in(self.lock.path().parent().unwrap())
    }

    fn play(&self, verb: Verb) -> BoxFuture<'static, ()> {
        let site = self.clone();
        async move { site.call(verb).await.unwrap() }.boxed()
    }

    async fn call(&self, verb: Verb) -> Result<(), Error> {
        let lock = &self.lock;
        let entered = |guard: FileGuard| {
            visit(&self.inside);
            drop(guard);
        };
        match verb {
            Verb::Acquire => entered(lock.acquire().await?),
            Verb::AcquireTimeout => entered(lock.acquire_timeout(VERY_LONG).await?),
            Verb::AcquireWith => {
                entered(lock.acquire_with(&CancellationToken::new()).await?);
            }
            Verb::TryAcquire => drop(lock.try_acquire().await?.map(entered)),
            Verb::Release => {
                let guard = lock.acquire().await?;
                visit(&self.inside);
                guard.release().await?;
            }
            Verb::Lost => {
                let guard = lock.acquire().await?;
                let (_, asked) = tokio::join!(guard.lost(), lock.revoke());
                asked?;
                visit(&self.inside);
            }
            Verb::Revoke => drop(lock.revoke().await?),
            Verb::BreakStale => match lock.break_stale().await {
                Err(Error::Timeout { .. }) => {}
                other => drop(other?),
            },
            Verb::Status => drop(lock.status().await?),
            Verb::AcquireAll => {
                let guards = acquire_all([lock, &self.second]).await?;
                visit(&self.inside);
                guards.release().await?;
            }
            Verb::Flush => {
                entered(lock.acquire().await?);
                flush().await;
            }
        }
        Ok(())
    }

    /// The lock can be had, and then nothing is there any more.
    async fn is_as_new(&self, what: &str) {
        for lock in [&self.lock, &self.second] {
            let acquired = timeout(VERY_LONG, lock.acquire()).await;
            let guard = acquired.unwrap_or_else(|_| panic!("{what}: the lock cannot be had"));
            guard.unwrap().release().await.unwrap();
        }
        let empty = async {
            while !self.names().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let left = timeout(VERY_LONG, empty).await;
        assert!(left.is_ok(), "{what}: these stay: {:?}", self.names());
    }
}

fn every_kind() -> Vec<FileOptions> {
    let kinds = [Proof::Auto, Proof::Process].into_iter().flat_map(|pin| {
        [Offload::Never, Offload::Always].map(|offload| {
            let options = FileOptions::default().proof(pin).offload(offload);
            options.retry_period(Duration::from_millis(2))
        })
    });
    kinds.collect()
}

fn runtimes() -> [fn() -> Runtime; 2] {
    [
        || Builder::new_current_thread().enable_all().build().unwrap(),
        || Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
    ]
}

fn stage() -> TempDir {
    let directory = support::on_tmpfs();
    fs::create_dir(directory.path().join("locks")).unwrap();
    directory
}

/// Poll as often as told, or to the end; `then` before it is dropped.
async fn polled<T>(
    mut future: BoxFuture<'static, T>,
    times: usize,
    then: impl Future<Output = ()>,
) -> Option<T> {
    let mut left = times;
    let ended = std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.poll_unpin(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    let ended = ended.await;
    if ended.is_none() {
        then.await;
    }
    ended
}

/// What a holder that was killed left: the bytes of its file.
fn dead_record(pin: &str) -> Vec<u8> {
    let directory = stage();
    let path = directory.path().join("locks").join("a.lock");
    let mut holder = Process::play(CROWD, &format!("die {pin}"), &path);
    holder.expect("held");
    let record = fs::read(&path).unwrap();
    holder.kill();
    record
}

const CROWD: &str = "among_others_nobody_is_disturbed";

fn pin_of(options: &FileOptions) -> &'static str {
    if *options == options.clone().proof(Proof::Process) { "never" } else { "auto" }
}

/// The other process: takes the lock until told to stop, or holds it and dies.
fn play_another(role: &str, path: &Path) {
    let (part, pin) = role.split_once(' ').unwrap();
    let pin = if pin == "never" { Proof::Process } else { Proof::Auto };
    let options = FileOptions::default().proof(pin).retry_period(Duration::from_millis(2));
    let site = Site::new(path.parent().unwrap().parent().unwrap(), &options);
    let over = Arc::new(AtomicBool::new(false));
    let guard = (part == "die").then(|| site.lock.blocking_acquire().unwrap());
    support::tell("held");
    if guard.is_some() {
        support::told();
        return;
    }
    let is_over = over.clone();
    let listener = std::thread::spawn(move || {
        support::told();
        is_over.store(true, Ordering::Relaxed);
    });
    let mut visits = 0_u64;
    while !over.load(Ordering::Relaxed) {
        let guard = site.lock.blocking_acquire().unwrap();
        visit(&site.inside);
        visits += 1;
        drop(guard);
        std::thread::sleep(Duration::from_micros(500));
    }
    listener.join().unwrap();
    support::tell(&visits.to_string());
}

/// Tasks that take the lock over and over.
struct Crowd {
    over: Arc<AtomicBool>,
    visits: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn gather(site: &Site) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut crowd = Self { over, visits: Vec::new(), tasks: Vec::new() };
        for _ in 0..2 {
            let (site, over, visits) = (site.clone(), crowd.over.clone(), Arc::default());
            crowd.visits.push(Arc::clone(&visits));
            crowd.tasks.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let guard = site.lock.acquire().await.unwrap();
                    visit(&site.inside);
                    tokio::task::yield_now().await;
                    drop(guard);
                    visits.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_micros(500)).await;
                }
            }));
        }
        crowd
    }

    /// Each of them gets the lock once more.
    async fn goes_on(&self, what: &str) {
        for visits in &self.visits {
            let before = visits.load(Ordering::Relaxed);
            let next = async {
                while visits.load(Ordering::Relaxed) == before {
                    sleep(Duration::from_micros(200)).await;
                }
            };
            timeout(VERY_LONG, next).await.unwrap_or_else(|_| panic!("{what}: a task is stuck"));
        }
    }

    async fn disperse(self) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a task of the crowd is well");
        }
    }
}

/// Drop each verb after every number of polls; how often one was under way.
async fn drop_everywhere(site: &Site, options: &FileOptions, scene: Scene, dead: &[u8]) -> usize {
    let crowd = (scene == Scene::Among).then(|| Crowd::gather(site));
    let mut under_way = 0;
    for verb in VERBS {
        for polls in 0..POLLS_MAX {
            if scene == Scene::Stale {
                fs::write(site.lock.path(), dead).unwrap();
            }
            let ended = polled(site.play(verb), polls, async {}).await;
            under_way += usize::from(polls > 0 && ended.is_none());
            let what = format!("{verb:?} after {polls} polls, {scene:?}, {options:?}");
            match &crowd {
                None => site.is_as_new(&what).await,
                Some(crowd) => crowd.goes_on(&what).await,
            }
            if ended.is_some() {
                break;
            }
        }
    }
    if let Some(crowd) = crowd {
        crowd.disperse().await;
    }
    under_way
}

/// The scene for each kind of lock and runtime, side by side.
fn drop_everywhere_in(scene: Scene) {
    let mut under_way = 0;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (options, runtime) in every_kind()
            .into_iter()
            .flat_map(|kind| runtimes().map(|runtime| (kind.clone(), runtime)))
        {
            threads.push(scope.spawn(move || {
                let directory = stage();
                let site = Site::new(directory.path(), &options);
                let dead =
                    if scene == Scene::Stale { dead_record(pin_of(&options)) } else { Vec::new() };
                let other = (scene == Scene::Among).then(|| {
                    let role = format!("take {}", pin_of(&options));
                    Process::play(CROWD, &role, site.lock.path())
                });
                if let Some(other) = &other {
                    other.expect("held");
                }
                let play = {
                    let site = site.clone();
                    async move { drop_everywhere(&site, &options, scene, &dead).await }
                };
                let runtime = runtime();
                let under_way = runtime.block_on(async { tokio::spawn(play).await.unwrap() });
                if let Some(mut other) = other {
                    other.tell("stop");
                    let visits: u64 = other.next().parse().unwrap();
                    assert!(visits > 0, "the other process never got the lock");
                    assert!(other.wait().success());
                }
                runtime.block_on(site.is_as_new("at the end"));
                under_way
            }));
        }
        under_way = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    });
    println!("{scene:?}: {under_way} futures were dropped under way");
    assert!(under_way > 0);
}

#[test]
fn alone_nothing_is_left() {
    drop_everywhere_in(Scene::Alone);
}

#[test]
fn behind_a_dead_holder_nothing_is_left() {
    drop_everywhere_in(Scene::Stale);
}

#[test]
fn among_others_nobody_is_disturbed() {
    if let Some((role, path)) = support::role() {
        return play_another(&role, &path);
    }
    drop_everywhere_in(Scene::Among);
}

/// The runtime goes down after each number of polls, with tasks that wait for
/// the same lock and one that holds it; a holder elsewhere is not disturbed.
fn go_down(runtime: fn() -> Runtime, options: &FileOptions, is_held: bool, elsewhere: &Runtime) {
    for verb in VERBS {
        for polls in 0..10 {
            let directory = stage();
            let site = Site::new(directory.path(), options);
            let guard = is_held.then(|| elsewhere.block_on(site.lock.acquire()).unwrap());
            let going_down = runtime();
            for _ in 0..2 {
                let site = site.clone();
                going_down.spawn(async move {
                    loop {
                        let _guard = site.lock.acquire().await.unwrap();
                        visit(&site.inside);
                        tokio::task::yield_now().await;
                    }
                });
            }
            let (sender, receiver) = mpsc::channel();
            let played = site.play(verb);
            let task = async move {
                let sent = sender.clone();
                let stays = async move {
                    let _ = sent.send(false);
                    std::future::pending::<()>().await;
                };
                if polled(played, polls, stays).await.is_some() {
                    let _ = sender.send(true);
                }
            };
            // Where the lock is held, most of them never end.
            let limit = Duration::from_millis(if is_held { 4 } else { 400 });
            let has_ended = going_down.block_on(async {
                tokio::spawn(task);
                let deadline = tokio::time::Instant::now() + limit;
                loop {
                    match receiver.try_recv() {
                        Ok(ended) => return ended,
                        Err(_) if tokio::time::Instant::now() > deadline => return false,
                        Err(_) => sleep(Duration::from_micros(300)).await,
                    }
                }
            });
            if polls % 2 == 0 {
                drop(going_down);
            } else {
                going_down.shutdown_background();
            }
            let what = format!("{verb:?} after {polls} polls, the runtime went down, {options:?}");
            elsewhere.block_on(async {
                if let Some(guard) = guard {
                    let lost = timeout(Duration::ZERO, guard.lost()).await;
                    let was_asked = matches!(verb, Verb::Revoke | Verb::Lost);
                    assert!(lost.is_err() || was_asked, "{what}: the holder lost it: {lost:?}");
                    visit(&site.inside);
                    guard.release().await.unwrap();
                }
                flush().await;
                site.is_as_new(&what).await;
            });
            if has_ended {
                break;
            }
        }
    }
}

#[test]
fn a_runtime_that_goes_down_leaves_nothing() {
    std::thread::scope(|scope| {
        for options in every_kind() {
            for runtime in runtimes() {
                for is_held in [false, true] {
                    let options = options.clone();
                    scope.spawn(move || {
                        let elsewhere = Builder::new_current_thread().enable_all().build().unwrap();
                        go_down(runtime, &options, is_held, &elsewhere);
                    });
                }
            }
        }
    });
}
