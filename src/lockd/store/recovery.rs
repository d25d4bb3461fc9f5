//! The holds that a daemon starts with, by the directory and the journal.
//!
//! R1. While the machine runs, the files say what is held: other programs may have changed
//!     them since. Only the files of the last grants may not have been made: for these the
//!     journal counts.
//! R2. After a power cut names and contents of files may be missing or back again. Then
//!     the journal says what was held, except where a file names another client by now.
//! R3. A file that the journal does not know is a lock without a lease.
//! R4. A file that names no holder is reported and left alone, except where the journal
//!     names its holder (R2).
//! R5. A lock that is in doubt after damage (`past`, D1) is taken for held, unless its file
//!     is gone by R1. But its token, lease and request id may be those of an older grant, so
//!     it is held as by R3. No file is removed because of an end in doubt.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::directory::{LockDirectory, NameState, shown};
use super::grant::{Grant, GrantTerms};
use super::past::Past;
use super::token_counter::TokenCounter;
use crate::lockd::name::{self, SUFFIX};
use crate::sys::files::Errno;

/// The holds and problems that a daemon starts with.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) held: HashMap<Arc<str>, Arc<Grant>>,
    /// Resources that cannot be locked, and the files that stand in the way.
    pub(crate) problems: BTreeMap<Arc<str>, Problem>,
    /// Holds that are over, as their files are gone.
    pub(crate) gone: Vec<Arc<Grant>>,
}

/// Why a resource cannot be locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The files that stand in the way, and whether each is called as the
    /// resource is though its name is not plainly safe. Empty where no client
    /// can ask for the resource.
    pub(crate) files: Vec<(String, bool)>,
    pub(crate) path: std::path::PathBuf,
    pub(crate) why: String,
    /// Whether an administrator's word removes it: it is one plain file.
    pub(crate) is_removable: bool,
}

/// Bring directory and journal together.
pub(crate) fn recover(
    directory: &Arc<LockDirectory>,
    past: Option<&Past>,
    files_count: bool,
    tokens: &mut TokenCounter,
) -> Result<Recovered, Errno> {
    let mut recovery = Recovery { directory, files_count, recovered: Recovered::default() };
    if let Some(past) = past {
        recovery.undo_what_came_back(past)?;
        for grant in past.held.values() {
            recovery.settle(grant, past)?;
        }
    }
    recovery.adopt_files(tokens)?;
    Ok(recovery.recovered)
}

struct Recovery<'a> {
    directory: &'a Arc<LockDirectory>,
    /// R1 holds, not R2.
    files_count: bool,
    recovered: Recovered,
}

impl Recovery<'_> {
    /// R2: a removal that was not synced. (R5)
    fn undo_what_came_back(&self, past: &Past) -> Result<(), Errno> {
        if self.files_count {
            return Ok(());
        }
        let held: HashSet<&str> = past.held.values().map(|grant| &*grant.terms.resource).collect();
        for grant in
            past.surely_ended().iter().filter(|grant| !held.contains(&*grant.terms.resource))
        {
            let name = grant.terms.file_name();
            let found = self.directory.look(&name);
            let is_torn = matches!(found, NameState::Bad { is_file: true, .. });
            if is_torn || found.as_client() == Some(&*grant.terms.client) {
                self.directory.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Settle one hold of the journal by its file.
    fn settle(&mut self, grant: &Arc<Grant>, past: &Past) -> Result<(), Errno> {
        let is_in_doubt = past.doubts(grant.token);
        let terms = &grant.terms;
        let name = terms.file_name();
        let keep = match self.directory.look(&name) {
            NameState::Lock { client, .. } => client == *terms.client,
            // The file of the client without a name is empty.
            NameState::Bad { is_file: true, .. } if self.is_of_nobody(&name, &terms.client) => true,
            NameState::Bad { is_file: true, .. } if !self.files_count => {
                self.directory.remove(&name)?;
                self.make(terms, &name, is_in_doubt)?
            }
            NameState::Bad { .. } => false,
            NameState::Nothing if !self.files_count || past.is_of_the_last(grant.token) => {
                self.make(terms, &name, is_in_doubt)?
            }
            NameState::Nothing => false,
        };
        match (keep, is_in_doubt) {
            (true, false) => {
                self.recovered.held.insert(Arc::clone(&terms.resource), Arc::clone(grant));
            }
            // R5: its file is adopted.
            (true, true) => {}
            (false, _) => self.recovered.gone.push(Arc::clone(grant)),
        }
        Ok(())
    }

    fn is_of_nobody(&self, name: &str, client: &str) -> bool {
        let contents = || self.directory.contents(name).ok();
        name::stripped(client).is_empty() && contents().is_some_and(|it| it == client.as_bytes())
    }

    fn make(&self, terms: &GrantTerms, name: &str, is_in_doubt: bool) -> Result<bool, Errno> {
        if is_in_doubt {
            tracing::warn!(
                "{}: made again for the client {:?}: a power cut may have taken it, or it was \
                 unlocked and the journal has lost that. Then unlock it by force",
                self.directory.path_of(name).display(),
                terms.client
            );
        }
        let made =
            self.directory.prepare(terms.client.as_bytes()).and_then(|file| file.publish(name));
        match made {
            Ok(()) => Ok(true),
            // The grant was never answered.
            Err(_) if self.files_count => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// R3, R4.
    fn adopt_files(&mut self, tokens: &mut TokenCounter) -> Result<(), Errno> {
        for name in self.directory.scan()? {
            let Some(resource) = name::resource(&name) else {
                continue;
            };
            let Ok((resource, is_literal)) = resource else {
                self.report_unspeakable(&name);
                continue;
            };
            let resource: Arc<str> = resource.into();
            if let Some(grant) = self.recovered.held.get(&resource) {
                if grant.terms.is_literal != is_literal {
                    self.report_double(&resource);
                }
                continue;
            }
            if self.recovered.problems.contains_key(&resource) {
                self.report_double(&resource);
                continue;
            }
            self.adopt(resource, is_literal, tokens)?;
        }
        Ok(())
    }

    fn adopt(
        &mut self,
        resource: Arc<str>,
        is_literal: bool,
        tokens: &mut TokenCounter,
    ) -> Result<(), Errno> {
        let terms = GrantTerms {
            resource: Arc::clone(&resource),
            client: "".into(),
            lease: None,
            request_id: None,
            is_literal,
        };
        match adopted(self.directory, terms, tokens)? {
            Ok(Some(grant)) => drop(self.recovered.held.insert(resource, Arc::new(grant))),
            Ok(None) => {}
            Err(problem) => drop(self.recovered.problems.insert(resource, problem)),
        }
        Ok(())
    }

    fn report_unspeakable(&mut self, name: &[u8]) {
        let shown = shown(name);
        let why = "its name is not UTF-8, so no client can ask for it: rename or remove it";
        let path = self.directory.path_of(std::ffi::OsStr::new(&shown));
        let (files, why) = (Vec::new(), why.to_owned());
        let problem = Problem { files, path, why, is_removable: false };
        let resource = shown.strip_suffix(SUFFIX).unwrap_or(&shown);
        self.recovered.problems.insert(resource.into(), problem);
    }

    /// Report two files whose names mean one resource. (N1, N3)
    fn report_double(&mut self, resource: &Arc<str>) {
        let encoded = name::file_name(resource).unwrap_or_default();
        let literal = format!("{resource}{SUFFIX}");
        let path = self.directory.path_of(&encoded);
        let why = format!("{literal} is the same resource: remove one of the two");
        self.recovered.held.remove(resource);
        let files = vec![(encoded, false), (literal, true)];
        let problem = Problem { files, path, why, is_removable: false };
        self.recovered.problems.insert(Arc::clone(resource), problem);
    }
}

/// The lock of a file that the journal does not know; `None` if there is no file. `terms`
/// says which file; its client does not matter.
pub(crate) fn adopted(
    directory: &LockDirectory,
    terms: GrantTerms,
    tokens: &mut TokenCounter,
) -> Result<Result<Option<Grant>, Problem>, Errno> {
    let name = terms.file_name().into_owned();
    Ok(match directory.look(&name) {
        NameState::Nothing => Ok(None),
        NameState::Lock { client, since } => {
            let terms =
                GrantTerms { client: client.into(), lease: None, request_id: None, ..terms };
            Ok(Some(Grant { terms, token: tokens.next()?, since }))
        }
        NameState::Bad { why, is_file } => {
            let path = directory.path_of(&name);
            let files = vec![(name, terms.is_literal)];
            Err(Problem { files, path, why, is_removable: is_file })
        }
    })
}
