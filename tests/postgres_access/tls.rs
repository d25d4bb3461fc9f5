//! `sslmode`, with real servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::certificates::Certificates;
use super::server::{Builder, Server};
use super::*;

async fn is_encrypted(session: &Session) -> bool {
    let statement = format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {}", session.pid);
    session.client.query_typed(&statement, &[]).await.unwrap()[0].get(0)
}

/// A server that speaks TLS with a certificate for `db.test`.
fn start(
    pair: impl Fn(&Certificates) -> &(std::path::PathBuf, std::path::PathBuf),
) -> Option<(Server, Certificates)> {
    let builder = Builder::new()?;
    let certificates = Certificates::make(builder.directory());
    let server = builder.with_tls(pair(&certificates), &certificates.ca).start();
    for role in ["client", "secret", "plain"] {
        server.sql(&format!("CREATE ROLE {role} LOGIN"));
    }
    Some((server, certificates))
}

fn text(server: &Server, name: &str, rest: &str) -> String {
    let port = server.port;
    format!("host={name} hostaddr=127.0.0.1 port={port} dbname=postgres {rest}")
}

#[tokio::test]
async fn each_mode_checks_what_it_says() {
    let Some((server, certificates)) = start(|certificates| &certificates.server) else { return };
    let ca = certificates.ca.display();
    let alone = certificates.alone.0.display();
    let secret = "user=secret";
    for (name, rest, wanted) in [
        ("db.test", format!("sslmode=verify-full sslrootcert={ca}"), Ok(true)),
        ("db.test", format!("sslrootcert={ca}"), Ok(true)),
        ("other.test", format!("sslmode=verify-full sslrootcert={ca}"), Err(Kind::Untrusted)),
        ("other.test", format!("sslrootcert={ca}"), Err(Kind::Untrusted)),
        ("db.test", format!("sslmode=verify-full sslrootcert={alone}"), Err(Kind::Untrusted)),
        ("db.test", "sslmode=verify-full".to_owned(), Err(Kind::Untrusted)),
        ("db.test", "sslmode=verify-full sslrootcert=system".to_owned(), Err(Kind::Untrusted)),
        ("other.test", format!("sslmode=verify-ca sslrootcert={ca}"), Ok(true)),
        ("db.test", format!("sslmode=verify-ca sslrootcert={alone}"), Err(Kind::Untrusted)),
        ("other.test", "sslmode=require".to_owned(), Ok(true)),
        ("other.test", format!("sslmode=require sslrootcert={ca}"), Ok(true)),
        ("db.test", format!("sslmode=require sslrootcert={alone}"), Err(Kind::Untrusted)),
        ("other.test", "sslmode=prefer".to_owned(), Ok(true)),
        // To this machine itself.
        ("other.test", String::new(), Ok(true)),
        ("other.test", "sslmode=allow".to_owned(), Ok(true)),
        // This user is let in with TLS alone.
        ("db.test", "sslmode=disable".to_owned(), Err(Kind::Forbidden)),
    ] {
        let text = text(&server, name, &format!("{secret} {rest}"));
        let opened = open(&text).await;
        match (opened, wanted) {
            (Ok(session), Ok(wanted)) => {
                assert_eq!(is_encrypted(&session).await, wanted, "{text}");
                session.cancel().await.unwrap();
            }
            (Err(why), Err(kind)) => {
                assert_eq!(why.kind, kind, "{text}: {why:?}");
                assert!(why.message.starts_with(name), "{why:?}");
            }
            (opened, _) => panic!("{text}: {:?}", opened.map(drop)),
        }
    }
}

#[tokio::test]
async fn a_server_may_vouch_for_itself() {
    let Some((server, certificates)) = start(|certificates| &certificates.alone) else { return };
    let alone = certificates.alone.0.display();
    for (name, mode, wanted) in [
        ("db.test", "verify-full", None),
        ("other.test", "verify-full", Some(Kind::Untrusted)),
        ("other.test", "verify-ca", None),
    ] {
        let rest = format!("user=secret sslmode={mode} sslrootcert={alone}");
        let opened = open(&text(&server, name, &rest)).await;
        assert_eq!(opened.err().map(|why| why.kind), wanted, "{name} {mode}");
    }
}

#[tokio::test]
async fn allow_and_prefer_try_the_other_way() {
    let Some((server, certificates)) = start(|certificates| &certificates.server) else { return };
    for (rest, encrypted) in [
        ("user=plain sslmode=prefer", false),
        ("user=plain sslmode=allow", false),
        ("user=plain", false),
        ("user=secret sslmode=allow", true),
        ("user=postgres sslmode=allow", false),
        ("user=postgres sslmode=prefer", true),
    ] {
        let session = open(&text(&server, "db.test", rest)).await.unwrap();
        assert_eq!(is_encrypted(&session).await, encrypted, "{rest}");
    }
    // Not what has to be encrypted.
    let ca = certificates.ca.display();
    for mode in ["require".to_owned(), format!("verify-full sslrootcert={ca}")] {
        let why = refused(&text(&server, "db.test", &format!("user=plain sslmode={mode}"))).await;
        assert_eq!(why.kind, Kind::Forbidden, "{why:?}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_taken_only_where_that_is_allowed() {
    let Some(server) = Server::start() else { return };
    let plain = |rest: &str| format!("{} user=postgres {rest}", server.tcp());
    for rest in ["", "sslmode=prefer", "sslmode=allow", "sslmode=disable"] {
        assert!(!is_encrypted(&open(&plain(rest)).await.unwrap()).await, "{rest}");
    }
    for rest in ["sslmode=require", "sslmode=verify-full"] {
        let why = refused(&plain(rest)).await;
        assert_eq!(why.kind, Kind::NoTls, "{why:?}");
        assert!(why.message.contains("sslmode=disable"), "{why:?}");
    }
    // Over its socket no mode matters.
    open(&format!("{} user=postgres", server.socket().replace("disable", "verify-full")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_is_shown_where_the_server_asks_for_one() {
    let Some((server, certificates)) = start(|certificates| &certificates.server) else { return };
    let (cert, key) = (certificates.client.0.display(), certificates.client.1.display());
    let ca = certificates.ca.display();
    let all = format!("user=client sslrootcert={ca} sslcert={cert} sslkey={key}");
    open(&text(&server, "db.test", &all)).await.unwrap();
    let without = text(&server, "db.test", &format!("user=client sslrootcert={ca}"));
    let why = refused(&without).await;
    assert_eq!(why.kind, Kind::Forbidden, "{why:?}");
    // One that the server does not trust.
    let (cert, key) = (certificates.alone.0.display(), certificates.alone.1.display());
    let wrong = format!("user=client sslrootcert={ca} sslcert={cert} sslkey={key}");
    let why = refused(&text(&server, "db.test", &wrong)).await;
    assert_eq!(why.kind, Kind::Untrusted, "{why:?}");
}

#[test]
fn files_are_checked_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(directory.path());
    let (cert, key) = (certificates.client.0.display(), certificates.client.1.display());
    let refused = |rest: &str| access(&format!("host=h user=bob {rest}")).unwrap_err().to_string();
    for (rest, parts) in [
        ("sslrootcert=/no/file".to_owned(), ["sslrootcert", "/no/file"]),
        (format!("sslrootcert={key}"), ["sslrootcert", "no certificate"]),
        (format!("sslkey={key}"), ["sslkey", "add sslcert"]),
        (format!("sslcert={cert}"), ["sslkey", "no key: add sslkey"]),
        (format!("sslcert={cert} sslkey=/no/file"), ["sslkey", "/no/file"]),
        (format!("sslcert={cert} sslkey={cert}"), ["sslkey", "client.pem"]),
        (format!("sslcert={cert} sslkey=/dev/null"), ["sslkey", "no plain file"]),
        ("sslmode=verify-ca".to_owned(), ["sslmode", "sslrootcert"]),
        ("sslmode=require sslrootcert=system".to_owned(), ["sslrootcert", "verify-full"]),
        ("sslmode=on".to_owned(), ["sslmode", "none of disable"]),
    ] {
        let error = refused(&rest);
        assert!(parts.iter().all(|part| error.contains(part)), "{rest}: {error}");
    }
    let mode = |mode| {
        let rights = fs::Permissions::from_mode(mode);
        fs::set_permissions(&certificates.client.1, rights).unwrap();
        access(&format!("host=h user=bob sslcert={cert} sslkey={key}"))
    };
    assert!(mode(0o600).is_ok());
    for open in [0o644, 0o660, 0o604, 0o610] {
        let error = mode(open).unwrap_err().to_string();
        assert!(error.contains("others have rights"), "{open:o}: {error}");
    }
    // Root's may be readable by a group, a user's own may not.
    let is_root = nix::unistd::geteuid().is_root();
    assert_eq!(mode(0o640).is_ok(), is_root);
    if is_root {
        std::os::unix::fs::chown(&certificates.client.1, Some(65534), None).unwrap();
        assert!(mode(0o640).is_err());
    }
}

#[test]
fn files_at_their_usual_places_are_used() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().join(".postgresql");
    fs::create_dir(&at).unwrap();
    let certificates = Certificates::make(home.path());
    let set = [("HOME", home.path().to_str().unwrap())];
    let shown = || access_in("host=h user=bob", &set).map(|access| format!("{access:?}"));
    assert!(!shown().unwrap().contains("root.crt"));
    let copy = |from: &Path, name: &str| {
        fs::copy(from, at.join(name)).unwrap();
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    copy(&certificates.ca, "root.crt");
    copy(&certificates.client.0, "postgresql.crt");
    assert!(shown().unwrap_err().to_string().contains("add sslkey"));
    copy(&certificates.client.1, "postgresql.key");
    let shown = shown().unwrap();
    for name in ["root.crt", "postgresql.crt", "postgresql.key"] {
        assert!(shown.contains(name), "{shown}");
    }
    // With them verify-ca is to be had.
    access_in("host=h user=bob sslmode=verify-ca", &set).unwrap();
}

/// With TLS or without, in the order of the tries.
fn tries(text: &str) -> Vec<bool> {
    access(text).unwrap().routes()[0].tries.iter().map(Option::is_some).collect()
}

#[test]
fn plain_text_is_for_this_machine_or_said() {
    for text in ["host=db1", "hostaddr=10.0.0.1", "host=localhost hostaddr=10.0.0.1"] {
        assert_eq!(tries(text), [true], "{text}");
        let shown = format!("{:?}", access(text).unwrap());
        assert!(shown.contains("mode: VerifyFull"), "{shown}");
    }
    assert_eq!(tries("postgres://db1.localhost.example/app"), [true]);
    let loopback = ["localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"];
    for host in loopback {
        assert_eq!(tries(&format!("host={host}")), [true, false], "{host}");
        assert_eq!(tries(&format!("host={host} sslmode=verify-full")), [true], "{host}");
        assert_eq!(tries(&format!("host={host} sslmode=disable")), [false], "{host}");
    }
    assert_eq!(tries("host=/run/postgresql sslmode=verify-full"), [false]);
    assert_eq!(tries("host=db1 sslmode=prefer"), [true, false]);
    assert_eq!(tries("host=db1 sslmode=allow"), [false, true]);
}
