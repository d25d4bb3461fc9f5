//! Answers that must reach their clients, and what happens if they do not.
//!
//! A grant that its client never heard of would be held for ever. The fate of an answer
//! shows when its connection ends:
//!
//! 1. The kernel did not get all of it: the answer was lost.
//! 2. The peer's machine has acknowledged all: the answer came. Whether the client read it
//!    cannot be known, as with a client that dies a moment later.
//! 3. The peer closed its side before it acknowledged all, and then refused the
//!    rest: its client was gone before the answer came, so it was lost. A client
//!    that only sends no more acknowledges the answer.
//! 4. The peer refused the answer without closing first. It may have read the answer, as
//!    proxies do that end connections by a reset. Such a grant is left alone.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::tcp::has_acknowledged;
use crate::lockd::state::LockTable;
use crate::sys::mutex::Mutex;
use crate::sys::peer::has_hung_up;

/// Called with whether the answer may have come.
type OnSettled = Box<dyn FnOnce(bool) + Send>;

/// The first pause between two looks at the fate of an answer; doubled after each.
const PAUSE: Duration = Duration::from_millis(1);

/// Looks at an answer, in some eight seconds. After these it may have come. With more, a
/// lost grant is undone after longer silences of the peer, and its connection stays longer.
const LOOKS: u32 = 13;

/// The answers on one connection whose fate is not known yet.
#[derive(Default)]
pub(crate) struct Deliveries {
    has_some: AtomicBool,
    unknown: Mutex<Vec<Delivery>>,
}

struct Delivery {
    is_handed_over: bool,
    then: OnSettled,
}

impl Deliveries {
    /// A grant is about to be answered.
    pub(crate) fn expect_grant(&self, locks: LockTable, resource: Arc<str>, token: u64) {
        self.expect(move |may_have_come| {
            if !may_have_come {
                locks.lose_answer(&resource, token);
            }
        });
    }

    /// A client that hung up is about to be refused. If the answer comes, the client gave
    /// up. Else its proxy did, and the client may come back to its place.
    pub(crate) fn expect_refusal(
        &self,
        locks: LockTable,
        resource: Arc<str>,
        client: Arc<str>,
        request_id: Arc<str>,
    ) {
        self.expect(move |may_have_come| {
            if may_have_come {
                locks.leave(&resource, &client, &request_id);
            }
        });
    }

    fn expect(&self, then: impl FnOnce(bool) + Send + 'static) {
        let delivery = Delivery { is_handed_over: false, then: Box::new(then) };
        self.unknown.lock().push(delivery);
        self.has_some.store(true, Ordering::Relaxed);
    }

    /// The kernel has all that was answered so far.
    pub(super) fn hand_over(&self) {
        if self.has_some() {
            self.unknown.lock().iter_mut().for_each(|it| it.is_handed_over = true);
        }
    }

    /// The client sends another request: answers before that are settled.
    pub(super) fn ask_for_more(&self, tcp: &TcpStream) {
        if self.has_some() && has_acknowledged(tcp) {
            self.settle(true);
        }
    }

    pub(super) fn has_some(&self) -> bool {
        self.has_some.load(Ordering::Relaxed)
    }

    /// Settle the answers of a connection that has ended so. Nothing else may have been sent
    /// since: the peer could refuse that too, and only answers count.
    pub(super) async fn end(&self, tcp: &TcpStream, ended: &hyper::Result<()>) {
        let cause = ended.as_ref().err().and_then(|error| error.source());
        let kind = cause.and_then(|cause| cause.downcast_ref()).map(io::Error::kind);
        let is_refused = match kind {
            None => is_refused(tcp).await,
            Some(kind) => kind == io::ErrorKind::BrokenPipe && !has_acknowledged(tcp),
        };
        self.settle(!is_refused);
    }

    fn settle(&self, may_have_come: bool) {
        let unknown = std::mem::take(&mut *self.unknown.lock());
        self.has_some.store(false, Ordering::Relaxed);
        for Delivery { is_handed_over, then } in unknown {
            then(is_handed_over && may_have_come);
        }
    }
}

/// A connection that was dropped in the middle.
impl Drop for Deliveries {
    fn drop(&mut self) {
        self.settle(true);
    }
}

/// Whether the peer closed its side and refuses what it was sent. No event tells
/// that something was acknowledged, so this looks a few times.
async fn is_refused(tcp: &TcpStream) -> bool {
    let mut pause = PAUSE;
    for _ in 0..LOOKS {
        match tcp.take_error() {
            // The kernel's word for a reset that came behind the peer's own end.
            Ok(Some(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return !has_acknowledged(tcp);
            }
            Ok(None) if has_hung_up(tcp) && !has_acknowledged(tcp) => {}
            _ => return false,
        }
        sleep(pause).await;
        pause *= 2;
    }
    false
}
