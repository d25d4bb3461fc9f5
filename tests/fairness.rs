//! Processes take turns: one that releases and asks again at once does not
//! keep out another that waits.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Options, Pin};
use nix::sys::signal::Signal;
use support::Process;

/// Long enough that asking who waits is due after each of them.
const HOLD: Duration = Duration::from_millis(3);

fn lock(path: &Path) -> AsyncFileLock {
    let pin = if path.ends_with("portable.lock") { Pin::Never } else { Pin::Auto };
    AsyncFileLock::with_options(path, Options::default().pin(pin)).unwrap()
}

/// Holds the lock over and over again, and writes down each time.
async fn hold_greedily(path: &Path) -> ! {
    let lock = lock(path);
    let mut journal = fs::File::options().append(true).open(path.with_extension("log")).unwrap();
    loop {
        let guard = lock.acquire().await.unwrap();
        journal.write_all(b"g").unwrap();
        tokio::time::sleep(HOLD).await;
        guard.release().await.unwrap();
    }
}

/// How often the others held, for each time we did. We ask only while they hold.
async fn holds_of_others(path: &Path, times: usize) -> usize {
    let lock = lock(path);
    let journal = path.with_extension("log");
    let holds = || fs::read(&journal).unwrap().len();
    let before = holds();
    for _ in 0..times {
        let last = holds();
        support::eventually("the other one holds", || holds() > last);
        let guard = tokio::time::timeout(support::VERY_LONG, lock.acquire()).await;
        guard.expect("it is kept out").unwrap().release().await.unwrap();
    }
    (holds() - before) / times
}

#[tokio::test]
async fn a_greedy_process_lets_in_who_waits() {
    const TEST: &str = "a_greedy_process_lets_in_who_waits";
    if let Some((_, path)) = support::role() {
        hold_greedily(&path).await;
    }
    for (name, directory) in
        [("pinned.lock", support::on_tmpfs()), ("portable.lock", support::on_disk())]
    {
        let path = directory.path().join(name);
        let log = path.with_extension("log");
        fs::write(&log, "").unwrap();
        let _greedy = Process::play(TEST, "greedy", &path);
        support::eventually("it holds", || !fs::read(&log).unwrap().is_empty());
        // One in turn; the rest leave room for a machine that is busy. Without
        // tickets we hardly ever get in.
        let others = holds_of_others(&path, 20).await;
        assert!(others <= 10, "{others} holds of the greedy one for one of ours");
    }
}

#[tokio::test]
async fn processes_are_served_in_the_order_in_which_they_came() {
    const TEST: &str = "processes_are_served_in_the_order_in_which_they_came";
    const WAITERS: usize = 6;
    const ROUNDS: usize = 4;
    if let Some((role, path)) = support::role() {
        let lock = lock(&path);
        support::tell("asks");
        let guard = lock.acquire().await.unwrap();
        let mut journal =
            fs::File::options().append(true).open(path.with_extension("log")).unwrap();
        journal.write_all(role.as_bytes()).unwrap();
        tokio::time::sleep(HOLD).await;
        return guard.release().await.unwrap();
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let log = path.with_extension("log");
    let mut inversions = 0;
    for _ in 0..ROUNDS {
        fs::write(&log, "").unwrap();
        let guard = lock(&path).acquire().await.unwrap();
        let mut waiters = Vec::new();
        for number in 0..WAITERS {
            let waiter = Process::play(TEST, &number.to_string(), &path);
            waiter.expect("asks");
            // Until it really waits.
            tokio::time::sleep(support::QUIET / 8).await;
            waiters.push(waiter);
        }
        guard.release().await.unwrap();
        assert!(waiters.iter_mut().all(|waiter| waiter.wait().success()));
        let order = fs::read(&log).unwrap();
        assert_eq!(order.len(), WAITERS);
        let pairs =
            (0..WAITERS).flat_map(|first| (first + 1..WAITERS).map(move |next| (first, next)));
        inversions += pairs.filter(|(first, next)| order[*first] > order[*next]).count();
    }
    println!("{inversions} of 60 pairs in the wrong order");
    // Of sixty pairs chance would turn thirty around. Some may be, where a
    // process takes too long to wake.
    assert!(inversions <= 10, "{inversions} pairs were served in the wrong order");
}

#[tokio::test]
async fn who_waits_and_is_stopped_does_not_hold_up_the_rest() {
    const TEST: &str = "who_waits_and_is_stopped_does_not_hold_up_the_rest";
    if let Some((role, path)) = support::role() {
        if role == "greedy" {
            hold_greedily(&path).await;
        }
        support::tell("asks");
        let _guard = lock(&path).acquire().await.unwrap();
        return;
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let log = path.with_extension("log");
    fs::write(&log, "").unwrap();
    let guard = lock(&path).acquire().await.unwrap();
    let stopped = Process::play(TEST, "first", &path);
    stopped.expect("asks");
    tokio::time::sleep(support::QUIET).await;
    stopped.signal(Signal::SIGSTOP);
    let _greedy = Process::play(TEST, "greedy", &path);
    guard.release().await.unwrap();
    support::eventually("it goes on without the stopped one", || {
        fs::read(&log).unwrap().len() >= 10
    });
    stopped.signal(Signal::SIGCONT);
}
