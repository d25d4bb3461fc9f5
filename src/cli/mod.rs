//! The command line; not a library interface.
#![doc(hidden)]

mod break_lock;
mod command;
#[cfg(feature = "etcd")]
mod etcd;
mod exit;
mod generate;
#[cfg(feature = "lockd-client")]
mod health;
mod kernel;
#[cfg(feature = "lockd-client")]
mod lockcmd;
mod log;
#[cfg(feature = "lockd")]
mod log_line;
mod named;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "lockd")]
mod queued_log;
#[cfg(feature = "lockd-client")]
mod remote;
mod run;
#[cfg(feature = "lockd")]
mod serve;
mod status;
mod text;
mod waiting;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::filter::LevelFilter;

use crate::Proof;
use crate::lock::duration;
use crate::sys::{child, signals};
use exit::Failure;

const EXAMPLES: &str = "\
Examples:
  lockkeeper run --timeout 30s /run/lock/import.lock -- ./import --all
  lockkeeper status /run/lock/import.lock
  lockkeeper break /run/lock/import.lock
  lockkeeper run --server http://locks:8000 import -- ./import --all";

const RUN_EXAMPLES: &str = "\
Examples:
  lockkeeper run backup.lock -- rsync -a src/ dst/
  lockkeeper run --try --note 'nightly import' import.lock -- ./import --all
  lockkeeper run --timeout 5m job.lock -- sh -c 'step-one && step-two'
  lockkeeper run --kernel flock -w 5 -E 1 /run/lock/job -- ./job
  * * * * * lockkeeper run -nq /run/lock/job.lock -- ./job    (in a crontab)";

const RUN_ENVIRONMENT: &str = "\
In the environment of CMD:
  LOCKKEEPER_PATH            the file of the lock, as an absolute path
  LOCKKEEPER_HOLD_ID         what names this hold, where the kind of lock has that
  LOCKKEEPER_FENCING_TOKEN   where there is one: a number that grows with each hold
  LOCKKEEPER_SERVER, LOCKKEEPER_RESOURCE
                             for a lock of a daemon, of etcd or of PostgreSQL,
                             instead of the path. If lockkeeper is killed, CMD runs
                             on and the lock ends with its lease
  LOCKKEEPER_RECOVERED_FROM  the previous holder, if it died holding the lock: its
                             work may be half done. Not there otherwise
  LOCKKEEPER_RECOVERED_PID   that holder's process id, where it is known";

const RUN_CODES: &str = "\
CMD may exit with these codes too. With those of lockkeeper, from 64 to 127,
there is always a line on standard error; not with 73 and --quiet. With --on-lost
ignore the exit code is CMD's even if the lock is lost.";

const BREAK_EXAMPLES: &str = "\
Examples:
  lockkeeper break import.lock
  lockkeeper break --revoke import.lock
  lockkeeper break --at etcd://h1:2379,h2:2379/jobs --revoke import
  lockkeeper break --at etcd://h1:2379,h2:2379/jobs --force 694d9a0b1c2d3e4f import
  lockkeeper break --at postgres://app@db/app --force 4242 import

For locks of etcd: --revoke asks a holder that is lockkeeper or uses its library. --force
deletes the holder's key: the next waiter enters at once, though the holder may still be
inside. lockkeeper's is told. The lease is named so that no later holder is hit.

For locks of PostgreSQL: --force ends the holder's session by pg_terminate_backend, which the
role has to be allowed. All that the session holds and does ends with it, and what that was
is printed. A holder that is lockkeeper or uses its library is told; the next waiter enters
after its lease.";

const STATUS_EXAMPLES: &str = "\
Examples:
  lockkeeper status --json a.lock b.lock
  lockkeeper status --watch /run/lock/*.lock
  lockkeeper status --at etcd://h1:2379,h2:2379/jobs import export
  lockkeeper status --at postgres://app@db/app import

JSON: an array with one object for each LOCK. Its keys: path (absolute), or
server and resource;
state (free, held, stale, not-a-lock-file, error); foreign (whether another
program wrote the file); pid, name, host, since, note, hold_id; evidence (how
that is known); error; waiters (for etcd and PostgreSQL: in their order, at
most 255; keys as of the holder); lease (the holder's, in etcd); session (the
server's process of the holder's session, in PostgreSQL). What is not known is
null.

Exit code: 0 if none of the locks is held, 1 if one is. A lock of which that is
not known comes first: 69, then 64, then 65. With --watch: 0 once a signal
(SIGINT, SIGTERM, SIGHUP …) comes or the reader is gone; 64 if no LOCK can be
the path of a lock. A lock of which nothing is known is shown, and watched on.";

const LOG_HELP: &str = "\
LOCKKEEPER_LOG in the environment sets what is logged on standard error: off,
error, warn (the default, also for an unknown value), info, debug or trace.
debug shows which holder is waited for, and how long. Without it RUST_LOG counts,
as in RUST_LOG=lockkeeper=debug.";

/// Locks between processes: run a command under one, show its holder, remove that of a dead one
#[derive(Debug, Parser)]
#[command(name = "lockkeeper", version, max_term_width = 100)]
#[command(after_help = sections(&[EXAMPLES, exit::TABLE, LOG_HELP]))]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Run),
    Status(Show),
    Break(Break),
    #[cfg(feature = "lockd")]
    Serve(serve::Serve),
    /// Lock a resource of a lock daemon without waiting, until it is unlocked
    #[cfg(feature = "lockd-client")]
    Lock(lockcmd::Call),
    /// Unlock a resource of a lock daemon
    #[cfg(feature = "lockd-client")]
    Unlock(lockcmd::Call),
    #[cfg(feature = "lockd-client")]
    Health(health::Health),
    /// Print the SQL that makes the table of PostgreSQL's locks, for psql or a migration
    #[cfg(feature = "postgres")]
    #[command(after_help = postgres::SCHEMA_EXAMPLES)]
    PostgresSchema,
    #[command(hide = true)]
    Generate(Generate),
}

/// Write the manual pages, and completions for bash, zsh and fish: for those who make packages
#[derive(Debug, Args)]
struct Generate {
    /// Where to; it is made if it is not there
    directory: PathBuf,
}

/// Wait for a lock, run a command, release the lock, and exit as the command did
#[derive(Debug, Args)]
#[command(after_help = sections(&[
    RUN_EXAMPLES, child::ABOUT, RUN_ENVIRONMENT, signals::ABOUT, exit::TABLE, RUN_CODES, LOG_HELP,
]))]
struct Run {
    /// Wait at most this long, as in 300ms, 30s, 5m, 1h30m; a bare number is seconds. A file that
    /// another program left is watched for two seconds first, so a wait for it can last that long
    /// [default: for ever]
    #[arg(long, short = 'w', value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,

    /// Do not wait: if the lock is held, exit at once with 73. A file that another program left is
    /// watched for two seconds first, so a try can last that long
    #[arg(long = "try", short = 'n', conflicts_with = "timeout")]
    only_try: bool,

    /// Time between two looks where the file system gives no events (network file systems).
    /// Elsewhere a release or a death ends the wait at once, and lockkeeper looks every 30 periods
    /// as well [default: 300ms]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    retry_period: Option<Duration>,

    /// How long a lock file is watched before it counts as acquired, where openlock or another
    /// program may replace it [default: 200ms]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    race_delay: Option<Duration>,

    /// How often such a program may replace the lock file before lockkeeper gives up [default: 2]
    #[arg(long, value_name = "N")]
    tries: Option<u32>,

    /// Share the lock with one Python openlock process at a time. lockkeeper is then called
    /// python-lockkeeper in ps, as openlock would take it for dead otherwise
    #[arg(long)]
    openlock_compat: bool,

    /// How others see that lockkeeper is alive: by a kernel lock on the file where the file system
    /// has such locks (auto), by one in any case (required), or by its process id (never). All that
    /// share a lock should choose the same. With never CMD does not keep the lock if lockkeeper is
    /// killed
    #[arg(long, value_enum, default_value_t = PinChoice::Auto)]
    pin: PinChoice,

    /// Print nothing while waiting, nor if the lock was not free in time: the exit code shows that.
    /// For cron, which mails what is printed
    #[arg(long, short)]
    quiet: bool,

    /// A line that waiters are shown, at most 128 bytes; '' for none [default: CMD as it is given,
    /// without arguments, where that is more than its name]
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,

    /// Do not let CMD inherit the lock. The lock then ends with lockkeeper, even if that is killed
    /// with SIGKILL and CMD still runs. Without --close it lasts until CMD is gone too, unless CMD
    /// closes what it inherits, as sudo and daemons do
    #[arg(long, short = 'o')]
    close: bool,

    /// When the lock is lost (its file was removed or replaced, or its release was asked for with break
    /// --revoke): send CMD a SIGTERM and after 5 s a SIGKILL, and exit with 74 (term), or only say
    /// so (ignore). The signals go to CMD alone. Its children stay in the terminal's foreground with it
    /// and get none, unless CMD passes it on: let CMD be the program that does the work, by exec
    #[arg(long, value_enum, default_value_t = OnLost::Term)]
    on_lost: OnLost,

    /// LOCK is a name at this URL instead of a path: a directory, file:///run/lock,
    /// flock:///run/lock, ofd:///run/lock, lockd+http://host:8000, lockd+https://host,
    /// etcd://h1:2379,h2:2379/prefix, etcd+tls://h1,h2/prefix or postgres://user@host/db. Options
    /// stand in the URL, as in ?lease=10s&client=web-1 or ?ttl=10s; what the URL of etcd leaves out,
    /// ETCDCTL_* in the environment says, and PG* for PostgreSQL [default without --server and
    /// --kernel: LOCKKEEPER_AT in the environment]
    #[arg(long, value_name = "URL", conflicts_with_all = [
        "retry_period", "race_delay", "tries", "openlock_compat", "pin", "kernel",
    ])]
    at: Option<String>,

    #[command(flatten)]
    kernel: kernel::Kernel,

    #[cfg(feature = "lockd-client")]
    #[command(flatten)]
    remote: remote::Remote,

    /// The lock file. It is made and removed; its directory must exist
    #[arg(value_name = "LOCK")]
    lock: PathBuf,

    /// The command and its arguments
    #[arg(value_name = "CMD", last = true, required = true)]
    command: Vec<OsString>,
}

/// Show for each lock whether it is free, held or stale, its holder, and how that is known
#[derive(Debug, Args)]
#[command(after_help = sections(&[STATUS_EXAMPLES, LOG_HELP]))]
struct Show {
    /// For programs: a JSON array, one object for each lock; with --watch one object a line
    #[arg(long)]
    json: bool,

    /// Print a line for each lock now, and one each time that its status changes, until a signal
    /// comes or the reader is gone. Each line is written at once. A slow reader sees only the last of
    /// several changes
    #[arg(long, short = 'f', conflicts_with = "kernel")]
    watch: bool,

    /// The LOCKs are names at this URL instead of paths (see run --at) [default: LOCKKEEPER_AT in
    /// the environment]
    #[arg(long, value_name = "URL", conflicts_with_all = ["kernel", "watch"])]
    at: Option<String>,

    /// Look at kernel locks of this kind, flock or ofd, instead of lock files
    #[arg(long, value_name = "KIND")]
    kernel: Option<kernel::Kind>,

    /// The lock files
    #[arg(value_name = "LOCK", required = true)]
    locks: Vec<PathBuf>,
}

/// Remove the lock file of a dead holder, or ask a living one to release its lock
#[derive(Debug, Args)]
#[command(after_help = sections(&[BREAK_EXAMPLES, LOG_HELP]))]
struct Break {
    /// Ask a living holder to release the lock instead. Its file is not touched, and nothing makes
    /// the holder listen; lockkeeper run does (see run --on-lost)
    #[arg(long)]
    revoke: bool,

    /// End the hold of a living holder instead. For locks of etcd this is its lease, in
    /// hexadecimal as status and etcdctl show it; for those of PostgreSQL the server's process of
    /// its session, as status and pg_locks show it
    #[cfg(any(feature = "etcd", feature = "postgres"))]
    #[arg(long, value_name = "ID", conflicts_with = "revoke")]
    force: Option<String>,

    /// LOCK is a name at this URL, and no path (see run --at). Without it LOCKKEEPER_AT in the
    /// environment counts
    #[arg(long, value_name = "URL")]
    at: Option<String>,

    /// The lock file
    #[arg(value_name = "LOCK")]
    lock: PathBuf,
}

impl Break {
    fn is_forced(&self) -> bool {
        #[cfg(any(feature = "etcd", feature = "postgres"))]
        return self.force.is_some();
        #[cfg(not(any(feature = "etcd", feature = "postgres")))]
        return false;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PinChoice {
    Auto,
    Required,
    Never,
}

impl From<PinChoice> for Proof {
    fn from(choice: PinChoice) -> Self {
        match choice {
            PinChoice::Auto => Proof::Auto,
            PinChoice::Required => Proof::KernelLock,
            PinChoice::Never => Proof::Process,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnLost {
    Term,
    Ignore,
}

/// The program `lockkeeper`.
#[must_use]
pub fn main() -> ExitCode {
    let verb = match Cli::try_parse() {
        Ok(cli) => cli.verb,
        Err(error) => {
            let error = with_tip(error);
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    child::exit_code(dispatch(&verb).unwrap_or_else(|failure| {
        text::tell(failure.message);
        failure.code.into()
    }))
}

/// To `run LOCK CMD` clap says only that CMD is unexpected.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let is_run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
    let is_word = matches!(error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(word)) if !word.starts_with('-'));
    if is_run && is_word && error.kind() == ErrorKind::UnknownArgument {
        let tip = ContextValue::StyledStrs(vec!["write `--` before the command".into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

fn dispatch(verb: &Verb) -> Result<u32, Failure> {
    if let Verb::Run(Run { openlock_compat: true, .. }) = verb {
        run::be_visible()?;
    }
    match verb {
        #[cfg(feature = "lockd")]
        // It has a log of its own.
        Verb::Serve(_) => {}
        _ => log::to_stderr(LevelFilter::WARN),
    }
    let code = match verb {
        Verb::Run(arguments) => return run::run(arguments),
        Verb::Status(arguments) => status::status(arguments),
        Verb::Break(arguments) => break_lock::break_lock(arguments),
        #[cfg(feature = "lockd")]
        Verb::Serve(arguments) => serve::serve(arguments),
        #[cfg(feature = "lockd-client")]
        Verb::Lock(arguments) => lockcmd::call("lock", arguments),
        #[cfg(feature = "lockd-client")]
        Verb::Unlock(arguments) => lockcmd::call("unlock", arguments),
        #[cfg(feature = "lockd-client")]
        Verb::Health(arguments) => health::health(arguments),
        #[cfg(feature = "postgres")]
        Verb::PostgresSchema => Ok(postgres::print_schema()),
        Verb::Generate(arguments) => generate::generate(arguments),
    };
    code.map(u32::from)
}

/// One thread: the command line does one thing at a time.
fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::system("starting the runtime", &error))
}

fn sections(texts: &[&str]) -> String {
    texts.join("\n\n")
}
