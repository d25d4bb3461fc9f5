//! A primary of PostgreSQL and its synchronous standby on this machine, or a server anywhere.
//!
//! A commit is answered when both have stored it. So the standby may be promoted at any time,
//! and what the former primary still does is never answered: also not if it runs on, and knows
//! nothing. The new primary serves alone until the former one has been made its standby.

use std::fs::{self, DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lockkeeper::{PostgresLocks, PostgresOptions, Takeover};
use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::client::{self, RECONNECT, lock_name};
use crate::dice::Dice;
use crate::due::Due;
use crate::engine::{Actions, Engine, Servers, Traces};
use crate::process::{Process, free_addresses};
use crate::settings::Job;

/// Servers that are not as they should be by then never will.
const WELL_MAX: Duration = Duration::from_secs(120);

/// A server that does not shut down by then is killed: a process of it may be stopped.
const SHUT_DOWN_MAX: Duration = Duration::from_secs(10);

/// Between two promotions, and before the first.
const PROMOTION: Duration = Duration::from_secs(20);

/// How long a new primary serves alone, and a former one beside it.
const ALONE: Duration = Duration::from_secs(10);

/// Between two looks at how far a server has come.
const LOOK: Duration = Duration::from_millis(300);

/// Whether the standby is there.
const JOINED: &str = "select count(*) = 1 from pg_stat_replication where state = 'streaming'";

/// Whether commits wait for it, and it has all that did not.
const CAUGHT_UP: &str = "select count(*) = 1 from pg_stat_replication where state = 'streaming' \
    and sync_state = 'sync' and flush_lsn >= pg_current_wal_flush_lsn()";

/// PostgreSQL refuses root, so `nobody` runs it then.
const NOBODY: u32 = 65534;

pub(crate) struct Postgres;

impl Engine for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn start(&self, directory: &Path) -> Box<dyn Servers> {
        Box::new(Pair::start(directory))
    }

    fn address(&self, servers: &[SocketAddr]) -> String {
        let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        // Of two servers one can write, and the other may be silent.
        format!("postgres://postgres@{}/postgres?connect_timeout=2", servers.join(","))
    }

    fn can_take_over_at_once(&self) -> bool {
        true
    }

    fn run_client(&self, job: &Job) {
        let takeover = if job.is_at_once { Takeover::AtOnce } else { Takeover::AfterLease };
        let options = PostgresOptions::default().lease(job.ttl).reconnect(RECONNECT);
        let options = options.takeover(takeover);
        let locks = PostgresLocks::with_options(&job.at, options).expect("a server");
        let named = |number| format!("{}/{}", job.prefix, lock_name(number));
        client::run(job, |number| locks.lock(named(number)).expect("a lock"));
    }

    /// Advisory locks that are held or waited for, rows of holders, and then sessions.
    fn left(&self, traces: &Traces<'_>, has_ended: bool) -> Option<Vec<String>> {
        let sql = format!(
            "with k as ({}) \
             select 'session ' || pid || case when granted then ' holds ' else ' waits for ' end \
                || name from pg_locks join k on locktype = 'advisory' and objsubid = 1 \
                and classid::bigint = key >> 32 & 4294967295 \
                and objid::bigint = key & 4294967295 \
             union all select name || ' is held, by its row: ' || holder \
                from lockkeeper.lock join k using (key) where form = 1 and not clean \
             union all select name || ' is shared, by a row: ' || holder \
                from lockkeeper.reader join k using (key) where form = 1 \
             union all select 'session ' || pid || ' of a client: ' || query \
                from pg_stat_activity where {has_ended} and application_name = '{}'",
            keys(traces),
            traces.prefix
        );
        psql(traces.at, &sql)
    }

    /// Of each lock that was held there is a row.
    fn forget(&self, traces: &Traces<'_>) {
        let keys = keys(traces);
        let sql = format!(
            "with k as ({keys}) delete from lockkeeper.lock where form = 1 \
             and key in (select key from k)"
        );
        assert!(psql(traces.at, &sql).is_some(), "rows are left in lockkeeper.lock");
    }
}

/// The locks and their keys, as the documentation says: the first eight bytes of a hash.
fn keys(traces: &Traces<'_>) -> String {
    let Traces { prefix, locks, .. } = traces;
    format!(
        "select name, ('x' || left(encode(sha256('lockkeeper postgres lock 1'::bytea || \
            '\\x00'::bytea || convert_to(name, 'UTF8')), 'hex'), 16))::bit(64)::bigint as key \
         from (select '{prefix}/lock-' || n as name from generate_series(0, {locks} - 1) n) names"
    )
}

/// The lines that it prints; `None` if no server that can write answers.
fn psql(at: &str, sql: &str) -> Option<Vec<String>> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "10"]).arg(program("psql"));
    command.args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet"]);
    command.args(["--set=ON_ERROR_STOP=1", "--command", sql, at]);
    command.env("PGTARGETSESSIONATTRS", "read-write").env("PGCONNECT_TIMEOUT", "2");
    let output = command.stdin(Stdio::null()).output().expect("timeout of coreutils");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    output.status.success().then_some(lines)
}

/// Debian has them outside of `PATH`, of the newest version last.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions
        .map(|entry| entry.path().join("bin"))
        .filter(|it| it.join(name).exists())
        .collect();
    versions.sort();
    versions.pop().unwrap_or_default().join(name)
}

/// The command that runs a program of the servers' user in this directory.
fn command(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(program(name));
    if getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir(directory).stdin(Stdio::null());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
}

/// A server, or what is going to be one.
struct Server {
    address: SocketAddr,
    data: PathBuf,
    postmaster: Option<Process>,
}

impl Server {
    fn log(&self) -> File {
        let log = self.data.with_extension("log");
        File::options().create(true).append(true).open(log).expect("a log")
    }

    /// An empty directory for its data.
    fn clear(&self) {
        let _ = fs::remove_dir_all(&self.data);
        DirBuilder::new().mode(0o700).create(&self.data).expect("a directory");
        if getuid().is_root() {
            chown(&self.data, Some(NOBODY), Some(NOBODY)).expect("root may give files");
        }
    }

    /// Runs a program to its end.
    fn run(&self, name: &str, arguments: &[&str]) {
        let mut command = command(name, &self.data);
        command.args(arguments).stdout(self.log()).stderr(self.log());
        let status = command.status().expect("the programs of PostgreSQL are installed");
        assert!(
            status.success(),
            "{name} fails: see {}",
            self.data.with_extension("log").display()
        );
    }

    /// Begins to run what it has stored. With a standby, commits wait for that.
    fn start(&mut self, has_standby: bool) {
        let mut command = command("postgres", &self.data);
        let standby = if has_standby { "*" } else { "" };
        let (host, port) = (self.address.ip(), self.address.port());
        for setting in [
            &format!("listen_addresses={host}"),
            &format!("port={port}"),
            &format!("synchronous_standby_names={standby}"),
            "unix_socket_directories=",
            "max_connections=300",
            // A standby that was stopped goes on with it.
            "wal_keep_size=256MB",
            "wal_retrieve_retry_interval=200ms",
            // Else files of a server that was killed stay.
            "dynamic_shared_memory_type=mmap",
            "jit=off",
        ] {
            command.args(["-c", setting]);
        }
        command.args(["-D", "."]).stdout(self.log()).stderr(self.log());
        self.postmaster = Some(Process(command.spawn().expect("PostgreSQL is installed")));
    }

    /// The postmaster, and all that it started.
    fn processes(&self) -> Vec<u32> {
        let is_here = |pid: &u32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory == self.data)
        };
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_here).collect()
    }

    /// The processes that serve clients, and what they do, by their titles.
    fn sessions(&self) -> Vec<(u32, String)> {
        let title = |pid| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let title = String::from_utf8_lossy(&title).trim_end_matches('\0').to_owned();
            // "postgres: postgres postgres 127.0.0.1(44644) SELECT waiting"
            let is_client = title.starts_with("postgres: postgres postgres ");
            is_client.then_some((pid, title))
        };
        self.processes().into_iter().filter_map(title).collect()
    }

    fn signal(&self, pid: u32, signal: Signal) {
        // Another process may have its number.
        if self.processes().contains(&pid) {
            send(pid, signal);
        }
    }

    fn signal_all(&self, signal: Signal) {
        self.processes().into_iter().for_each(|pid| send(pid, signal));
    }

    /// SIGKILL of all its processes, until there are none.
    fn kill(&mut self) {
        // The postmaster first, which would start others.
        self.postmaster = None;
        while !self.processes().is_empty() {
            self.signal_all(Signal::KILL);
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn shut_down(&self, how: Signal) {
        if let Some(postmaster) = &self.postmaster {
            postmaster.signal(how);
        }
    }

    fn has_ended(&mut self) -> bool {
        let postmaster = self.postmaster.as_mut();
        postmaster.is_none_or(|it| it.0.try_wait().is_ok_and(|it| it.is_some()))
    }

    fn ask(&self, sql: &str) -> Option<String> {
        let Self { address, .. } = self;
        psql(&format!("postgres://postgres@{address}/postgres"), sql).map(|lines| lines.join("\n"))
    }
}

/// Its memory that is shared goes with an end in order.
impl Drop for Server {
    fn drop(&mut self) {
        self.signal_all(Signal::CONT);
        self.shut_down(Signal::QUIT);
        let begun = Instant::now();
        while !self.has_ended() && begun.elapsed() < SHUT_DOWN_MAX {
            thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }
}

/// One that is gone needs no signal.
fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process id"), signal);
}

struct Pair {
    servers: [Server; 2],
    primary: usize,
    phase: Phase,
    next_look: Instant,
    next_promotion: Instant,
    undo: Due<Undo>,
    /// Since when each is not in order: it is down, or all of it is stopped.
    is_out: [bool; 2],
    counts: Counts,
}

/// How far the two are on their way to a primary and its synchronous standby.
enum Phase {
    /// The former primary goes at this moment.
    Promoted(Instant),
    /// The standby gets what the primary has.
    Copying(Process),
    /// It connects.
    Joining,
    /// The primary shuts down, to wait for the standby with each commit from now on.
    Restarting(Instant),
    /// The standby has all that was committed without it.
    CatchingUp,
    Well,
}

enum Undo {
    Start(usize),
    /// After its end, or after this moment.
    StartAfterEnd(usize, Instant),
    Resume(usize),
    ResumeProcess(usize, u32),
}

#[derive(Default)]
struct Counts {
    terminated: u64,
    /// Of those, that waited for a lock.
    terminated_waits: u64,
    session_kills: u64,
    session_stops: u64,
    postmaster_kills: u64,
    postmaster_stops: u64,
    restarts: u64,
    freezes: u64,
    standby_freezes: u64,
    /// While the former primary is killed, runs on, and is stopped and goes on later.
    promotions: [u64; 3],
}

impl Pair {
    fn start(directory: &Path) -> Self {
        let addresses = free_addresses(2);
        let servers = [0, 1].map(|number| Server {
            address: addresses[number],
            data: directory.join(format!("server-{number}")),
            postmaster: None,
        });
        let mut pair = Self {
            servers,
            primary: 0,
            phase: Phase::Joining,
            next_look: Instant::now(),
            next_promotion: Instant::now() + PROMOTION,
            undo: Due::new(),
            is_out: [false; 2],
            counts: Counts::default(),
        };
        let first = &mut pair.servers[0];
        first.clear();
        let how = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"];
        first.run("initdb", &[&how[..], &["--wal-segsize=16", "--no-sync", "--pgdata=."]].concat());
        first.start(false);
        let begun = Instant::now();
        while pair.primary().ask(PostgresLocks::SCHEMA).is_none() {
            assert!(begun.elapsed() < WELL_MAX, "the server does not start");
            thread::sleep(Duration::from_millis(100));
        }
        pair.phase = pair.copy();
        let actions = Actions::create(&directory.join("start")).expect("a file");
        pair.heal(&actions);
        pair.counts = Counts::default();
        pair
    }

    fn primary(&self) -> &Server {
        &self.servers[self.primary]
    }

    fn standby(&self) -> &Server {
        &self.servers[1 - self.primary]
    }

    /// Nothing of the two is down or stopped.
    fn is_undisturbed(&self) -> bool {
        self.undo.is_empty() && self.is_out == [false; 2]
    }

    /// One that is no server any more begins to become a standby.
    fn copy(&mut self) -> Phase {
        let address = self.primary().address;
        let standby = &mut self.servers[1 - self.primary];
        standby.kill();
        standby.clear();
        let mut command = command("pg_basebackup", &standby.data);
        let (host, port) = (address.ip(), address.port());
        let from = format!("host={host} port={port} user=postgres application_name=standby");
        command.args(["--dbname", &from, "--pgdata=.", "--write-recovery-conf", "--no-sync"]);
        command.arg("--checkpoint=fast").stdout(standby.log()).stderr(standby.log());
        Phase::Copying(Process(command.spawn().expect("PostgreSQL is installed")))
    }

    /// The next phase, if it has come that far.
    fn go_on(&mut self, now: Instant, actions: &Actions) -> Option<Phase> {
        if now < self.next_look {
            return None;
        }
        self.next_look = now + LOOK;
        let (primary, standby) = (self.primary, 1 - self.primary);
        let is = |server: &Server, sql: &str| server.ask(sql).as_deref() == Some("t");
        let copied = match &mut self.phase {
            Phase::Copying(copying) => copying.0.try_wait().expect("its status"),
            _ => None,
        };
        let next = match &self.phase {
            Phase::Promoted(until) if now < *until => return None,
            Phase::Promoted(_) if is(self.primary(), "select not pg_is_in_recovery()") => {
                self.copy()
            }
            Phase::Copying(_) => match copied?.success() {
                true => {
                    self.servers[standby].start(false);
                    Phase::Joining
                }
                false => self.copy(),
            },
            Phase::Joining if is(self.primary(), JOINED) => {
                self.primary().shut_down(Signal::INT);
                Phase::Restarting(now + SHUT_DOWN_MAX)
            }
            Phase::Restarting(until) => {
                let is_late = now > *until;
                let server = &mut self.servers[primary];
                if !server.has_ended() && !is_late {
                    return None;
                }
                server.kill();
                server.start(true);
                self.counts.restarts += 1;
                Phase::CatchingUp
            }
            Phase::CatchingUp if is(self.primary(), CAUGHT_UP) => {
                self.next_promotion = Instant::now() + PROMOTION;
                Phase::Well
            }
            Phase::Promoted(_) | Phase::Joining | Phase::CatchingUp | Phase::Well => return None,
        };
        let name = match next {
            Phase::Promoted(_) => "the standby is promoted",
            Phase::Copying(_) => "the former primary goes, and a standby is copied",
            Phase::Joining => "the standby connects",
            Phase::Restarting(_) => "the primary restarts, to wait for its standby",
            Phase::CatchingUp => "the standby catches up",
            Phase::Well => "primary and standby are well",
        };
        actions.note(name);
        Some(next)
    }

    fn promote(&mut self, now: Instant, actions: &Actions) {
        let former = self.primary;
        let case = usize::try_from(self.counts.promotions.iter().sum::<u64>() % 3).expect("small");
        self.counts.promotions[case] += 1;
        let what = ["runs on", "is killed", "is stopped and goes on later"][case];
        actions.note(&format!("promote server {}; the former primary {what}", 1 - former));
        match case {
            0 => {}
            1 => self.servers[former].kill(),
            _ => {
                self.servers[former].signal_all(Signal::STOP);
                self.undo.at(now + Duration::from_secs(3), Undo::Resume(former));
            }
        }
        self.standby().run("pg_ctl", &["promote", "--no-wait", "--pgdata=."]);
        self.primary = 1 - former;
        self.phase = Phase::Promoted(now + ALONE);
    }

    fn undo(&mut self, undo: Undo, now: Instant, actions: &Actions) {
        match undo {
            Undo::StartAfterEnd(at, until) if now < until && !self.servers[at].has_ended() => {
                self.undo.at(now + Duration::from_millis(50), undo);
            }
            Undo::Start(at) | Undo::StartAfterEnd(at, _) => {
                actions.note(&format!("start server {at}"));
                // Of a postmaster that was killed, the others may not have ended yet.
                self.servers[at].kill();
                self.servers[at].start(true);
                self.is_out[at] = false;
            }
            Undo::Resume(at) => {
                actions.note(&format!("resume server {at}"));
                self.servers[at].signal_all(Signal::CONT);
                self.is_out[at] = false;
            }
            Undo::ResumeProcess(at, pid) => {
                actions.note(&format!("resume process {pid} of server {at}"));
                self.servers[at].signal(pid, Signal::CONT);
            }
        }
    }

    /// One that serves a client; of those that wait for a lock if `waits` and there is one.
    fn some_session(&self, waits: bool, dice: &mut Dice) -> Option<(u32, bool)> {
        let mut sessions = self.primary().sessions();
        let is_waiting = |title: &str| title.ends_with(" waiting");
        if waits && sessions.iter().any(|(_, title)| is_waiting(title)) {
            sessions.retain(|(_, title)| is_waiting(title));
        }
        let at = usize::try_from(dice.below(sessions.len() as u64)).expect("less");
        sessions.get(at).map(|(pid, title)| (*pid, is_waiting(title)))
    }

    fn terminate_session(&mut self, dice: &mut Dice, actions: &Actions) {
        let is_of_waiters = dice.once_in(3);
        let Some((pid, waits)) = self.some_session(is_of_waiters, dice) else { return };
        actions.note(&format!("terminate session {pid}, waits: {waits}"));
        // As pg_terminate_backend does.
        self.primary().signal(pid, Signal::TERM);
        self.counts.terminated += 1;
        self.counts.terminated_waits += u64::from(waits);
    }

    /// Of a session, or of the postmaster alone.
    fn stop_process(&mut self, pid: u32, dice: &mut Dice) {
        self.primary().signal(pid, Signal::STOP);
        let undo = Undo::ResumeProcess(self.primary, pid);
        self.undo.at(Instant::now() + dice.millis(50, 5000), undo);
    }

    fn freeze(&mut self, at: usize, dice: &mut Dice) {
        self.is_out[at] = true;
        self.servers[at].signal_all(Signal::STOP);
        self.undo.at(Instant::now() + dice.millis(50, 5000), Undo::Resume(at));
    }

    fn postmaster(&self) -> u32 {
        self.primary().postmaster.as_ref().expect("it runs").0.id()
    }
}

impl Servers for Pair {
    fn name(&self) -> String {
        let version = self.primary().ask("show server_version").unwrap_or_default();
        format!("PostgreSQL {version} and a synchronous standby")
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    fn harm(&mut self, dice: &mut Dice, actions: &Actions) {
        let primary = self.primary;
        let is_due = Instant::now() >= self.next_promotion;
        if !matches!(self.phase, Phase::Well) || is_due || self.is_out[primary] {
            return self.terminate_session(dice, actions);
        }
        match dice.below(20) {
            0..6 => self.terminate_session(dice, actions),
            6..8 => {
                let Some((pid, waits)) = self.some_session(false, dice) else { return };
                actions.note(&format!("kill session {pid}, waits: {waits}"));
                self.primary().signal(pid, Signal::KILL);
                self.counts.session_kills += 1;
            }
            8..12 => {
                let Some((pid, waits)) = self.some_session(false, dice) else { return };
                actions.note(&format!("stop session {pid}, waits: {waits}"));
                self.stop_process(pid, dice);
                self.counts.session_stops += 1;
            }
            12 => {
                actions.note("stop the postmaster");
                self.stop_process(self.postmaster(), dice);
                self.counts.postmaster_stops += 1;
            }
            13..15 => {
                actions.note("kill the postmaster");
                self.is_out[primary] = true;
                self.servers[primary].postmaster = None;
                self.undo.at(Instant::now() + dice.millis(20, 3000), Undo::Start(primary));
                self.counts.postmaster_kills += 1;
            }
            15 => {
                actions.note("restart the primary");
                self.is_out[primary] = true;
                self.servers[primary].signal_all(Signal::CONT);
                self.primary().shut_down(Signal::INT);
                let now = Instant::now();
                self.undo.at(now, Undo::StartAfterEnd(primary, now + SHUT_DOWN_MAX));
                self.counts.restarts += 1;
            }
            16..18 => {
                actions.note("stop the primary");
                self.freeze(primary, dice);
                self.counts.freezes += 1;
            }
            _ if self.is_out[1 - primary] => {}
            _ => {
                actions.note("stop the standby");
                self.freeze(1 - primary, dice);
                self.counts.standby_freezes += 1;
            }
        }
    }

    fn tick(&mut self, now: Instant, actions: &Actions) {
        while let Some(undo) = self.undo.next(now) {
            self.undo(undo, now, actions);
        }
        if let Some(next) = self.go_on(now, actions) {
            self.phase = next;
        }
        let is_well = matches!(self.phase, Phase::Well) && self.is_undisturbed();
        if is_well && now >= self.next_promotion {
            self.promote(now, actions);
        }
    }

    fn heal(&mut self, actions: &Actions) {
        let begun = Instant::now();
        self.next_promotion = begun + 2 * WELL_MAX;
        while let Some(undo) = self.undo.any() {
            self.undo(undo, begun + WELL_MAX, actions);
        }
        while !matches!(self.phase, Phase::Well) {
            assert!(begun.elapsed() < WELL_MAX, "the servers are not well again");
            let now = Instant::now();
            if let Some(next) = self.go_on(now, actions) {
                self.phase = next;
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.next_promotion = Instant::now() + PROMOTION;
    }

    fn told(&self) -> String {
        let Counts {
            terminated,
            terminated_waits,
            session_kills,
            session_stops,
            postmaster_kills,
            postmaster_stops,
            restarts,
            freezes,
            standby_freezes,
            promotions: [beside, after, around],
        } = &self.counts;
        format!(
            "{terminated} sessions terminated ({terminated_waits} that waited), {session_kills} \
             killed, {session_stops} stopped; postmaster {postmaster_kills} times killed, \
             {postmaster_stops} stopped; primary {restarts} times restarted, {freezes} stopped; \
             standby {standby_freezes} times stopped, {} promoted (former primary: {beside} runs \
             on, {after} killed, {around} stopped and goes on)",
            beside + after + around
        )
    }
}
