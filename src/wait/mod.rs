//! What a contender waits for: its turn in this process, then a reason to look
//! again.

mod deadline;
mod directory;
mod endurance;
mod lapse;
mod line;
mod offsets;
mod pause;
mod presence;
mod queue;
mod ticket;
mod watch;

pub(crate) use deadline::Deadline;
pub(crate) use endurance::Endurance;
pub(crate) use line::Line;
pub(crate) use pause::{Obstacle, Pause, jittered, put_away_later};
pub(crate) use presence::Presence;
pub(crate) use queue::{Entry, Queue, Site, Turn};
pub(crate) use ticket::{Ahead, Sharing, Ticket, Waiters, is_awaited};
pub(crate) use watch::{Following, Heard, Listening, prepare};
