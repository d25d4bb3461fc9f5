//! What a hand-off within a process saves: 64 tasks that hold the lock for no time, with
//! the file handed off and with a new file for each hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, FileOptions};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::runtime::Builder;

use crate::figures::{judge_gain, median, now, short};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 64;

/// How long one measurement lasts.
const MEASUREMENT: Duration = Duration::from_millis(700);

/// What one hold costs.
struct Cost {
    wall: f64,
    /// Of all threads. It does not depend on what else runs on the machine.
    processor: f64,
}

pub(crate) fn measure(plan: &Plan) {
    for threads in [1, 2] {
        let by = |limit| {
            let costs: Vec<Cost> = (0..plan.runs).map(|_| run(threads, limit)).collect();
            let median = |of: fn(&Cost) -> f64| median(costs.iter().map(of).collect());
            Cost { wall: median(|cost| cost.wall), processor: median(|cost| cost.processor) }
        };
        let handed_off = by(Duration::from_millis(1));
        let by_file = by(Duration::ZERO);
        print(threads, "handed off", &handed_off);
        print(threads, "a file for each hold", &by_file);
        let what = |unit| format!("64 tasks, {threads} threads, gain of a hand-off, {unit}");
        judge_gain(what("time"), by_file.wall / handed_off.wall, 5.0);
        judge_gain(what("processor"), by_file.processor / handed_off.processor, 5.0);
    }
}

fn print(threads: usize, how: &str, cost: &Cost) {
    let [wall, processor] = [cost.wall, cost.processor].map(Duration::from_secs_f64);
    println!(
        "64 tasks, {threads} threads, {how:<22} {:>9} a hold, {:>9} of processor",
        short(wall),
        short(processor)
    );
}

fn run(threads: usize, local_handoff: Duration) -> Cost {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let options = FileOptions::default().local_handoff(local_handoff);
    let path = directory.path().join("handoff.lock");
    let lock = AsyncFileLock::with_options(path, options).expect("options that go together");
    let mut runtime = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(threads).enable_all().build().expect("a runtime");
    let (holds, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    runtime.block_on(async {
        let work = || {
            let (lock, holds, is_over) = (lock.clone(), holds.clone(), is_over.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let guard = lock.acquire().await.expect("nothing is wrong");
                    holds.fetch_add(1, Ordering::Relaxed);
                    guard.release().await.expect("nobody touched it");
                }
            })
        };
        let (wall, processor) = (now(), processor_time());
        let tasks: Vec<_> = (0..TASKS).map(|_| work()).collect();
        tokio::time::sleep(MEASUREMENT).await;
        is_over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("no panic");
        }
        let count = holds.load(Ordering::Relaxed) as f64;
        let wall = (now() - wall) as f64 / 1e9;
        Cost { wall: wall / count, processor: (processor_time() - processor) / count }
    })
}

/// Seconds that this process has had of the processors.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
