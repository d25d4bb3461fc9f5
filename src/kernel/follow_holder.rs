//! What hears of the end of the holder that is in a contender's way.
//!
//! The close of a file that was open for reading is an event for watchers of that very
//! file, which one contender of a process can be. The others, and those for a directory,
//! follow the process that took the lock, where the kernel shows which it is. That takes
//! long, at the cost of all processors: only a wait that is not a short one asks.

use std::future::pending;

use super::holder;
use super::open_file::OpenFile;
use super::shared::LockState;
use super::syscalls::KernelSpec;
use crate::local::executor::Started;
use crate::local::wakeup::{Blocker, Wakeup};
use crate::sys::events::Following;
use crate::sys::inode::FileKind;

/// Which end of the holder will be heard.
#[derive(Default)]
pub(super) struct FollowHolder {
    /// Which process is in the way is being asked: the kernel lists all locks.
    asking: Option<Started<Option<u32>>>,
    /// Time has passed since the last event. Once between two looks.
    may_ask: bool,
    /// Any close of the file will be heard, or the end of a process that was in
    /// the way. Until anything is, it is not asked again which that is.
    is_following: bool,
}

impl FollowHolder {
    /// Hear of any close of the file, or of the end of the process that is in the way.
    /// Whether to look again first, as a look that is relied on comes after this.
    pub(super) fn follow(
        &mut self,
        wakeup: &mut Wakeup,
        state: &LockState,
        file: &OpenFile,
        spec: KernelSpec,
    ) -> bool {
        let subscription = wakeup.subscription();
        self.is_following &= subscription.is_some();
        let Some(subscription) = subscription else { return false };
        if self.is_following || self.asking.is_some() || !std::mem::take(&mut self.may_ask) {
            return false;
        }
        if file.kind == FileKind::Regular && subscription.follow_closes(file, file.identity) {
            self.is_following = true;
            return true;
        }
        match holder::process_in_the_way(state, file, spec) {
            Started::Done(pid) => self.hear_of_end(wakeup, pid),
            asking @ Started::Running(_) => self.asking = Some(asking),
        }
        false
    }

    /// As [`Wakeup::until_next_look`], and until it is known which process to follow.
    pub(super) async fn until_next_look(&mut self, wakeup: &mut Wakeup, blocker: Blocker) {
        let pid = tokio::select! {
            biased;
            by_time = wakeup.until_next_look(blocker) => {
                self.may_ask = by_time;
                if !by_time && wakeup.has_heard() {
                    // Another may have the lock now.
                    (self.is_following, self.asking) = (false, None);
                }
                return;
            }
            pid = answer(&mut self.asking) => pid,
        };
        self.hear_of_end(wakeup, pid);
    }

    /// It may have ended meanwhile, so a look has to come after this.
    fn hear_of_end(&mut self, wakeup: &mut Wakeup, pid: Option<u32>) {
        if let Some(subscription) = wakeup.subscription() {
            let pid = pid.filter(|pid| *pid != std::process::id());
            self.is_following =
                subscription.follow_process(pid) == Following::Heard && pid.is_some();
        }
    }
}

/// What was asked, once it is answered.
async fn answer(asking: &mut Option<Started<Option<u32>>>) -> Option<u32> {
    let Some(Started::Running(answer)) = asking else {
        return pending().await;
    };
    let pid = answer.await.ok().flatten();
    *asking = None;
    pid
}
