//! The events of this process's console. They reach each process of it: CMD as well.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker};

use tokio::process::Child;
use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};

/// For `run --help`.
pub(crate) const ABOUT: &str = "\
Signals:
  Ctrl-C and Ctrl-Break reach CMD as well as lockkeeper, and so do the end of the
  console and, in a service, that of Windows. During the wait they end lockkeeper.
  While CMD runs, lockkeeper goes on until CMD has ended.";

/// What C's libraries for Windows call these events: signal.h.
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGBREAK: i32 = 21;

/// An event that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) number: i32,
}

/// From its making on, an event of the console ends nothing; it is told here. Only the end
/// of the console and of Windows end this process some seconds later. That a user logs off is
/// told to services alone, of any user.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: CtrlC,
    pause: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

impl Signals {
    pub(crate) fn watch() -> io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            pause: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    /// The end of a child is no event.
    pub(crate) fn spare(&mut self, _: &Child) {}

    /// The next event. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Arrived {
        poll_fn(|context| self.poll(context)).await
    }

    /// An event that came.
    pub(crate) fn already(&mut self) -> Option<Arrived> {
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(arrived) => Some(arrived),
            Poll::Pending => None,
        }
    }

    /// Of several that came at once one counts: all of them end the same.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Arrived> {
        let events = [
            (SIGINT, self.interrupt.poll_recv(context)),
            (SIGBREAK, self.pause.poll_recv(context)),
            (SIGTERM, self.close.poll_recv(context)),
            (SIGTERM, self.shutdown.poll_recv(context)),
        ];
        match events.into_iter().find(|(_, event)| event.is_ready()) {
            Some((number, _)) => Poll::Ready(Arrived { number }),
            None => Poll::Pending,
        }
    }
}
