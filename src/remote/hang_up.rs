//! Ending a request from another task than the one that waits for its response.

use std::mem;
use std::sync::MutexGuard;

use crate::lease::Socket;
use crate::sys::mutex::Mutex;

/// Ends the connection that a request is on its way over, from another task.
#[derive(Default)]
pub(crate) struct HangUp(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Unused,
    Open(Socket),
    HungUp,
}

impl HangUp {
    /// Whether this socket may be used: nothing was hung up.
    pub(super) fn attach(&self, socket: &Socket) -> bool {
        let mut state = self.state();
        if matches!(*state, State::HungUp) {
            return false;
        }
        *state = State::Open(socket.clone());
        true
    }

    pub(super) fn is_hung_up(&self) -> bool {
        matches!(*self.state(), State::HungUp)
    }

    /// Nothing more is written, now or later. What the daemon has sent can still be read;
    /// then it closes the connection.
    pub(super) fn trigger(&self) {
        if let State::Open(socket) = mem::replace(&mut *self.state(), State::HungUp) {
            socket.end_writing();
        }
    }

    /// The response is there: the connection is free for others.
    pub(super) fn detach(&self) {
        let mut state = self.state();
        if matches!(*state, State::Open(_)) {
            *state = State::Unused;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}
