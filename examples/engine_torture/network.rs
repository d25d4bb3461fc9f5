//! The proxies between clients and servers, and what goes wrong with them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::dice::Dice;
use crate::due::Due;
use crate::engine::Actions;
use crate::proxy::{Break, Proxy};

/// Each client has its own way to each server.
pub(crate) struct Network {
    /// Of each client, in the order of the servers.
    proxies: Vec<Vec<Proxy>>,
    /// A client and a server.
    heals: Due<(usize, usize)>,
    delays: u64,
    stalls: u64,
    drops: u64,
    resets: u64,
    half_closes: u64,
}

impl Network {
    pub(crate) fn new(servers: &[SocketAddr], clients: u64, runtime: &Handle) -> Self {
        let of_a_client =
            |_| servers.iter().map(|&server| Proxy::to(server, runtime)).collect::<Vec<_>>();
        Self {
            proxies: (0..clients).map(of_a_client).collect(),
            heals: Due::new(),
            delays: 0,
            stalls: 0,
            drops: 0,
            resets: 0,
            half_closes: 0,
        }
    }

    /// How a client reaches the servers: from this one on, so that not all begin with the same.
    pub(crate) fn addresses(&self, client: usize, first: u64) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> =
            self.proxies[client].iter().map(|proxy| proxy.address).collect();
        let first = usize::try_from(first).expect("a number") % addresses.len();
        addresses.rotate_left(first);
        addresses
    }

    /// Something goes wrong for this client, or for all of them, on the way to one server or to
    /// all.
    pub(crate) fn harm(&mut self, client: usize, dice: &mut Dice, actions: &Actions) {
        let server = usize::try_from(dice.below(self.proxies[0].len() as u64)).expect("less");
        let mut some = |one, end| if dice.once_in(3) { 0..end } else { one..one + 1 };
        let clients = some(client, self.proxies.len());
        let servers = some(server, self.proxies[0].len());
        let mut heal_after = None;
        let (harm, count): (Harm, _) = match dice.below(9) {
            0..3 => {
                heal_after = Some(dice.millis(1000, 4000));
                (Harm::Delay(dice.millis(20, 500)), &mut self.delays)
            }
            3..5 => {
                heal_after = Some(dice.millis(500, 5000));
                (Harm::Stall, &mut self.stalls)
            }
            5 => (Harm::Cut(Break::Both), &mut self.drops),
            6 | 7 => {
                // The server frees what a client holds that does not know.
                let how = [Break::ResetServer, Break::ResetClient];
                (Harm::Cut(how[usize::from(dice.once_in(3))]), &mut self.resets)
            }
            _ => {
                let how = [Break::EndOfClient, Break::EndOfServer];
                (Harm::Cut(how[usize::from(dice.once_in(2))]), &mut self.half_closes)
            }
        };
        *count += 1;
        actions.note(&format!("network: {harm:?} from clients {clients:?} to servers {servers:?}"));
        for (client, server) in clients.flat_map(|it| servers.clone().map(move |to| (it, to))) {
            let proxy = &self.proxies[client][server];
            match harm {
                Harm::Delay(by) => proxy.delay(by),
                Harm::Stall => proxy.stall(),
                Harm::Cut(how) => proxy.cut(how),
            }
            if let Some(after) = heal_after {
                self.heals.at(Instant::now() + after, (client, server));
            }
        }
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some((client, server)) = self.heals.next(now) {
            self.proxies[client][server].heal();
        }
    }

    pub(crate) fn heal(&mut self) {
        while self.heals.any().is_some() {}
        self.proxies.iter().flatten().for_each(Proxy::heal);
    }

    pub(crate) fn told(&self) -> String {
        let Self { delays, stalls, drops, resets, half_closes, .. } = self;
        format!(
            "{delays} delays, {stalls} stalls, {drops} drops, {resets} resets of one side, \
             {half_closes} half-closes"
        )
    }
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    Delay(Duration),
    Stall,
    Cut(Break),
}
