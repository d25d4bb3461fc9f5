//! One acquisition, from the call to the guard: the only place where tries and waiting
//! meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{consume_budget, yield_now};
use tokio::time::{timeout, timeout_at};

use super::attempt::{Attempt, MayTry, Tried};
use super::follow_holder::FollowHolder;
use super::guard::KernelGuard;
use super::hold::Hold;
use super::holder;
use super::local_queue::Stay;
use super::open_file::OpenFile;
use super::shared::{LockInner, LockState, Named, SHARE_MAX};
use super::syscalls::{KernelSpec, Sharing};
use crate::local::deadline::Deadline;
use crate::local::endurance::Endurance;
use crate::local::executor::Executor;
use crate::local::task_queue::{CallSite, Turn};
use crate::local::wakeup::{Blocker, Policy, Position, Wakeup};
use crate::lock::error::Error;
use crate::lock::events::{self, Acquiring};
use crate::lock::holder::Holder;
use crate::sys::events::UNLOCKS_ARE_HEARD;

/// How long a file system may take to answer once a deadline has passed. If longer, an
/// acquisition lasts so much longer on a server that does not answer.
const ANSWER: Duration = Duration::from_secs(1);

/// An unlock without a close gives no event. Most waits are over by the first look, and
/// need not ask which process to follow.
const WAKEUP: Policy =
    Policy { first_look: Some(Duration::from_millis(10)), last_recheck: Duration::from_millis(8) };

/// What a thread of another program that sleeps in `flock` needs to wake, on a processor
/// that sleeps as well. If longer, the lock is unused longer.
const YIELD_LASTS: Duration = Duration::from_micros(200);

/// How long the readers of this process may take to release, so that the lock is free. If
/// longer, this process waits longer for those that do not.
const READERS_LEAVE: Duration = Duration::from_millis(5);

/// What a caller asks for.
struct Request {
    lock: Arc<LockInner>,
    sharing: Sharing,
    asked_at: CallSite,
}

impl Request {
    fn spec(&self) -> KernelSpec {
        self.lock.spec(self.sharing)
    }

    /// The lock, if the last task of this process left it with this turn. Else all of it,
    /// and nothing is left with the turn any more.
    #[inline(always)]
    fn take_handoff(
        self,
        state: Arc<LockState>,
        turn: Turn,
    ) -> Result<KernelGuard, (Self, Arc<LockState>, Turn)> {
        let (spec, Self { lock, sharing, asked_at }) = (self.spec(), self);
        match Hold::take_handoff(turn, spec, lock, state, asked_at) {
            Ok(hold) => Ok(KernelGuard::of(hold)),
            Err((turn, lock, state)) => Err((Self { lock, sharing, asked_at }, state, turn)),
        }
    }

    #[inline]
    fn turn_comes(
        self,
        state: Arc<LockState>,
        turn: Turn,
        file: Option<OpenFile>,
        limit: Limit,
    ) -> Acquisition {
        match self.take_handoff(state, turn) {
            Ok(guard) => Acquisition::Acquired(guard),
            Err((request, state, turn)) => {
                let contender = Contender::new(request, state, turn, file, limit);
                Acquisition::FirstTry(Box::new(contender))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Limit {
    /// There is one try, and no wait.
    OneTry,
    /// Up to this moment, at which there is a last try.
    Until(Deadline),
    None,
}

impl Limit {
    fn of(deadline: Option<Deadline>) -> Self {
        match deadline {
            Some(deadline) if deadline.is_over() => Limit::OneTry,
            Some(deadline) => Limit::Until(deadline),
            None => Limit::None,
        }
    }

    /// To be asked before a try, so that the last one is at the deadline and not before.
    fn is_over(self) -> bool {
        match self {
            Limit::OneTry => true,
            Limit::Until(deadline) => deadline.is_over(),
            Limit::None => false,
        }
    }

    fn deadline(self) -> Option<Deadline> {
        match self {
            Limit::OneTry => Deadline::after(Duration::ZERO),
            Limit::Until(deadline) => Some(deadline),
            Limit::None => None,
        }
    }

    /// `None` also for a limit so late that it is none.
    fn last_answer(self) -> Option<tokio::time::Instant> {
        self.deadline()?.end.checked_add(ANSWER)
    }
}

/// How far an acquisition is. A contender is on the heap: else each change of state would
/// copy it.
enum Acquisition {
    /// The lock's directory is to be looked at.
    Locating(Request),
    /// Other tasks of this process go first.
    Queued(Request, Arc<LockState>),
    /// Its turn has come, and it has not tried yet.
    FirstTry(Box<Contender>),
    /// It looks again, and listens before that.
    Listening(Box<Contender>),
    /// Contenders of other processes go first.
    Passed(Box<Contender>),
    /// A try found the lock held by another.
    Busy(Box<Contender>),
    /// A try failed by something that may pass by itself, see [`Error::hindrance`].
    Hindered(Box<Contender>, Box<Error>),
    /// The last try found the lock held by another.
    Refused(Box<Contender>),
    Acquired(KernelGuard),
}

/// What has the turn of its process to try. Dropped in this order: contenders that let it
/// pass look again when its file is closed, and must not see it wait then.
struct Contender {
    /// `None` before it listens.
    waiting: Option<Box<Waiting>>,
    /// The file of the last look, or one that was left open.
    file: Option<OpenFile>,
    turn: Turn,
    /// When the turn came, this process had had the lock for so long that others should
    /// have it.
    share_is_over: bool,
    state: Arc<LockState>,
    request: Request,
}

/// What a wait takes.
struct Waiting {
    wakeup: Wakeup,
    holder: FollowHolder,
}

/// `deadline` is asked for when the wait begins.
pub(super) async fn acquire(
    named: Named,
    sharing: Sharing,
    deadline: impl FnOnce() -> Option<Deadline>,
    asked_at: CallSite,
) -> Result<KernelGuard, Error> {
    let limit = Limit::of(deadline());
    if events::are_wanted() {
        return Box::pin(acquire_shown(named, sharing, limit, asked_at)).await;
    }
    // All else may be done in one poll; so a loop of this must yield here.
    consume_budget().await;
    match begin(named, sharing, limit, asked_at) {
        Ok(Acquisition::Acquired(guard)) => Ok(guard),
        // On the heap: a lock that is free should not carry what all else takes.
        Ok(begun) => Box::pin(in_time(begun, limit)).await,
        Err(error) => Err(error),
    }
}

/// On the heap: without a subscriber nothing of this is carried.
async fn acquire_shown(
    named: Named,
    sharing: Sharing,
    limit: Limit,
    asked_at: CallSite,
) -> Result<KernelGuard, Error> {
    let shown = named.clone();
    let holder = async {
        let lock = shown.clone().lock().ok()?;
        holder::holder(&lock).await.ok()?.map(|holder| holder.to_string())
    };
    let acquire = async {
        consume_budget().await;
        in_time(begin(named, sharing, limit, asked_at)?, limit).await
    };
    events::show(&shown.path().display(), acquire, holder).await
}

/// One try, `None` if another has the lock.
pub(super) async fn try_once(
    named: Named,
    sharing: Sharing,
    asked_at: CallSite,
) -> Result<Option<KernelGuard>, Error> {
    let shown = Acquiring::begin(&named.path().display()).map(|shown| (shown, named.clone()));
    consume_budget().await;
    let outcome = match begin(named, sharing, Limit::OneTry, asked_at) {
        Ok(Acquisition::Acquired(guard)) => Ok(Some(guard)),
        Ok(begun) => Box::pin(go_on(begun, Limit::OneTry)).await,
        Err(error) => Err(error),
    };
    if let Some((shown, named)) = shown {
        shown.tried(&named.path().display(), &outcome);
    }
    outcome
}

/// As far as it goes without waiting for anything, which nearly always suffices. It is
/// apart from all else: an acquisition of a free lock costs for a good part the loading of
/// the code that it runs through.
#[inline(never)]
fn begin(
    named: Named,
    sharing: Sharing,
    limit: Limit,
    asked_at: CallSite,
) -> Result<Acquisition, Error> {
    let lock = named.lock()?;
    let state = lock.last_state();
    let request = Request { lock, sharing, asked_at };
    let Some(state) = state else {
        return Ok(Acquisition::Locating(request));
    };
    let Some((turn, file)) = state.queue.try_turn() else {
        return Ok(Acquisition::Queued(request, state));
    };
    let (request, state, turn) = match request.take_handoff(state, turn) {
        Ok(guard) => return Ok(Acquisition::Acquired(guard)),
        Err(others) => others,
    };
    let contender = Contender::new(request, state, turn, file, limit);
    if contender.share_is_over || !contender.is_inline() {
        return Ok(Acquisition::FirstTry(Box::new(contender)));
    }
    let (may_try, is_last) = contender.first_may_try(limit);
    contender.try_here(may_try, is_last)
}

async fn in_time(begun: Acquisition, limit: Limit) -> Result<KernelGuard, Error> {
    let lock = Arc::clone(begun.lock());
    let acquired = match limit.last_answer() {
        None => go_on(begun, limit).await?,
        // A network file system that does not answer is given up.
        Some(end) => match timeout_at(end, go_on(begun, limit)).await {
            Ok(acquired) => acquired?,
            Err(_) => return Err(timed_out(&lock, limit, None)),
        },
    };
    match acquired {
        Some(guard) => Ok(guard),
        // On the heap: an acquisition in time should not carry what this takes.
        None => Err(Box::pin(too_late(&lock, limit)).await),
    }
}

async fn too_late(lock: &Arc<LockInner>, limit: Limit) -> Error {
    let holder = holder::holder(lock);
    let holder = match limit.last_answer() {
        None => holder.await.ok(),
        Some(end) => timeout_at(end, holder).await.ok().and_then(Result::ok),
    };
    timed_out(lock, limit, holder.flatten())
}

fn timed_out(lock: &LockInner, limit: Limit, holder: Option<Holder>) -> Error {
    let (holder, path) = (holder.map(Box::new), lock.path.path().to_owned());
    let waited = Deadline::waited(limit.deadline());
    Error::Timeout { lock: path.into(), waited, holder }
}

/// From state to state up to the guard; `None` if the limit came first.
async fn go_on(mut acquisition: Acquisition, limit: Limit) -> Result<Option<KernelGuard>, Error> {
    let retry_period = acquisition.lock().options.wait.retry_period;
    let mut endurance = Endurance::until(limit.deadline(), retry_period);
    loop {
        acquisition = match acquisition {
            // A directory that is away may come back, or a shortage pass.
            Acquisition::Locating(request) => match request.lock.state().await {
                Ok(state) => match state.queue.try_turn() {
                    Some((turn, file)) => request.turn_comes(state, turn, file, limit),
                    None => Acquisition::Queued(request, state),
                },
                Err(error) => {
                    endurance.outlast(error)?;
                    endurance.pause().await;
                    Acquisition::Locating(request)
                }
            },
            // Its turn comes, unless the limit comes first.
            Acquisition::Queued(..) if limit.is_over() => return Ok(None),
            Acquisition::Queued(request, state) => {
                endurance.wait_begins();
                let Some((turn, file)) = state.queue.turn_until(limit.deadline()).await else {
                    return Ok(None);
                };
                match request.turn_comes(state, turn, file, limit) {
                    Acquisition::Acquired(guard) => return Ok(Some(guard)),
                    begun => begun,
                }
            }
            // A process that has had the lock for long leaves it free now and then.
            Acquisition::FirstTry(contender) => {
                if contender.share_is_over && contender.state.queue.is_to_yield(Instant::now()) {
                    Box::pin(contender.yield_to_sleepers(limit)).await;
                }
                let (may_try, is_last) = contender.first_may_try(limit);
                contender.try_once(may_try, is_last).await?
            }
            // It listens before the look that is relied on; the first try cost none.
            Acquisition::Listening(mut contender) => {
                endurance.wait_begins();
                let (may_try, is_last) = contender.listen(limit);
                contender.try_once(may_try, is_last).await?
            }
            // Predecessors get some time to go first.
            Acquisition::Passed(mut contender) => {
                Box::pin(contender.sleep(None, limit)).await;
                Acquisition::Listening(contender)
            }
            // An event or the passing of time is a reason to look again.
            Acquisition::Busy(mut contender) => {
                tracing::trace!(path = %contender.request.lock.path.path().display(), "busy");
                Box::pin(contender.sleep(Some(Blocker::UNKNOWN), limit)).await;
                Acquisition::Listening(contender)
            }
            // What is in the way gives no event.
            Acquisition::Hindered(mut contender, error) => {
                endurance.outlast(*error)?;
                if contender.waiting.is_some() {
                    let unseen = Blocker::unseen(retry_period);
                    Box::pin(contender.sleep(Some(unseen), limit)).await;
                }
                Acquisition::Listening(contender)
            }
            // Nothing is kept while the holder is looked for.
            Acquisition::Refused(contender) => {
                contender.give_up(limit);
                return Ok(None);
            }
            Acquisition::Acquired(guard) => return Ok(Some(guard)),
        }
    }
}

impl Acquisition {
    fn lock(&self) -> &Arc<LockInner> {
        match self {
            Acquisition::Locating(request) | Acquisition::Queued(request, _) => &request.lock,
            Acquisition::FirstTry(contender)
            | Acquisition::Listening(contender)
            | Acquisition::Passed(contender)
            | Acquisition::Busy(contender)
            | Acquisition::Hindered(contender, _)
            | Acquisition::Refused(contender) => &contender.request.lock,
            Acquisition::Acquired(guard) => guard.lock_inner(),
        }
    }
}

impl Contender {
    /// Its turn has come.
    #[inline(always)]
    fn new(
        request: Request,
        state: Arc<LockState>,
        turn: Turn,
        file: Option<OpenFile>,
        limit: Limit,
    ) -> Self {
        // Asked as often where nothing passes.
        let share = Some(request.lock.share()).filter(|share| !share.is_zero());
        let share = share.unwrap_or(SHARE_MAX);
        let share_is_over = !matches!(limit, Limit::OneTry) && turn.local_handoff_is_over(share);
        Self { waiting: None, file, turn, share_is_over, state, request }
    }

    fn is_inline(&self) -> bool {
        matches!(self.state.executor, Executor::Inline { .. })
    }

    /// A writer goes first unless this process has had the lock for long and
    /// others wait; a reader, unless a writer waits. With it, whether the limit is over.
    fn first_may_try(&self, limit: Limit) -> (MayTry, bool) {
        let Request { lock, sharing, .. } = &self.request;
        let is_last = limit.is_over();
        let precede = (*sharing == Sharing::Shared || self.share_is_over)
            && match self.file.as_ref().and_then(|file| file.waiters.as_deref()) {
                Some(known) => known.precede(*sharing),
                None => self.state.waiters(lock).is_some_and(|found| found.precede(*sharing)),
            };
        let may_try = if precede { MayTry::None } else { MayTry::Full };
        (if is_last { may_try.at_last(*sharing) } else { may_try }, is_last)
    }

    /// Threads that sleep in the kernel for a lock have no ticket, and a process that
    /// takes it over and over is faster than they wake. So now and then it leaves the
    /// lock free for as long as that takes. It does so without a look for sleepers: to
    /// have the kernel list them slows all processes, as it waits for each processor.
    ///
    /// A shared lock is free only when its last reader has released it. If that is not
    /// soon, it is asked less often.
    async fn yield_to_sleepers(&self, limit: Limit) {
        let (queue, began) = (&self.state.queue, Instant::now());
        let is_shared = self.request.sharing == Sharing::Shared && queue.is_held();
        let is_free = !is_shared || {
            let none = timeout(READERS_LEAVE, queue.has_no_holds());
            matches!(Deadline::limit(limit.deadline(), none).await, Some(Ok(())))
        };
        let free = Instant::now();
        // Not by a timer of Tokio's, which would last ten times as long.
        while is_free && free.elapsed() < YIELD_LASTS {
            yield_now().await;
        }
        queue.has_yielded(Instant::now(), began.elapsed());
    }

    /// What the next look may do, which comes after this, and whether it is the last.
    fn listen(&mut self, limit: Limit) -> (MayTry, bool) {
        let Self { waiting, state, request: Request { lock, sharing, .. }, .. } = self;
        let Waiting { wakeup, .. } = &mut **waiting.get_or_insert_with(|| {
            // A wait for an event that never comes is a long one.
            let has_events = state.executor.has_events() && UNLOCKS_ARE_HEARD;
            let (path, label, options) = (&lock.path, &lock.label, &lock.options.wait);
            let wakeup = Wakeup::new(path, label, Some(*sharing), &WAKEUP, options, has_events);
            Box::new(Waiting { wakeup, holder: FollowHolder::default() })
        });
        let mut position = wakeup.listen();
        if !wakeup.stands_in_line() && *sharing == Sharing::Shared {
            // It cannot be seen in the line, but those it would get in the way of can.
            if state.waiters(lock).is_some_and(|others| others.precede(*sharing)) {
                let may_barge = wakeup.may_barge();
                position = if may_barge { Position::MayBarge } else { Position::Behind };
            }
        }
        let may_try = match position {
            Position::First => MayTry::Full,
            Position::Behind => MayTry::None,
            Position::MayBarge => MayTry::barging(*sharing),
        };
        let is_last = limit.is_over();
        (if is_last { may_try.at_last(*sharing) } else { may_try }, is_last)
    }

    /// The contender travels with the try, so that its turn and its file are given up
    /// only after what the try did is undone.
    async fn try_once(
        self: Box<Self>,
        may_try: MayTry,
        is_last: bool,
    ) -> Result<Acquisition, Error> {
        if may_try == MayTry::None || self.is_inline() {
            return self.try_here(may_try, is_last);
        }
        let executor = self.state.executor.clone();
        let attempt = move |contender: Box<Self>| {
            let (state, lock) = (&contender.state, &contender.request.lock);
            if state.executor.is_local() {
                // Only that it is seen to be: else the next finds another state.
                let _ = state.is_in_place_now(lock);
                // For looks at the waiters where it cannot be opened.
                drop(state.waiters_there(lock));
            }
            contender.try_here(may_try, is_last)
        };
        executor.run(self, attempt).await
    }

    #[inline(always)]
    fn try_here(mut self, may_try: MayTry, is_last: bool) -> Result<Acquisition, Error> {
        let listens = self.waiting.is_some();
        let only_if_free = match may_try {
            MayTry::None if listens => return Ok(Acquisition::Passed(Box::new(self))),
            MayTry::None => return Ok(Acquisition::Listening(Box::new(self))),
            MayTry::IfFree => true,
            MayTry::Full => false,
        };
        let spec = self.request.spec();
        let attempt = Attempt { lock: &self.request.lock, spec, only_if_free };
        match attempt.run(self.file.take()) {
            Ok(Tried::Locked(file)) => Ok(Acquisition::Acquired(self.hold(file))),
            Ok(Tried::Busy(file)) => {
                self.file = Some(file);
                let contender = Box::new(self);
                Ok(match is_last {
                    true => Acquisition::Refused(contender),
                    false if listens => Acquisition::Busy(contender),
                    false => Acquisition::Listening(contender),
                })
            }
            Err(error) if error.hindrance().is_some() => {
                Ok(Acquisition::Hindered(Box::new(self), Box::new(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// What was locked for it becomes a hold.
    #[inline(always)]
    fn hold(self, file: OpenFile) -> KernelGuard {
        let spec = self.request.spec();
        let Self { waiting, turn, state, request: Request { lock, asked_at, .. }, .. } = self;
        let mut hold = Hold::new(file, turn, spec, lock, state, asked_at);
        if hold.is_elsewhere() {
            // Another file system may be mounted at the directory now.
            hold.lock.forget_state();
        }
        if let Some(waiting) = waiting {
            hold.contended(waiting.wakeup.end());
        }
        KernelGuard::of(hold)
    }

    /// Until there is a reason to look again, or the limit.
    async fn sleep(&mut self, blocker: Option<Blocker>, limit: Limit) {
        let spec = self.request.spec();
        let waiting = self.waiting.as_mut().expect("BUG: it sleeps and did not listen");
        let Waiting { wakeup, holder } = &mut **waiting;
        if let Some(file) = &self.file {
            if holder.follow(wakeup, &self.state, file, spec) {
                return;
            }
        }
        let blocker = blocker.unwrap_or_else(|| wakeup.precedence());
        let next_look = holder.until_next_look(wakeup, blocker);
        let _ = Deadline::limit(limit.deadline(), next_look).await;
    }

    /// Without the lock.
    fn give_up(mut self, limit: Limit) {
        if !matches!(limit, Limit::OneTry) {
            return;
        }
        if let Some(file) = self.file.take() {
            // Not closed: that would wake all waiters, each time.
            let keep_open = self.request.lock.options.keep_open;
            let stay = if keep_open { Stay::Always } else { Stay::Awhile };
            self.state.queue.leave(file, stay, |_| false);
        }
    }
}
