//! A task that waits for what its own process holds can find out why.

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::poll;
use lockkeeper::{
    AsyncFileLock, AsyncKernelLock, Error, FileGuard, KernelOptions, Primitive, acquire_all,
};
use support::{Process, on_tmpfs};
use tracing_subscriber::fmt::format::FmtSpan;

const SHORT: Duration = Duration::from_millis(50);

/// The line of this file where `call` stands, and what it gave.
macro_rules! at_line {
    ($call:expr) => {
        (line!(), $call)
    };
}

async fn line_of_holder(lock: &AsyncFileLock) -> u32 {
    let place = lock.holder().await.unwrap().unwrap().acquired_at.expect("it is held here");
    assert_eq!(place.file(), file!());
    place.line()
}

#[tokio::test]
async fn the_holder_in_this_process_says_where_it_asked() {
    let directory = on_tmpfs();
    let lock = AsyncFileLock::new(directory.path().join("a.lock"));
    let (line, guard) = at_line!(lock.acquire().await.unwrap());
    assert_eq!(line_of_holder(&lock).await, line);
    drop(guard);
    let (line, guard) = at_line!(lock.try_acquire().await.unwrap().unwrap());
    assert_eq!(line_of_holder(&lock).await, line);
    drop(guard);
    let (line, guard) = at_line!(lock.acquire_timeout(SHORT).await.unwrap());
    assert_eq!(line_of_holder(&lock).await, line);
    drop(guard);
    let (line, guards) = at_line!(acquire_all([&lock]).await.unwrap());
    assert_eq!(line_of_holder(&lock).await, line);
    drop(guards);
    let blocking = lock.clone();
    let blocking = move || at_line!(blocking.blocking_acquire().unwrap());
    let (line, guard): (u32, FileGuard) = tokio::task::spawn_blocking(blocking).await.unwrap();
    assert_eq!(line_of_holder(&lock).await, line);
    drop(guard);
}

#[tokio::test]
async fn a_timeout_behind_a_guard_of_this_process_names_its_line() {
    let directory = on_tmpfs();
    let lock = AsyncFileLock::new(directory.path().join("a.lock"));
    let (line, _guard) = at_line!(lock.acquire().await.unwrap());
    let error = lock.acquire_timeout(SHORT).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }));
    let place = format!("{}:{line}", file!());
    assert!(error.to_string().contains(&place), "{error}");
}

#[tokio::test]
async fn a_holder_in_another_process_has_no_line_here() {
    const TEST: &str = "a_holder_in_another_process_has_no_line_here";
    if let Some((_, path)) = support::role() {
        let _guard = AsyncFileLock::new(path).acquire().await.unwrap();
        support::tell("held");
        support::told();
        return;
    }
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    // One of ours before it, whose line must not be taken for the other's.
    lock.acquire().await.unwrap().release().await.unwrap();
    let holder = Process::play(TEST, "holder", &path);
    holder.expect("held");
    assert_eq!(lock.holder().await.unwrap().unwrap().acquired_at, None);
}

async fn line_of_kernel_holder(lock: &AsyncKernelLock) -> Option<u32> {
    let holder = lock.holder().await.unwrap().expect("it is held");
    assert_eq!(holder.pid, Some(std::process::id()));
    holder.acquired_at.filter(|place| place.file() == file!()).map(|place| place.line())
}

#[tokio::test]
async fn a_kernel_lock_says_where_its_last_holder_here_asked() {
    for primitive in [Primitive::Flock, Primitive::Ofd] {
        let directory = on_tmpfs();
        let options = KernelOptions::default().primitive(primitive);
        let path = directory.path().join("a.lock");
        let lock = AsyncKernelLock::with_options(&path, options).unwrap();
        let (line, guard) = at_line!(lock.acquire().await.unwrap());
        assert_eq!(line_of_kernel_holder(&lock).await, Some(line), "{primitive:?}");
        let error = lock.acquire_timeout(SHORT).await.unwrap_err();
        assert!(error.to_string().contains(&format!("{}:{line}", file!())), "{error}");
        guard.release().await.unwrap();
        assert_eq!(lock.holder().await.unwrap(), None);
        let (first, one) = at_line!(lock.acquire_shared_timeout(SHORT).await.unwrap());
        let (last, other) = at_line!(lock.try_acquire_shared().await.unwrap().unwrap());
        assert_eq!(line_of_kernel_holder(&lock).await, Some(last));
        drop(other);
        assert_eq!(line_of_kernel_holder(&lock).await, Some(first));
        drop(one);
        // Another file there is nobody's, whatever was had of the one before.
        let _replaced = lock.acquire().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(lock.holder().await.unwrap(), None, "{primitive:?}");
    }
}

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

#[tokio::test]
async fn the_span_of_who_waits_names_the_lock_and_the_holder() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _subscribed = support::subscribe(subscriber);
    let directory = on_tmpfs();
    let path = directory.path().join("a.lock");
    let lock = AsyncFileLock::new(&path);
    let (line, guard) = at_line!(lock.acquire().await.unwrap());
    let mut waits = Box::pin(lock.acquire());
    assert!(poll!(&mut waits).is_pending());
    drop(waits);
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let holder = format!("this process, asked for at {}:{line}", file!());
    let is_told = |told: &str| {
        told.contains("acquire{") && told.contains(path.to_str().unwrap()) && told.contains(&holder)
    };
    assert!(log.lines().any(is_told), "{log}");
}
