//! Waiting: hand-over between processes, recovery from SIGKILL, the cost of
//! waiting, many tasks on one lock, fairness between processes, stalls by a busy disk. The peers run
//! in the same run and in turns with ours, since machines drift.
//!
//! `cargo bench --bench waiting -- [hand-over|death|idle|tasks|fairness|share|stall|all]`
//! with `--samples N`, `--seconds N`, `--runs N` to measure less or more, and
//! `--plots` to draw `benches/plots/*.svg` anew. `--awake` keeps the processors
//! from sleeping meanwhile.
//!
//! Other processes are this program run again with a role.

mod awake;
mod chart;
mod contender;
mod death;
mod fairness;
mod figures;
mod hand_over;
mod handoff;
mod idle;
mod processes;
mod share;
mod stall;
mod tasks;

use std::time::Duration;

use awake::Awake;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where everything is measured: a tmpfs, which does not drift with the disk.
const DIRECTORY: &str = "/dev/shm";

/// The name of a part, and what measures and prints it.
type Part = (&'static str, fn(&Plan));

/// What to measure, and how much of it.
struct Plan {
    names: Vec<String>,
    samples: usize,
    time: Duration,
    runs: usize,
    draws: bool,
    is_awake: bool,
}

impl Plan {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let (names, time) = (Vec::new(), Duration::from_secs(10));
        let mut plan = Plan { names, samples: 500, time, runs: 5, draws: false, is_awake: false };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let number = arguments.next().and_then(|number| number.parse().ok());
                number.unwrap_or_else(|| panic!("{argument} needs a number"))
            };
            match argument.as_str() {
                "--samples" => plan.samples = number(),
                "--seconds" => plan.time = Duration::from_secs(number() as u64),
                "--runs" => plan.runs = number(),
                "--plots" => plan.draws = true,
                "--awake" => plan.is_awake = true,
                _ => plan.names.push(argument),
            }
        }
        plan
    }

    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name || wanted == "all")
    }
}

fn main() {
    if let Some(role) = processes::role() {
        return match role.name.as_str() {
            "contender" => contender::play(&role.words),
            "waiters" => idle::wait(&role.words),
            "timer" => idle::tick(&role.words),
            "server" => fairness::serve(&role.words),
            "writer" => stall::disturb(&role.words),
            "ring" => fairness::pass_on(&role.words),
            other => panic!("no role {other}"),
        };
    }
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("more descriptors");
    let plan = Plan::read(std::env::args().skip(1));
    let _awake = plan.is_awake.then(Awake::begin);
    let parts: [Part; 8] = [
        ("hand-over", hand_over::measure),
        ("death", death::measure),
        ("idle", idle::measure),
        ("tasks", tasks::measure),
        ("handoff", handoff::measure),
        ("fairness", fairness::measure),
        ("share", share::measure),
        ("stall", stall::measure),
    ];
    for (name, measure) in parts.into_iter().filter(|(name, _)| plan.wants(name)) {
        println!("\n== {name}");
        measure(&plan);
    }
}
