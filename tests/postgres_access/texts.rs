//! What texts, services, variables and password files say, beside what libpq makes of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::libpq::{self, Said};
use super::*;

/// Texts that both take, or both refuse.
const TEXTS: [&str; 58] = [
    "",
    "   ",
    "host=a",
    "host = a",
    "host= a",
    " host =\n'a b'\tport=1 ",
    "host='a''b'",
    "host=''",
    "host='' port=''",
    "host=",
    "host=a'b",
    r"host='a\'b\\c' user=a\ b",
    r"user=a\",
    r"user='a\",
    "user='a",
    "user='a'port=1",
    "user",
    "user bob",
    "=a",
    "user==a",
    "dbname='a=b'",
    "host=a,b port=1,2 hostaddr=127.0.0.1,::1",
    "sslmode=verify-full sslrootcert=system",
    "application_name='é ü'",
    "nonsense=1",
    "USER=bob",
    "postgres://",
    "postgresql://",
    "postgresql:///",
    "postgres://h",
    "postgres://h:1",
    "postgres://h:",
    "postgres://h/",
    "postgres://h/db",
    "postgres://h/db/more",
    "postgres://:5433/db",
    "postgres://bob@",
    "postgres://bob@/db",
    "postgres://bob:pw@h/db",
    "postgres://bob:p:w@h/db",
    "postgres://bob:p?w@h/db",
    "postgres://:pw@h/db",
    "postgres://bob:@h/db",
    "postgres://b%6Fb:p%40%2F%3a@h/d%20b",
    "postgres://h1:1,h2,h3:3/db",
    "postgres://[::1]/db",
    "postgres://[::1]:5433,[fe80::1]/db",
    "postgres://%2Frun%2Fpostgresql:5433/db",
    "postgres:///db?host=/run/postgresql&port=5433",
    "postgres://h?user=bob&dbname=db",
    "postgres://h/db?sslmode=require&application_name=a%20b+c",
    "postgres://h/db?ssl=true",
    "postgres://h/db?a",
    "postgres://h/db?user=a=b",
    "postgres://h/db?&",
    "postgres://h/d%b",
    "postgres://b%2541b@%2568/%2564",
    "postgres://h/db#part",
];

fn said(parsed: &Parsed) -> Said {
    let keys = ["host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"];
    let more = ["connect_timeout", "application_name", "fallback_application_name", "options"];
    let tls = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
    let all = keys.into_iter().chain(more).chain(tls);
    all.filter_map(|key| Some((key.to_owned(), parsed.pairs.get(key)?.to_owned()))).collect()
}

/// Without what is empty, or a list of that, which is nothing to both.
fn filled(said: &Said) -> Said {
    let is_filled = |(_, value): &(&String, &String)| value.chars().any(|it| it != ',');
    said.iter().filter(is_filled).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn texts_say_what_they_say_to_libpq() {
    let Some(theirs) = libpq::ask("parse", &TEXTS, &[]) else { return };
    for (text, theirs) in TEXTS.iter().zip(theirs) {
        let ours = Reader::OF_A_PROGRAM.read(text).map(|parsed| said(&parsed));
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => assert_eq!(filled(&ours), filled(&theirs), "{text}"),
            (Err(_), None) => {}
            (ours, theirs) => panic!("{text}: {ours:?}, to libpq {theirs:?}"),
        }
    }
}

/// Pieces of texts, and what may break them.
const PIECES: [&str; 48] = [
    "postgres://",
    "postgresql://",
    "host",
    "port",
    "user",
    "dbname",
    "password",
    "sslmode",
    "=",
    "=",
    " ",
    "'",
    "\\",
    "\n",
    "/",
    "/",
    "?",
    "&",
    "&",
    "@",
    ":",
    ",",
    "[",
    "]",
    "%",
    "%2F",
    "%41",
    "%00",
    "%ff",
    "\0",
    "\u{1}",
    "é",
    "\u{202e}",
    "h1",
    "5432",
    "0",
    "99999",
    "::1",
    "require",
    "bob",
    "app",
    "a",
    "#",
    "+",
    "..",
    "service",
    "hostaddr",
    "127.0.0.1",
];

/// The next number of a simple series (SplitMix64): the same texts in each run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn random_text(state: &mut u64) -> String {
    let below = |state: &mut u64, limit: usize| usize::try_from(next(state)).unwrap() % limit;
    let length = 1 + below(state, 14);
    let piece = |state: &mut u64| PIECES[below(state, PIECES.len())];
    let mut text: String = (0..length).map(|_| piece(state)).collect();
    if below(state, 2) == 0 {
        text.insert_str(0, "postgres://");
    }
    text
}

#[test]
fn no_text_breaks_the_reader_and_what_it_takes_libpq_takes_too() {
    const SEED: u64 = 19;
    let mut state = SEED;
    let texts: Vec<String> = (0..20_000).map(|_| random_text(&mut state)).collect();
    let mut taken = Vec::new();
    for text in &texts {
        if let Ok(parsed) = Reader::OF_A_PROGRAM.read(text) {
            taken.push((text.as_str(), said(&parsed)));
            // Nor does what comes after it. That reads certificates: it is slow.
            if taken.len() % 64 == 0 {
                let _ = access(text).map(|access| (format!("{access:?}"), access.url()));
            }
        }
        let _ = Reader::of_a_url(&["host", "a", "lease"]).read(text);
    }
    assert!(taken.len() > 500, "{} texts are too few to compare", taken.len());
    let all: Vec<&str> = taken.iter().map(|(text, _)| *text).collect();
    let Some(theirs) = libpq::ask("parse", &all, &[]) else { return };
    for ((text, ours), theirs) in taken.into_iter().zip(theirs) {
        let theirs = theirs.unwrap_or_else(|| panic!("libpq refuses {text:?}, seed {SEED}"));
        assert_eq!(filled(&ours), filled(&theirs), "{text:?}, seed {SEED}");
    }
}

#[test]
fn bytes_without_sense_are_refused_or_taken_but_break_nothing() {
    let mut state = 1;
    for _ in 0..20_000 {
        let length = usize::try_from(next(&mut state) % 40).unwrap();
        let bytes: Vec<u8> = (0..length).map(|_| next(&mut state).to_le_bytes()[0]).collect();
        let text = String::from_utf8_lossy(&bytes);
        for text in [text.clone().into_owned(), format!("postgres://{text}")] {
            let _ = Reader::OF_A_PROGRAM.read(&text);
            let _ = Reader::of_a_url(&["lease"]).read(&text);
        }
    }
}

/// A folder with a service file and a password file.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let service = "# ours\n[app]\nhost=127.0.0.1\nport=7\nuser=svc\ndbname=services\n\n[other]\n\
                   dbname=elsewhere\n";
    fs::write(home.path().join(".pg_service.conf"), service).unwrap();
    let passwords = "127.0.0.1:7:services:svc:of the service\n127.0.0.1:1:*:b\\:b:one\n\
                     localhost:1:*:bob:local\n*:*:*:bob:any:colon\n::1:9:*:eve:no\n\
                     \\:\\:1:9:*:eve:six\n";
    private(home.path().join(".pgpass"), passwords);
    home
}

fn private(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// User, database, password and hosts of what would be connected to.
fn resolved(access: &Access) -> Said {
    let host = &access.routes()[0].host;
    let password = host.password.clone().unwrap_or_default();
    let config = access.config(host);
    let of = |text: Option<&str>| text.expect("it is always said").to_owned();
    let entries = [("user", of(config.get_user())), ("dbname", of(config.get_dbname()))];
    let mut said: Said = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    said.insert("password".to_owned(), password);
    said.insert("port".to_owned(), host.port.to_string());
    said
}

#[test]
fn what_a_text_leaves_out_is_found_where_libpq_finds_it() {
    let home = home();
    let home = home.path().to_str().unwrap();
    let other = format!("{home}/other.conf");
    fs::write(&other, "[far]\nhost=127.0.0.1\ndbname=far\nuser=bob\n").unwrap();
    let given = format!("{home}/given");
    private(&given, "*:*:*:*:given\n");
    let [none, one]: [&[(&str, &str)]; 2] = [&[], &[("PGHOST", "127.0.0.1"), ("PGPORT", "1")]];
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("host=127.0.0.1 port=1 user=b:b", none.to_vec()),
        ("host=127.0.0.1 port=1 user=bob", none.to_vec()),
        ("host=127.0.0.1 port=1 user=bob password=own", none.to_vec()),
        ("host=127.0.0.1 port=1 user=eve", none.to_vec()),
        ("host=::1 port=9 user=eve", none.to_vec()),
        ("hostaddr=127.0.0.1 port=1 user=b:b", none.to_vec()),
        ("host=localhost hostaddr=127.0.0.1 port=1 user=bob", none.to_vec()),
        ("host=/var/run/postgresql port=1 user=bob", none.to_vec()),
        ("host=/nonexistent port=1 user=bob", none.to_vec()),
        ("user=bob", one.to_vec()),
        ("user=bob dbname=x", [one, &[("PGDATABASE", "y"), ("PGUSER", "z")]].concat()),
        ("", [one, &[("PGDATABASE", "y"), ("PGUSER", "z"), ("PGPASSWORD", "p")]].concat()),
        ("", one.to_vec()),
        ("service=app", none.to_vec()),
        ("service=app dbname=mine", none.to_vec()),
        ("service=app", vec![("PGDATABASE", "y"), ("PGPORT", "9")]),
        ("postgres:///?service=app", none.to_vec()),
        ("", vec![("PGSERVICE", "app")]),
        ("user=own", vec![("PGSERVICE", "app")]),
        ("service=far", vec![("PGSERVICEFILE", &other)]),
        ("user=bob", [one, &[("PGPASSFILE", given.as_str())]].concat()),
        ("user=bob host='' port=''", one.to_vec()),
    ];
    for (text, set) in cases {
        let set = [set, vec![("HOME", home)]].concat();
        let Some(theirs) = libpq::ask("resolve", &[text], &set) else { return };
        let theirs = theirs.into_iter().next().unwrap().unwrap();
        let variable = |name: &'static str| {
            let found = set.iter().find(|(known, _)| *known == name);
            Ok(found.map(|(_, value)| (*value).to_owned()))
        };
        let pairs = Reader::OF_A_PROGRAM.read(text).unwrap().pairs;
        let environment = Environment::new(&variable, "/var/run/postgresql");
        let ours = resolved(&Access::of(pairs, environment).unwrap());
        let mut wanted: Said = BTreeMap::new();
        for key in ["user", "dbname", "password", "port"] {
            let value = theirs.get(key).cloned().unwrap_or_default();
            let value = if key == "port" && value.is_empty() { "5432".into() } else { value };
            wanted.insert(key.to_owned(), value);
        }
        assert_eq!(ours, wanted, "{text} with {set:?}: {}", theirs["error"]);
    }
}

#[test]
fn a_password_file_that_others_can_read_is_not_read() {
    let home = home();
    let file = home.path().join(".pgpass");
    let set = [("HOME", home.path().to_str().unwrap())];
    let password = || access_in("host=h user=bob", &set).unwrap().routes()[0].host.password.clone();
    assert_eq!(password().as_deref(), Some("any"));
    for mode in [0o640, 0o604, 0o620, 0o610] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(password(), None, "{mode:o}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(password().as_deref(), Some("any"));
}

#[test]
fn what_is_wrong_behind_a_text_is_said() {
    let home = home();
    let home = home.path().to_str().unwrap();
    let at = |name: &'static str, value: &'static str| vec![("HOME", home), (name, value)];
    for (text, set, parts) in [
        ("service=none", at("HOME", ""), ["service", "there is no [none] in"]),
        ("service=a", at("PGSERVICEFILE", "/no/file"), ["PGSERVICEFILE", "is not there"]),
        ("host=h", at("PGSSLMODE", "always"), ["sslmode", "is none of disable"]),
        ("host=h", at("PGGSSENCMODE", "require"), ["PGGSSENCMODE", "no GSSAPI here"]),
        ("host=h", at("PGREQUIREAUTH", "scram-sha-256"), ["PGREQUIREAUTH", "verify-full"]),
        ("host=h", at("PGTARGETSESSIONATTRS", "standby"), ["PGTARGETSESSIONATTRS", "can write"]),
        ("host=h", at("PGPORT", "x"), ["port", "no number"]),
        ("host=h port=0", at("HOME", ""), ["port", "no number"]),
        ("host=h port=65536", at("HOME", ""), ["port", "no number"]),
        ("host=a,b port=1,2,3", at("HOME", ""), ["port", "3 ports and 2 hosts"]),
        ("host=a,b hostaddr=::1", at("HOME", ""), ["hostaddr", "2 names and 1 addresses"]),
        ("hostaddr=h", at("HOME", ""), ["hostaddr", "no IP address"]),
        ("host='a b'", at("HOME", ""), ["host", "no host's name has"]),
        ("host=@abstract", at("HOME", ""), ["host", "abstract"]),
        ("host=h connect_timeout=soon", at("HOME", ""), ["connect_timeout", "no number"]),
    ] {
        let error = access_in(text, &set).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{text} {set:?}: {error}");
    }
    let long = access(&format!("host=/{}", "a".repeat(100))).unwrap_err().to_string();
    assert!(long.contains("at most 107"), "{long}");
    let many = format!("host={}", ["h"; 65].join(","));
    assert!(access(&many).unwrap_err().to_string().contains("at most 64"));
}

#[test]
fn nothing_secret_is_shown() {
    let text = "postgres://bob:hunter2@h1,[::1]:7/a%20b";
    let access = access(text).unwrap();
    assert_eq!(access.url(), "postgres://bob@h1:5432,[::1]:7/a%20b");
    assert_eq!(access.routes()[0].host.password.as_deref(), Some("hunter2"));
    let shown = format!("{access:?} {:?}", access.routes()[0].host);
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_same_access_compares_equal_and_a_password_tells_two_apart() {
    let one = access("postgres://bob:a@h/app").unwrap();
    assert_eq!(one, access("host=h port=5432 user=bob password=a dbname=app").unwrap());
    assert_ne!(one, access("postgres://bob:b@h/app").unwrap());
    assert_ne!(one, access("postgres://bob:a@h/app?sslmode=disable").unwrap());
}

#[test]
fn without_a_host_it_is_the_usual_socket_or_this_machine() {
    let sockets = tempfile::tempdir().unwrap();
    let at = |sockets: &str| {
        let variable = |_: &'static str| Ok(None);
        let environment = Environment::new(&variable, sockets);
        Access::of(Pairs::default(), environment).unwrap().routes()[0].host.to_string()
    };
    let shown = sockets.path().to_str().unwrap().replace('/', "%2F");
    assert_eq!(at(sockets.path().to_str().unwrap()), format!("{shown}:5432"));
    assert_eq!(at("/nonexistent"), "localhost:5432");
}
