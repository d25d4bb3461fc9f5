//! The simulated machine: files with and without names, descriptions, kernel
//! locks, processes that are killed, and how each step changes them.

use super::automaton::{Automaton, Node};
use super::program::Program;
use super::replay::names_number;
use super::vocabulary::{Answer, Beside, Ended, Name, Op, Symbol, Text};
use crate::file::protocol::disk::Flock;
use crate::file::record::RecordedProof;
use crate::sys::files::Errno;

/// Most processes in a world.
pub(super) const PLAYERS_MAX: usize = 6;

/// Most inodes at a time; a trace, where none is forgotten, is not longer.
const INODES_MAX: usize = 32;

/// A symbol that stands for nothing any more, and a process that is over.
pub(super) const NOTHING: Symbol = u8::MAX;
pub(super) const DEAD: Symbol = u8::MAX - 1;

/// A short list without a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Few<T: Copy, const MOST: usize> {
    length: u8,
    items: [T; MOST],
}

impl<T: Copy, const MOST: usize> Few<T, MOST> {
    pub(super) fn new(filler: T) -> Self {
        Self { length: 0, items: [filler; MOST] }
    }

    pub(super) fn push(&mut self, item: T) {
        self.items[usize::from(self.length)] = item;
        self.length += 1;
    }

    pub(super) fn swap_remove(&mut self, at: usize) {
        self.length -= 1;
        self.items[at] = self.items[usize::from(self.length)];
    }
}

impl<T: Copy, const MOST: usize> std::ops::Deref for Few<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..usize::from(self.length)]
    }
}

impl<T: Copy, const MOST: usize> std::ops::DerefMut for Few<T, MOST> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[..usize::from(self.length)]
    }
}

/// What one process calls what.
type Known = Few<Symbol, 20>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    None,
    Shared,
    Exclusive,
}

/// An open file description. Closed: its inode is [`NOTHING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) inode: Symbol,
    pub(super) lock: Lock,
}

const CLOSED: Handle = Handle { inode: NOTHING, lock: Lock::None };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Running,
    /// Killed, and the kernel closes its descriptors one after the other.
    Dying,
    Over,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Player {
    pub(super) program: Program,
    pub(super) status: Status,
    pub(super) node: Node,
    /// Acquisitions that are not over.
    pub(super) left: u8,
    pub(super) handles: Few<Handle, 20>,
    pub(super) inodes: Known,
    pub(super) hold_ids: Known,
    pub(super) pids: Known,
    /// While it sleeps: the processes that must be out of their window first.
    pub(super) waits_for: u8,
}

/// A name beside the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) beside: Beside,
    pub(super) hold_id: Symbol,
    pub(super) inode: Symbol,
}

/// What may happen in a world.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// A process lists the directory, so that names matter that none was told.
    pub(super) has_sweeper: bool,
    pub(super) has_revoker: bool,
    /// What is judged by its process decides.
    pub(super) judges_processes: bool,
    /// The file system has no hard links.
    pub(super) has_no_links: bool,
    /// Nor files without a name, as on any system but Linux.
    pub(super) has_no_unnamed: bool,
    /// Others can come in between any two steps, also where they would notice
    /// no difference.
    pub(super) is_stepwise: bool,
    /// Processes with acquisitions left go on as they are.
    pub(super) nobody_exits: bool,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) players: Few<Player, PLAYERS_MAX>,
    /// By inode number; what has no name and is not open is forgotten later.
    pub(super) texts: Few<Text, INODES_MAX>,
    pub(super) at_path: Symbol,
    pub(super) entries: Few<Entry, 16>,
    pub(super) hold_ids: Symbol,
    pub(super) kills_left: u8,
    pub(super) was_killed: bool,
    /// An error that no process should see.
    pub(super) failure: Option<&'static str>,
}

/// What a scheduler can let happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// The step of a process, and which of its possible outcomes.
    Step(u8, u8),
    Kill(u8),
    /// The kernel closes a descriptor of a killed process.
    Reap(u8, u8),
}

impl Action {
    /// The same by another process.
    pub(super) fn by(self, who: u8) -> Action {
        match self {
            Action::Step(_, choice) => Action::Step(who, choice),
            Action::Kill(_) => Action::Kill(who),
            Action::Reap(_, handle) => Action::Reap(who, handle),
        }
    }
}

impl World {
    pub(super) fn new(automaton: &mut Automaton, programs: &[(Program, u8)], kills: u8) -> Self {
        let filler = Player {
            program: Program::Pinned,
            status: Status::Over,
            node: 0,
            left: 0,
            handles: Few::new(CLOSED),
            inodes: Known::new(NOTHING),
            hold_ids: Known::new(NOTHING),
            pids: Known::new(NOTHING),
            waits_for: 0,
        };
        let mut players = Few::new(filler);
        for (number, &(program, left)) in programs.iter().enumerate() {
            let mut player = Player { program, left, status: Status::Running, ..filler };
            player.begin(automaton, number as u8);
            players.push(player);
        }
        Self {
            players,
            texts: Few::new(Text::Empty),
            at_path: NOTHING,
            entries: Few::new(Entry { beside: Beside::Scratch, hold_id: NOTHING, inode: NOTHING }),
            hold_ids: 0,
            kills_left: kills,
            was_killed: false,
            failure: None,
        }
    }

    /// What a portable process leaves that is killed when it holds, or, if there
    /// is something stale already, when it has claimed the last of that.
    pub(super) fn leave_by_a_dead_one(&mut self) {
        let (inode, hold_id) = (self.texts.len() as u8, self.hold_ids);
        self.texts.push(Text::Ours {
            pid: DEAD,
            hold_id,
            proof: RecordedProof::Process,
            released: false,
        });
        match hold_id.checked_sub(1) {
            None => self.at_path = inode,
            Some(before) => self.put(Name::Beside(Beside::Claim, before), inode),
        }
        self.hold_ids += 1;
        self.was_killed = true;
    }

    /// How many users are inside.
    pub(super) fn holders(&self, automaton: &Automaton) -> usize {
        self.players.iter().filter(|player| player.holds(automaton)).count()
    }

    /// Let every action that is possible happen, each in a world of its own.
    pub(super) fn successors(
        &self,
        automaton: &mut Automaton,
        rules: Rules,
        mut each: impl FnMut(Action, World),
    ) {
        for who in 0..self.players.len() as u8 {
            let player = &self.players[usize::from(who)];
            match player.status {
                Status::Over => {}
                Status::Running => {
                    for choice in 0.. {
                        let mut next = self.clone();
                        if !next.step(automaton, rules, who, choice) {
                            break;
                        }
                        each(Action::Step(who, choice), next);
                    }
                    if self.kills_left > 0 && !player.is_at_start(automaton) {
                        let mut next = self.clone();
                        next.kill(automaton, rules, who);
                        each(Action::Kill(who), next);
                    }
                }
                Status::Dying => {
                    for handle in 0..player.handles.len() as u8 {
                        let mut next = self.clone();
                        next.reap(automaton, who, handle);
                        each(Action::Reap(who, handle), next);
                    }
                }
            }
        }
    }

    pub(super) fn act(&mut self, automaton: &mut Automaton, rules: Rules, action: Action) {
        match action {
            Action::Step(who, choice) => {
                assert!(self.step(automaton, rules, who, choice), "BUG: no such step");
            }
            Action::Kill(who) => self.kill(automaton, rules, who),
            Action::Reap(who, handle) => self.reap(automaton, who, handle),
        }
    }

    /// One step, and then those that no other process can notice.
    fn step(&mut self, automaton: &mut Automaton, rules: Rules, who: u8, choice: u8) -> bool {
        let op = automaton.op(self.players[usize::from(who)].node);
        if let Op::End(ended) = op {
            return self.end(automaton, who, ended, choice);
        }
        let Some(answer) = self.perform(rules, who, op, choice) else {
            return false;
        };
        self.advance(automaton, who, answer);
        loop {
            let op = automaton.op(self.players[usize::from(who)].node);
            match op {
                Op::End(ended) if rules.nobody_exits || !self.is_named_by_another(who) => {
                    self.end(automaton, who, ended, 0);
                    break;
                }
                _ if rules.is_stepwise || !self.is_unnoticed(rules, who, op) => break,
                _ => {}
            }
            let answer = self.perform(rules, who, op, 0).expect("BUG: no such step");
            self.advance(automaton, who, answer);
        }
        self.note_windows(automaton, who);
        true
    }

    fn advance(&mut self, automaton: &mut Automaton, who: u8, answer: Answer) {
        let player = &mut self.players[usize::from(who)];
        let edge = automaton.advance(player.node, answer);
        player.node = edge.to;
        let Some(fold) = &edge.fold else {
            return;
        };
        let old = *player;
        player.handles = Few::new(CLOSED);
        for symbol in &fold.handles {
            player.handles.push(symbol.map_or(CLOSED, |old_one| old.handles[usize::from(old_one)]));
        }
        let renew = |known: &mut Known, old: &Known, symbols: &[Option<Symbol>]| {
            *known = Known::new(NOTHING);
            for symbol in symbols {
                known.push(symbol.map_or(NOTHING, |old_one| old[usize::from(old_one)]));
            }
        };
        renew(&mut player.inodes, &old.inodes, &fold.inodes);
        renew(&mut player.hold_ids, &old.hold_ids, &fold.hold_ids);
        renew(&mut player.pids, &old.pids, &fold.pids);
    }

    /// Whether a step neither changes anything that others can see, nor sees
    /// anything that others can change. Such a step may as well come at once.
    fn is_unnoticed(&self, rules: Rules, who: u8, op: Op) -> bool {
        let player = &self.players[usize::from(who)];
        match op {
            Op::Inspect(_) | Op::Trusts(_) | Op::DrawHoldId | Op::CreateUnnamed => true,
            Op::Judge(_) => !rules.judges_processes,
            Op::LinkUnnamed(..) | Op::Link(..) => rules.has_no_links,
            Op::Close(handle) | Op::Unlock(handle) => {
                let handle = player.handles[usize::from(handle)];
                handle.lock == Lock::None || self.is_private(rules, who, handle.inode)
            }
            Op::Write(handle, _) | Op::Flock(handle, _) | Op::Read(handle) => {
                self.is_private(rules, who, player.handles[usize::from(handle)].inode)
            }
            Op::Create(Name::Beside(Beside::Scratch, _))
            | Op::Unlink(Name::Beside(Beside::Scratch, _)) => true,
            Op::Unlink(Name::Beside(Beside::Revocation, _)) => !rules.has_revoker,
            _ => false,
        }
    }

    /// Whether no other process has this inode open or can open it.
    fn is_private(&self, rules: Rules, who: u8, inode: Symbol) -> bool {
        let is_open_elsewhere = |(number, player): (usize, &Player)| {
            number != usize::from(who) && player.handles.iter().any(|open| open.inode == inode)
        };
        let is_secret = |entry: &Entry| match entry.beside {
            Beside::Scratch => true,
            Beside::Candidate => !rules.has_sweeper,
            Beside::Claim | Beside::Revocation => false,
        };
        self.at_path != inode
            && self.entries.iter().all(|entry| entry.inode != inode || is_secret(entry))
            && !self.players.iter().enumerate().any(is_open_elsewhere)
    }

    /// Carry out a step; `None` if it has no such outcome, or cannot be yet.
    fn perform(&mut self, rules: Rules, who: u8, op: Op, choice: u8) -> Option<Answer> {
        let outcomes = match op {
            Op::Choose(among) => among,
            Op::CreateUnnamed if rules.has_no_unnamed => 1,
            Op::CreateUnnamed | Op::Create(_) => 1 + self.ghosts().len() as u8,
            Op::Sleep if self.players[usize::from(who)].waits_for != 0 => 0,
            _ => 1,
        };
        if choice >= outcomes {
            return None;
        }
        Some(match op {
            Op::LinkUnnamed(..) | Op::Link(..) if rules.has_no_links => failed(Errno::PERM),
            Op::Open(name, _) => self.open(who, name),
            Op::CreateUnnamed if rules.has_no_unnamed => failed(Errno::OPNOTSUPP),
            Op::CreateUnnamed => self.create(who, choice),
            Op::Create(name) => {
                let name = self.name(who, name);
                let answer = self.create(who, choice);
                let created = self.player(who).handles.last().expect("BUG: nothing was made").inode;
                self.put(name, created);
                answer
            }
            Op::Inspect(handle) => {
                let inode = self.handle(who, handle).inode;
                self.inode_symbol(who, inode)
            }
            Op::Links(handle) => {
                let inode = self.handle(who, handle).inode;
                let beside = self.entries.iter().filter(|entry| entry.inode == inode).count();
                Answer::Links(beside as u8 + u8::from(self.at_path == inode))
            }
            Op::Look(name) => match self.named(self.name(who, name)) {
                NOTHING => failed(Errno::NOENT),
                inode => self.inode_symbol(who, inode),
            },
            Op::Read(handle) => {
                let inode = self.handle(who, handle).inode;
                let text = self.texts[usize::from(inode)];
                Answer::Text(self.text_symbols(who, text))
            }
            Op::Write(handle, text) => {
                let player = self.player(who);
                let text = text.map(
                    |pid| player.pids[usize::from(pid)],
                    |hold_id| player.hold_ids[usize::from(hold_id)],
                );
                let inode = self.handle(who, handle).inode;
                self.texts[usize::from(inode)] = text;
                Answer::Done
            }
            Op::Flock(handle, flock) => Answer::Granted(self.flock(who, handle, flock)),
            Op::Unlock(handle) => {
                self.handle(who, handle).lock = Lock::None;
                Answer::Done
            }
            Op::Close(handle) => {
                *self.handle(who, handle) = CLOSED;
                Answer::Done
            }
            Op::LinkUnnamed(handle, to) => {
                let inode = self.handle(who, handle).inode;
                self.link(inode, self.name(who, to))
            }
            Op::Link(from, to) => match self.named(self.name(who, from)) {
                NOTHING => failed(Errno::NOENT),
                inode => self.link(inode, self.name(who, to)),
            },
            Op::Rename(from, to) => self.rename(self.name(who, from), self.name(who, to)),
            Op::RenameToFree(from, to) => {
                let (from, to) = (self.name(who, from), self.name(who, to));
                match (self.named(from), self.named(to)) {
                    (NOTHING, _) => failed(Errno::NOENT),
                    (_, NOTHING) => self.rename(from, to),
                    _ => failed(Errno::EXIST),
                }
            }
            Op::Unlink(name) => {
                let name = self.name(who, name);
                if self.named(name) == NOTHING {
                    return Some(failed(Errno::NOENT));
                }
                self.remove(name);
                Answer::Done
            }
            Op::List => self.list(who),
            Op::Trusts(_) | Op::Sleep | Op::Hold => Answer::Done,
            Op::DrawHoldId => {
                self.hold_ids += 1;
                let hold_id = self.hold_ids - 1;
                Answer::HoldId(know(&mut self.players[usize::from(who)].hold_ids, hold_id))
            }
            Op::Judge(pid) => Answer::Dead(self.player(who).pids[usize::from(pid)] == DEAD),
            Op::Choose(_) => Answer::Chosen(choice),
            Op::End(_) => unreachable!("BUG: an end has no answer"),
        })
    }

    fn player(&self, who: u8) -> &Player {
        &self.players[usize::from(who)]
    }

    fn handle(&mut self, who: u8, handle: Symbol) -> &mut Handle {
        &mut self.players[usize::from(who)].handles[usize::from(handle)]
    }

    fn name(&self, who: u8, name: Name) -> Name {
        name.map(|hold_id| match self.player(who).hold_ids[usize::from(hold_id)] {
            NOTHING => panic!("BUG: a token that was forgotten is used"),
            hold_id => hold_id,
        })
    }

    fn named(&self, name: Name) -> Symbol {
        match name {
            Name::Path => self.at_path,
            Name::Beside(..) => self.entry(name).map_or(NOTHING, |entry| self.entries[entry].inode),
        }
    }

    fn entry(&self, name: Name) -> Option<usize> {
        self.entries.iter().position(|entry| Name::Beside(entry.beside, entry.hold_id) == name)
    }

    fn put(&mut self, name: Name, inode: Symbol) {
        match (name, self.entry(name)) {
            (Name::Path, _) => self.at_path = inode,
            (Name::Beside(..), Some(at)) => self.entries[at].inode = inode,
            (Name::Beside(beside, hold_id), None) => {
                self.entries.push(Entry { beside, hold_id, inode });
            }
        }
    }

    fn remove(&mut self, name: Name) {
        match self.entry(name) {
            Some(at) => self.entries.swap_remove(at),
            None => self.at_path = NOTHING,
        }
    }

    fn link(&mut self, inode: Symbol, to: Name) -> Answer {
        if self.named(to) != NOTHING {
            return failed(Errno::EXIST);
        }
        self.put(to, inode);
        Answer::Done
    }

    fn rename(&mut self, from: Name, to: Name) -> Answer {
        let inode = self.named(from);
        if inode == NOTHING {
            return failed(Errno::NOENT);
        }
        // Of two links of one inode, rename(2) leaves both.
        if self.named(to) != inode {
            self.remove(from);
            self.put(to, inode);
        }
        Answer::Done
    }

    fn open(&mut self, who: u8, name: Name) -> Answer {
        match self.named(self.name(who, name)) {
            NOTHING => failed(Errno::NOENT),
            inode => {
                let handle = Handle { inode, lock: Lock::None };
                self.players[usize::from(who)].handles.push(handle);
                Answer::Opened
            }
        }
    }

    /// A new inode; its number may be one that is free again.
    fn create(&mut self, who: u8, choice: u8) -> Answer {
        let inode = match choice.checked_sub(1) {
            Some(ghost) => self.ghosts()[usize::from(ghost)],
            None => {
                self.texts.push(Text::Empty);
                self.texts.len() as u8 - 1
            }
        };
        self.texts[usize::from(inode)] = Text::Empty;
        self.players[usize::from(who)].handles.push(Handle { inode, lock: Lock::None });
        Answer::Opened
    }

    /// Numbers of inodes that are gone but that some process remembers.
    fn ghosts(&self) -> Few<Symbol, INODES_MAX> {
        let mut ghosts = Few::new(NOTHING);
        for inode in 0..self.texts.len() as u8 {
            let is_known = self.players.iter().any(|player| player.inodes.contains(&inode));
            if is_known && !self.exists(inode) {
                ghosts.push(inode);
            }
        }
        ghosts
    }

    pub(super) fn exists(&self, inode: Symbol) -> bool {
        self.at_path == inode
            || self.entries.iter().any(|entry| entry.inode == inode)
            || self.handles().any(|handle| handle.inode == inode)
    }

    fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.players.iter().flat_map(|player| player.handles.iter())
    }

    fn flock(&mut self, who: u8, handle: Symbol, flock: Flock) -> bool {
        let mine = *self.handle(who, handle);
        let others = self.players.iter().enumerate().flat_map(|(number, player)| {
            let is_mine = move |at| number == usize::from(who) && at == usize::from(handle);
            let handles = player.handles.iter().enumerate();
            handles.filter(move |(at, _)| !is_mine(*at)).map(|(_, handle)| handle)
        });
        let conflicts = |other: &Handle| {
            other.inode == mine.inode
                && (other.lock == Lock::Exclusive
                    || other.lock == Lock::Shared && flock == Flock::Exclusive)
        };
        if others.into_iter().any(conflicts) {
            return false;
        }
        self.handle(who, handle).lock = match flock {
            Flock::Shared => Lock::Shared,
            Flock::Exclusive => Lock::Exclusive,
        };
        true
    }

    fn list(&mut self, who: u8) -> Answer {
        let entries = self.entries;
        let known = &mut self.players[usize::from(who)].hold_ids;
        let names = entries.iter().filter(|entry| entry.beside != Beside::Scratch);
        let names = names.map(|entry| Name::Beside(entry.beside, know(known, entry.hold_id)));
        Answer::Names(names_number(names.collect()))
    }

    fn inode_symbol(&mut self, who: u8, inode: Symbol) -> Answer {
        Answer::Inode(know(&mut self.players[usize::from(who)].inodes, inode))
    }

    fn text_symbols(&mut self, who: u8, text: Text) -> Text {
        let Player { pids, hold_ids, .. } = &mut self.players[usize::from(who)];
        text.map(|pid| know(pids, pid), |hold_id| know(hold_ids, hold_id))
    }

    /// A process was killed.
    fn kill(&mut self, automaton: &mut Automaton, rules: Rules, who: u8) {
        self.kills_left -= 1;
        self.was_killed = true;
        self.forget(who);
        let player = &mut self.players[usize::from(who)];
        player.status = Status::Dying;
        let open = player.handles;
        player.handles = Few::new(CLOSED);
        for handle in open.iter().filter(|handle| **handle != CLOSED) {
            player.handles.push(*handle);
        }
        let mut at = 0;
        while at < self.player(who).handles.len() {
            let handle = self.player(who).handles[at];
            if handle.lock == Lock::None || self.is_private(rules, who, handle.inode) {
                self.players[usize::from(who)].handles.swap_remove(at);
            } else {
                at += 1;
            }
        }
        self.note_windows(automaton, who);
        self.gone_if_closed(automaton, who);
    }

    fn reap(&mut self, automaton: &mut Automaton, who: u8, handle: u8) {
        self.players[usize::from(who)].handles.swap_remove(usize::from(handle));
        self.gone_if_closed(automaton, who);
    }

    fn gone_if_closed(&mut self, automaton: &mut Automaton, who: u8) {
        if self.player(who).handles.is_empty() {
            self.gone(who);
            self.next_acquisition(automaton, who);
        }
    }

    /// Nothing of it is in memory any more.
    fn forget(&mut self, who: u8) {
        let player = &mut self.players[usize::from(who)];
        (player.inodes, player.hold_ids) = (Known::new(NOTHING), Known::new(NOTHING));
        player.pids = Known::new(NOTHING);
        player.node = 0;
        player.waits_for = 0;
    }

    /// The process with this number does not run any more.
    fn gone(&mut self, who: u8) {
        let bury = |pid: Symbol| if pid == who { DEAD } else { pid };
        for text in self.texts.iter_mut() {
            *text = text.map(bury, |hold_id| hold_id);
        }
        for player in self.players.iter_mut() {
            for pid in player.pids.iter_mut() {
                *pid = bury(*pid);
            }
        }
    }

    fn next_acquisition(&mut self, automaton: &mut Automaton, who: u8) {
        let player = &mut self.players[usize::from(who)];
        player.left -= 1;
        if player.left == 0 {
            self.forget(who);
            self.gone(who);
            self.players[usize::from(who)].status = Status::Over;
        } else {
            player.begin(automaton, who);
        }
    }

    /// The end of a run. If a process knows this one by its number, it may
    /// also end and be followed by another.
    fn end(&mut self, automaton: &mut Automaton, who: u8, ended: Ended, choice: u8) -> bool {
        if choice > u8::from(self.is_named_by_another(who)) {
            return false;
        }
        if choice == 1 {
            self.gone(who);
        }
        match ended {
            Ended::Failed(why) => {
                self.failure = Some(why);
                self.next_acquisition(automaton, who);
            }
            Ended::Busy => self.players[usize::from(who)].begin(automaton, who),
            Ended::Released | Ended::GivenUp => self.next_acquisition(automaton, who),
        }
        true
    }

    fn is_named_by_another(&self, who: u8) -> bool {
        let is_in_a_text =
            |(inode, text): (usize, &Text)| text.pid() == Some(who) && self.exists(inode as u8);
        let is_known = |(number, player): (usize, &Player)| {
            number != usize::from(who) && player.pids.contains(&who)
        };
        self.texts.iter().enumerate().any(is_in_a_text)
            || self.players.iter().enumerate().any(is_known)
    }

    /// A process that begins to sleep waits for those in the window; one that leaves
    /// the window is not waited for any more.
    fn note_windows(&mut self, automaton: &Automaton, who: u8) {
        let mut in_window = 0;
        for (number, player) in self.players.iter().enumerate() {
            in_window |= u8::from(player.is_in_window(automaton)) << number;
        }
        for player in self.players.iter_mut() {
            player.waits_for &= in_window;
        }
        let player = &mut self.players[usize::from(who)];
        if player.status == Status::Running && automaton.op(player.node) == Op::Sleep {
            player.waits_for = in_window;
        }
    }

    /// The same without what only processes know.
    pub(super) fn seen_from_outside(&self) -> World {
        let mut world = self.clone();
        for player in world.players.iter_mut() {
            player.node = 0;
            let open = player.handles;
            player.handles = Few::new(CLOSED);
            for handle in open.iter().filter(|handle| **handle != CLOSED) {
                player.handles.push(*handle);
            }
            (player.inodes, player.hold_ids) = (Known::new(NOTHING), Known::new(NOTHING));
            player.pids = Known::new(NOTHING);
        }
        world
    }

    /// What each process does next: which call, on which kind of name.
    pub(super) fn next_steps(&self, automaton: &Automaton) -> Vec<String> {
        let step = |player: &Player| {
            let words = format!("{:?}", automaton.op(player.node));
            words.chars().filter(|letter| !letter.is_ascii_digit()).collect()
        };
        self.players.iter().map(step).collect()
    }

    /// All but `who` are killed, and the kernel has closed everything.
    pub(super) fn leave_alone(&mut self, who: Option<u8>) {
        for number in 0..self.players.len() as u8 {
            if Some(number) != who && self.player(number).status != Status::Over {
                self.forget(number);
                self.players[usize::from(number)].handles = Few::new(CLOSED);
                self.gone(number);
                let player = &mut self.players[usize::from(number)];
                (player.status, player.left) = (Status::Over, 0);
                self.was_killed = true;
            }
        }
        if let Some(who) = who {
            self.players[usize::from(who)].waits_for = 0;
        }
        self.kills_left = 0;
    }

    /// A new process in the place of one that is over.
    pub(super) fn enter(&mut self, automaton: &mut Automaton, who: u8, program: Program) {
        let player = &mut self.players[usize::from(who)];
        (player.program, player.left, player.status) = (program, 1, Status::Running);
        player.begin(automaton, who);
    }
}

impl Player {
    /// Run the program from its start.
    fn begin(&mut self, automaton: &mut Automaton, who: u8) {
        self.status = Status::Running;
        self.node = automaton.start(self.program);
        self.handles = Few::new(CLOSED);
        (self.inodes, self.hold_ids) = (Known::new(NOTHING), Known::new(NOTHING));
        self.pids = Known::new(NOTHING);
        self.pids.push(who);
        self.waits_for = 0;
    }

    fn is_at_start(&self, automaton: &mut Automaton) -> bool {
        self.node == automaton.start(self.program)
    }

    pub(super) fn holds(&self, automaton: &Automaton) -> bool {
        self.status == Status::Running && automaton.op(self.node) == Op::Hold
    }

    /// openlock has judged and is about to replace.
    fn is_in_window(&self, automaton: &Automaton) -> bool {
        self.status == Status::Running && automaton.is_in_window(self.node)
    }
}

/// The symbol of `what`, a new one if it was not met before.
fn know(known: &mut Known, what: Symbol) -> Symbol {
    let at = known.iter().position(|&other| other == what).unwrap_or_else(|| {
        known.push(what);
        known.len() - 1
    });
    debug_assert!(what != NOTHING || at == known.len() - 1);
    at as u8
}

fn failed(error: Errno) -> Answer {
    Answer::Failed(error.raw_os_error())
}
