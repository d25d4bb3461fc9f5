//! Worlds that differ only in what things are called are one: inodes, hold ids
//! and processes are renumbered in the order in which they are met on a walk
//! that begins at the processes.

use super::hash::fingerprint;
use super::vocabulary::{Symbol, Text};
use super::world::{DEAD, Few, Handle, Lock, NOTHING, PLAYERS_MAX, Player, World};

/// A world under its own name.
pub(super) struct Ordered {
    pub(super) world: World,
    /// For each process of `world`, its number before.
    pub(super) players: Few<u8, PLAYERS_MAX>,
    /// The same for hold ids and inodes.
    pub(super) hold_ids: Vec<Symbol>,
    pub(super) inodes: Vec<Symbol>,
}

/// Buffers that are used again and again.
#[derive(Default)]
pub(super) struct Orderer {
    best: Walk,
    walk: Walk,
}

/// One walk: what was met, and the new numbers.
#[derive(Default)]
struct Walk {
    bytes: Vec<u8>,
    /// Old numbers in their new order.
    inodes: Vec<Symbol>,
    hold_ids: Vec<Symbol>,
    players: Vec<u8>,
    written: usize,
    entries: u32,
}

impl Orderer {
    pub(super) fn order(&mut self, world: &World) -> Ordered {
        self.fingerprint(world);
        self.ordered(world)
    }

    /// The same for all worlds that are one.
    pub(super) fn fingerprint(&mut self, world: &World) -> u128 {
        let mut players: Few<u8, PLAYERS_MAX> = Few::new(0);
        (0..world.players.len() as u8).for_each(|number| players.push(number));
        players.sort_by_key(|&number| key(&world.players[usize::from(number)]));
        self.best.bytes.clear();
        self.permute(world, &mut players, 0);
        fingerprint(&self.best.bytes)
    }

    /// The world whose fingerprint was the last to be asked for. Most are known
    /// by it, and need not be made.
    pub(super) fn ordered(&self, world: &World) -> Ordered {
        self.best.renumber(world)
    }

    /// Forget what is gone, and leave `who` where it is.
    pub(super) fn tidy(&mut self, world: &World) -> World {
        let players: Vec<u8> = (0..world.players.len() as u8).collect();
        self.walk.go(world, &players);
        self.walk.renumber(world).world
    }

    /// What tells a world from others, its processes in their order.
    pub(super) fn tidy_bytes(&mut self, world: &World) -> Vec<u8> {
        let players: Vec<u8> = (0..world.players.len() as u8).collect();
        self.walk.go(world, &players);
        self.walk.bytes.clone()
    }

    /// Walk in every order of those processes that look alike.
    fn permute(&mut self, world: &World, players: &mut [u8], at: usize) {
        if at == players.len() {
            self.walk.go(world, players);
            if self.best.bytes.is_empty() || self.walk.bytes < self.best.bytes {
                std::mem::swap(&mut self.best, &mut self.walk);
            }
            return;
        }
        self.permute(world, players, at + 1);
        let player = &world.players[usize::from(players[at])];
        if player.handles.is_empty() && player.inodes.is_empty() && player.hold_ids.is_empty() {
            return;
        }
        for other in at + 1..players.len() {
            if key(player) != key(&world.players[usize::from(players[other])]) {
                break;
            }
            players.swap(at, other);
            self.permute(world, players, at + 1);
            players.swap(at, other);
        }
    }
}

/// What of a process does not depend on numbers.
fn key(player: &Player) -> (u8, u8, u8, u32, u32) {
    let locks = player.handles.iter().fold(0, |locks: u32, handle| locks << 2 | lock(handle));
    (player.program as u8, player.status as u8, player.left, player.node, locks)
}

fn lock(handle: &Handle) -> u32 {
    match handle.lock {
        Lock::None => 0,
        Lock::Shared => 1,
        Lock::Exclusive => 2,
    }
}

impl Walk {
    fn go(&mut self, world: &World, players: &[u8]) {
        self.bytes.clear();
        self.inodes.clear();
        self.hold_ids.clear();
        self.players.clear();
        self.players.extend_from_slice(players);
        (self.written, self.entries) = (0, 0);
        self.bytes.extend([
            world.kills_left,
            world.was_killed.into(),
            world.failure.is_some().into(),
        ]);
        for &number in players {
            self.player(&world.players[usize::from(number)]);
        }
        let at_path = self.inode(world.at_path);
        self.bytes.push(at_path);
        self.texts(world);
        while let Some(entry) = self.next_entry(world) {
            self.entries |= 1 << entry;
            let entry = world.entries[entry];
            let (hold_id, inode) = (self.hold_id(entry.hold_id), self.inode(entry.inode));
            self.bytes.extend([entry.beside as u8, hold_id, inode]);
            self.texts(world);
        }
    }

    fn player(&mut self, player: &Player) {
        self.bytes.extend([player.program as u8, player.status as u8, player.left]);
        self.bytes.extend(player.node.to_le_bytes());
        let mut waits_for = 0;
        for (new, &old) in self.players.iter().enumerate() {
            waits_for |= (player.waits_for >> old & 1) << new;
        }
        self.bytes.extend([waits_for, player.handles.len() as u8]);
        for handle in player.handles.iter() {
            let inode = self.inode(handle.inode);
            self.bytes.extend([inode, lock(handle) as u8]);
        }
        self.bytes.push(player.inodes.len() as u8);
        for &inode in player.inodes.iter() {
            let inode = self.inode(inode);
            self.bytes.push(inode);
        }
        self.bytes.push(player.hold_ids.len() as u8);
        for &hold_id in player.hold_ids.iter() {
            let hold_id = self.hold_id(hold_id);
            self.bytes.push(hold_id);
        }
        self.bytes.push(player.pids.len() as u8);
        for &pid in player.pids.iter() {
            let pid = self.pid(pid);
            self.bytes.push(pid);
        }
    }

    fn inode(&mut self, old: Symbol) -> Symbol {
        number(&mut self.inodes, old)
    }

    fn hold_id(&mut self, old: Symbol) -> Symbol {
        number(&mut self.hold_ids, old)
    }

    fn pid(&self, old: Symbol) -> Symbol {
        match self.players.iter().position(|&number| number == old) {
            Some(new) => new as u8,
            None => old,
        }
    }

    /// What the inodes that were met hold.
    fn texts(&mut self, world: &World) {
        while self.written < self.inodes.len() {
            let inode = self.inodes[self.written];
            self.written += 1;
            if world.exists(inode) {
                let text = self.text(world.texts[usize::from(inode)]);
                self.bytes.extend(text);
            } else {
                self.bytes.push(NOTHING);
            }
        }
    }

    fn text(&mut self, text: Text) -> [u8; 4] {
        match text {
            Text::Empty => [0; 4],
            Text::Ours { pid, hold_id, proof, released } => {
                let kind = 1 + (proof as u8) * 2 + u8::from(released);
                [kind, self.pid(pid), self.hold_id(hold_id), 0]
            }
            Text::Foreign(pid) => [5, self.pid(pid), 0, 0],
            Text::Torn(pid) => [6, self.pid(pid), 0, 0],
        }
    }

    /// First the names of which most is known already.
    fn next_entry(&self, world: &World) -> Option<usize> {
        let rank = |numbers: &[Symbol], old: Symbol| {
            numbers.iter().position(|&number| number == old).unwrap_or(usize::from(NOTHING))
        };
        let left = (0..world.entries.len()).filter(|entry| self.entries & 1 << entry == 0);
        left.min_by_key(|&at| {
            let entry = world.entries[at];
            let hold_id = rank(&self.hold_ids, entry.hold_id);
            let inode = rank(&self.inodes, entry.inode);
            let text = match world.texts[usize::from(entry.inode)] {
                Text::Ours { pid, proof, .. } => (self.pid(pid), proof as u8),
                _ => (DEAD, 2),
            };
            (hold_id, inode, entry.beside, text)
        })
    }

    fn renumber(&self, old: &World) -> Ordered {
        let mut world = old.clone();
        let inode = |old: Symbol| position(&self.inodes, old);
        let hold_id = |old: Symbol| position(&self.hold_ids, old);
        let mut players = Few::new(0);
        for (new, &number) in self.players.iter().enumerate() {
            players.push(number);
            world.players[new] = old.players[usize::from(number)];
            let player = &mut world.players[new];
            let waits_for = player.waits_for;
            player.waits_for = 0;
            for (new, &old) in self.players.iter().enumerate() {
                player.waits_for |= (waits_for >> old & 1) << new;
            }
            player.handles.iter_mut().for_each(|handle| handle.inode = inode(handle.inode));
            player.inodes.iter_mut().for_each(|known| *known = inode(*known));
            player.hold_ids.iter_mut().for_each(|known| *known = hold_id(*known));
            player.pids.iter_mut().for_each(|known| *known = self.pid(*known));
        }
        world.at_path = inode(old.at_path);
        world.texts = Few::new(Text::Empty);
        for &number in &self.inodes {
            let text =
                if old.exists(number) { old.texts[usize::from(number)] } else { Text::Empty };
            world.texts.push(text.map(|pid| self.pid(pid), hold_id));
        }
        for entry in world.entries.iter_mut() {
            (entry.inode, entry.hold_id) = (inode(entry.inode), hold_id(entry.hold_id));
        }
        world.entries.sort_by_key(|entry| (entry.beside, entry.hold_id));
        world.hold_ids = self.hold_ids.len() as u8;
        let (hold_ids, inodes) = (self.hold_ids.clone(), self.inodes.clone());
        Ordered { world, players, hold_ids, inodes }
    }
}

fn number(numbers: &mut Vec<Symbol>, old: Symbol) -> Symbol {
    if old == NOTHING {
        return NOTHING;
    }
    match numbers.iter().position(|&number| number == old) {
        Some(new) => new as u8,
        None => {
            numbers.push(old);
            numbers.len() as u8 - 1
        }
    }
}

fn position(numbers: &[Symbol], old: Symbol) -> Symbol {
    if old == NOTHING {
        return NOTHING;
    }
    let new = numbers.iter().position(|&number| number == old);
    new.expect("BUG: something was not met") as u8
}
