//! A thread that sleeps in `flock` beside tasks that never stop taking the lock.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::figures::{Sample, short};
use crate::subject::{Kind, Lock, open, runtime};
use crate::{DIRECTORY, Plan};

/// Threads of the runtime, tasks, and how long each holds, with its thread.
const LOADS: [(usize, usize, Duration); 4] = [
    (2, 64, Duration::ZERO),
    (2, 64, Duration::from_micros(50)),
    (1, 8, Duration::from_micros(300)),
    (2, 4, Duration::from_millis(1)),
];

const KINDS: [Kind; 3] = [Kind::Ours, Kind::OursKept, Kind::Filelock];

/// How long one measurement lasts.
const MEASUREMENT: Duration = Duration::from_secs(2);

/// How long the thread holds the lock, and then leaves it alone at least.
const HOLD: Duration = Duration::from_micros(100);
const PAUSE: Duration = Duration::from_millis(23);

pub(crate) fn measure(plan: &Plan) {
    for load @ (threads, tasks, hold) in LOADS {
        for kind in KINDS {
            let (mut rate, mut waits) = (0.0, Sample::default());
            for _ in 0..plan.runs {
                let (count, sample) = run(kind, load);
                rate += count as f64 / MEASUREMENT.as_secs_f64() / plan.runs as f64;
                waits.extend(sample);
            }
            println!(
                "{tasks} tasks, {threads} thread(s), hold {:<7} {:<22} {rate:>7.0} op/s  \
                 beside it p50 {:>9}  p90 {:>9}  longest {:>9}",
                short(hold),
                kind.name(),
                short(waits.median()),
                short(waits.at(0.9)),
                short(waits.longest())
            );
        }
    }
}

/// How often the tasks had it, and how long the thread waited each time.
fn run(kind: Kind, (threads, tasks, hold): (usize, usize, Duration)) -> (u64, Sample) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let path = directory.path().join("busy.lock");
    let is_over = Arc::new(AtomicBool::new(false));
    let sleeper = {
        let (path, is_over) = (path.clone(), Arc::clone(&is_over));
        std::thread::spawn(move || sleep_for_it(&path, &is_over))
    };
    let count = runtime(threads).block_on(async {
        let task = |_| {
            let (lock, is_over) = (Lock::new(kind, &path), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut count = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    let held = lock.acquire().await;
                    let began = Instant::now();
                    while began.elapsed() < hold {
                        std::hint::spin_loop();
                    }
                    lock.release(held).await;
                    count += 1;
                }
                count
            })
        };
        let tasks: Vec<_> = (0..tasks).map(task).collect();
        tokio::time::sleep(MEASUREMENT).await;
        is_over.store(true, Ordering::Relaxed);
        let mut count = 0;
        for task in tasks {
            // A starved task may never come to its end.
            let done = tokio::time::timeout(Duration::from_secs(3), task).await;
            count += done.map_or(0, |done| done.expect("no panic"));
        }
        count
    });
    (count, sleeper.join().expect("no panic"))
}

fn sleep_for_it(path: &Path, is_over: &AtomicBool) -> Sample {
    let mut waits = Sample::default();
    while !is_over.load(Ordering::Relaxed) {
        // Not in step with anything.
        std::thread::sleep(PAUSE + Duration::from_micros(waits.len() as u64 * 7919 % 9000));
        let file = open(path);
        let began = Instant::now();
        flock(&file, FlockOperation::LockExclusive).expect("nothing is wrong");
        waits.add(began.elapsed().as_nanos() as u64);
        std::thread::sleep(HOLD);
    }
    waits
}
