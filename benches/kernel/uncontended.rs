//! Acquire and release of a lock that nobody else wants, beside the system
//! calls alone.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Plan;
use crate::figures::{self, judge_gain, judge_ratio, short};
use crate::subject::{Kind, Lock, floor, floor_kept, open, runtime};

const DIRECTORIES: [(&str, &str); 2] =
    [("tmpfs", "/dev/shm"), ("disk", env!("CARGO_TARGET_TMPDIR"))];

/// Acquisitions in one measurement: so few that on a busy machine most
/// measurements are not interrupted.
const BATCH: u32 = 20;

pub(crate) fn measure(plan: &Plan) {
    for (name, directory) in DIRECTORIES {
        for threads in [1, 2] {
            in_directory(&format!("{name}, {threads} thread(s)"), directory, threads, plan);
        }
    }
}

fn in_directory(name: &str, directory: &str, threads: usize, plan: &Plan) {
    let directory = TempDir::new_in(directory).expect("a directory");
    let runtime = runtime(threads);
    let path = directory.path().join("floor.lock");
    let kept = open(&path);
    let inode = rustix::fs::fstat(&kept).expect("it is open").st_ino;
    let locks = Kind::ALL.map(|kind| Lock::new(kind, &directory.path().join(format!("{kind:?}"))));
    let (mut floors, mut floors_kept) = (Vec::new(), Vec::new());
    let mut times = Kind::ALL.map(|_| Vec::new());
    for _ in 0..plan.samples.max(3) {
        floors.push(timed(|| floor(&path)));
        floors_kept.push(timed(|| floor_kept(&kept, inode, &path)));
        for (lock, times) in locks.iter().zip(&mut times) {
            times.push(repeated(&runtime, lock));
        }
    }
    let [ours, kept, ..] = &times;
    let (ratio, kept_ratio) = (median_ratio(ours, &floors), median_ratio(kept, &floors_kept));
    let (floor, floor_kept) = (median(floors), median(floors_kept));
    println!("{name}: floor {}, kept open {}", short(floor), short(floor_kept));
    let times = times.map(median);
    for (kind, time) in Kind::ALL.iter().zip(times) {
        println!("{name}: {:<32} {:>9}", kind.name(), short(time));
    }
    let [ours, _, async_fd, std, filelock, _] = times;
    judge_ratio(format!("{name}, ours / floor"), ratio, 1.3);
    judge_gain(format!("{name}, async-fd-lock / ours"), async_fd.div_duration_f64(ours), 4.0);
    judge_gain(format!("{name}, std in the pool / ours"), std.div_duration_f64(ours), 4.0);
    println!("  {name}, filelock 0.7 / ours: {:.2} ×", filelock.div_duration_f64(ours));
    println!("  {name}, kept open / its floor: {kept_ratio:.2} ×");
}

fn timed(mut once: impl FnMut()) -> Duration {
    let started = Instant::now();
    (0..BATCH).for_each(|_| once());
    started.elapsed() / BATCH
}

/// In a task, as a service would.
fn repeated(runtime: &Runtime, lock: &Lock) -> Duration {
    runtime.block_on(async {
        let started = Instant::now();
        for _ in 0..BATCH {
            let hold = lock.acquire().await;
            lock.release(hold).await;
        }
        started.elapsed() / BATCH
    })
}

/// Of what was measured one after the other, as the machine's speed changes.
fn median_ratio(times: &[Duration], floors: &[Duration]) -> f64 {
    let ratio = |(time, floor): (&Duration, &Duration)| time.div_duration_f64(*floor);
    figures::median(times.iter().zip(floors).map(ratio).collect())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
