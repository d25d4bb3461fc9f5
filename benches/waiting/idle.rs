//! What waiting costs while nothing happens, and whom one release wakes.

use std::fs::{read_dir, read_link, read_to_string};
use std::io::{Read, Write};
use std::iter::repeat_with;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use rustix::event::epoll;
use tempfile::TempDir;
use tokio::runtime::Builder;

use crate::contender::{Contender, Hold, Kind, Lock, Order};
use crate::figures::{Sample, judge, now, short};
use crate::processes::{Process, Reports, as_text};
use crate::{DIRECTORY, Plan};

const TASKS: usize = 1000;
const PROCESSES: usize = 100;

/// The main one, Tokio's worker, and ours.
const THREADS: usize = 3;

/// What the safety net of a waiting contender is by default, thirty times
/// `retry_period`: the period of the bare loop.
const PERIOD: Duration = Duration::from_secs(9);

/// Until those who wait have settled, and a herd has lain down again.
const SETTLE: Duration = Duration::from_secs(1);
const HERD: Duration = Duration::from_millis(150);

pub(crate) fn measure(plan: &Plan) {
    tasks_of_one_process(plan);
    processes(plan);
}

/// What /proc tells of some processes, all threads.
#[derive(Clone, Copy, Default)]
struct Usage {
    cpu: Duration,
    wakeups: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let mut usage = Usage::default();
        for thread in read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
            let read = |name| read_to_string(thread.path().join(name)).unwrap_or_default();
            let statistics = read("schedstat");
            let cpu = statistics.split(' ').next().and_then(|cpu| cpu.parse().ok());
            usage.cpu += Duration::from_nanos(cpu.unwrap_or(0));
            let status = read("status");
            let switches =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            usage.wakeups +=
                switches.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        usage
    }

    fn since(self, before: Usage) -> Usage {
        let wakeups = self.wakeups.saturating_sub(before.wakeups);
        Usage { cpu: self.cpu.saturating_sub(before.cpu), wakeups }
    }
}

/// What some processes use in this time.
fn watch(pids: &[u32], time: Duration) -> Usage {
    let before: Vec<_> = pids.iter().map(|pid| Usage::of(*pid)).collect();
    sleep(time);
    let mut sum = Usage::default();
    for (pid, before) in pids.iter().zip(before) {
        let used = Usage::of(*pid).since(before);
        sum.cpu += used.cpu;
        sum.wakeups += used.wakeups;
    }
    sum
}

fn threads(pid: u32) -> usize {
    read_dir(format!("/proc/{pid}/task")).expect("it runs").count()
}

fn inotify_instances(pid: u32) -> usize {
    let descriptors = read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
    let targets = descriptors.filter_map(|descriptor| read_link(descriptor.path()).ok());
    targets.filter(|target| target == Path::new("anon_inode:inotify")).count()
}

fn share(used: Duration, time: Duration) -> f64 {
    used.div_duration_f64(time) * 100.0
}

fn judge_cpu(what: &str, usage: Usage, time: Duration, percent: f64) {
    let used = share(usage.cpu, time);
    judge(used <= percent, what, format!("{used:.4} %"), format!("≤ {percent} % of a core"));
}

/// 1000 tasks that wait for one lock, and for a lock each.
fn tasks_of_one_process(plan: &Plan) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let reports = Reports::new();
    let timer = spawn_timer();
    let bare = watch(&[timer.id()], plan.time);
    let (used, wakeups) = (share(bare.cpu, plan.time), bare.wakeups);
    println!(
        "a bare epoll loop with a timer of {PERIOD:?}: {used:.4} % of a core, {wakeups} wakeups"
    );
    for (kind, locks) in [(Kind::Ours, 1), (Kind::Ours, TASKS), (Kind::Filelock, TASKS)] {
        let path = directory.path().join(format!("{kind:?}-{locks}"));
        let _holds = hold_all(kind, &path, locks);
        let words = [kind.name(), as_text(&path), &locks.to_string()].map(str::to_owned);
        let words = words.iter().map(String::as_str);
        let waiters = Process::spawn("waiters", words, Stdio::piped(), reports.end());
        reports.next();
        sleep(SETTLE);
        let usage = watch(&[waiters.id()], plan.time);
        let what = format!("1000 tasks, {locks} lock(s), {}", kind.name());
        let (threads, instances) = (threads(waiters.id()), inotify_instances(waiters.id()));
        println!(
            "{what:<52} {} wakeups in {:?}, {threads} threads, {instances} inotify instances",
            usage.wakeups, plan.time
        );
        if kind == Kind::Filelock {
            println!("  {what:<50} {:.4} %", share(usage.cpu, plan.time));
            continue;
        }
        judge_cpu(&what, usage, plan.time, 0.1);
        judge(instances == 1, "inotify instances", instances, "1");
        judge(threads <= THREADS, "threads", threads, format!("≤ {THREADS}"));
    }
}

/// Keeps the runtime whose tasks wait.
fn hold_all(kind: Kind, path: &Path, locks: usize) -> (tokio::runtime::Runtime, Vec<(Lock, Hold)>) {
    let runtime = kind.runtime();
    let holds = runtime.block_on(async {
        let mut holds = Vec::new();
        for number in 0..locks {
            let mut lock = Lock::new(kind, &lock_path(path, number));
            let hold = lock.acquire().await;
            holds.push((lock, hold));
        }
        holds
    });
    (runtime, holds)
}

fn lock_path(path: &Path, number: usize) -> PathBuf {
    path.with_extension(format!("{number}.lock"))
}

/// The role: kind, path, number of locks.
pub(crate) fn wait(words: &[String]) {
    let [kind, path, locks] = words else { panic!("kind, path, locks") };
    let (kind, path) = (Kind::of(kind), PathBuf::from(path));
    let locks: usize = locks.parse().expect("a number");
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    for number in 0..TASKS {
        let mut lock = Lock::new(kind, &lock_path(&path, number % locks));
        runtime.spawn(async move {
            let _hold = lock.acquire().await;
            unreachable!("the holder never releases");
        });
    }
    let line = format!("0 {}\n", now());
    std::io::stdout().write_all(line.as_bytes()).expect("somebody listens");
    // Until the one who started this is gone.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

fn spawn_timer() -> Process {
    Process::spawn("timer", [], Stdio::piped(), Stdio::null())
}

/// The role: wake up by a timer and look at nothing.
pub(crate) fn tick(_words: &[String]) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let stdin = std::io::stdin();
    epoll::add(&epoll, stdin, epoll::EventData::new_u64(0), epoll::EventFlags::IN).expect("stdin");
    let timeout = PERIOD.try_into().expect("a time");
    let mut ready =
        [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
    while let Ok(0) = epoll::wait(&epoll, &mut ready, Some(&timeout)) {}
}

/// 100 processes that wait for one lock; then one release after another.
fn processes(plan: &Plan) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let path = directory.path().join("herd.lock");
    let reports = Reports::new();
    let mut contenders: Vec<_> =
        (0..=PROCESSES).map(|who| Contender::spawn(Kind::Ours, &path, who, &reports)).collect();
    begin_to_wait(&mut contenders, &reports);
    let pids: Vec<_> = contenders.iter().map(|contender| contender.process.id()).collect();
    let bare: Vec<_> = repeat_with(spawn_timer).take(PROCESSES).collect();
    let bare_pids: Vec<_> = bare.iter().map(Process::id).collect();
    sleep(SETTLE);
    let [ours, loops] = std::thread::scope(|scope| {
        [&pids[1..], &bare_pids]
            .map(|pids| scope.spawn(|| watch(pids, plan.time)))
            .map(|watching| watching.join().expect("no panic"))
    });
    let (used, wakeups) = (share(loops.cpu, plan.time), loops.wakeups);
    println!(
        "100 bare epoll loops with a timer of {PERIOD:?}: {used:.4} % of a core, {wakeups} wakeups"
    );
    println!("100 waiting processes: {} wakeups in {:?}", ours.wakeups, plan.time);
    judge_cpu("100 waiting processes", ours, plan.time, 0.5);
    herd(&mut contenders, &pids, &reports, plan.samples.div_ceil(20));
}

/// The first acquires, and then the others begin to wait.
fn begin_to_wait(contenders: &mut [Contender], reports: &Reports) {
    let (holder, others) = contenders.split_first_mut().expect("some contenders");
    holder.has(Order::Acquire, reports);
    others.iter_mut().for_each(|contender| contender.tell(Order::Acquire));
}

fn herd(contenders: &mut [Contender], pids: &[u32], reports: &Reports, releases: usize) {
    let mut holder = 0;
    let (mut first, mut cpu) = (Sample::default(), Sample::default());
    let (mut woken, mut wakeups) = (Vec::new(), Vec::new());
    for _ in 0..releases {
        let usages = || pids.iter().map(|pid| Usage::of(*pid)).collect::<Vec<_>>();
        let before = usages();
        contenders[holder].tell(Order::Release);
        let mut times = [0; 2];
        let mut next = holder;
        for _ in 0..2 {
            let report = reports.next();
            times[usize::from(report.who != holder)] = report.time;
            next = if report.who == holder { next } else { report.who };
        }
        first.add(times[1].saturating_sub(times[0]));
        sleep(HERD);
        let used: Vec<_> = usages()
            .into_iter()
            .zip(before)
            .enumerate()
            .filter(|(who, _)| *who != holder)
            .map(|(_, (after, before))| after.since(before))
            .collect();
        cpu.add(used.iter().map(|usage| usage.cpu.as_nanos() as u64).sum());
        wakeups.push(used.iter().map(|usage| usage.wakeups).sum::<u64>());
        woken.push(used.iter().filter(|usage| usage.wakeups > 0).count());
        contenders[holder].tell(Order::Acquire);
        holder = next;
        sleep(HERD);
    }
    first.print("one release, 100 waiting processes, first acquires");
    cpu.print("one release, 100 waiting processes, CPU of the herd");
    wakeups.sort_unstable();
    woken.sort_unstable();
    println!(
        "  processes woken: {} (most {}); wakeups: {} (most {}); CPU a process: {}",
        woken[releases / 2],
        woken[releases - 1],
        wakeups[releases / 2],
        wakeups[releases - 1],
        short(cpu.median() / PROCESSES as u32)
    );
}
