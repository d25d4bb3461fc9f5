//! Breadth first through every world that can come about, so that what is
//! found is found by a shortest way.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::automaton::Automaton;
use super::hash::Quick;
use super::order::{Ordered, Orderer};
use super::program::Program;
use super::trace;
use super::vocabulary::Beside;
use super::world::{Action, NOTHING, Rules, Status, World};

/// A lone process gets in within so many steps, or never.
const ALONE_STEPS: usize = 400;

/// The processes that take part, and what is promised.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// Each process and how often it acquires.
    pub(super) programs: Vec<(Program, u8)>,
    pub(super) kills: u8,
    /// Portable processes that were killed before: the first left the lock
    /// file, each other one a claim on what the one before it left.
    pub(super) dead: u8,
    /// Look for two holders only, not for one that is stuck, fails or leaves litter.
    pub(super) only_exclusion: bool,
    /// The file system has no hard links.
    pub(super) has_no_links: bool,
    /// It has no files without a name.
    pub(super) has_no_unnamed: bool,
    pub(super) never_forgets: bool,
    pub(super) is_stepwise: bool,
    /// Pinned and portable contenders of one path: a later one gets in if
    /// he follows what the file says, as `break_stale` does.
    pub(super) is_mixed: bool,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) worlds: usize,
    pub(super) steps: usize,
    pub(super) nodes: usize,
    pub(super) depth: usize,
    pub(super) took: Duration,
    pub(super) broken: Option<Broken>,
}

/// A promise that was broken, and how.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) promise: String,
    pub(super) trace: Vec<String>,
}

impl Scenario {
    pub(super) fn new(programs: &[(Program, u8)], kills: u8) -> Self {
        Self {
            programs: programs.to_vec(),
            kills,
            dead: 0,
            only_exclusion: false,
            has_no_links: false,
            has_no_unnamed: false,
            never_forgets: false,
            is_stepwise: false,
            is_mixed: false,
        }
    }

    pub(super) fn rules(&self) -> Rules {
        let has =
            |which: &[Program]| self.programs.iter().any(|(program, _)| which.contains(program));
        Rules {
            has_sweeper: has(&[Program::Sweeper]),
            has_revoker: has(&[Program::Revoker]),
            is_stepwise: self.is_stepwise,
            nobody_exits: false,
            has_no_links: self.has_no_links,
            has_no_unnamed: self.has_no_unnamed,
            judges_processes: has(&[
                Program::Portable,
                Program::PortableCancelled,
                Program::Compat,
                Program::CompatJumping,
                Program::OpenLock,
            ]),
        }
    }

    pub(super) fn first_world(&self, automaton: &mut Automaton) -> World {
        let mut world = World::new(automaton, &self.programs, self.kills);
        for _ in 0..self.dead {
            world.leave_by_a_dead_one();
        }
        world
    }

    /// The processes that take part, in words.
    /// Each program once.
    fn kinds(&self) -> Vec<Program> {
        let mut kinds: Vec<_> = self.programs.iter().map(|(program, _)| *program).collect();
        kinds.dedup();
        kinds
    }

    pub(super) fn name(&self) -> String {
        let mut parts: Vec<(Program, u8, usize)> = Vec::new();
        for &(program, times) in &self.programs {
            match parts.iter_mut().find(|part| part.0 == program && part.1 == times) {
                Some(part) => part.2 += 1,
                None => parts.push((program, times, 1)),
            }
        }
        let parts: Vec<String> = parts
            .iter()
            .map(|(program, times, how_many)| format!("{how_many} {} x{times}", program.name()))
            .collect();
        let dead = if self.dead == 0 { "" } else { &format!(" after {} dead", self.dead) };
        let links = if self.has_no_links { ", no hard links" } else { "" };
        let unnamed = if self.has_no_unnamed { ", no unnamed files" } else { "" };
        format!("{}, {} kills{dead}{links}{unnamed}", parts.join(" + "), self.kills)
    }

    pub(super) fn explore(&self) -> Report {
        Search::new(self).run()
    }
}

/// Worlds with their numbers.
type Level = Vec<(u32, World)>;

struct Search<'a> {
    scenario: &'a Scenario,
    rules: Rules,
    automaton: Automaton,
    orderer: Orderer,
    seen: HashSet<u128, Quick>,
    /// Worlds in which one process alone was let run, and whether it got in.
    alone: HashMap<u128, Result<(), String>, Quick>,
    /// How each world came about: from which, by what.
    origins: Vec<(u32, Action)>,
    steps: usize,
}

impl<'a> Search<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let automaton = Automaton::new(scenario.never_forgets);
        Self {
            scenario,
            rules: scenario.rules(),
            automaton,
            orderer: Orderer::default(),
            seen: HashSet::default(),
            alone: HashMap::default(),
            origins: Vec::new(),
            steps: 0,
        }
    }

    fn run(mut self) -> Report {
        let began = Instant::now();
        let first = self.scenario.first_world(&mut self.automaton);
        self.seen.insert(self.orderer.fingerprint(&first));
        let world = self.orderer.ordered(&first).world;
        self.origins.push((0, Action::Kill(NOTHING)));
        let mut level = vec![(0, world)];
        let mut depth = 0;
        let mut broken = None;
        while !level.is_empty() && broken.is_none() {
            depth += 1;
            (level, broken) = self.next_level(level);
        }
        let broken = broken.map(|(world, promise)| {
            let way = self.way_to(world);
            let trace = trace::of(self.scenario, self.rules, &mut self.automaton, &way);
            Broken { promise, trace }
        });
        Report {
            worlds: self.seen.len(),
            steps: self.steps,
            nodes: self.automaton.len(),
            depth,
            took: began.elapsed(),
            broken,
        }
    }

    fn next_level(&mut self, level: Level) -> (Level, Option<(u32, String)>) {
        let mut next = Vec::new();
        for (number, world) in level {
            let mut found: Vec<(Action, World)> = Vec::new();
            world.successors(&mut self.automaton, self.rules, |action, world| {
                found.push((action, world));
            });
            if found.is_empty() && !self.scenario.only_exclusion {
                if let Err(litter) = self.must_be_tidy(&world) {
                    return (next, Some((number, litter)));
                }
            }
            self.steps += found.len();
            for (action, mut world) in found {
                if self.scenario.only_exclusion {
                    world.failure = None;
                }
                if !self.seen.insert(self.orderer.fingerprint(&world)) {
                    continue;
                }
                let world = self.orderer.ordered(&world).world;
                let new = u32::try_from(self.origins.len()).expect("BUG: too many worlds");
                self.origins.push((number, action));
                if let Err(promise) = self.check(&world) {
                    return (next, Some((new, promise)));
                }
                next.push((new, world));
            }
        }
        (next, None)
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        if world.holders(&self.automaton) > 1 {
            return Err("two processes hold the lock".to_owned());
        }
        if self.scenario.only_exclusion {
            return Ok(());
        }
        if let Some(why) = world.failure {
            return Err(format!("a process failed: {why}"));
        }
        self.nobody_may_be_stuck(world)
    }

    /// All the others die: a process that wants the lock gets it.
    fn nobody_may_be_stuck(&mut self, world: &World) -> Result<(), String> {
        for who in 0..world.players.len() as u8 {
            let player = &world.players[usize::from(who)];
            let may_wait = self.scenario.is_mixed || !player.program.wants_the_lock();
            if player.status == Status::Running && !may_wait {
                let mut alone = world.clone();
                alone.leave_alone(Some(who));
                self.must_get_in(alone, who)?;
            }
        }
        let mut empty = world.clone();
        empty.leave_alone(None);
        let mut outcomes = Vec::new();
        for program in self.scenario.kinds() {
            if program.wants_the_lock() {
                let mut alone = empty.clone();
                alone.enter(&mut self.automaton, 0, program);
                outcomes.push(self.must_get_in(alone, 0));
            }
        }
        if self.scenario.is_mixed && outcomes.iter().any(Result::is_ok) {
            return Ok(());
        }
        outcomes.into_iter().collect()
    }

    fn must_get_in(&mut self, alone: World, who: u8) -> Result<(), String> {
        let fingerprint = self.orderer.fingerprint(&alone);
        if let Some(known) = self.alone.get(&fingerprint) {
            return known.clone();
        }
        let Ordered { world, players, .. } = self.orderer.ordered(&alone);
        let who = players.iter().position(|&old| old == who).expect("BUG: nobody") as u8;
        let name = world.players[usize::from(who)].program.name();
        let outcome = match self.run_alone(world, who, true) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("alone, a process ({name}) does not get in: {why}")),
        };
        self.alone.insert(fingerprint, outcome.clone());
        outcome
    }

    /// Let one process run until it holds, or until it is over.
    fn run_alone(&mut self, mut world: World, who: u8, until_held: bool) -> Result<World, String> {
        for _ in 0..ALONE_STEPS {
            let player = &world.players[usize::from(who)];
            if player.status == Status::Over || until_held && player.holds(&self.automaton) {
                return Ok(world);
            }
            world.act(&mut self.automaton, self.rules, Action::Step(who, 0));
            if let Some(why) = world.failure {
                return Err(why.to_owned());
            }
            world = self.orderer.tidy(&world);
        }
        Err(format!("{ALONE_STEPS} steps"))
    }

    /// At the end of everything: a killed process may leave the lock file, and
    /// a portable one a candidate and a claim, which a sweep removes.
    fn must_be_tidy(&mut self, world: &World) -> Result<(), String> {
        if world.players.iter().any(|player| player.status != Status::Over) {
            return Err("nobody can go on".to_owned());
        }
        let killed = self.scenario.kills - world.kills_left;
        let kills = usize::from(self.scenario.dead + killed);
        let count = |beside| world.entries.iter().filter(|entry| entry.beside == beside).count();
        let (candidates, claims) = (count(Beside::Candidate), count(Beside::Claim));
        let requests = count(Beside::Revocation);
        if kills == 0 && world.at_path != NOTHING
            || candidates > kills
            || claims > kills
            || requests > kills
        {
            return Err(format!(
                "after {kills} kills there are left: lock file {}, candidates {candidates}, \
                 claims {claims}, requests {requests}",
                world.at_path != NOTHING
            ));
        }
        self.must_become_tidy(world)
    }

    /// One acquisition, one release and a sweep leave nothing at all.
    fn must_become_tidy(&mut self, world: &World) -> Result<(), String> {
        let mut outcome = Ok(());
        for program in self.scenario.kinds() {
            if program.wants_the_lock() {
                outcome = self.must_become_tidy_by(program, world);
            }
            if self.scenario.is_mixed && outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn must_become_tidy_by(&mut self, program: Program, world: &World) -> Result<(), String> {
        let mut world = world.clone();
        for program in [program, Program::Sweeper] {
            world.enter(&mut self.automaton, 0, program);
            let rules = self.rules;
            self.rules.has_sweeper = true;
            let ran = self.run_alone(world, 0, false);
            self.rules = rules;
            world = ran?;
        }
        let is_litter = |beside| beside != Beside::Scratch;
        if world.at_path != NOTHING || world.entries.iter().any(|entry| is_litter(entry.beside)) {
            return Err("something is left after an acquisition and a sweep".to_owned());
        }
        Ok(())
    }

    fn way_to(&self, mut world: u32) -> Vec<Action> {
        let mut way = Vec::new();
        while world != 0 {
            let (from, action) = self.origins[world as usize];
            way.push(action);
            world = from;
        }
        way.reverse();
        way
    }
}
