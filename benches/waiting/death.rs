//! From the SIGKILL of a holder to the acquisition by a waiter.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::contender::{Contender, Kind, Order};
use crate::figures::{Sample, judge_time, now};
use crate::processes::Reports;
use crate::{DIRECTORY, Plan};

/// Long enough that those who poll have slowed down to their usual period.
const WAIT: Duration = Duration::from_millis(70);

/// How the holder came to what it has when it is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Small,
    /// It took over the file of a holder that was killed before it.
    TookOver,
    /// With sockets that it opened before it acquired.
    SocketsFirst,
    /// With sockets that it opened as a holder.
    SocketsLater,
}

impl Life {
    fn name(self) -> &'static str {
        match self {
            Life::Small => "small holder",
            Life::TookOver => "holder that took over",
            Life::SocketsFirst => "3000 sockets, opened before",
            Life::SocketsLater => "3000 sockets, opened while holding",
        }
    }
}

/// A waiter that outlives the holders.
struct Scene {
    life: Life,
    kind: Kind,
    path: PathBuf,
    reports: Reports,
    waiter: Contender,
    sample: Sample,
}

impl Scene {
    fn new(life: Life, kind: Kind, directory: &TempDir) -> Self {
        let path = directory.path().join(format!("{kind:?}-{}.lock", life as u8));
        let reports = Reports::new();
        let waiter = Contender::spawn(kind, &path, 0, &reports);
        Scene { life, kind, path, reports, waiter, sample: Sample::default() }
    }

    fn spawn(&self) -> Contender {
        Contender::spawn(self.kind, &self.path, 1, &self.reports)
    }

    fn holder(&self) -> Contender {
        if self.life == Life::TookOver {
            let mut before = self.spawn();
            before.has(Order::Acquire, &self.reports);
        }
        let mut holder = self.spawn();
        let orders: &[Order] = match self.life {
            Life::Small | Life::TookOver => &[Order::Acquire],
            Life::SocketsFirst => &[Order::OpenSockets, Order::Acquire],
            Life::SocketsLater => &[Order::Acquire, Order::OpenSockets],
        };
        for order in orders {
            holder.has(*order, &self.reports);
        }
        holder
    }

    fn run(&mut self) {
        let mut holder = self.holder();
        self.waiter.tell(Order::Acquire);
        sleep(WAIT + Duration::from_millis(self.sample.len() as u64 * 17 % 50));
        let killed = now();
        holder.process.kill();
        let acquired = self.reports.next().time;
        self.sample.add(acquired.saturating_sub(killed));
        holder.process.wait();
        self.waiter.has(Order::Release, &self.reports);
    }
}

pub(crate) fn measure(plan: &Plan) {
    let directory = TempDir::new_in(DIRECTORY).expect("a directory");
    let (often, seldom) = (plan.samples.div_ceil(5), plan.samples.div_ceil(16));
    let scenes = [
        (Life::Small, Kind::Ours, often),
        (Life::Small, Kind::Filelock, often),
        (Life::Small, Kind::Flock, often),
        (Life::TookOver, Kind::Ours, often),
        (Life::SocketsFirst, Kind::Ours, seldom),
        (Life::SocketsFirst, Kind::Flock, seldom),
        (Life::SocketsLater, Kind::Ours, seldom),
        (Life::SocketsLater, Kind::Flock, seldom),
    ];
    let mut scenes = scenes.map(|(life, kind, times)| (Scene::new(life, kind, &directory), times));
    for round in 0..often {
        for (scene, times) in &mut scenes {
            if round < *times {
                scene.run();
            }
        }
    }
    for (scene, _) in &scenes {
        let (life, kind) = (scene.life.name(), scene.kind.name());
        scene.sample.print(format_args!("SIGKILL, {life}, {kind}"));
    }
    for (scene, _) in scenes.iter().filter(|(scene, _)| scene.kind == Kind::Ours) {
        let what = format!("p50, {}", scene.life.name());
        judge_time(what, scene.sample.median(), Duration::from_millis(1));
    }
}
