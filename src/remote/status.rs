//! Whether the lock is held, as the daemon says.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::{Instant, timeout};

use super::no_response::NoResponse;
use super::response;
use super::target::Target;
use crate::lease::{Exhausted, RESPONSE_LIMIT, io};
use crate::local::timer::Standing;
use crate::lock::error::Error;
use crate::lock::holder::{Evidence, Holder, Status};
use crate::wire::ShownLock;

const DOING: &str = "looking at";

/// Ask on the thread of `lease::io`. (R6)
pub(super) fn ask(
    target: Arc<Target>,
) -> Pin<Box<dyn Future<Output = Result<Status, Error>> + Send>> {
    // Boxed here: a program that uses the crate has nothing of it to compile.
    Box::pin(async move {
        let _standing = Standing::at_most(RESPONSE_LIMIT);
        let failed = |error| target.unreachable(DOING, Duration::ZERO, error);
        let asking = ask_until_answered(Arc::clone(&target));
        let answered = io().map_err(failed)?.run(asking).await;
        answered.unwrap_or_else(|error| Err(failed(error)))
    })
}

async fn ask_until_answered(target: Arc<Target>) -> Result<Status, Error> {
    let mut patience = target.patience();
    loop {
        let begun = Instant::now();
        let asked = timeout(RESPONSE_LIMIT, target.look()).await;
        let error = match asked.unwrap_or_else(|_| Err(NoResponse::silence())) {
            Ok(response) => match response::read(&response) {
                Ok(shown) => return Ok(Status::Held(holder(shown))),
                Err(refusal) if refusal.is_free() => return Ok(Status::Free),
                Err(refusal) if refusal.is_passing() => io::Error::other(refusal.message),
                Err(refusal) => return Err(target.refused(DOING, refusal)),
            },
            Err(failure) if failure.is_final() => return Err(target.hopeless(DOING, failure)),
            Err(NoResponse { was_reused: true, .. }) => continue,
            Err(failure) => failure.error,
        };
        if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await {
            return Err(target.unreachable(DOING, tried, error));
        }
    }
}

pub(super) fn holder(shown: ShownLock) -> Holder {
    let since = Some(UNIX_EPOCH + Duration::from_millis(shown.since_ms));
    match shown.problem {
        Some(problem) => Holder { since, ..Holder::nobody(Evidence::Unknown(problem)) },
        None => Holder {
            name: Some(shown.client),
            since,
            hold_id: Some(shown.token.0.to_string()),
            ..Holder::nobody(Evidence::Server)
        },
    }
}
