//! 64 tasks of one process on one lock.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Barrier, Mutex};

use crate::figures::{judge, judge_gain, median, now, short};
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
    /// Once; when it was acquired.
    async fn once(&self, hold: Duration) -> u64 {
        match self {
            Work::Lock(lock) => {
                let held = lock.acquire().await;
                let acquired = now();
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
                let acquired = now();
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

/// Operations a second, the longest wait, and tasks that never had the lock.
fn run(subject: Option<Kind>, hold: Duration) -> (f64, Duration, usize) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let path = directory.path().join("tasks.lock");
    let floor = Arc::new(Mutex::new(open(&path)));
    let (is_over, barrier) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(TASKS + 1)));
    runtime(2).block_on(async {
        let work = || match subject {
            Some(kind) => Work::Lock(Lock::new(kind, &path)),
            None => Work::Floor(Arc::clone(&floor), path.clone()),
        };
        // The first look at a directory is no wait for the lock.
        work().once(Duration::ZERO).await;
        let task = |_| {
            let work = work();
            let (is_over, barrier) = (Arc::clone(&is_over), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                let (mut count, mut longest) = (0_u64, 0);
                loop {
                    let asked = now();
                    longest = longest.max(work.once(hold).await - asked);
                    if is_over.load(Ordering::Relaxed) {
                        return (count, longest);
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
        let (mut count, mut longest, mut unserved) = (0, 0, 0);
        for task in tasks {
            // A starved task may never come to its end.
            let done = tokio::time::timeout(Duration::from_secs(3), task).await;
            let (times, wait) = done.map_or((0, now() - started), |done| done.expect("no panic"));
            count += times;
            longest = longest.max(wait);
            unserved += usize::from(times == 0);
        }
        (count as f64 / elapsed as f64 * 1e9, Duration::from_nanos(longest), unserved)
    })
}

pub(crate) fn measure(plan: &Plan) {
    let mut rates = SUBJECTS.map(|_| Vec::new());
    let mut waits = SUBJECTS.map(|_| Vec::new());
    for _ in 0..plan.runs {
        for (index, subject) in SUBJECTS.into_iter().enumerate() {
            let (rate, longest, unserved) = run(subject, Duration::ZERO);
            print(subject, "0", rate, longest, unserved);
            rates[index].push(rate);
            waits[index].push(longest.as_secs_f64());
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
    let hold = Duration::from_millis(1);
    for subject in SUBJECTS {
        let (rate, longest, unserved) = run(subject, hold);
        print(subject, "1 ms", rate, longest, unserved);
        if subject == Some(Kind::Ours) {
            let turn = Duration::from_secs_f64(1.0 / rate);
            let bar = turn * (5 * TASKS as u32);
            let what = "64 tasks, 1 ms, longest wait";
            judge(longest <= bar, what, short(longest), format!("≤ 5 × 64 × {}", short(turn)));
        }
    }
}

fn print(subject: Option<Kind>, hold: &str, rate: f64, longest: Duration, unserved: usize) {
    let name = subject.map_or("floor: Mutex, fstat, lstat, pwrite", Kind::name);
    let longest = short(longest);
    println!(
        "64 tasks, hold {hold:<4} {name:<36} {rate:>8.0} op/s  longest wait {longest:>9}  unserved {unserved}"
    );
}
