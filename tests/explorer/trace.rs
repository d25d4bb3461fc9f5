//! A way to a world, in words.

use super::automaton::Automaton;
use super::order::{Ordered, Orderer};
use super::program::Program;
use super::search::Scenario;
use super::vocabulary::{Beside, Name, Op, Symbol};
use super::world::{Action, Rules, Status, World};

/// Names that stay while worlds are renumbered.
struct Names {
    players: Vec<u8>,
    hold_ids: Vec<Symbol>,
    inodes: Vec<Symbol>,
    next: (Symbol, Symbol),
}

impl Names {
    /// Name what is new.
    fn extend(&mut self, world: &World) {
        while self.hold_ids.len() < usize::from(world.hold_ids) {
            self.hold_ids.push(self.next.0);
            self.next.0 += 1;
        }
        while self.inodes.len() < world.texts.len() {
            self.inodes.push(self.next.1);
            self.next.1 += 1;
        }
    }

    fn renumber(&mut self, ordered: &Ordered) {
        let renumber = |names: &[u8], old: &[u8]| -> Vec<u8> {
            old.iter().map(|&old| names[usize::from(old)]).collect()
        };
        self.players = renumber(&self.players, &ordered.players);
        self.hold_ids = renumber(&self.hold_ids, &ordered.hold_ids);
        self.inodes = renumber(&self.inodes, &ordered.inodes);
    }
}

/// What happened on a way.
pub(super) fn of(
    scenario: &Scenario,
    rules: Rules,
    automaton: &mut Automaton,
    way: &[Action],
) -> Vec<String> {
    let mut orderer = Orderer::default();
    let first = scenario.first_world(automaton);
    let ordered = orderer.order(&first);
    let players = ordered.players.to_vec();
    let mut names = Names { players, hold_ids: Vec::new(), inodes: Vec::new(), next: (0, 0) };
    let mut world = ordered.world;
    let mut lines = Vec::new();
    for &action in way {
        let (Action::Step(who, _) | Action::Kill(who) | Action::Reap(who, _)) = action;
        let name = names.players[usize::from(who)];
        let program = world.players[usize::from(who)].program.name();
        let before = words(&world, automaton, &names, action);
        world.act(automaton, rules, action);
        if scenario.only_exclusion {
            world.failure = None;
        }
        names.extend(&world);
        let after = outcome(&world, automaton, &names, who);
        lines.push(format!("{:>3}. p{name} ({program}) {before}{after}", lines.len() + 1));
        let ordered = orderer.order(&world);
        names.renumber(&ordered);
        world = ordered.world;
    }
    let has_sweeper = scenario.programs.iter().any(|(program, _)| *program == Program::Sweeper);
    if !has_sweeper {
        let holders = holders_without_forgetting(scenario, rules, automaton, way);
        assert_eq!(world.holders(automaton), holders, "BUG: what was forgotten mattered");
    }
    lines
}

/// Go the same way with processes that forget nothing, so that it is certain
/// that the shipped code goes it: how many hold at its end. (A sweeper finds
/// names in the order of their numbers, so it would go another.)
fn holders_without_forgetting(
    scenario: &Scenario,
    rules: Rules,
    automaton: &mut Automaton,
    way: &[Action],
) -> usize {
    let mut orderer = Orderer::default();
    let ordered = orderer.order(&scenario.first_world(automaton));
    let (mut world, mut names) = (ordered.world, ordered.players.to_vec());
    let mut mindful = Automaton::new(true);
    let mut same = scenario.first_world(&mut mindful);
    for &action in way {
        let (Action::Step(who, _) | Action::Kill(who) | Action::Reap(who, _)) = action;
        world.act(automaton, rules, action);
        same.act(&mut mindful, rules, action.by(names[usize::from(who)]));
        if scenario.only_exclusion {
            (world.failure, same.failure) = (None, None);
        }
        let ordered = orderer.order(&world);
        names = ordered.players.iter().map(|&old| names[usize::from(old)]).collect();
        world = ordered.world;
    }
    same.holders(&mindful)
}

fn words(world: &World, automaton: &Automaton, names: &Names, action: Action) -> String {
    match action {
        Action::Step(who, _) => {
            in_words(world, names, who, automaton.op(world.players[usize::from(who)].node))
        }
        Action::Kill(_) => "is killed".to_owned(),
        Action::Reap(..) => "has a descriptor closed by the kernel".to_owned(),
    }
}

fn outcome(world: &World, automaton: &Automaton, names: &Names, who: u8) -> String {
    let player = &world.players[usize::from(who)];
    match player.status {
        _ if player.holds(automaton) => " -> HOLDS".to_owned(),
        Status::Running => {
            format!("; next: {}", in_words(world, names, who, automaton.op(player.node)))
        }
        _ => String::new(),
    }
}

/// A step, with the names of files as far as they have any.
fn in_words(world: &World, names: &Names, who: u8, op: Op) -> String {
    let player = &world.players[usize::from(who)];
    let file = |handle: u8| {
        let inode = player.handles[usize::from(handle)].inode;
        let is_at_path = if inode == world.at_path { ", at P" } else { "" };
        format!("inode {}{is_at_path}", names.inodes[usize::from(inode)])
    };
    let name = |name: Name| match name {
        Name::Path => "P".to_owned(),
        Name::Beside(beside, hold_id) => {
            let hold_id = names.hold_ids[usize::from(player.hold_ids[usize::from(hold_id)])];
            format!("P.{}.t{hold_id}", word(beside))
        }
    };
    match op {
        Op::Open(at, access) => format!("open({}, {access:?})", name(at)),
        Op::CreateUnnamed => "create an unnamed file".to_owned(),
        Op::Create(at) => format!("create({})", name(at)),
        Op::Inspect(handle) => format!("fstat({})", file(handle)),
        Op::Links(handle) => format!("fstat({}).st_nlink", file(handle)),
        Op::Look(at) => format!("lstat({})", name(at)),
        Op::Read(handle) => format!("read({})", file(handle)),
        Op::Write(handle, _) => format!("write({})", file(handle)),
        Op::Flock(handle, flock) => format!("flock({}, {flock:?})", file(handle)),
        Op::Unlock(handle) => format!("unlock({})", file(handle)),
        Op::LinkUnnamed(_, to) => format!("link(unnamed, {})", name(to)),
        Op::Link(from, to) => format!("link({}, {})", name(from), name(to)),
        Op::Rename(from, to) => format!("rename({}, {})", name(from), name(to)),
        Op::RenameToFree(from, to) => format!("rename({}, free {})", name(from), name(to)),
        Op::Unlink(at) => format!("unlink({})", name(at)),
        Op::List => "list".to_owned(),
        Op::Trusts(handle) => format!("statfs({})", file(handle)),
        Op::Close(handle) => format!("close({})", file(handle)),
        Op::DrawHoldId => "draw a token".to_owned(),
        Op::Judge(_) => "judge the recorded process".to_owned(),
        Op::Sleep => "sleep".to_owned(),
        Op::Hold => "begin to release".to_owned(),
        Op::Choose(_) => "choose".to_owned(),
        Op::End(ended) => format!("end: {ended:?}"),
    }
}

fn word(beside: Beside) -> &'static str {
    match beside {
        Beside::Candidate => "new",
        Beside::Claim => "break",
        Beside::Revocation => "revoke",
        Beside::Scratch => "tmp",
    }
}
