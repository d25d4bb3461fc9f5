//! What stays when everybody is gone, against what may stay.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockkeeper::{AsyncFileLock, FileOptions, Proof};

use crate::settings::{End, Settings};
use crate::summary::Summary;
use crate::system::has_unnamed_files;
use crate::worker::lock_path;

/// What was found, and what was wrong with it.
#[derive(Default)]
pub struct LeftOvers {
    pub lock_files: usize,
    pub candidates: usize,
    pub claims: usize,
    pub wrong: Vec<String>,
}

pub fn check(settings: &Settings, place: &Path, summary: &Summary) -> LeftOvers {
    let path = lock_path(place);
    let directory = path.parent().expect("the lock has a directory");
    let mut found = count(&path);
    if settings.peer.is_some() {
        found.wrong.clear();
        found.candidates = beside(place);
        return found;
    }
    if !summary.stuck.is_empty() {
        found.wrong.push("not looked at, but kept: it was stuck".to_owned());
        return found;
    }
    let is_unnamed = settings.pin != Proof::Process && has_unnamed_files(directory);
    let per_kill = if is_unnamed { 0 } else { summary.kills };
    if found.lock_files > 0 && settings.end == End::Ask {
        found.wrong.push("a lock file, though every worker ended by itself".to_owned());
    }
    for (kind, number) in [("candidates", found.candidates), ("claims", found.claims)] {
        if number as u64 > per_kill {
            found.wrong.push(format!("{number} {kind}, where {per_kill} may stay"));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let sweep = runtime.expect("a runtime").block_on(sweep(settings, &path, found.lock_files > 0));
    found.wrong.extend(sweep.err());
    let names = names_in(directory);
    if !names.is_empty() {
        found.wrong.push(format!("after a sweep these stay: {}", names.join(", ")));
    }
    found
}

/// How many names there are beside the lock's own.
pub fn beside(place: &Path) -> usize {
    let path = lock_path(place);
    let lock_file = path.file_name().expect("the lock has a name").to_string_lossy();
    let directory = path.parent().expect("the lock has a directory");
    names_in(directory).into_iter().filter(|name| *name != lock_file).count()
}

fn count(path: &Path) -> LeftOvers {
    let mut found = LeftOvers::default();
    let lock_file = path.file_name().expect("the lock has a name").to_string_lossy();
    for name in names_in(path.parent().expect("the lock has a directory")) {
        match name.strip_prefix(&*lock_file) {
            Some("") => found.lock_files += 1,
            Some(rest) if rest.starts_with(".new.") => found.candidates += 1,
            Some(rest) if rest.starts_with(".break.") => found.claims += 1,
            _ => found.wrong.push(format!("a file that nobody promised: {name}")),
        }
    }
    found
}

/// The next acquisition takes what a killed holder left; then a sweep.
async fn sweep(settings: &Settings, path: &Path, is_stale: bool) -> Result<(), String> {
    let options = FileOptions::default().proof(settings.pin).retry_period(Duration::from_millis(1));
    let lock = AsyncFileLock::with_options(path, options).map_err(|error| error.to_string())?;
    let acquired = lock.try_acquire().await;
    let acquired = acquired.map_err(|error| format!("the next acquisition: {error}"))?;
    let guard = acquired.ok_or("the next acquisition finds it busy")?;
    if guard.recovered_from().is_some() != is_stale {
        let whom = guard.recovered_from();
        return Err(format!("stale: {is_stale}, but the next acquisition recovered {whom:?}"));
    }
    guard.release().await.map_err(|error| format!("the release after it: {error}"))?;
    lock.break_stale().await.map_err(|error| format!("the sweep: {error}"))?;
    Ok(())
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the lock's directory");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
