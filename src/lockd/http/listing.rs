//! The list of locks, sent piece by piece: a client that reads slowly, or not at all, costs
//! the daemon one piece and a list of names.
//!
//! The pieces are of different moments. A lock that ended before its piece was made is left
//! out. The counts are those of the start.

#![expect(clippy::disallowed_methods, reason = "the time of day that a listing says")]

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::Uri;
use serde::de::value::MapDeserializer;
use serde::{Deserialize, Serialize};

use super::error_response::ErrorResponse;
use crate::lockd::state::{LockStatus, LockTable, Survey, in_directory};
use crate::wire::{ListFigures, Search, ShownLease, ShownLock, ShownWaiter, Token};

/// A piece is sent when it has this length; one lock more may be in it. With more, slow
/// readers cost more memory.
const PIECE_BYTES: usize = 32 * 1024;

/// Names that are counted before other requests may use the books. With more, these wait
/// longer.
const COUNTED: usize = 256;

/// The latest moment that a browser's `Date` can show, in milliseconds since 1970.
const LATEST_MS: u64 = 8_640_000_000_000_000;

/// The largest integer that every reader of JSON has without loss: 2⁵³ − 1.
const LONGEST_MS: u64 = 9_007_199_254_740_991;

/// Which of the locks are to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListFilter {
    /// In the name of the resource, the holder or a waiter; lower case.
    search: String,
    /// The only one, by its whole name.
    resource: Option<String>,
    limit: Option<usize>,
}

impl ListFilter {
    pub(crate) fn of(uri: &Uri) -> Result<Self, ErrorResponse> {
        let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        let query = MapDeserializer::<_, serde::de::value::Error>::new(query);
        let Search { search, resource, limit } = Search::deserialize(query)
            .map_err(|error| ErrorResponse::invalid(format!("the query of the URL: {error}")))?;
        Ok(Self { search: search.to_lowercase(), resource, limit })
    }

    /// Where what is wanted may stand among these names, which are sorted.
    fn range(&self, names: &[Arc<str>]) -> Range<usize> {
        let Some(resource) = &self.resource else { return 0..names.len() };
        let found = names.binary_search_by(|name| (**name).cmp(resource));
        found.map_or(0..0, |position| position..position + 1)
    }

    fn is_in(&self, name: &str) -> bool {
        self.search.is_empty() || name.to_lowercase().contains(&self.search)
    }
}

/// A list on its way: an iterator over its pieces, which together are JSON.
pub(crate) struct Listing {
    locks: LockTable,
    survey: Arc<Survey>,
    at: Instant,
    filter: ListFilter,
    is_administrator: bool,
    /// Names that were not looked at yet.
    left: Range<usize>,
    shown: usize,
    /// Names that match, of those that were looked at.
    matching: usize,
    has_begun: bool,
    is_over: bool,
}

impl Listing {
    /// Of what the survey found at that moment.
    pub(crate) fn new(
        locks: LockTable,
        survey: Arc<Survey>,
        at: Instant,
        filter: ListFilter,
        is_administrator: bool,
    ) -> Self {
        let left = filter.range(&survey.names);
        let (shown, matching, has_begun, is_over) = (0, 0, false, false);
        Self {
            locks,
            survey,
            at,
            filter,
            is_administrator,
            left,
            shown,
            matching,
            has_begun,
            is_over,
        }
    }

    /// The next lock that is to be shown.
    fn next_lock(&mut self) -> Option<LockStatus> {
        while self.shown < self.filter.limit.unwrap_or(usize::MAX) {
            let name = &self.survey.names[self.left.next()?];
            let held = self.locks.listed(name, |name| self.filter.is_in(name));
            if held.is_some() {
                self.shown += 1;
                self.matching += 1;
                return held;
            }
        }
        None
    }

    /// What stands behind the locks.
    fn end(&mut self) -> String {
        let rest = &self.survey.names[self.left.clone()];
        if self.filter.search.is_empty() {
            self.matching += rest.len();
        } else {
            for names in rest.chunks(COUNTED) {
                self.matching += self.locks.count(names, |name| self.filter.is_in(name));
            }
        }
        let figures = text_of(&ListFigures {
            administrator: self.is_administrator,
            held: self.survey.held,
            matching: self.matching,
            now_ms: since_epoch(SystemTime::now() - self.at.elapsed()),
            problems: self.survey.problems,
            waiting: self.survey.waiting,
        });
        // As one object with what came before.
        figures.replacen('{', "],", 1)
    }
}

impl Iterator for Listing {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        let mut piece = String::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            piece.push_str("{\"locks\":[");
        }
        while piece.len() < PIECE_BYTES {
            let Some(held) = self.next_lock() else {
                self.is_over = true;
                piece.push_str(&self.end());
                break;
            };
            let comma = if self.shown > 1 { "," } else { "" };
            write!(piece, "{comma}{}", text_of(&shown(&held, self.is_administrator)))
                .expect("BUG: a string was not written");
        }
        Some(piece)
    }
}

/// One lock.
pub(crate) fn shown(held: &LockStatus, is_administrator: bool) -> ShownLock {
    let waiting = held.waiting.iter().map(|waiter| ShownWaiter {
        client: waiter.client.clone(),
        since_ms: since_epoch(waiter.since),
    });
    // The path of the directory is for administrators only.
    let problem = held.problem.as_ref().map(|it| match is_administrator {
        true => format!("{}: {}", it.path.display(), it.why),
        false => format!("{}: {}", in_directory(&it.path), it.why),
    });
    ShownLock {
        client: held.client.clone(),
        lease: held.lease.map(|lease| ShownLease {
            length_ms: milliseconds(lease.length),
            remaining_ms: milliseconds(lease.remaining),
        }),
        may_be_forced: held.problem.as_ref().is_none_or(|problem| problem.is_removable),
        problem,
        resource: held.resource.clone(),
        since_ms: since_epoch(held.since),
        token: Token(held.token),
        waiting: waiting.collect(),
        waiting_in_all: held.waiting_in_all,
    }
}

fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("BUG: an answer that is no JSON")
}

pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(LONGEST_MS)
}

pub(crate) fn since_epoch(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default()).min(LATEST_MS)
}
