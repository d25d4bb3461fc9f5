//! The processes as automata: a node is a list of answers, an edge one answer
//! more. Each edge is found once, by running the shipped code.
//!
//! Where a process begins anew (a round from the top, the second opening of a
//! takeover, the hold) it has forgotten what it saw before, except what it
//! still has open or made: such nodes are one node. That this changes nothing
//! is checked by `forgetting_changes_nothing`.

use std::collections::HashMap;

use super::program::Program;
use super::replay::next_op;
use super::vocabulary::{Answer, Beside, Name, Op, Symbol, Text};
use crate::file::protocol::disk::Access;

pub(super) type Node = u32;

/// What a process still has at a node, by its symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    handles: Vec<Open>,
    /// Names that it made and will remove.
    names: Vec<Name>,
    /// The hold id it drew last.
    hold_id: Option<Symbol>,
    /// The path was not there when it was last opened.
    found_nothing: bool,
    /// It gave its file the path: what it reads there from here on is to see whose
    /// file that is.
    has_named: bool,
    has_chosen: bool,
    /// It watched what it acquired, or will acquire: from here on it looks at
    /// the path for other reasons.
    has_slept: bool,
    /// Tokens that its round is about: what it found at the path, and then
    /// each claim it means to take.
    targets: Vec<Symbol>,
    /// The claim it looked at last.
    claim: Option<Symbol>,
    is_claiming: bool,
    met: Met,
    sweep: Sweep,
    has_seen_foreign: bool,
    /// openlock: it judged a process dead and has not replaced its file.
    has_judged: bool,
}

/// What a sweeper remembers of its pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sweep {
    list: Vec<Name>,
    opened: Option<Name>,
    /// Which of the list are claims that are in use.
    in_use: u32,
    has_removed: bool,
}

/// An open description, the inode it was seen to be, and the hold id that was
/// written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    handle: Symbol,
    inode: Option<Symbol>,
    hold_id: Option<Symbol>,
}

/// How many symbols of each kind a process has at a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Met {
    pub(super) handles: Symbol,
    pub(super) inodes: Symbol,
    pub(super) hold_ids: Symbol,
    pub(super) pids: Symbol,
}

struct Step {
    came_from: Option<(Node, Answer)>,
    op: Op,
    kept: Kept,
    program: Program,
}

/// Where an answer leads.
#[derive(Clone)]
pub(super) struct Edge {
    pub(super) to: Node,
    /// What is kept over a fold: the old symbols and the new.
    pub(super) fold: Option<Box<Fold>>,
}

/// New symbols, each with the old one it stands for, if it still matters.
#[derive(Clone, Debug, Default)]
pub(super) struct Fold {
    pub(super) handles: Vec<Option<Symbol>>,
    pub(super) inodes: Vec<Option<Symbol>>,
    pub(super) hold_ids: Vec<Option<Symbol>>,
    pub(super) pids: Vec<Option<Symbol>>,
}

/// Where a process forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    /// A round from the top begins.
    Top,
    Link,
    /// The second opening of a takeover in place.
    TakeOver,
    /// The next claim is looked at, before a candidate is made.
    LookAtClaim {
        is_first: bool,
        is_known: bool,
    },
    /// The next claim is tried for.
    Claim,
    /// A claim is renamed over its target.
    Rename,
    Hold,
    /// A sweeper comes to one of its list, or to the path.
    Sweep {
        at: Option<usize>,
        unlinks: bool,
        in_use: u32,
        has_removed: bool,
    },
}

/// What nodes that are one have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    program: Program,
    what: What,
    handles: usize,
    names: usize,
    targets: usize,
    list: Vec<(Beside, usize)>,
}

/// All programs, as far as they are known.
#[derive(Default)]
pub(super) struct Automaton {
    nodes: Vec<Step>,
    edges: HashMap<(Node, Answer), Edge, super::hash::Quick>,
    places: HashMap<Place, Node>,
    starts: HashMap<Program, Node>,
    never_forgets: bool,
}

impl Automaton {
    /// `never_forgets`: every list of answers is a node of its own.
    pub(super) fn new(never_forgets: bool) -> Self {
        Self { never_forgets, ..Self::default() }
    }

    pub(super) fn start(&mut self, program: Program) -> Node {
        if let Some(&node) = self.starts.get(&program) {
            return node;
        }
        let kept = Kept { met: Met { pids: 1, ..Met::default() }, ..Kept::default() };
        let op = next_op(program, Vec::new());
        let what = kept.forgets_at(program, op);
        let node = self.add(Step { came_from: None, op, kept, program });
        self.starts.insert(program, node);
        if let Some(what) = what {
            self.places.insert(self.place(node, what), node);
        }
        node
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn op(&self, node: Node) -> Op {
        self.nodes[node as usize].op
    }

    /// Whether openlock reads for the last time, or has read and will replace.
    pub(super) fn is_in_window(&self, node: Node) -> bool {
        let Step { op, kept, program, .. } = &self.nodes[node as usize];
        *program == Program::OpenLock
            && match op {
                Op::Read(_) => kept.has_judged,
                op => matches!(op, Op::Rename(..)),
            }
    }

    pub(super) fn advance(&mut self, node: Node, answer: Answer) -> &Edge {
        if !self.edges.contains_key(&(node, answer)) {
            let edge = self.discover(node, answer);
            self.edges.insert((node, answer), edge);
        }
        &self.edges[&(node, answer)]
    }

    fn add(&mut self, step: Step) -> Node {
        self.nodes.push(step);
        Node::try_from(self.nodes.len() - 1).expect("BUG: too many nodes")
    }

    fn discover(&mut self, node: Node, answer: Answer) -> Edge {
        let Step { op, ref kept, program, .. } = self.nodes[node as usize];
        let mut kept = kept.clone();
        kept.note(op, answer);
        let mut steps = vec![(op, answer)];
        let mut at = &self.nodes[node as usize];
        while let Some((before, answer)) = at.came_from {
            at = &self.nodes[before as usize];
            steps.push((at.op, answer));
        }
        steps.reverse();
        let op = next_op(program, steps);
        let what = kept.forgets_at(program, op).filter(|_| !self.never_forgets);
        kept.settle(op, what);
        let new = self.add(Step { came_from: Some((node, answer)), op, kept, program });
        let Some(what) = what else {
            return Edge { to: new, fold: None };
        };
        let place = self.place(new, what);
        let to = *self.places.entry(place).or_insert(new);
        let fold = self.fold(new, to);
        Edge { to, fold: Some(Box::new(fold)) }
    }

    fn place(&self, node: Node, what: What) -> Place {
        let Step { kept, program, .. } = &self.nodes[node as usize];
        let (handles, names, targets) = (kept.handles.len(), kept.names.len(), kept.targets.len());
        // Which names have the same hold id matters as well.
        let same = |one: &Name, other: &Name| one.hold_id() == other.hold_id();
        let list = kept.sweep.list.iter().filter_map(|name| match name {
            Name::Path => None,
            Name::Beside(beside, _) => {
                Some((*beside, kept.sweep.list.iter().position(|other| same(other, name))?))
            }
        });
        Place { program: *program, what, handles, names, targets, list: list.collect() }
    }

    fn fold(&self, from: Node, to: Node) -> Fold {
        let (old, new) = (&self.nodes[from as usize].kept, &self.nodes[to as usize].kept);
        let nothing = |length: Symbol| vec![None; usize::from(length)];
        let mut fold = Fold {
            handles: nothing(new.met.handles),
            inodes: nothing(new.met.inodes),
            hold_ids: nothing(new.met.hold_ids),
            pids: nothing(new.met.pids),
        };
        fold.pids[0] = Some(0);
        for (old, new) in old.handles.iter().zip(&new.handles) {
            fold.handles[usize::from(new.handle)] = Some(old.handle);
            if let Some(new) = new.inode {
                fold.inodes[usize::from(new)] = old.inode;
            }
            if let (Some(old), Some(new)) = (old.hold_id, new.hold_id) {
                keep(&mut fold.hold_ids, old, new);
            }
        }
        for (&old, &new) in old.targets.iter().zip(&new.targets) {
            keep(&mut fold.hold_ids, old, new);
        }
        for (old, new) in old.sweep.list.iter().zip(&new.sweep.list) {
            if let (Name::Beside(_, old), Name::Beside(_, new)) = (old, new) {
                keep(&mut fold.hold_ids, *old, *new);
            }
        }
        let next = |node: Node| self.nodes[node as usize].op;
        if let (Op::Open(Name::Beside(_, old), _), Op::Open(Name::Beside(_, new), _)) =
            (next(from), next(to))
        {
            keep(&mut fold.hold_ids, old, new);
        }
        fold
    }
}

/// What was two things may not become one, nor one two.
fn keep(hold_ids: &mut [Option<Symbol>], old: Symbol, new: Symbol) {
    let place = &mut hold_ids[usize::from(new)];
    assert!(place.is_none_or(|known| known == old), "BUG: two tokens became one");
    *place = Some(old);
    let same = hold_ids.iter().filter(|known| **known == Some(old)).count();
    assert_eq!(same, 1, "BUG: one token became two");
}

impl Kept {
    fn forgets_at(&self, program: Program, op: Op) -> Option<What> {
        let contends = !matches!(program, Program::Revoker | Program::Sweeper);
        if program.never_forgets() {
            return None;
        }
        if op == Op::Hold && contends {
            return Some(What::Hold);
        }
        if program == Program::Sweeper {
            return self.sweeper_forgets_at(op);
        }
        if !contends || program == Program::OpenLock || self.has_seen_foreign {
            return None;
        }
        // A candidate with the last hold id that was drawn is kept over rounds.
        let candidate = self.hold_id.map(|hold_id| Name::Beside(Beside::Candidate, hold_id));
        let is_ready = self.names.iter().all(|name| Some(*name) == candidate);
        // One that gives up later tells of the holder it took the lock over from.
        let may_tell = program == Program::PortableCancelled;
        let gives_up = matches!(program, Program::PinnedCancelled | Program::PortableCancelled)
            && self.has_chosen;
        match op {
            _ if gives_up || self.has_slept => None,
            Op::Open(Name::Path, Access::Read) if is_ready && !self.has_named => Some(What::Top),
            // A round that begins with a candidate that is at hand.
            Op::LinkUnnamed(_, Name::Path) if !self.found_nothing => Some(What::Link),
            Op::Open(Name::Path, Access::ReadWrite) if is_ready => Some(What::TakeOver),
            _ if may_tell => None,
            Op::Open(Name::Beside(Beside::Claim, hold_id), _)
                if is_ready && !self.is_claiming && self.claim != Some(hold_id) =>
            {
                let is_known = self.targets.contains(&hold_id);
                Some(What::LookAtClaim { is_first: self.targets.is_empty(), is_known })
            }
            Op::Link(_, Name::Beside(Beside::Claim, _)) if is_ready => Some(What::Claim),
            Op::Rename(Name::Beside(Beside::Claim, _), _) => Some(What::Rename),
            _ => None,
        }
    }

    fn sweeper_forgets_at(&self, op: Op) -> Option<What> {
        let (name, unlinks) = match op {
            Op::Open(name, _) => (name, false),
            Op::Unlink(name) => (name, true),
            _ => return None,
        };
        let at = self.sweep.list.iter().position(|listed| *listed == name);
        let Sweep { in_use, has_removed, .. } = self.sweep;
        self.handles.is_empty().then_some(What::Sweep { at, unlinks, in_use, has_removed })
    }

    fn note_sweep(&mut self, op: Op, answer: Answer) {
        match (op, answer) {
            (Op::List, Answer::Names(number)) => {
                self.sweep = Sweep { list: super::replay::names(number), ..Sweep::default() };
            }
            (Op::Open(name, _), _) => self.sweep.opened = Some(name),
            (Op::Unlink(_), Answer::Done) => self.sweep.has_removed = true,
            (Op::Read(_), Answer::Text(Text::Ours { hold_id, .. })) => {
                let protects =
                    matches!(self.sweep.opened, Some(Name::Path | Name::Beside(Beside::Claim, _)));
                let claim = Name::Beside(Beside::Claim, hold_id);
                let at = self.sweep.list.iter().position(|name| *name == claim);
                if let Some(at) = at.filter(|_| protects) {
                    self.sweep.in_use |= 1 << at;
                }
            }
            _ => {}
        }
    }

    /// Follow what its round is about.
    fn settle(&mut self, op: Op, what: Option<What>) {
        match (op, what) {
            // A sweeper's list says it all.
            (
                _,
                Some(What::Top | What::Link | What::TakeOver | What::Hold | What::Sweep { .. }),
            ) => {
                self.targets.clear();
                (self.claim, self.is_claiming) = (None, false);
            }
            (Op::Open(Name::Beside(Beside::Claim, hold_id), _), _) if self.targets.is_empty() => {
                self.targets.push(hold_id);
            }
            (Op::Link(_, Name::Beside(Beside::Claim, hold_id)), _) => {
                self.is_claiming = true;
                if !self.targets.contains(&hold_id) {
                    self.targets.push(hold_id);
                }
            }
            (Op::Rename(Name::Beside(Beside::Claim, hold_id), _), _) => {
                let at = self.targets.iter().position(|target| *target == hold_id);
                self.targets.truncate(at.map_or(0, |at| at + 1));
            }
            _ => {}
        }
    }

    fn note(&mut self, op: Op, answer: Answer) {
        match answer {
            Answer::Opened => {
                self.handles.push(Open { handle: self.met.handles, inode: None, hold_id: None });
                self.met.handles += 1;
            }
            Answer::Inode(symbol) => self.met.inodes = self.met.inodes.max(symbol + 1),
            Answer::HoldId(symbol) => {
                self.hold_id = Some(symbol);
                self.met.hold_ids = self.met.hold_ids.max(symbol + 1);
            }
            Answer::Text(text) => self.note_text(text),
            Answer::Names(number) => {
                for name in super::replay::names(number) {
                    if let Name::Beside(_, hold_id) = name {
                        self.met.hold_ids = self.met.hold_ids.max(hold_id + 1);
                    }
                }
            }
            _ => {}
        }
        self.note_sweep(op, answer);
        match (op, answer) {
            (Op::Open(Name::Path, _), answer) => self.found_nothing = answer != Answer::Opened,
            (Op::LinkUnnamed(..), answer) => {
                self.found_nothing = false;
                self.has_named |= answer == Answer::Done;
            }
            (Op::Choose(_), _) => self.has_chosen = true,
            (Op::Sleep, _) => self.has_slept = true,
            (Op::Inspect(handle), Answer::Inode(inode)) => {
                for kept in self.handles.iter_mut().filter(|kept| kept.handle == handle) {
                    kept.inode = Some(inode);
                }
            }
            (Op::Write(handle, Text::Ours { hold_id, .. }), Answer::Done) => {
                for kept in self.handles.iter_mut().filter(|kept| kept.handle == handle) {
                    kept.hold_id = Some(hold_id);
                }
            }
            (Op::Open(Name::Beside(Beside::Claim, hold_id), _), _) => self.claim = Some(hold_id),
            (Op::Judge(_), Answer::Dead(is_dead)) => self.has_judged = is_dead,
            (Op::Close(handle), _) => self.handles.retain(|kept| kept.handle != handle),
            (Op::Create(name), Answer::Opened) | (Op::Link(_, name), Answer::Done) => {
                self.note_name(name);
            }
            // It is another's by now, or free.
            (Op::Rename(from, _), Answer::Failed(_)) => self.names.retain(|name| *name != from),
            (Op::Rename(from, to) | Op::RenameToFree(from, to), Answer::Done) => {
                self.has_judged = false;
                self.names.retain(|name| *name != from);
                self.note_name(to);
            }
            (Op::Unlink(gone), _) => self.names.retain(|name| *name != gone),
            _ => {}
        }
    }

    /// The path itself is not removed by its maker, but by the holder.
    fn note_name(&mut self, name: Name) {
        match name {
            Name::Path => self.has_named = true,
            name => self.names.push(name),
        }
    }

    fn note_text(&mut self, text: Text) {
        if let Text::Ours { hold_id, .. } = text {
            self.met.hold_ids = self.met.hold_ids.max(hold_id + 1);
        }
        if let Some(pid) = text.pid() {
            self.met.pids = self.met.pids.max(pid + 1);
        }
        self.has_seen_foreign |= matches!(text, Text::Foreign(_) | Text::Torn(_) | Text::Empty);
    }
}
