//! Kernel locks: alone, handed over between processes, among many tasks, what
//! becomes of Tokio's blocking pool, and of a thread of others that sleeps in
//! `flock`. The peers run in the same run and in turns with ours, since machines
//! drift.
//!
//! `cargo bench --bench kernel -- [uncontended|handover|death|idle|tasks|pool|sleepers|all]`
//! with `--samples N` and `--runs N` to measure less or more. `--awake` keeps the
//! processors from sleeping meanwhile.
//!
//! Other processes are this program run again with a role.

#[path = "../waiting/awake.rs"]
mod awake;
#[allow(dead_code)]
#[path = "../waiting/figures.rs"]
mod figures;
mod hand_over;
mod idle;
mod pool;
#[allow(dead_code)]
#[path = "../waiting/processes.rs"]
mod processes;
mod sleepers;
mod subject;
mod tasks;
mod uncontended;

/// Where everything is measured: a tmpfs, which does not drift with the disk.
const DIRECTORY: &str = "/dev/shm";

/// What to measure, and how much of it.
struct Plan {
    names: Vec<String>,
    samples: usize,
    runs: usize,
    is_awake: bool,
}

impl Plan {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut plan = Plan { names: Vec::new(), samples: 200, runs: 3, is_awake: false };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let number = arguments.next().and_then(|number| number.parse().ok());
                number.unwrap_or_else(|| panic!("{argument} needs a number"))
            };
            match argument.as_str() {
                "--samples" => plan.samples = number(),
                "--runs" => plan.runs = number(),
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

/// The name of a part, and what measures and prints it.
type Part = (&'static str, fn(&Plan));

fn main() {
    if let Some(role) = processes::role() {
        return match role.name.as_str() {
            "contender" => hand_over::play(&role.words),
            "waiters" => idle::wait(&role.words),
            "pool" => pool::play(&role.words),
            other => panic!("no role {other}"),
        };
    }
    let plan = Plan::read(std::env::args().skip(1));
    let _awake = plan.is_awake.then(awake::Awake::begin);
    let parts: [Part; 7] = [
        ("uncontended", uncontended::measure),
        ("handover", hand_over::measure),
        ("death", hand_over::measure_death),
        ("idle", idle::measure),
        ("tasks", tasks::measure),
        ("pool", pool::measure),
        ("sleepers", sleepers::measure),
    ];
    for (name, measure) in parts.into_iter().filter(|(name, _)| plan.wants(name)) {
        println!("\n== {name}");
        measure(&plan);
    }
}
