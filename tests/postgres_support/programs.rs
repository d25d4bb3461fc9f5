//! The programs of PostgreSQL and PgBouncer, and the user that runs them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::unistd::geteuid;

use crate::support::NOBODY;

/// The version that `tests/setup.sh` brings.
const MAJOR: &str = "15";

pub struct Programs {
    /// The parent of `usr`: of what the set-up unpacked, or of the machine's own.
    root: PathBuf,
    /// Where the libraries are that were unpacked with them; empty for the machine's own.
    libraries: OsString,
    /// With the minor one: `15.18`.
    pub version: String,
}

/// Whether PostgreSQL and PgBouncer can be run; says why not.
pub fn is_there() -> bool {
    let found = look();
    if let Err(reason) = found {
        println!("skipped: {reason}");
    }
    found.is_ok()
}

/// Those of a test that has asked [`is_there`].
pub fn programs() -> &'static Programs {
    look().as_ref().expect("PostgreSQL: run tests/setup.sh")
}

fn look() -> &'static Result<Programs, String> {
    static FOUND: OnceLock<Result<Programs, String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        // Of this crate, and of the one in tests/peers/postgres.
        let roots = ["target/postgres", "../../../target/postgres", "/"];
        let mut reasons = Vec::new();
        for root in roots {
            match Programs::of(Path::new(env!("CARGO_MANIFEST_DIR")).join(root)) {
                Ok(found) => return Ok(found),
                Err(reason) => reasons.push(reason),
            }
        }
        let reasons = reasons.join("; ");
        Err(format!("PostgreSQL {MAJOR} is not there: run tests/setup.sh ({reasons})"))
    })
}

impl Programs {
    fn of(root: PathBuf) -> Result<Self, String> {
        let libraries = libraries(&root);
        let mut found = Self { root, libraries, version: String::new() };
        let said = found.version_of(&found.postgres("postgres"))?;
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        found.version = said.split(' ').nth(2).unwrap_or_default().to_owned();
        found.version_of(&found.pgbouncer())?;
        Ok(found)
    }

    /// Asked as the user that runs it, whom a directory above may keep out.
    fn version_of(&self, program: &Path) -> Result<String, String> {
        let failed = |why: &dyn std::fmt::Display| {
            let as_user = user().map(|user| format!(" as user {user}")).unwrap_or_default();
            format!("{}{as_user}: {why}", program.display())
        };
        let output = self.command(program).arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| failed(&error))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let said = if output.status.success() { &output.stdout } else { &output.stderr };
        if output.status.success() { Ok(text(said)) } else { Err(failed(&text(said))) }
    }

    pub fn postgres(&self, program: &str) -> PathBuf {
        self.root.join("usr/lib/postgresql").join(MAJOR).join("bin").join(program)
    }

    pub fn pgbouncer(&self) -> PathBuf {
        self.root.join("usr/sbin/pgbouncer")
    }

    /// The command that runs one as [`user`].
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.own_command(program);
        if let Some(user) = user() {
            command.uid(user).gid(user).current_dir("/");
        }
        command
    }

    /// The command that runs one as this user, and gets nothing of this environment.
    pub fn own_command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        // The messages that tests read, and no need for the files of time zones.
        command.env("LC_ALL", "C").env("TZ", "GMT");
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
        command
    }
}

/// The command that runs `psql`, which knows nothing of tokio-postgres either.
pub fn psql(connection: &str, sql: &str) -> Command {
    let mut command = programs().own_command(&programs().postgres("psql"));
    command.args(["--no-psqlrc", "--no-align", "--tuples-only", "--command", sql, connection]);
    command.stdin(Stdio::null());
    command
}

/// The user that runs the servers, if it is another one: PostgreSQL refuses root.
pub fn user() -> Option<u32> {
    geteuid().is_root().then_some(NOBODY)
}

fn libraries(root: &Path) -> OsString {
    let is_unpacked = root != Path::new("/");
    let parents = ["lib", "usr/lib"].map(|parent| root.join(parent)).into_iter();
    let all = parents.filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten();
    let all = all.map(|entry| entry.path()).filter(|path| {
        is_unpacked && path.file_name().is_some_and(|it| it.to_string_lossy().contains("-linux-"))
    });
    std::env::join_paths(all).expect("no colons")
}
