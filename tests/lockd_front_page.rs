//! The page, in a real browser: Chromium without a window, led over a pipe by
//! the DevTools protocol.
//!
//! With `LOCKKEEPER_SCREENSHOTS=DIRECTORY` pictures of it are left there.

mod lockd_support;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lockd_support::support::{VERY_LONG, eventually, on_tmpfs, role};
use lockd_support::{Client, Daemon};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A browser with one page; ended when dropped.
struct Browser {
    process: Child,
    _profile: TempDir,
    talk: RefCell<Talk>,
    session: String,
}

struct Talk {
    input: ChildStdin,
    messages: mpsc::Receiver<Value>,
    last: u64,
    /// What the browser complained about.
    complaints: Vec<String>,
}

/// A browser takes long to start where two share a busy machine.
const TO_ANSWER: Duration = VERY_LONG.saturating_mul(3);

const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

impl Browser {
    fn start() -> Self {
        let profile = on_tmpfs();
        // It reads its orders from descriptor 3 and answers to 4.
        let script = "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut process = Command::new("sh")
            .args(["-c", script, "sh"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let input = process.stdin.take().expect("its input");
        let talk = Talk { input, messages, last: 0, complaints: Vec::new() };
        let mut browser =
            Self { process, _profile: profile, talk: RefCell::new(talk), session: String::new() };
        let target = browser.order("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.order("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.order(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Have it do something, and what it answers.
    #[track_caller]
    fn order(&self, method: &str, params: Value) -> Value {
        let mut talk = self.talk.borrow_mut();
        talk.last += 1;
        let number = talk.last;
        let mut order = json!({ "id": number, "method": method, "params": params });
        if !self.session.is_empty() {
            order["sessionId"] = self.session.as_str().into();
        }
        let mut bytes = order.to_string().into_bytes();
        bytes.push(0);
        talk.input.write_all(&bytes).expect("a browser that listens: run tests/setup.sh");
        loop {
            let message = talk.messages.recv_timeout(TO_ANSWER);
            let message = message.expect("a browser that answers: run tests/setup.sh");
            if message["id"] == number {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            if matches!(
                message["method"].as_str(),
                Some("Log.entryAdded" | "Runtime.exceptionThrown" | "Page.javascriptDialogOpening")
            ) {
                talk.complaints.push(message["params"].to_string());
            }
        }
    }

    fn open(&self, url: &str) {
        self.order("Page.navigate", json!({ "url": url }));
    }

    /// What a script says, in the page.
    #[track_caller]
    fn eval(&self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let said = self.order("Runtime.evaluate", params);
        assert!(said["exceptionDetails"].is_null(), "{script}: {said}");
        said["result"]["value"].clone()
    }

    #[track_caller]
    fn wait_for(&self, condition: &str) {
        let deadline = Instant::now() + VERY_LONG;
        // While it is loaded, much is not there yet.
        let script = format!("(() => {{ try {{ return Boolean({condition}); }} catch {{}} }})()");
        while self.eval(&script) != true {
            let text = || self.eval("document.body?.innerText");
            assert!(Instant::now() < deadline, "never: {condition}, in: {}", text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn press(&self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            _ => 0,
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let params = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "text": if kind == "keyDown" { text } else { "" },
            });
            self.order("Input.dispatchKeyEvent", params);
        }
    }

    fn write(&self, text: &str) {
        self.order("Input.insertText", json!({ "text": text }));
    }

    fn show(&self, width: u32, height: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.order("Emulation.setDeviceMetricsOverride", size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.order("Emulation.setEmulatedMedia", features);
    }

    /// Leave a picture, if one is wanted.
    fn picture(&self, name: &str) {
        let Some(directory) = std::env::var_os("LOCKKEEPER_SCREENSHOTS") else { return };
        let picture = self.order("Page.captureScreenshot", json!({ "format": "png" }));
        let path = std::path::Path::new(&directory).join(format!("{name}.png"));
        let file = std::fs::File::create(path).expect("a file");
        let mut decode =
            Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(file).spawn();
        let decode = decode.as_mut().expect("base64");
        let data = picture["data"].as_str().expect("a picture").as_bytes();
        decode.stdin.take().expect("its input").write_all(data).expect("it listens");
        decode.wait().expect("it ends");
    }

    fn complaints(&self) -> Vec<String> {
        self.eval("1");
        self.talk.borrow().complaints.clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let head = [("Content-Type", "application/json")];
    let answer = daemon.connect().post(path, &head, body.to_string().as_bytes());
    serde_json::from_slice(&answer.body).expect("JSON")
}

fn lock(daemon: &Daemon, resource: &str, client: &str, lease_ms: Option<u64>) {
    let body = json!({ "resource": resource, "client": client, "lease_ms": lease_ms });
    let held = ask(daemon, "/v1/acquire", &body);
    assert_eq!(held["resource"], resource, "{held}");
}

/// Wait for a lock, until the connection is dropped.
fn wait(daemon: &Daemon, resource: &str, client: &str) -> Client {
    let body = json!({ "resource": resource, "client": client, "wait_ms": null }).to_string();
    let mut waits = daemon.connect();
    waits.send(format!(
        "POST /v1/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    eventually("it waits", || {
        let mut client = daemon.connect();
        client.send("GET /v1/locks HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client
            .answer()
            .text()
            .contains(&format!("{{\"client\":{},\"since_ms\"", json!(client_text(&body))))
    });
    waits
}

fn client_text(body: &str) -> String {
    let body: Value = serde_json::from_str(body).expect("JSON");
    body["client"].as_str().expect("a client").to_owned()
}

fn start(test: &str, settings: &str) -> (TempDir, Daemon, String) {
    let directory = on_tmpfs();
    let daemon = Daemon::start(test, settings, directory.path());
    let url = format!("http://127.0.0.1:{}/", daemon.address.port());
    (directory, daemon, url)
}

/// The texts of the rows, a field after the other.
const TABLE: &str = "[...document.querySelectorAll('#rows tr')].map(tr => tr.innerText)";

#[test]
fn the_page_shows_who_has_what_as_it_changes() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon, url) = start("the_page_shows_who_has_what_as_it_changes", "");
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&url);
    browser.wait_for("document.body.innerText.includes('Nothing is locked')");
    browser.picture("empty");

    lock(&daemon, "deploy/production", "ci-runner-17", None);
    lock(&daemon, "nightly-backup", "backup@db1", Some(600_000));
    lock(&daemon, "reports", "cron@app2", Some(450_000));
    let mut waits = wait(&daemon, "deploy/production", "ci-runner-18");
    let gone = wait(&daemon, "deploy/production", "anna's laptop");
    browser.wait_for("document.querySelectorAll('#rows tr').length === 3");
    browser.wait_for("document.querySelector('#rows').innerText.includes('2 waiting')");
    let rows = browser.eval(TABLE);
    let first = rows[0].as_str().unwrap();
    assert!(first.contains("deploy/production") && first.contains("ci-runner-17"), "{first}");
    assert!(first.contains(" ago") && first.contains("fencing token"), "{first}");
    assert!(rows[1].as_str().unwrap().contains("left of 10 min"), "{rows}");
    assert_eq!(browser.eval("document.querySelectorAll('progress').length"), 2);
    // It runs down by itself.
    let before = browser.eval("document.querySelector('progress').value").as_f64().unwrap();
    browser.wait_for(&format!("document.querySelector('progress').value < {before}"));
    browser.eval("document.querySelector('details').open = true");
    browser.picture("some");
    browser.show(1200, 800, "dark");
    browser.picture("dark");
    browser.show(360, 800, "light");
    let is_fitting = "document.documentElement.scrollWidth <= innerWidth";
    assert_eq!(browser.eval(is_fitting), true);
    browser.picture("narrow");
    browser.show(1200, 800, "light");

    // A waiter that goes, goes from the page; what was open stays open.
    drop(gone);
    browser.wait_for("document.querySelector('summary').innerText === '1 waiting'");
    assert_eq!(browser.eval("document.querySelector('details').open"), true);
    ask(
        &daemon,
        "/v1/release",
        &json!({ "resource": "deploy/production", "client": "ci-runner-17" }),
    );
    assert_eq!(waits.answer().status, 200);
    browser.wait_for(&format!("{TABLE}[0].includes('ci-runner-18')"));

    browser.press("/");
    browser.write("BACKUP");
    browser.wait_for("document.querySelectorAll('#rows tr').length === 1");
    assert_eq!(browser.eval("document.querySelector('#shown').innerText"), "1 of 3");
    browser.write("no such thing");
    browser.wait_for("document.body.innerText.includes('No lock matches')");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn what_clients_call_themselves_is_text() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (directory, daemon, url) = start("what_clients_call_themselves_is_text", "");
    let long = "n".repeat(3000);
    let names = [
        "<img src=x onerror='window.pwned=1'>",
        "<script>window.pwned=1</script>",
        "</td></tr></table><iframe srcdoc='<script>parent.pwned=1</script>'>",
        "\"><svg onload=window.pwned=1>",
        "javascript:window.pwned=1",
        "\u{202e}gnp.exe\u{200b}\u{7}\u{1b}[31m",
        " spaces  around ",
        "{{constructor.constructor('window.pwned=1')()}}",
        "\ndata: {\"locks\":[]}\n\nevent: x",
        "__proto__",
        "</script><script>window.pwned=1</script>",
        long.as_str(),
    ];
    for (number, name) in names.iter().enumerate() {
        lock(&daemon, &format!("client {number}"), name, None);
    }
    for name in &names[..names.len() - 1] {
        lock(&daemon, name, "c", None);
    }
    lock(&daemon, "", "c", None);
    lock(&daemon, "..", "c", None);
    let count = 2 * names.len() + 1;
    let _waits: Vec<_> = [names[0], names[1]].map(|name| wait(&daemon, "client 0", name)).into();

    let browser = Browser::start();
    browser.show(1100, 1600, "light");
    browser.open(&url);
    browser.wait_for(&format!("document.querySelectorAll('#rows tr').length === {count}"));
    browser.eval("document.querySelectorAll('details').forEach(it => it.open = true)");
    let text = browser.eval("document.querySelector('#rows').innerText");
    let text = text.as_str().unwrap();
    for name in &names[..5] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    for code in
        ["U+202E", "U+200B", "U+0007", "U+001B", "U+000A", "␣", "no name", "… 3000 characters"]
    {
        assert!(text.contains(code), "{code} is not in {text}");
    }
    assert!(!text.contains(['\u{202e}', '\u{200b}', '\u{7}', '\u{1b}']));
    assert!(!text.contains(&long));
    assert_eq!(browser.eval("typeof window.pwned"), "undefined");
    let strange =
        "document.querySelectorAll('#rows :is(img, script, iframe, svg, a, style)').length";
    assert_eq!(browser.eval(strange), 0);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    browser.picture("hostile");
    browser.show(360, 1600, "dark");
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true);
    browser.picture("hostile-narrow");

    // And if there were markup in the page all the same, nothing of it would run.
    let smuggled = "(async () => {
        const policy = ['<img src=x onerror=\"window.pwned=1\">'];
        try { document.querySelector('#rows').innerHTML = policy[0]; } catch { return 'refused'; }
        return 'taken';
    })()";
    assert_eq!(browser.eval(smuggled), "refused");
    let script = "(() => { const s = document.createElement('div'); s.setAttribute('onclick', 'window.pwned=1');
        document.body.append(s); s.click(); return typeof window.pwned; })()";
    let params = json!({ "expression": script, "returnByValue": true });
    let said = browser.order("Runtime.evaluate", params);
    assert_ne!(said["result"]["value"], "number", "{said}");

    // A name that fits into no URL is unlocked like the others.
    let before = directory.path().join("%2E..resource.lock");
    assert!(before.exists(), "{before:?}");
    browser.eval(
        "[...document.querySelectorAll('#rows tr')].find(tr => tr.querySelector('th').innerText === '..')
            .querySelector('button').click()",
    );
    browser.wait_for("document.querySelector('#dialog').open");
    browser.eval("document.querySelector('#force').click()");
    eventually("it is unlocked", || !before.exists());
}

#[test]
fn what_is_wrong_with_a_file_is_on_the_page() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    let torn = directory.path().join("torn.resource.lock");
    std::fs::write(&torn, "").unwrap();
    let test = "what_is_wrong_with_a_file_is_on_the_page";
    let daemon = Daemon::start(test, "", directory.path());
    lock(&daemon, "sound", "c", None);
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&format!("http://localhost:{}/", daemon.address.port()));
    browser.wait_for("document.querySelectorAll('#rows tr').length === 2");
    let rows = browser.eval(TABLE);
    let row = rows[1].as_str().unwrap();
    assert!(row.contains("torn") && row.contains("it is empty") && !row.contains("ago"), "{rows}");
    assert_eq!(browser.eval("document.querySelectorAll('tr.problem').length"), 1);
    let figures = browser.eval("document.querySelector('#figures').innerText");
    assert_eq!(figures, "1 held, 0 waiting, 1 problem");
    browser.picture("problem");
    browser.show(360, 800, "dark");
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true);
    browser.picture("problem-narrow");
    browser.eval("document.querySelector('tr.problem button').click()");
    browser.picture("problem-dialog");
    browser.eval("document.querySelector('#force').click()");
    browser.wait_for("document.querySelectorAll('#rows tr').length === 1");
    assert!(!torn.exists());
}

#[test]
fn a_lock_is_ended_by_force_with_the_keyboard() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon, url) = start("a_lock_is_ended_by_force_with_the_keyboard", "");
    lock(&daemon, "one", "c", None);
    lock(&daemon, "two", "c", None);
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&url);
    browser.wait_for("document.querySelectorAll('button.force').length === 2");
    browser.press("/");
    assert_eq!(browser.eval("document.activeElement.id"), "search");
    let focused = || browser.eval("document.activeElement.getAttribute('aria-label')");
    browser.press("Tab");
    assert_eq!(focused(), "Unlock one by force");
    browser.press("Tab");
    assert_eq!(focused(), "Unlock two by force");

    // Enter asks, Escape leaves all as it was, and the keyboard where it was.
    browser.press("Enter");
    browser.wait_for("document.querySelector('#dialog').open");
    assert_eq!(browser.eval("document.activeElement.id"), "cancel");
    browser.picture("dialog");
    browser.press("Escape");
    browser.wait_for("!document.querySelector('#dialog').open");
    assert_eq!(focused(), "Unlock two by force");

    // Neither does a list that changes take it away.
    lock(&daemon, "a", "c", None);
    browser.wait_for("document.querySelectorAll('button.force').length === 3");
    assert_eq!(focused(), "Unlock two by force");

    browser.press("Enter");
    browser.wait_for("document.querySelector('#dialog').open");
    browser.press("Tab");
    assert_eq!(browser.eval("document.activeElement.id"), "force");
    browser.press("Enter");
    browser.wait_for("document.querySelector('#said').innerText === 'Unlocked by force.'");
    browser.wait_for("document.querySelectorAll('#rows tr').length === 2");
    let text = browser.eval("document.querySelector('#rows').innerText");
    assert!(!text.as_str().unwrap().contains("two"), "{text}");

    // Another client has the lock by the time it is confirmed.
    browser.eval("document.querySelectorAll('button.force')[1].click()");
    browser.eval("Object.defineProperty(asked, 'token', { value: '999' })");
    browser.eval("document.querySelector('#force').click()");
    browser.wait_for("document.querySelector('#said').innerText.includes('another client')");
}

#[test]
fn the_page_asks_for_a_token_and_keeps_it() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let home = on_tmpfs();
    let file = home.path().join("tokens.json");
    let (mine, other) = ("0123456789abcdef0123456789abcdef", "f".repeat(64));
    let hashed = Command::new("sh").args(["-c", &format!("printf %s {mine} | sha256sum")]).output();
    let hashed = String::from_utf8(hashed.expect("sha256sum").stdout).unwrap();
    let sha256 = hashed.split_whitespace().next().expect("a hash");
    let tokens = json!({ "tokens": [{ "name": "me", "sha256": sha256, "clients": ["c"] }] });
    std::fs::write(&file, tokens.to_string()).unwrap();
    let settings = format!("tokens={}", file.display());
    let (directory, _daemon, url) = start("the_page_asks_for_a_token_and_keeps_it", &settings);
    std::fs::write(directory.path().join("r.resource.lock"), "c").unwrap();

    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&url);
    browser.wait_for("!document.querySelector('#form').hidden");
    browser.picture("token");
    browser.write(&other);
    browser.press("Enter");
    browser.wait_for("document.querySelector('#why').innerText.includes('not known')");
    browser.write(mine);
    browser.press("Enter");
    browser
        .wait_for("document.querySelector('#form').hidden && document.querySelector('#link.live')");
    // A caller that is no administrator sees no buttons.
    assert_eq!(browser.eval("document.querySelectorAll('button.force').length"), 0);
    browser.order("Page.reload", json!({}));
    browser
        .wait_for("document.querySelector('#form').hidden && document.querySelector('#link.live')");
    assert_eq!(browser.eval("document.cookie"), "");
}

#[test]
fn the_page_comes_back_when_the_daemon_does() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "the_page_comes_back_when_the_daemon_does";
    let (directory, mut daemon, url) = start(test, "");
    lock(&daemon, "kept", "c", None);
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&url);
    browser.wait_for("document.querySelectorAll('#rows tr').length === 1");
    daemon.process.kill();
    browser.wait_for("document.querySelector('#link.broken')");
    // What was known stays to be seen, and how old it is.
    assert_eq!(browser.eval("document.querySelectorAll('#rows tr').length"), 1);
    let lost = browser.eval("document.querySelector('#lost').innerText");
    let lost = lost.as_str().unwrap();
    assert!(
        lost.starts_with("Not connected since ") && lost.contains("cannot be reached"),
        "{lost}"
    );
    assert_eq!(browser.eval("document.title"), "Locks: not connected");
    let since = browser.eval("document.querySelector('#lost-at').dateTime");
    browser.wait_for("parseInt(document.querySelector('#lost-for').innerText) >= 2");
    browser.picture("broken");
    browser.show(360, 800, "dark");
    assert_eq!(browser.eval(FITS), true);
    browser.picture("broken-narrow");
    browser.show(1200, 800, "light");
    // Each try that fails changes nothing of that.
    browser.wait_for("failures >= 3");
    assert_eq!(browser.eval("document.querySelector('#lost-at').dateTime"), since);
    let listen = format!("listen={}", daemon.address);
    let daemon = Daemon::start(test, &listen, directory.path());
    lock(&daemon, "new", "c", None);
    browser.wait_for("document.querySelector('#link.live')");
    browser.wait_for("document.querySelectorAll('#rows tr').length === 2");
    let link = browser.eval("document.querySelector('#link').innerText");
    assert!(link.as_str().unwrap().starts_with("Live again: not connected from "), "{link}");
    assert_eq!(browser.eval("document.querySelector('#lost').hidden"), true);
    assert_eq!(browser.eval("document.title"), "2 locks");
    browser.picture("back");
}

/// A daemon that stands still closes no connection.
#[test]
fn a_stream_that_falls_silent_is_told() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon, url) = start("a_stream_that_falls_silent_is_told", "");
    lock(&daemon, "kept", "c", None);
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&url);
    browser.wait_for("document.querySelectorAll('#rows tr').length === 1");
    let heard = browser.eval("heard");
    daemon.process.stop();
    browser.wait_for("document.querySelector('#link.broken')");
    let lost = browser.eval("document.querySelector('#lost').innerText");
    assert!(lost.as_str().unwrap().contains("nothing came for 25 s"), "{lost}");
    // Not since that was noticed.
    let (heard, lost) = (heard.as_f64().unwrap(), browser.eval("lostAt").as_f64().unwrap());
    let now = browser.eval("Date.now()").as_f64().unwrap();
    assert!(heard <= lost && lost <= now - 25_000.0, "{heard} {lost} {now}");
    daemon.process.signal(Signal::SIGCONT);
    browser.wait_for("document.querySelector('#link.live')");
}

/// Ask for so many locks over one connection.
fn lock_many(daemon: &Daemon, count: usize) {
    let mut client = daemon.connect();
    for number in 0..count {
        let lease = (number % 2 == 0).then_some(3_600_000);
        let body = json!({
            "resource": format!("job/{number:04}"), "client": format!("runner-{}", number % 40),
            "lease_ms": lease,
        });
        let head = [("Content-Type", "application/json")];
        let answer = client.post("/v1/acquire", &head, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn thousands_of_locks_are_shown_as_far_as_they_are_looked_at() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let test = "thousands_of_locks_are_shown_as_far_as_they_are_looked_at";
    let (_directory, daemon, url) = start(test, "");
    lock_many(&daemon, 5000);
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    browser.open(&url);
    let shown = |count: usize| format!("document.querySelectorAll('#rows tr').length === {count}");
    let count = "document.querySelector('#rest-count').innerText";
    browser.wait_for(&shown(250));
    browser.wait_for(&format!("{count} === '250 of 5000 are shown'"));
    browser.picture("thousands");
    // Only what is looked at runs on.
    browser.wait_for("near.size > 5 && near.size < 100");
    // With the keyboard alone.
    browser.eval("document.querySelector('#more').focus({ preventScroll: true })");
    browser.press("Enter");
    browser.wait_for(&shown(500));
    // More come by themselves when the end is near.
    browser.eval("scrollTo(0, document.documentElement.scrollHeight)");
    browser.wait_for(&shown(750));
    browser.wait_for(&format!("{count} === '750 of 5000 are shown'"));

    // All at once, and the page draws frames in between; and its token may only look.
    let frames = browser.eval(
        "(async () => {
            let frames = 0;
            window.longest = 0;
            new PerformanceObserver(list => list.getEntries().forEach(
                it => window.longest = Math.max(window.longest, it.duration)
            )).observe({ type: 'longtask' });
            const count = () => { frames++; requestAnimationFrame(count); };
            count();
            limit = 5000;
            listen();
            const before = rows.size;
            while (rows.size === before) await new Promise(next => setTimeout(next));
            frames = 0;
            while (rows.size < 5000) await new Promise(next => setTimeout(next, 5));
            return frames;
        })()",
    );
    assert!(frames.as_u64().unwrap() > 5, "{frames} frames");
    browser.wait_for(&format!("{} && document.querySelector('#rest').hidden", shown(5000)));
    println!("the longest task while 5000 rows come: {} ms", browser.eval("window.longest"));
    browser.eval("window.longest = 0");
    lock(&daemon, "job/2500b", "late", None);
    browser.wait_for("rows.has('job/2500b') && rows.get('job/2500b').tr.isConnected");
    println!("the longest after one change: {} ms", browser.eval("window.longest"));
    let order = "[...document.querySelectorAll('#rows th')].map(it => it.textContent)";
    let sorted = format!("JSON.stringify({order}) === JSON.stringify({order}.sort())");
    assert_eq!(browser.eval(&sorted), true);
    // Heights of rows that were never seen are a guess, so the end moves on the way there.
    browser.wait_for(
        "scrollTo(0, document.documentElement.scrollHeight), \
         near.has(rows.get('job/4999')) && !near.has(rows.get('job/0000'))",
    );
    browser.picture("thousands-end");

    browser.show(360, 800, "light");
    assert_eq!(browser.eval(FITS), true);
    let row = "getComputedStyle(document.querySelector('#rows tr'))";
    assert_eq!(browser.eval(&format!("{row}.contentVisibility")), "auto");
    browser.eval("scrollTo(0, 0)");
    browser.picture("thousands-narrow");
    // A search begins with few again.
    browser.press("/");
    browser.write("job/4");
    browser.wait_for(&format!("{count} === '250 of 1000 are shown'"));
    browser.wait_for(&shown(250));
}

const FITS: &str = "document.documentElement.scrollWidth <= innerWidth";

/// By Tab alone, and each place that it stops at can be seen and has a name.
#[test]
fn everything_on_the_page_is_reached_with_the_keyboard() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let (_directory, daemon, url) =
        start("everything_on_the_page_is_reached_with_the_keyboard", "");
    lock(&daemon, "one", "c", Some(600_000));
    lock(&daemon, "two", "c", None);
    let _waits = wait(&daemon, "one", "w");
    let browser = Browser::start();
    for (width, scheme) in [(1200, "light"), (360, "dark")] {
        browser.show(width, 800, scheme);
        browser.open("about:blank");
        browser.open(&url);
        browser.wait_for("document.querySelector('summary')?.innerText === '1 waiting'");
        let mut stops = Vec::new();
        for _ in 0..4 {
            browser.press("Tab");
            let stop = browser.eval(
                "(() => {
                    const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
                    const seen = outlineStyle === 'solid' && parseFloat(outlineWidth) >= 2;
                    const it = document.activeElement;
                    return (seen ? '' : 'unseen: ') + (it.ariaLabel || it.innerText);
                })()",
            );
            stops.push(stop.as_str().unwrap().to_owned());
            if stops.len() == 2 {
                browser.picture(&format!("focus-{width}"));
                browser.press("Enter");
                browser.wait_for("document.querySelector('details').open");
            }
        }
        let expected = [
            "Search resources and clients",
            "1 waiting",
            "Unlock one by force",
            "Unlock two by force",
        ];
        assert_eq!(stops, expected);
        // For a screen reader it is a table, also where it is drawn as cards.
        let tree = browser.order("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes");
        let with_role = |role: &str| -> Vec<&str> {
            let of_role = nodes.iter().filter(|node| node["role"]["value"] == role);
            of_role.map(|node| node["name"]["value"].as_str().unwrap_or_default()).collect()
        };
        // Chromium takes that from the markup, others only from roles that are given.
        let parts = "'#table, #table :is(thead, tbody, tr, th, td)'";
        let all = format!("[...document.querySelectorAll({parts})].every(it => it.role)");
        assert_eq!(browser.eval(&all), true);
        assert_eq!(with_role("table"), ["Locks, their holders and their waiters"]);
        assert_eq!(with_role("rowheader"), ["one", "two"]);
        assert_eq!(with_role("progressbar"), ["Time left of the lease"]);
        assert_eq!(with_role("searchbox"), ["Search resources and clients"]);
        // Where it is drawn as cards, what there is none of is left out.
        let cells = with_role("cell").len();
        assert_eq!(cells, if width == 360 { 8 } else { 10 });
        assert_eq!(with_role("columnheader").len(), if width == 360 { 0 } else { 6 });
    }
}

#[test]
fn the_page_works_below_a_path() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let settings = "public=http://localhost/team/locks";
    let (_directory, daemon, url) = start("the_page_works_below_a_path", settings);
    lock(&daemon, "below", "c", None);
    let browser = Browser::start();
    browser.show(1200, 800, "light");
    for path in ["team/locks", "team/locks/"] {
        browser.open(&format!("{url}{path}"));
        browser.wait_for("document.querySelector('#link.live')");
        browser.wait_for("document.querySelectorAll('#rows tr').length === 1");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// What no button helps against has none; what is not shown is counted; and a time
/// that no calendar has keeps nothing else from being shown.
#[test]
fn the_page_offers_and_shows_what_it_can() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let directory = on_tmpfs();
    std::fs::create_dir(directory.path().join("stuck.resource.lock")).unwrap();
    let future = directory.path().join("future.resource.lock");
    std::fs::write(&future, "c").unwrap();
    let far = std::time::UNIX_EPOCH + Duration::from_secs(100_000_000_000_000);
    std::fs::File::options().write(true).open(&future).unwrap().set_modified(far).unwrap();
    let daemon = Daemon::start("the_page_offers_and_shows_what_it_can", "", directory.path());
    lock(&daemon, "long", "c", Some(u64::MAX));
    let waiters: Vec<Client> = (0..102)
        .map(|_| {
            let body = json!({ "resource": "long", "client": "w", "wait_ms": null }).to_string();
            let mut waiter = daemon.connect();
            waiter.send(format!(
                "POST /v1/acquire HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            waiter
        })
        .collect();
    let browser = Browser::start();
    // Rows that are not on the screen have no text that is drawn.
    browser.show(1200, 4000, "light");
    browser.open(&format!("http://localhost:{}/", daemon.address.port()));
    browser.wait_for("document.querySelector('details summary').innerText === '102 waiting'");
    browser.eval("document.querySelector('details').open = true");
    assert_eq!(browser.eval("document.querySelectorAll('details li').length"), 100);
    assert_eq!(browser.eval("document.querySelector('details .more').innerText"), "and 2 more");
    let rows = browser.eval(TABLE);
    let row = |name: &str| {
        let mut rows = rows.as_array().unwrap().iter().map(|row| row.as_str().unwrap());
        rows.find(|row| row.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {rows:?}"))
            .to_owned()
    };
    assert!(row("long").contains("longer than a century"), "{rows}");
    assert!(row("long").contains("Unlock") && row("future").contains("Unlock"), "{rows}");
    assert!(!row("stuck").contains("Unlock"), "{rows}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    browser.show(1200, 800, "light");
    browser.picture("offers");
    browser.show(360, 800, "dark");
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true);
    browser.picture("offers-narrow");
    drop(waiters);
}
