//! Which lock the arguments name: by `--at`, `--server` or `--kernel`, else a lock file.

use std::env::VarError;
use std::path::Path;
use std::time::Duration;

use super::exit::{self, Failure};
use super::{Break, PinChoice, Run, Show, command};
#[cfg(feature = "etcd")]
use crate::AsyncEtcdLock;
#[cfg(feature = "postgres")]
use crate::AsyncPostgresLock;
use crate::lock::any_lock::AnyLock;
use crate::lock::shared::SharedLock;
use crate::lock::wait::Wait;
use crate::{AsyncFileLock, AsyncKernelLock, FileOptions, Locks};

/// The URL of a place for locks, where no argument says another.
const AT: &str = "LOCKKEEPER_AT";

/// A lock, and what `run` does with it.
pub(super) struct Named {
    pub(super) lock: AnyLock,
    pub(super) wait: Wait,
    /// The lock ends with the last copy of the open file that carries it, and is not
    /// released when CMD ends: a daemon that CMD started keeps it, as under flock(1).
    pub(super) ends_with_file: bool,
}

/// The lock that `run` runs CMD under.
pub(super) fn of_run(arguments: &Run) -> Result<Named, Failure> {
    let limit = if arguments.only_try { Some(Duration::ZERO) } else { arguments.timeout };
    let named = |lock| Named { lock, wait: Wait::at_most(limit), ends_with_file: false };
    #[cfg(feature = "lockd-client")]
    if arguments.remote.server.is_some() {
        let lock = super::remote::lock(arguments, utf8(&arguments.lock)?)?;
        return Ok(named(AnyLock::new(lock)));
    }
    if let Some(kind) = arguments.kernel.kernel {
        let mut options = kind.options();
        if let Some(period) = arguments.retry_period {
            options = options.retry_period(period);
        }
        let lock = AsyncKernelLock::with_options(&arguments.lock, options)?;
        let lock = match arguments.kernel.shared {
            true => AnyLock::new(lock.shared()),
            false => AnyLock::new(lock),
        };
        return Ok(Named { ends_with_file: true, ..named(lock) });
    }
    if let Some(locks) = locks(arguments.at.as_deref())? {
        refuse_options_of_lock_files(arguments)?;
        let locks = locks.of_command(&command::name(&arguments.command), note(arguments));
        let lock = locks.lock(utf8(&arguments.lock)?)?;
        let wait =
            if limit.is_none() { crate::Lock::default_wait(&lock) } else { Wait::at_most(limit) };
        return Ok(Named { lock, wait, ends_with_file: locks.are_of_the_kernel() });
    }
    let lock = AsyncFileLock::with_options(&arguments.lock, file_options(arguments))?;
    Ok(named(AnyLock::new(lock)))
}

/// A lock that `status` looks at.
pub(super) enum Shown {
    LockFile(AnyLock),
    #[cfg(feature = "etcd")]
    Etcd(AsyncEtcdLock),
    #[cfg(feature = "postgres")]
    Postgres(AsyncPostgresLock),
    Other(AnyLock),
}

/// The locks that `status` looks at.
pub(super) fn of_status(arguments: &Show) -> Result<Vec<Shown>, Failure> {
    let names = arguments.locks.iter();
    if let Some(kind) = arguments.kernel {
        let lock = |path| AsyncKernelLock::with_options(path, kind.options());
        return names.map(|path| Ok(Shown::Other(AnyLock::new(lock(path)?)))).collect();
    }
    let Some(locks) = locks(arguments.at.as_deref())? else {
        let lock = |path| Shown::LockFile(AnyLock::new(AsyncFileLock::new(path)));
        return Ok(names.map(lock).collect());
    };
    names.map(|name| shown(&locks, utf8(name)?)).collect()
}

fn shown(locks: &Locks, name: &str) -> Result<Shown, Failure> {
    #[cfg(feature = "etcd")]
    if let Some(lock) = locks.etcd_lock(name)? {
        return Ok(Shown::Etcd(lock));
    }
    #[cfg(feature = "postgres")]
    if let Some(lock) = locks.postgres_lock(name)? {
        return Ok(Shown::Postgres(lock));
    }
    let lock = locks.lock(name)?;
    Ok(if locks.are_lock_files() { Shown::LockFile(lock) } else { Shown::Other(lock) })
}

/// A lock that `break` can break.
pub(super) enum Breakable {
    LockFile(AsyncFileLock),
    #[cfg(feature = "etcd")]
    Etcd(AsyncEtcdLock),
    #[cfg(feature = "postgres")]
    Postgres(AsyncPostgresLock),
}

/// The lock that `break` is to break.
pub(super) fn of_break(arguments: &Break) -> Result<Breakable, Failure> {
    let Some(locks) = locks(arguments.at.as_deref())? else {
        return Ok(Breakable::LockFile(AsyncFileLock::new(&arguments.lock)));
    };
    let name = utf8(&arguments.lock)?;
    #[cfg(feature = "etcd")]
    if let Some(lock) = locks.etcd_lock(name)? {
        return Ok(Breakable::Etcd(lock));
    }
    #[cfg(feature = "postgres")]
    if let Some(lock) = locks.postgres_lock(name)? {
        return Ok(Breakable::Postgres(lock));
    }
    let lock = locks.lock_file(name)?;
    lock.map(Breakable::LockFile).ok_or_else(|| {
        usage(
            "only lock files and the locks of etcd and PostgreSQL can be broken: end the holder, \
             or have a lock daemon unlock by force on its page"
                .to_owned(),
        )
    })
}

/// The lock file of this name, for what only lock files can do.
pub(super) fn lock_file(name: &Path) -> Result<AsyncFileLock, Failure> {
    let Some(locks) = locks(None)? else { return Ok(AsyncFileLock::new(name)) };
    let lock = locks.lock_file(utf8(name)?)?;
    lock.ok_or_else(|| usage(format!("{AT} names no lock files, and only these can do that")))
}

/// The place that `--at` or the environment names, if one does.
pub(super) fn locks(at: Option<&str>) -> Result<Option<Locks>, Failure> {
    let url = match at {
        Some(url) => url.to_owned(),
        None => match std::env::var(AT) {
            Ok(url) if url.is_empty() => return Ok(None),
            Ok(url) => url,
            Err(VarError::NotPresent) => return Ok(None),
            Err(VarError::NotUnicode(_)) => return Err(usage(format!("{AT} is not UTF-8"))),
        },
    };
    Ok(Some(crate::open(url)?))
}

/// `--at` refuses these itself; the environment cannot.
fn refuse_options_of_lock_files(arguments: &Run) -> Result<(), Failure> {
    for (is_given, option) in [
        (arguments.retry_period.is_some(), "--retry-period"),
        (arguments.race_delay.is_some(), "--race-delay"),
        (arguments.tries.is_some(), "--tries"),
        (arguments.openlock_compat, "--openlock-compat"),
        (arguments.pin != PinChoice::Auto, "--pin"),
    ] {
        if is_given {
            let way = "write it into the URL, or unset the variable";
            return Err(usage(format!("{option} does not go with {AT}: {way}")));
        }
    }
    Ok(())
}

pub(super) fn usage(message: String) -> Failure {
    Failure { code: exit::USAGE, message }
}

/// Names at a URL are text.
pub(super) fn utf8(name: &Path) -> Result<&str, Failure> {
    name.to_str().ok_or_else(|| usage(format!("{}: a name at a URL is UTF-8", name.display())))
}

fn file_options(arguments: &Run) -> FileOptions {
    let mut options = FileOptions::process_default()
        .proof(arguments.pin.into())
        .openlock_compat(arguments.openlock_compat);
    if let Some(period) = arguments.retry_period {
        options = options.retry_period(period);
    }
    if let Some(delay) = arguments.race_delay {
        options = options.race_delay(delay);
    }
    if let Some(tries) = arguments.tries {
        options = options.tries(tries);
    }
    if !arguments.openlock_compat {
        // openlock looks for the name in what ps(1) shows of this process.
        options.name = Some(command::name(&arguments.command).into());
    }
    match note(arguments) {
        Some(note) => options.note(note),
        None => options,
    }
}

fn note(arguments: &Run) -> Option<String> {
    let note = arguments.note.clone().or_else(|| command::note(&arguments.command));
    note.filter(|note| !note.is_empty())
}
