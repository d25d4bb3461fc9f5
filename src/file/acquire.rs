//! One acquisition: the only place where an attempt and waiting meet.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field};

use super::contender::{Acquisition, Contender};
use super::guard::FileGuard;
use super::protocol::{Busy, YOUTH};
use super::spec::LockSpec;
use crate::local::deadline::Deadline;
use crate::local::endurance::Endurance;
use crate::local::hold_id::HoldId;
use crate::local::task_queue::{CallSite, TaskQueue, Turn};
use crate::local::timer::Standing;
use crate::local::wakeup::{Blocker, Position};
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring};
use crate::lock::holder::{Evidence, Holder};
use crate::sys::events::UNLOCKS_ARE_HEARD;
use crate::sys::path::LockPath;
use crate::sys::process_key::{ProcessKey, this_process};

/// How long a file system may take to answer once a deadline has passed.
const ANSWER: Duration = Duration::from_secs(1);

/// Wait for the lock, at most for `limit` from the first poll on.
pub(crate) async fn acquire(
    lock: Arc<LockSpec>,
    limit: Option<Duration>,
    site: CallSite,
) -> Result<FileGuard, Error> {
    Acquire::new(&lock, limit, site).run().await
}

/// The same until `token` is cancelled, if that comes first.
pub(crate) async fn acquire_with(
    lock: Arc<LockSpec>,
    token: CancellationToken,
    site: CallSite,
) -> Result<FileGuard, Error> {
    let acquire = Acquire::new(&lock, lock.options().wait.timeout, site).run();
    tokio::select! {
        biased;
        () = token.cancelled() => Err(Error::Cancelled { lock: lock.path().into() }),
        acquired = acquire => acquired,
    }
}

/// The same as one step of a wait that began earlier.
pub(crate) async fn acquire_further(
    lock: &LockSpec,
    limit: Option<Duration>,
    site: CallSite,
) -> Result<FileGuard, Error> {
    let mut acquire = Acquire::new(lock, limit, site);
    acquire.endurance.wait_begins();
    acquire.run().await
}

/// The same on a thread without a runtime.
pub(crate) fn blocking_acquire(lock: &LockSpec, site: CallSite) -> Result<FileGuard, Error> {
    let limit = lock.options().wait.timeout;
    let acquire = Acquire::new(lock, limit, site);
    let runtime = Endurance::until(acquire.endurance.deadline(), lock.options().wait.retry_period)
        .runtime(lock.path())?;
    runtime.block_on(acquire.run())
}

/// One try.
pub(crate) async fn try_acquire(
    lock: Arc<LockSpec>,
    site: CallSite,
) -> Result<Option<FileGuard>, Error> {
    let shown = Acquiring::begin(&lock.path().display());
    let outcome = try_once(&lock, site).await;
    if let Some(shown) = shown {
        shown.tried(&lock.path().display(), &outcome);
    }
    outcome
}

async fn try_once(lock: &LockSpec, site: CallSite) -> Result<Option<FileGuard>, Error> {
    let mut contender = lock.contender().await?.asked_at(site);
    let Some(turn) = contender.queue().try_turn() else {
        return Ok(None);
    };
    match contender.try_once(turn, true).await? {
        Acquisition::Acquired(guard) => Ok(Some(guard.acknowledge_recovery())),
        Acquisition::Busy(..) => Ok(None),
        Acquisition::Hindered(error, _) => Err(error),
    }
}

/// An acquisition that waits.
struct Acquire<'a> {
    lock: &'a LockSpec,
    endurance: Endurance,
    /// Where in the source it was asked for.
    site: CallSite,
}

impl<'a> Acquire<'a> {
    fn new(lock: &'a LockSpec, limit: Option<Duration>, site: CallSite) -> Self {
        let deadline = limit.and_then(Deadline::after);
        let endurance = Endurance::until(deadline, lock.options().wait.retry_period);
        Self { lock, endurance, site }
    }

    async fn run(self) -> Result<FileGuard, Error> {
        if events::are_wanted() {
            return Box::pin(self.shown()).await;
        }
        self.bounded().await
    }

    /// On the heap: without a subscriber, nothing of this is carried.
    async fn shown(self) -> Result<FileGuard, Error> {
        let (lock, site) = (self.lock, self.site);
        let path = lock.path().display();
        let holder = async {
            let holder = lock.holder().await.ok().flatten();
            // Then it may be the file of this very acquisition, which is watched first.
            let may_be_mine = lock.options().openlock_compat;
            let holder = holder.filter(|holder| !may_be_mine || holder.acquired_at.is_none());
            holder.map(|holder| holder.to_string())
        };
        let span = tracing::debug_span!("acquire", %path, %site, holder = field::Empty);
        events::show(&path, self.bounded().instrument(span), holder).await
    }

    async fn bounded(self) -> Result<FileGuard, Error> {
        let (lock, deadline) = (self.lock, self.endurance.deadline());
        match deadline.and_then(|deadline| deadline.end.checked_add(overrun(lock))) {
            // So late a limit is none.
            None => self.contend().await,
            // A network file system that does not answer is given up.
            Some(end) => timeout_at(end, self.contend())
                .await
                .unwrap_or_else(|_| Err(timed_out(lock, deadline, None))),
        }
    }

    /// 1. While a task of this process has the lock, wait for the turn among its tasks:
    ///    what that task leaves is all that is needed, or tells the rest.
    /// 2. Look at the directory, and wait for the turn in its queue.
    /// 3. Try once, unless this process has held the lock for its time and others wait.
    /// 4. Wait for a reason to try again.
    async fn contend(mut self) -> Result<FileGuard, Error> {
        let process = this_process();
        let mut turn = None;
        if let Some((path, queue)) = self.lock.busy_queue(process) {
            let Some(after_tasks) = self.turn_after_tasks(queue).await else {
                return Err(self.too_late().await);
            };
            let options = self.lock.options();
            match Contender::take_handoff(path, options, process, after_tasks, self.site) {
                Ok(guard) => return Ok(guard.acknowledge_recovery()),
                Err(kept) => turn = Some(kept),
            }
        }
        let contender = self.contender(process).await?;
        // Else the path leads elsewhere by now.
        if !turn.as_ref().is_some_and(|turn| turn.is_of(&contender.queue())) {
            turn = None;
        }
        let turn = match turn {
            Some(turn) => turn,
            None => match self.limited(contender.queue().next_turn()).await {
                Some(turn) => turn,
                None => return Err(self.too_late().await),
            },
        };
        self.try_then_wait(contender, turn).await
    }

    async fn limited<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        Deadline::limit(self.endurance.deadline(), wait).await
    }

    /// `None` if the deadline came first.
    async fn turn_after_tasks(&mut self, queue: Arc<TaskQueue>) -> Option<Turn> {
        self.endurance.wait_begins();
        if let Some(site) = queue.last_site() {
            waits_for(format_args!("this process, asked for at {site}"));
        }
        self.limited(queue.next_turn()).await
    }

    /// Where the directory can be looked at, perhaps only after a while.
    async fn contender(&mut self, process: ProcessKey) -> Result<Contender, Error> {
        loop {
            match self.lock.contender_of(process).await {
                Err(error) => self.endurance.outlast(error)?,
                Ok(contender) => {
                    if contender.queue().is_busy(process) {
                        self.endurance.wait_begins();
                    }
                    return Ok(contender.asked_at(self.site));
                }
            }
            self.endurance.pause().await;
        }
    }

    async fn try_then_wait(
        mut self,
        mut contender: Contender,
        turn: Turn,
    ) -> Result<FileGuard, Error> {
        let deadline = self.endurance.deadline();
        let limit = self.lock.options().wait.local_handoff;
        let is_last = deadline.is_some_and(Deadline::is_over);
        // One try has no place behind others.
        if !is_last && turn.local_handoff_is_over(limit) && contender.has_foreign_waiters() {
            return Box::pin(self.wait(contender, turn)).await;
        }
        let turn = match contender.try_once(turn, is_last).await? {
            Acquisition::Acquired(guard) => return Ok(guard.acknowledge_recovery()),
            Acquisition::Busy(busy, _) if is_last => {
                return Err(timed_out(self.lock, deadline, busy.holder));
            }
            Acquisition::Busy(_, turn) => turn,
            Acquisition::Hindered(error, turn) => {
                self.endurance.outlast(error)?;
                turn
            }
        };
        // On the heap: an acquisition without a wait should not carry what waiting takes.
        Box::pin(self.wait(contender, turn)).await
    }

    /// Look each time there is a reason to.
    async fn wait(mut self, mut contender: Contender, mut turn: Turn) -> Result<FileGuard, Error> {
        contender.must_be_possible().await?;
        self.endurance.wait_begins();
        let deadline = self.endurance.deadline();
        let mut wakeup = contender.wakeup();
        loop {
            // Before the look that is relied on.
            let is_due = wakeup.listen() != Position::Behind;
            contender.has_heard_a_write(wakeup.has_heard_a_write());
            // Before the try, so that the last try is at the deadline and not before.
            let is_last = deadline.is_some_and(Deadline::is_over);
            let blocker = if !is_last && !is_due {
                wakeup.precedence()
            } else {
                match contender.try_once(turn, is_last).await? {
                    Acquisition::Acquired(guard) => {
                        let presence = wakeup.end();
                        return Ok(guard.contended(presence).acknowledge_recovery());
                    }
                    Acquisition::Busy(busy, _) if is_last => {
                        return Err(timed_out(self.lock, deadline, busy.holder));
                    }
                    Acquisition::Busy(busy, again) => {
                        turn = again;
                        tracing::trace!(path = %self.lock.path().display(), ?busy, "busy");
                        if let Some(holder) = &busy.holder {
                            waits_for(format_args!("{holder}"));
                        }
                        blocker(busy, contender.path())
                    }
                    Acquisition::Hindered(error, again) => {
                        turn = again;
                        self.endurance.outlast(error)?;
                        Blocker::unseen(self.lock.options().wait.retry_period)
                    }
                }
            };
            contender.prepare();
            // A foreign file is watched for what other processes do to it.
            let _standing = blocker.at_most.and_then(Standing::at_most);
            let _ = self.limited(wakeup.until_next_look(blocker)).await;
        }
    }

    /// The deadline came before the turn.
    async fn too_late(&self) -> Error {
        // On the heap: whose turn comes should not carry what that takes.
        let holder = Box::pin(self.lock.holder()).await.ok().flatten();
        timed_out(self.lock, self.endurance.deadline(), holder.map(Box::new))
    }
}

/// How long after the deadline the last try may end.
fn overrun(lock: &LockSpec) -> Duration {
    let probation = lock.options().race_delay.saturating_mul(lock.options().tries);
    probation.saturating_add(2 * YOUTH + ANSWER)
}

fn timed_out(lock: &LockSpec, deadline: Option<Deadline>, holder: Option<Box<Holder>>) -> Error {
    Error::Timeout { lock: lock.path().into(), waited: Deadline::waited(deadline), holder }
}

/// Show it in the span of this acquisition.
fn waits_for(holder: std::fmt::Arguments<'_>) {
    let span = Span::current();
    let is_ours = |metadata: &tracing::Metadata<'_>| metadata.target() == module_path!();
    if span.metadata().is_some_and(is_ours) {
        span.record("holder", holder);
    }
}

/// When to look again at what may only be passing, where its end is no event. If longer, the
/// lock may be unused longer; if shorter, what stays costs more looks.
const UNHEARD_LOOK: Duration = Duration::from_millis(20);

/// What a contender waits for when this is in its way.
fn blocker(busy: Busy, path: &LockPath) -> Blocker {
    let Busy { holder, inode, .. } = busy;
    let evidence = holder.as_ref().map(|holder| &holder.evidence);
    let was_seen = evidence == Some(&Evidence::ProcessRuns);
    let may_end = was_seen || evidence == Some(&Evidence::KernelLock);
    let at_most = match busy.look_again {
        Some(time) if evidence == Some(&Evidence::Young) => Some(time),
        // Another contender's probe, say, whose end is no event.
        Some(_) if !UNLOCKS_ARE_HEARD => Some(UNHEARD_LOOK),
        _ => None,
    };
    let (hold, pid) = holder.map_or((None, None), |holder| (holder.hold_id, holder.pid));
    let closes = inode.map(|inode| {
        let hold_id = hold.as_ref().and_then(|hold_id| hold_id.parse().ok());
        let unnamed = path.directory().join(format!("#{inode}"));
        [unnamed, path.candidate(hold_id.unwrap_or(HoldId(0)))]
    });
    Blocker { hold, closes, process: pid.filter(|_| may_end), was_seen, at_most }
}
