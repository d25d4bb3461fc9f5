//! What is no server that will do, and what a server may say.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{CLOSED, error, fatal, listen, row, serve, server, welcome};
use super::*;

/// What a server of version 15 says of itself.
fn fifteen() -> Vec<u8> {
    welcome(&[("server_version", "15.4 (Debian)")])
}

/// Without TLS, so that the first answer is that to the session.
fn plain(port: u16) -> String {
    format!("host=127.0.0.1 port={port} user=bob sslmode=disable connect_timeout=20")
}

/// With TLS, if the server had it.
fn tls(port: u16) -> String {
    plain(port).replace("disable", "verify-full")
}

#[tokio::test]
async fn a_server_that_does_not_suit_is_refused_with_the_reason() {
    let yes = row(&["150004", "5", "42", "f", "off", "f"]);
    // Authentication, of two gigabytes.
    let endless = [b"R\x7f\xff\xff\xff".as_slice(), &vec![0; 4 << 20]].concat();
    let version = |text: &str| welcome(&[("server_version", text)]);
    let crdb = welcome(&[("server_version", "13.0.0"), ("crdb_version", "v23")]);
    for (first, then, kind, part) in [
        (version("13.11"), yes.clone(), Kind::TooOld, "version 13.11, and PostgreSQL 14"),
        (version("9.6.24"), yes.clone(), Kind::TooOld, "version 9.6.24"),
        (version("1.18.0/bouncer"), yes.clone(), Kind::TooOld, "1.18.0/bouncer"),
        (crdb, yes.clone(), Kind::Foreign, "CockroachDB"),
        (version("15.2-YB-2.25"), yes.clone(), Kind::Foreign, "YugabyteDB"),
        (version("fine\u{1b}[31m"), yes.clone(), Kind::Foreign, "\"fine[31m\" is no version"),
        (welcome(&[]), yes, Kind::Foreign, "is no version"),
        (fifteen(), row(&["150004", "5", "42", "t", "on", "f"]), Kind::ReadOnly, "recovery"),
        (fifteen(), row(&["150004", "5", "42", "f", "on", "f"]), Kind::ReadOnly, "read-only"),
        (fifteen(), row(&["150004", "5"]), Kind::Foreign, "does not answer as"),
        (fifteen(), row(&["x", "5", "42", "f", "off", "f"]), Kind::Foreign, "does not answer as"),
        (fifteen(), error("42883", "no such function"), Kind::Foreign, "no such function"),
        (fifteen(), error("42501", "no"), Kind::Forbidden, "no (42501)"),
        (fatal("57P03", "starting up"), vec![], Kind::Passing, "starting up (57P03)"),
        (fatal("28000", "no entry"), vec![], Kind::Forbidden, "no entry (28000)"),
        (fatal("3D000", "no database"), vec![], Kind::Refused, "no database (3D000)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), vec![], Kind::Foreign, "does not speak"),
        (b"-ERR unknown command\r\n".to_vec(), vec![], Kind::Foreign, "does not speak"),
        (endless, vec![], Kind::Foreign, "does not speak"),
        (b"R\0\0\0\x02".to_vec(), vec![], Kind::Foreign, ""),
    ] {
        let why = refused(&plain(server(first, then))).await;
        assert_eq!(why.kind, kind, "{why:?}");
        assert!(why.message.contains(part), "{part}: {why:?}");
        assert!(!why.message.chars().any(char::is_control), "{why:?}");
    }
}

#[tokio::test]
async fn what_a_server_says_is_bounded() {
    let text = "\u{1b}]0;title\u{7}".repeat(10_000);
    let why = refused(&plain(server(fatal("5\u{1b}P03", &text), vec![]))).await;
    assert!(why.message.chars().count() < 400, "{}", why.message.len());
    assert!(!format!("{why:?}").contains("u{1b}"), "{why:?}");
}

#[tokio::test]
async fn what_is_no_server_at_all_is_told_from_one_that_is_away() {
    let says = |text: &'static [u8]| {
        listen(move |mut stream| {
            let _ = stream.write_all(text);
            let _ = stream.read(&mut [0; 1024]);
        })
    };
    for (text, kind) in [
        (plain(says(b"SSH-2.0-OpenSSH_9\r\n")), Kind::Foreign),
        (tls(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")), Kind::Foreign),
        // It begins as a yes to TLS does.
        (tls(says(b"SSH-2.0-OpenSSH_9\r\n")), Kind::Foreign),
        (tls(says(b"N")), Kind::NoTls),
        (tls(says(b"E")), Kind::Passing),
        (plain(says(b"")), Kind::Passing),
        (tls(says(b"")), Kind::Passing),
        (plain(1), Kind::Passing),
        ("host=/nonexistent user=bob".to_owned(), Kind::Passing),
        ("host=nothing.invalid user=bob".to_owned(), Kind::Passing),
    ] {
        let why = refused(&text).await;
        assert_eq!(why.kind, kind, "{text}: {why:?}");
    }
}

#[tokio::test]
async fn a_refusal_ends_the_search_and_what_may_pass_does_not() {
    let good = || server(fifteen(), row(&["150004", "5", "42", "f", "off", "f"]));
    let text = |ports: [u16; 2]| {
        let [one, two] = ports;
        format!("host=127.0.0.1,127.0.0.1 port={one},{two} user=bob sslmode=disable")
    };
    for passing in [fatal("57P03", "x"), fatal("53300", "x"), welcome(&[("server_version", "9")])] {
        open(&text([server(passing, vec![]), good()])).await.unwrap();
    }
    let why = refused(&text([server(fatal("28P01", "x"), vec![]), good()])).await;
    assert!(why.is("28P01"), "{why:?}");
    // All that was tried is said.
    let ports = [server(fatal("57P03", "x"), vec![]), server(fatal("53300", "y"), vec![])];
    let why = refused(&text(ports)).await;
    let parts = ports.map(|port| format!("127.0.0.1:{port}: "));
    assert!(parts.iter().all(|part| why.message.contains(part)), "{why:?}");
}

#[tokio::test]
async fn a_host_is_tried_in_another_way_only_where_that_may_help() {
    for (first, tries) in [(fatal("57P03", "x"), 1), (fatal("28000", "x"), 2)] {
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        let port = listen(move |mut stream| {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = serve(&mut stream, &first, &[]);
        });
        let why = refused(&plain(port).replace("disable", "allow")).await;
        assert_eq!(seen.load(Ordering::SeqCst), tries, "{why:?}");
    }
}

/// PgBouncer 1.18 says `client unexpected eof` else, and drops the request.
#[tokio::test]
async fn a_cancel_stays_on_the_line_until_it_is_answered() {
    let port = server(fifteen(), row(&["150004", "5", "42", "f", "off", "f"]));
    let session = open(&plain(port)).await.unwrap();
    session.cancel().await.unwrap();
    assert!(!CLOSED.load(Ordering::SeqCst));
}
