//! Three processes count the words of a file together, taking turns by a lock
//! file. One of them is killed with `kill -9` while it holds the lock and has
//! written half a line. The next one is told, repairs the half line, and the
//! sum comes out right.
//!
//! `cargo run --release --example kill_and_recover [FILE]`

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lockkeeper::{AsyncFileLock, FileGuard, FileOptions};

/// Lines of the input that a worker counts in one turn.
const BATCH: usize = 10;

/// How long a turn lasts at least, so that a person can follow.
const TURN: Duration = Duration::from_millis(30);

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--worker", name, input, directory] => {
            work(name, Path::new(input), Path::new(directory)).await?;
            Ok(ExitCode::SUCCESS)
        }
        [] => conduct(&PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"))).await,
        [input] => conduct(Path::new(input)).await,
        _ => Err("usage: kill_and_recover [FILE]".into()),
    }
}

/// Start the workers, kill one, compare the sum.
async fn conduct(input: &Path) -> Result<ExitCode, Failure> {
    let directory = env::temp_dir().join(format!("lockkeeper-demo-{}", std::process::id()));
    fs::create_dir(&directory)?;
    println!("three processes count the words of {} under one lock", input.display());
    let mut victim = start("victim", input, &directory)?;
    let half_written = BufReader::new(victim.stdout.take().expect("piped")).lines().next();
    half_written.expect("the victim says when it has written half a line")?;
    let others = ["anna", "boris"].map(|name| start(name, input, &directory));

    let lock = AsyncFileLock::new(directory.join("work.lock"));
    let holder = lock.holder().await?.expect("the victim holds");
    println!("held by {holder} ({})", holder.evidence);
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("kill -9 {}", victim.id());
    victim.kill()?;
    victim.wait()?;
    for other in others {
        let status = other?.wait()?;
        assert!(status.success(), "a worker failed: {status}");
    }

    let counted: usize = journal(&directory)?.iter().map(|(_, words)| words).sum();
    let expected = fs::read_to_string(input)?.split_whitespace().count();
    println!("counted {counted} words, and there are {expected}");
    let left: Vec<_> = fs::read_dir(&directory)?.collect::<Result<_, _>>()?;
    println!("files left beside the journal: {}", left.len() - 1);
    fs::remove_dir_all(&directory)?;
    Ok(if counted == expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn start(name: &str, input: &Path, directory: &Path) -> io::Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--worker", name]).arg(input).arg(directory);
    if name == "victim" {
        command.stdout(Stdio::piped());
    }
    command.spawn()
}

async fn work(name: &str, input: &Path, directory: &Path) -> Result<(), Failure> {
    let text = fs::read_to_string(input)?;
    let lines: Vec<&str> = text.lines().collect();
    let options = FileOptions::default().retry_period(Duration::from_millis(20)).note(name);
    let lock = AsyncFileLock::with_options(directory.join("work.lock"), options)?;
    if lock.is_locked().await? {
        println!("{name} waits");
    }
    for turns in 0.. {
        let started = Instant::now();
        let guard = lock.acquire().await?;
        report(name, &guard, started.elapsed(), directory)?;
        let done = journal(directory)?.last().map_or(0, |(line, _)| *line);
        if done == lines.len() {
            guard.release().await?;
            println!("{name} had {turns} turns");
            break;
        }
        let next = lines.len().min(done + BATCH);
        let words = lines[done..next].iter().map(|line| line.split_whitespace().count()).sum();
        tokio::time::sleep(TURN).await;
        write(name, directory, next, words)?;
        guard.release().await?;
    }
    Ok(())
}

/// Tell what is worth telling, and repair what a dead holder left.
fn report(name: &str, guard: &FileGuard, waited: Duration, directory: &Path) -> io::Result<()> {
    let Some(dead) = guard.recovered_from() else {
        return Ok(());
    };
    let waited = waited.as_millis();
    println!("{name} waited {waited} ms and took over from {dead}: {}", dead.evidence);
    let path = directory.join("journal");
    let text = fs::read_to_string(&path)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    println!("{name} removes the half line {:?}", &text[whole..]);
    OpenOptions::new().write(true).open(path)?.set_len(whole as u64)
}

/// Append a line in two writes, so that it can be half written.
fn write(name: &str, directory: &Path, line: usize, words: usize) -> io::Result<()> {
    let text = format!("{line} {words}\n");
    let (first, second) = text.split_at(2);
    let path = directory.join("journal");
    let mut journal = OpenOptions::new().create(true).append(true).open(path)?;
    journal.write_all(first.as_bytes())?;
    if name == "victim" {
        println!("half written");
        std::thread::sleep(Duration::from_secs(3600));
    }
    journal.write_all(second.as_bytes())
}

/// Each turn's last line and words.
fn journal(directory: &Path) -> io::Result<Vec<(usize, usize)>> {
    let text = match fs::read_to_string(directory.join("journal")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let parse = |line: &str| {
        let (line, words) = line.split_once(' ')?;
        Some((line.parse().ok()?, words.parse().ok()?))
    };
    let entries: Option<Vec<_>> = text.lines().map(parse).collect();
    entries.ok_or_else(|| io::Error::other("the journal is damaged"))
}
