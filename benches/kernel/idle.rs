//! What waiting costs while nothing happens.

use std::fs::{read_dir, read_to_string};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::figures::{judge, now};
use crate::processes::{Process, Reports, as_text};
use crate::subject::{Kind, Lock, runtime};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 1000;
const PROCESSES: usize = 100;

/// Those who wait have settled by then, and are watched for so long.
const SETTLE: Duration = Duration::from_secs(6);
const WATCHED: Duration = Duration::from_secs(10);

pub(crate) fn measure(_plan: &Plan) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    for locks in [1, TASKS] {
        let used = watched(&directory, 1, TASKS, locks);
        judge_cpu(&format!("1000 tasks, {locks} lock(s)"), used, 0.1);
    }
    let used = watched(&directory, PROCESSES, 1, 1);
    judge_cpu("100 processes, 1 lock", used, 0.5);
}

fn watched(directory: &TempDir, processes: usize, tasks: usize, locks: usize) -> Duration {
    let path = directory.path().join(format!("{processes}-{locks}"));
    let runtime = runtime(1);
    let hold = |number: usize| {
        let lock = Lock::new(Kind::Ours, &path.with_extension(number.to_string()));
        (runtime.block_on(lock.acquire()), lock)
    };
    let _holds: Vec<_> = (0..locks).map(hold).collect();
    let reports = Reports::new();
    let waiters: Vec<_> = (0..processes)
        .map(|_| {
            let words = [as_text(&path), &tasks.to_string(), &locks.to_string()].map(str::to_owned);
            let words = words.iter().map(String::as_str);
            let waiters = Process::spawn("waiters", words, Stdio::piped(), reports.end());
            reports.next();
            waiters
        })
        .collect();
    sleep(SETTLE);
    let cpu = || waiters.iter().map(|waiter| cpu(waiter.id())).sum::<Duration>();
    let before = cpu();
    sleep(WATCHED);
    let threads = read_dir(format!("/proc/{}/task", waiters[0].id())).expect("it runs").count();
    println!("{processes} process(es), {tasks} task(s) each: {threads} threads in one");
    cpu().saturating_sub(before)
}

fn cpu(pid: u32) -> Duration {
    let threads = read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let time = |thread: std::fs::DirEntry| {
        let statistics = read_to_string(thread.path().join("schedstat")).ok()?;
        statistics.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    threads.filter_map(time).sum()
}

fn judge_cpu(what: &str, used: Duration, percent: f64) {
    let used = used.div_duration_f64(WATCHED) * 100.0;
    judge(used <= percent, what, format!("{used:.4} %"), format!("≤ {percent} % of a core"));
}

/// The role: path, tasks, locks.
pub(crate) fn wait(words: &[String]) {
    let [path, tasks, locks] = words else { panic!("path, tasks, locks") };
    let number = |word: &String| word.parse::<usize>().expect("a number");
    let (tasks, locks) = (number(tasks), number(locks));
    let runtime = runtime(2);
    for task in 0..tasks {
        let path = Path::new(path).with_extension((task % locks).to_string());
        runtime.spawn(async move {
            let lock = Lock::new(Kind::Ours, &path);
            lock.acquire().await;
            panic!("nobody releases it");
        });
    }
    println!("0 {}", now());
    std::io::stdout().flush().expect("somebody listens");
    // Until the one who started this is gone.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}
