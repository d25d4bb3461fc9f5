//! Processes take turns: one that releases and asks again at once does not
//! keep out another that waits.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, FileOptions, Proof};
use nix::sys::signal::Signal;
use support::Process;

/// Long enough that asking who waits is due after each of them.
const HOLD: Duration = Duration::from_millis(3);

fn lock(path: &Path) -> AsyncFileLock {
    let pin = if path.ends_with("portable.lock") { Proof::Process } else { Proof::Auto };
    AsyncFileLock::with_options(path, FileOptions::default().proof(pin)).unwrap()
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

/// How often the others held while we waited, for each time we did. We ask only
/// while they hold.
async fn holds_of_others(path: &Path, times: usize) -> usize {
    let lock = lock(path);
    let journal = path.with_extension("log");
    let holds = || fs::read(&journal).unwrap().len();
    let mut others = 0;
    for _ in 0..times {
        let last = holds();
        support::eventually("the other one holds", || holds() > last);
        let asked = holds();
        let guard = tokio::time::timeout(support::VERY_LONG, lock.acquire()).await;
        let guard = guard.expect("it is kept out").unwrap();
        others += holds() - asked;
        guard.release().await.unwrap();
    }
    others / times
}

/// How many wait: each has one lock in the lower half of the directory's
/// offsets, see `src/sys/linux/tickets.rs`.
fn tickets(directory: &Path) -> usize {
    let is_ticket = |lock: &&Vec<String>| lock[6].parse::<u64>().unwrap() < 1 << 62;
    support::kernel_locks(directory, "OFDLCK").iter().filter(is_ticket).count()
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
    // Of sixty pairs chance would turn thirty around, and hardly ever as few as
    // this; nor of twice sixty, and so on. Some may be, where a process takes
    // too long to wake, so a machine that is busy is asked more often.
    const FEW: [usize; 10] = [10, 33, 57, 82, 107, 133, 159, 186, 213, 239];
    let mut inversions = 0;
    for (few, pairs) in FEW.into_iter().zip((60..).step_by(60)) {
        inversions += inversions_of_sixty_pairs().await;
        println!("{inversions} of {pairs} pairs in the wrong order");
        if inversions <= few {
            return;
        }
    }
    panic!("{inversions} pairs were served in the wrong order");
}

async fn inversions_of_sixty_pairs() -> usize {
    const TEST: &str = "processes_are_served_in_the_order_in_which_they_came";
    const WAITERS: usize = 6;
    const ROUNDS: usize = 4;
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let log = path.with_extension("log");
    let mut inversions = 0;
    for _ in 0..ROUNDS {
        fs::write(&log, "").unwrap();
        let guard = lock(&path).acquire().await.unwrap();
        let mut waiters = Vec::new();
        for number in 0..WAITERS {
            waiters.push(Process::play(TEST, &number.to_string(), &path));
            waiters[number].expect("asks");
            support::eventually("it waits", || tickets(directory.path()) == number + 1);
            // Until it is asleep.
            tokio::time::sleep(support::QUIET / 8).await;
        }
        guard.release().await.unwrap();
        assert!(waiters.iter_mut().all(|waiter| waiter.wait().success()));
        let order = fs::read(&log).unwrap();
        assert_eq!(order.len(), WAITERS);
        let pairs =
            (0..WAITERS).flat_map(|first| (first + 1..WAITERS).map(move |next| (first, next)));
        inversions += pairs.filter(|(first, next)| order[*first] > order[*next]).count();
    }
    inversions
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
    support::eventually("it waits", || tickets(directory.path()) == 1);
    tokio::time::sleep(support::QUIET).await;
    stopped.stop();
    let _greedy = Process::play(TEST, "greedy", &path);
    guard.release().await.unwrap();
    support::eventually("it goes on without the stopped one", || {
        fs::read(&log).unwrap().len() >= 10
    });
    stopped.signal(Signal::SIGCONT);
}
