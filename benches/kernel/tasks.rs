//! 64 tasks of one process on one lock.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Barrier, Mutex};

use crate::figures::{Stolen, judge, judge_gain, median, now, short};
use crate::subject::{Kind, Lock, open, runtime};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 64;

/// How long one measurement lasts.
const MEASUREMENT: Duration = Duration::from_millis(500);

/// `None` is the floor: `tokio::sync::Mutex`, a look whether the path still
/// names the file, and a write of 512 bytes, as for lock files.
const SUBJECTS: [Option<Kind>; 6] = [
    Some(Kind::Ours),
    Some(Kind::OursKept),
    Some(Kind::Filelock),
    Some(Kind::AsyncFdLock),
    Some(Kind::Std),
    None,
];

enum Work {
    Lock(Lock),
    Floor(Arc<Mutex<std::fs::File>>, PathBuf),
}

impl Work {
    /// Once; when it was acquired, and how often others had had it by then.
    async fn once(&self, hold: Duration, served: &AtomicU64) -> (u64, u64) {
        let seen = || (now(), served.load(Ordering::Relaxed));
        match self {
            Work::Lock(lock) => {
                let held = lock.acquire().await;
                let acquired = seen();
                pause(hold).await;
                lock.release(held).await;
                acquired
            }
            Work::Floor(mutex, path) => {
                let file = mutex.lock().await;
                let opened = rustix::fs::fstat(&*file).expect("it is open");
                let named = rustix::fs::lstat(path).expect("it is there");
                assert_eq!(opened.st_ino, named.st_ino);
                rustix::io::pwrite(&*file, &[b'\n'; 512], 0).expect("it can be written");
                let acquired = seen();
                pause(hold).await;
                drop(file);
                acquired
            }
        }
    }
}

async fn pause(hold: Duration) {
    if !hold.is_zero() {
        tokio::time::sleep(hold).await;
    }
}

/// What one measurement saw.
struct Seen {
    per_second: f64,
    longest_wait: Duration,
    /// How often others had the lock in one wait, at most.
    most_turns: u64,
    /// Tasks that never had the lock.
    unserved: usize,
}

fn run(subject: Option<Kind>, hold: Duration) -> Seen {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let path = directory.path().join("tasks.lock");
    let floor = Arc::new(Mutex::new(open(&path)));
    let (is_over, barrier) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(TASKS + 1)));
    let served = Arc::new(AtomicU64::new(0));
    runtime(2).block_on(async {
        let work = || match subject {
            Some(kind) => Work::Lock(Lock::new(kind, &path)),
            None => Work::Floor(Arc::clone(&floor), path.clone()),
        };
        // The first look at a directory is no wait for the lock.
        work().once(Duration::ZERO, &served).await;
        let task = |_| {
            let work = work();
            let (is_over, barrier) = (Arc::clone(&is_over), Arc::clone(&barrier));
            let served = Arc::clone(&served);
            tokio::spawn(async move {
                barrier.wait().await;
                let (mut count, mut longest, mut most_turns) = (0_u64, 0, 0);
                loop {
                    let (before, asked) = (served.load(Ordering::Relaxed), now());
                    let (acquired, by_then) = work.once(hold, &served).await;
                    served.fetch_add(1, Ordering::Relaxed);
                    longest = longest.max(acquired - asked);
                    most_turns = most_turns.max(by_then - before);
                    if is_over.load(Ordering::Relaxed) {
                        return (count, longest, most_turns);
                    }
                    count += 1;
                }
            })
        };
        let tasks: Vec<_> = (0..TASKS).map(task).collect();
        barrier.wait().await;
        let started = now();
        tokio::time::sleep(MEASUREMENT).await;
        is_over.store(true, Ordering::Relaxed);
        let elapsed = now() - started;
        let (mut count, mut longest, mut most_turns, mut unserved) = (0, 0, 0, 0);
        for task in tasks {
            // A starved task may never come to its end.
            let done = tokio::time::timeout(Duration::from_secs(3), task).await;
            let starved = (0, now() - started, 0);
            let (times, wait, turns) = done.map_or(starved, |done| done.expect("no panic"));
            count += times;
            (longest, most_turns) = (longest.max(wait), most_turns.max(turns));
            unserved += usize::from(times == 0);
        }
        let per_second = count as f64 / elapsed as f64 * 1e9;
        Seen { per_second, longest_wait: Duration::from_nanos(longest), most_turns, unserved }
    })
}

pub(crate) fn measure(plan: &Plan) {
    let stolen = Stolen::begin();
    let mut rates = SUBJECTS.map(|_| Vec::new());
    let mut waits = SUBJECTS.map(|_| Vec::new());
    let mut turns = SUBJECTS.map(|_| Vec::new());
    for _ in 0..plan.runs {
        for (index, subject) in SUBJECTS.into_iter().enumerate() {
            let seen = run(subject, Duration::ZERO);
            print(subject, "0", &seen);
            rates[index].push(seen.per_second);
            waits[index].push(seen.longest_wait.as_secs_f64());
            turns[index].push(seen.most_turns as f64);
        }
    }
    let [ours, kept, filelock, .., floor] = rates.map(median);
    judge_gain("64 tasks, op/s, ours / floor", ours / floor, 0.7);
    judge_gain("64 tasks, op/s, ours kept open / floor", kept / floor, 0.7);
    judge_gain("64 tasks, op/s, ours / filelock 0.7", ours / filelock, 1.0);
    let [wait, .., floors] = waits.map(median);
    let bar = Duration::from_secs_f64(5.0 * TASKS as f64 / ours);
    let wait = Duration::from_secs_f64(wait);
    let what = "64 tasks, longest wait, by the mean turn";
    judge(wait <= bar, what, short(wait), format!("≤ 5 × 64 turns, {}", short(bar)));
    println!("  64 tasks, longest wait, ours / floor {:>26.2} ×", wait.as_secs_f64() / floors);
    let [most, .., floors] = turns.map(median);
    let what = format!("64 tasks, most turns of others in one wait, the floor's {floors}");
    judge(most <= (5 * TASKS) as f64, what, most, "≤ 5 × 64");
    stolen.print();
    let hold = Duration::from_millis(1);
    for subject in SUBJECTS {
        let seen = run(subject, hold);
        print(subject, "1 ms", &seen);
        if subject == Some(Kind::Ours) {
            let turn = Duration::from_secs_f64(1.0 / seen.per_second);
            let (bar, longest) = (turn * (5 * TASKS as u32), seen.longest_wait);
            let what = "64 tasks, 1 ms, longest wait";
            judge(longest <= bar, what, short(longest), format!("≤ 5 × 64 × {}", short(turn)));
            let (most, what) =
                (seen.most_turns, "64 tasks, 1 ms, most turns of others in one wait");
            judge(most <= TASKS as u64, what, most, "≤ 64");
        }
    }
}

fn print(subject: Option<Kind>, hold: &str, seen: &Seen) {
    println!(
        "64 tasks, hold {hold:<4} {:<36} {:>8.0} op/s  longest wait {:>9}, {:>6} turns  unserved {}",
        subject.map_or("floor: Mutex, fstat, lstat, pwrite", Kind::name),
        seen.per_second,
        short(seen.longest_wait),
        seen.most_turns,
        seen.unserved
    );
}
