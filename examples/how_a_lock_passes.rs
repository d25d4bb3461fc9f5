//! Draws how a lock passes from one process to another: by a release, and by a `kill -9`.
//! The times are those of this run. `src/docs/how_a_lock_passes.svg` is such a picture.
//!
//! `cargo run --release --example how_a_lock_passes > src/docs/how_a_lock_passes.svg`

use std::env;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use lockkeeper::AsyncFileLock;

type Failure = Box<dyn std::error::Error>;

/// How long each process holds the lock before it releases it.
const HOLD: Duration = Duration::from_millis(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    match env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [path, delay] => take_turns(path, Duration::from_millis(delay.parse()?)).await,
        _ => {
            print!("{}", conduct()?);
            Ok(())
        }
    }
}

/// What a process does: it says so in a line each.
async fn take_turns(path: &str, delay: Duration) -> Result<(), Failure> {
    let lock = AsyncFileLock::new(path);
    tokio::time::sleep(delay).await;
    loop {
        println!("waits");
        let guard = lock.acquire().await?;
        println!("{}", if guard.recovered_from().is_some() { "holds, told" } else { "holds" });
        tokio::time::sleep(HOLD).await;
        println!("rests");
        guard.release().await?;
        tokio::time::sleep(HOLD / 3).await;
    }
}

struct Event {
    row: usize,
    at: Duration,
    what: String,
}

/// Two processes; the first is killed in its second turn.
fn conduct() -> Result<String, Failure> {
    let directory = env::temp_dir().join(format!("lockkeeper-picture-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let path = directory.join("a.lock").display().to_string();
    let (begun, (sender, received)) = (Instant::now(), mpsc::channel());
    let mut children = Vec::new();
    for (row, delay) in ["50", "150"].into_iter().enumerate() {
        let mut child = Command::new(env::current_exe()?)
            .args([&path, delay])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let sender = sender.clone();
        thread::spawn(move || {
            for what in lines.map_while(Result::ok) {
                let _ = sender.send(Event { row, at: begun.elapsed(), what });
            }
        });
        children.push(child);
    }
    let events = follow(&mut children, &received, begun)?;
    for mut child in children {
        let _ = child.kill();
        child.wait()?;
    }
    fs::remove_dir_all(&directory)?;
    Ok(draw(&events)?)
}

fn follow(
    children: &mut [Child],
    received: &Receiver<Event>,
    begun: Instant,
) -> io::Result<Vec<Event>> {
    let (mut events, mut turns) = (Vec::new(), 0);
    loop {
        let event = received.recv().map_err(io::Error::other)?;
        let (is_first, is_told) = (event.row == 0, event.what == "holds, told");
        turns += usize::from(is_first && event.what == "holds");
        events.push(event);
        if turns == 2 {
            turns = 3;
            thread::sleep(HOLD / 2);
            children[0].kill()?;
            events.push(Event { row: 0, at: begun.elapsed(), what: "killed".to_owned() });
        }
        if is_told {
            thread::sleep(HOLD / 2);
            events.push(Event { row: 1, at: begun.elapsed(), what: "end".to_owned() });
            return Ok(events);
        }
    }
}

/// A bar for each state of a process.
fn draw(events: &[Event]) -> Result<String, fmt::Error> {
    const LEFT: f64 = 110.0;
    const WIDTH: f64 = 640.0;
    let end = events.last().map_or(1.0, |event| event.at.as_secs_f64());
    let across = |at: Duration| LEFT + at.as_secs_f64() / end * WIDTH;
    let mut svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 780 200\" \
        font-family=\"sans-serif\" font-size=\"13\">\n\
        <rect width=\"780\" height=\"200\" fill=\"white\"/>\n\
        <text x=\"390\" y=\"24\" font-size=\"16\" text-anchor=\"middle\">\
        How a lock passes between two processes</text>\n"
        .to_owned();
    for (row, name) in ["process 1", "process 2"].into_iter().enumerate() {
        let top = 50.0 + 60.0 * f64::from(u8::try_from(row).unwrap_or(0));
        writeln!(svg, "<text x=\"20\" y=\"{}\">{name}</text>", top + 22.0)?;
        let own: Vec<&Event> = events.iter().filter(|event| event.row == row).collect();
        for pair in own.windows(2) {
            let (from, to) = (across(pair[0].at), across(pair[1].at));
            let (colour, label) = match pair[0].what.as_str() {
                "waits" => ("#d9d9d9", "waits"),
                "holds" => ("#4c9f70", "holds"),
                "holds, told" => ("#4c9f70", "holds, told"),
                _ => continue,
            };
            let width = to - from;
            writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"34\" \
                 fill=\"{colour}\"/>"
            )?;
            if width > 40.0 {
                let middle = from + width / 2.0;
                writeln!(
                    svg,
                    "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    top + 22.0
                )?;
            }
        }
        if let Some(killed) = own.iter().find(|event| event.what == "killed") {
            let at = across(killed.at);
            writeln!(
                svg,
                "<path d=\"M{at:.1} {top} v34\" stroke=\"#c0392b\" stroke-width=\"4\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#c0392b\">kill -9</text>",
                at + 6.0,
                top + 22.0
            )?;
        }
    }
    let at = |what: &str| events.iter().find(|event| event.what == what).map(|event| event.at);
    if let (Some(killed), Some(told)) = (at("killed"), at("holds, told")) {
        let passed = told.saturating_sub(killed).as_secs_f64() * 1000.0;
        writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"185\">{:.1} s in all. Process 2 held the lock {passed:.1} ms \
             after the kill, and was told that its predecessor died.</text>",
            end
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
