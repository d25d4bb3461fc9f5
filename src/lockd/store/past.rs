//! The contents of a journal's files, and their damage.
//!
//! D1. Records before a bad one are in doubt: a lock may have ended in the bad record, or
//!     ended and been granted again. Records behind the last bad one are sure.
//! D2. All is in doubt where the end of the newest journal may be lost. Either it is cut,
//!     or the other file may be newer and cannot be read.
//! D3. A bad record puts the first records of its generation in no doubt. These locks were
//!     held when the generation began, and none had ended by then.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::{LockDirectory, read};
use super::grant::Grant;
use super::record::{
    self, CAPACITY_MAX, HEADER_BYTES, Header, JOURNALS, JournalRecord, UNKNOWN_BOOT,
};
use crate::sys::files::Errno;

/// What a journal says.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) header: Header,
    /// The grants that were held at its end, by token: in their order.
    pub(crate) held: BTreeMap<u64, Arc<Grant>>,
    /// The grants that ended.
    ended: Vec<Arc<Grant>>,
    /// Tokens of the last grants: their files may not have been made.
    last: Vec<u64>,
    /// The smallest token that was not given.
    pub(crate) next_token: u64,
    /// Whether all files were synced at its end.
    pub(crate) is_closed: bool,
    /// Whether no newer generation was begun.
    pub(crate) is_last: bool,
    /// Which of the two files it is.
    pub(crate) active: usize,
    /// The generation is complete. (J2)
    has_begun: bool,
    /// The place behind its last record.
    end: usize,
    /// At its end there is a record that was not written to its end.
    is_torn: bool,
    /// Bad records that were whole once. (J5)
    bad: Vec<Bad>,
    in_doubt: InDoubt,
}

#[derive(Clone, Debug)]
struct Bad {
    at: usize,
    /// The proof that it was whole once.
    what: String,
    before: InDoubt,
}

/// How much of what a journal says may not be so any more. (D1, D2)
#[derive(Clone, Copy, Debug, Default)]
struct InDoubt {
    /// Holds with a token below this one.
    held_below: u64,
    /// So many of the first ends.
    ended: usize,
}

/// A fault of a file that cannot come from a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    /// The byte where it begins, if the file is there.
    pub(crate) at: Option<usize>,
    pub(crate) what: String,
}

/// The files of a journal as they are found.
#[derive(Debug)]
pub(crate) struct Files {
    contents: [Content; 2],
}

#[derive(Debug)]
enum Content {
    Missing,
    /// The disk fails.
    Unreadable,
    Bytes(Vec<u8>),
}

impl Files {
    pub(crate) fn read(directory: &LockDirectory) -> Result<Self, (&'static str, Errno)> {
        let content = |name| {
            let file = directory.open_to_read(name);
            match file.and_then(|file| read(&file, CAPACITY_MAX)) {
                Ok(bytes) => Ok(Content::Bytes(bytes)),
                Err(Errno::NOENT) => Ok(Content::Missing),
                Err(Errno::IO) => Ok(Content::Unreadable),
                Err(errno) => Err((name, errno)),
            }
        };
        Ok(Self { contents: [content(JOURNALS[0])?, content(JOURNALS[1])?] })
    }

    pub(crate) fn are_missing(&self) -> bool {
        self.contents.iter().all(|content| matches!(content, Content::Missing))
    }

    /// Whether they are no more than an interrupted
    /// [`create`](super::journal::Journal::create) leaves.
    pub(crate) fn say_nothing(&self) -> bool {
        let is_empty = |past: Past| past.held.is_empty() && past.last.is_empty();
        self.contents.iter().all(|content| match content {
            Content::Missing => true,
            Content::Unreadable => false,
            Content::Bytes(bytes) => is_blank(bytes) || Past::read(bytes, 0).is_some_and(is_empty),
        })
    }

    /// What they say, and what is wrong with them, for a daemon in this boot.
    pub(crate) fn past(
        &self,
        directory: &LockDirectory,
        boot: [u8; 36],
    ) -> (Option<Past>, Vec<Damage>) {
        let mut found = Vec::new();
        let mut pasts = Vec::new();
        let mut damaged = Vec::new();
        for (active, name) in JOURNALS.into_iter().enumerate() {
            let (past, wrong) = match &self.contents[active] {
                Content::Missing => (None, Some((None, "is missing".to_owned()))),
                Content::Unreadable => {
                    (None, Some((Some(0), "cannot be read, the disk fails".to_owned())))
                }
                Content::Bytes(bytes) => match Past::read(bytes, active) {
                    None => (None, Some((Some(0), without_header(bytes)))),
                    Some(past) => {
                        let cut = past.cut(bytes.len(), boot);
                        (Some(past), cut)
                    }
                },
            };
            let generation = past.as_ref().map(|past| past.header.generation);
            damaged.extend(wrong.is_some().then_some(generation));
            found.extend(wrong.map(|(at, what)| Damage {
                name,
                path: directory.path_of(name),
                at,
                what,
            }));
            pasts.extend(past);
        }
        let last = pasts.iter().map(|past| past.header.generation).max();
        let complete = pasts.into_iter().filter(|past| past.has_begun);
        let mut newest = complete
            .max_by_key(|past| past.header.generation)
            .map(|past| Past { is_last: Some(past.header.generation) == last, ..past });
        if let Some(past) = newest.as_mut().filter(|past| !past.may_have_lost(boot)) {
            let name = JOURNALS[past.active];
            let path = directory.path_of(name);
            found.extend(past.bad.iter().cloned().map(|Bad { at, what, .. }| Damage {
                name,
                path: path.clone(),
                at: Some(at),
                what,
            }));
            past.in_doubt = past.bad.last().map(|bad| bad.before).unwrap_or_default();
        }
        if let Some(past) = &mut newest {
            let newest = past.header.generation;
            // D2.
            if damaged.iter().any(|generation| generation.is_none_or(|it| it >= newest)) {
                past.in_doubt = past.so_far();
            }
        }
        (newest, found)
    }
}

/// The files, made where they are missing, to be written.
pub(crate) fn open(directory: &LockDirectory) -> Result<[File; 2], (&'static str, Errno)> {
    let open = |name| directory.open_own(name);
    let open = |name| open(name).map_err(|errno| (name, errno));
    Ok([open(JOURNALS[0])?, open(JOURNALS[1])?])
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn without_header(bytes: &[u8]) -> String {
    let what = match bytes {
        [] => "is empty",
        _ if is_blank(bytes) => "is blank: it has nothing but zeros",
        _ => "does not begin as a journal does",
    };
    what.to_owned()
}

impl Past {
    fn read(bytes: &[u8], active: usize) -> Option<Self> {
        let header = Header::decode(bytes)?;
        let (next_token, is_closed, has_begun) = (header.next_token, false, false);
        let (held, ended, last) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (end, is_torn, is_last, bad) = (HEADER_BYTES, false, true, Vec::new());
        let in_doubt = InDoubt::default();
        let mut past = Self {
            header,
            held,
            ended,
            last,
            next_token,
            is_closed,
            is_last,
            active,
            has_begun,
            end,
            is_torn,
            bad,
            in_doubt,
        };
        past.replay_all(bytes);
        past.forget_what_was_given_again();
        Some(past)
    }

    /// Replay all whole records in order. Records behind a bad one count as well if they
    /// were written later: so the least is lost.
    fn replay_all(&mut self, bytes: &[u8]) {
        let salt = self.header.salt;
        let mark = self.header.decode_mark(bytes);
        let mut last_batch = 0;
        loop {
            let rest = bytes.get(self.end..).unwrap_or_default();
            if let Some((record, length, batch)) = JournalRecord::decode(salt, rest) {
                if batch != last_batch {
                    self.last.clear();
                    last_batch = batch;
                }
                self.has_begun |= batch > 0;
                self.replay(record);
                self.end += length;
                continue;
            }
            let behind = record::whole_behind(salt, bytes, self.end);
            let Some((next, true)) = behind else {
                break;
            };
            let what =
                format!("cannot be read there, and has whole records behind it, at byte {next}");
            self.bad.push(Bad { at: self.end, what, before: self.so_far() });
            self.end = next;
        }
        if self.end < mark {
            let what = format!("ends there, and was written to byte {mark} at least");
            self.bad.push(Bad { at: self.end, what, before: self.so_far() });
            self.has_begun = true;
        } else {
            self.is_torn = record::is_torn(salt, bytes, self.end, last_batch);
        }
    }

    fn replay(&mut self, record: JournalRecord) {
        match record {
            JournalRecord::Granted(grant) => {
                self.next_token = self.next_token.max(grant.token.saturating_add(1));
                if self.has_begun {
                    self.last.push(grant.token);
                }
                self.held.insert(grant.token, grant);
            }
            JournalRecord::Ended(token) => self.ended.extend(self.held.remove(&token)),
            JournalRecord::Withdrawn(token) => drop(self.held.remove(&token)),
            JournalRecord::Begun => {
                self.has_begun = true;
                // D3.
                self.bad.iter_mut().for_each(|bad| bad.before = InDoubt::default());
            }
            JournalRecord::Closed => self.is_closed = true,
        }
    }

    /// Forget holds that were granted again later: their lost ends have happened.
    fn forget_what_was_given_again(&mut self) {
        if self.bad.is_empty() {
            return;
        }
        let mut latest: HashMap<Arc<str>, u64> = HashMap::new();
        for grant in self.ended.iter().chain(self.held.values()) {
            let token = latest.entry(Arc::clone(&grant.terms.resource)).or_default();
            *token = grant.token.max(*token);
        }
        self.held.retain(|token, grant| latest[&grant.terms.resource] == *token);
    }

    /// All records up to here.
    fn so_far(&self) -> InDoubt {
        let last = self.held.last_key_value();
        InDoubt {
            held_below: last.map_or(0, |(token, _)| token.saturating_add(1)),
            ended: self.ended.len(),
        }
    }

    /// Whether a lock may have ended, or been granted again, since the grant with this token.
    /// (D1)
    pub(crate) fn doubts(&self, token: u64) -> bool {
        token < self.in_doubt.held_below
    }

    /// Whether this may be a last grant: then its file may not have been made.
    pub(crate) fn is_of_the_last(&self, token: u64) -> bool {
        self.last.contains(&token) && !self.doubts(token)
    }

    /// Grants that ended and were surely not granted again. (D1)
    pub(crate) fn surely_ended(&self) -> &[Arc<Grant>] {
        &self.ended[self.in_doubt.ended..]
    }

    /// J6.
    fn cut(&self, length: usize, boot: [u8; 36]) -> Option<(Option<usize>, String)> {
        let capacity = self.header.capacity;
        let is_cut = (length as u64) < capacity && !self.may_have_lost(boot);
        is_cut.then(|| (Some(length), format!("is cut there, and had {capacity} bytes")))
    }

    /// Whether nothing was synced and the machine was off since. Then the last records may be
    /// missing, in any order.
    fn may_have_lost(&self, boot: [u8; 36]) -> bool {
        !self.header.is_synced && !self.is_closed && !self.is_of(boot)
    }

    /// Whether it was written in this boot. An unknown boot is like no other.
    pub(crate) fn is_of(&self, boot: [u8; 36]) -> bool {
        self.header.boot == boot && boot != UNKNOWN_BOOT
    }

    /// Log what is normal and yet worth a line.
    pub(crate) fn report(&self, directory: &LockDirectory, boot: [u8; 36]) {
        let path = directory.path_of(JOURNALS[self.active]);
        let (path, end) = (path.display(), self.end);
        if self.may_have_lost(boot) {
            tracing::warn!(
                "{path}: was written without syncs, and the machine was off since: \
                 what was granted or ended last may be lost"
            );
        } else if self.is_torn {
            tracing::warn!(
                "{path}: the last record, at byte {end}, is torn, as a crash in a write \
                 leaves it: nothing of it was answered"
            );
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, what) = (self.path.display(), &self.what);
        match self.at {
            Some(at) => write!(out, "{path} is damaged at byte {at}: it {what}"),
            None => write!(out, "{path} {what}"),
        }
    }
}
