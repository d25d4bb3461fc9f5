//! What happens to keys, as a member tells it: all watches of a process over one stream.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::Streaming;

use super::client::Client;
use super::connection::Connection;
use super::wire::{
    EventKind, Filter, KeyValue, WATCH, WatchCancelRequest, WatchCreateRequest, WatchOp,
    WatchRequest, WatchResponse,
};
use crate::lease::{Running, io};

/// What happened, in the order of revisions.
#[derive(Debug)]
pub(super) enum Happened {
    Put(KeyValue),
    Deleted {
        key: Vec<u8>,
        revision: i64,
        /// What the key had.
        before: Option<KeyValue>,
    },
    /// More may have happened: look, and watch anew.
    Broken,
}

/// All watches.
pub(super) struct KeyWatches {
    orders: UnboundedSender<Order>,
    last: AtomicI64,
    _task: Running<()>,
}

/// One watch. Dropping it ends it.
pub(super) struct KeyWatch {
    id: i64,
    happened: UnboundedReceiver<Happened>,
    orders: UnboundedSender<Order>,
}

enum Order {
    Begin { id: i64, create: WatchCreateRequest, tell: UnboundedSender<Happened> },
    End { id: i64 },
}

/// A range of keys, from a revision on.
pub(super) struct Watched {
    pub(super) key: Vec<u8>,
    pub(super) range_end: Vec<u8>,
    pub(super) from: i64,
    /// Puts are told as well.
    pub(super) with_puts: bool,
}

impl KeyWatches {
    /// # Errors
    /// What the system refused: a thread.
    pub(super) fn new(client: Arc<Client>) -> io::Result<Self> {
        let (orders, received) = unbounded_channel();
        let task = io()?.run(follow(client, received));
        Ok(Self { orders, last: AtomicI64::new(0), _task: task })
    }

    pub(super) fn watch(&self, watched: Watched) -> KeyWatch {
        // From 1 on, as 0 has the member choose.
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, happened) = unbounded_channel();
        let filters = if watched.with_puts { Vec::new() } else { vec![Filter::NoPut as i32] };
        let create = WatchCreateRequest {
            key: watched.key,
            range_end: watched.range_end,
            start_revision: watched.from,
            filters,
            prev_kv: true,
            watch_id: id,
        };
        let orders = self.orders.clone();
        // Without a task it is broken at once.
        let _ = orders.send(Order::Begin { id, create, tell });
        KeyWatch { id, happened, orders }
    }
}

impl KeyWatch {
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Happened {
        self.happened.recv().await.unwrap_or(Happened::Broken)
    }
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End { id: self.id });
    }
}

type Watches = HashMap<i64, UnboundedSender<Happened>>;

/// A stream to one member.
struct Link {
    requests: UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    connection: Connection,
}

async fn follow(client: Arc<Client>, mut orders: UnboundedReceiver<Order>) {
    let (mut watches, mut link) = (Watches::new(), None::<Link>);
    loop {
        let Some(open) = &mut link else {
            let Some(order) = orders.recv().await else { return };
            if let Order::Begin { id, create, tell } = order {
                // The first request goes before the answer to the opening is waited for.
                let (requests, queued) = unbounded_channel();
                let _ = requests.send(begin(create));
                match client.stream(WATCH, queued).await {
                    Ok((answers, connection)) => {
                        watches.insert(id, tell);
                        link = Some(Link { requests, answers, connection });
                    }
                    Err(failure) => {
                        tracing::debug!(error = failure.message, "no watch of etcd's keys");
                        drop(tell.send(Happened::Broken));
                    }
                }
            }
            continue;
        };
        let is_over = tokio::select! {
            biased;
            () = open.connection.left() => true,
            answer = open.answers.message() => match answer {
                // The stream has the auth token with which it was begun: once that is over,
                // each further watch is refused. (M10)
                Ok(Some(answer)) if answer.created && answer.canceled => true,
                Ok(Some(answer)) => {
                    tell(&mut watches, answer);
                    false
                }
                Ok(None) | Err(_) => true,
            },
            order = orders.recv() => match order {
                Some(Order::Begin { id, create, tell }) => {
                    watches.insert(id, tell);
                    open.requests.send(begin(create)).is_err()
                }
                Some(Order::End { id }) => {
                    if watches.remove(&id).is_some() {
                        let op = Some(WatchOp::Cancel(WatchCancelRequest { watch_id: id }));
                        let _ = open.requests.send(WatchRequest { op });
                    }
                    false
                }
                None => return,
            },
        };
        if is_over {
            link = None;
            for (_, tell) in watches.drain() {
                let _ = tell.send(Happened::Broken);
            }
        }
    }
}

fn begin(create: WatchCreateRequest) -> WatchRequest {
    WatchRequest { op: Some(WatchOp::Create(create)) }
}

fn tell(watches: &mut Watches, answer: WatchResponse) {
    let id = answer.watch_id;
    if answer.canceled || answer.compact_revision > 0 {
        if let Some(tell) = watches.remove(&id) {
            let _ = tell.send(Happened::Broken);
        }
        return;
    }
    let Some(tell) = watches.get(&id) else { return };
    for event in answer.events {
        let Some(kv) = event.kv else { continue };
        let happened = if event.kind == EventKind::Delete as i32 {
            Happened::Deleted { key: kv.key, revision: kv.mod_revision, before: event.prev_kv }
        } else {
            Happened::Put(kv)
        };
        let _ = tell.send(happened);
    }
}
