//! What libpq's keys are called, and which of them mean something here.

/// Why a key or its value is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such key.
    Unknown(String),
    Refused(String),
}

impl Refusal {
    /// For people. The name of an unknown key is shown only where it can be no part of a
    /// secret: then the keys beside libpq's are given.
    pub(super) fn of_pair(self, number: usize, own: Option<&[&str]>) -> String {
        match (self, own) {
            (Refusal::Refused(why), _) => why,
            (Refusal::Unknown(key), Some(own)) if is_name(&key) => {
                let own = own.iter().map(|key| format!("{key}, ")).collect::<String>();
                format!("there is no key {key:?} here, but {own}{}", USED.join(", "))
            }
            (Refusal::Unknown(_), _) => format!("key {number} is none that is known"),
        }
    }

    pub(super) fn without_name(self) -> String {
        self.of_pair(0, None)
    }
}

/// Longer than any key of libpq's.
const LONGEST_NAME: usize = 40;

fn is_name(key: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=LONGEST_NAME).contains(&key.len()) && key.bytes().all(is_of_names)
}

/// Keys that mean here what they mean to libpq.
const USED: [&str; 16] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "service",
    "connect_timeout",
    "application_name",
    "fallback_application_name",
    "options",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
];

/// Keys of which only these values are what happens here, and why there are no others.
const FIXED: [(&str, &[&str], &str); 13] = [
    ("target_session_attrs", &["read-write", "any"], "a lock needs a server that can write"),
    ("client_encoding", &["UTF8", "utf8", "UTF-8", "utf-8", "auto"], "sessions speak UTF-8"),
    ("gssencmode", &["prefer", "disable"], "there is no GSSAPI here"),
    ("channel_binding", &["prefer", "disable"], "there is no channel binding here"),
    ("load_balance_hosts", &["disable"], "hosts are tried in their order"),
    ("sslnegotiation", &["postgres"], "servers are asked for TLS first"),
    ("sslcompression", &["0"], "TLS is not compressed"),
    ("sslcertmode", &["allow"], "a certificate is shown if there is one"),
    ("sslsni", &["1"], "a server is always told its name"),
    ("ssl_min_protocol_version", &["TLSv1.2", "TLSv1.1", "TLSv1"], "TLS is 1.2 or 1.3"),
    ("ssl_max_protocol_version", &["TLSv1.3"], "TLS is 1.2 or 1.3"),
    ("replication", &["false", "off", "no", "0"], "locks need an ordinary session"),
    ("keepalives", &["1"], "a server that is gone has to be noticed"),
];

/// Keys that only libpq can follow, and why.
const REFUSED: [(&str, &str); 21] = [
    ("keepalives_idle", "lockkeeper has probes of its own"),
    ("keepalives_interval", "lockkeeper has probes of its own"),
    ("keepalives_count", "lockkeeper has probes of its own"),
    ("tcp_user_timeout", "lockkeeper has a limit of its own"),
    ("krbsrvname", "there is no GSSAPI here"),
    ("gsslib", "there is no GSSAPI here"),
    ("gssdelegation", "there is no GSSAPI here"),
    ("requirepeer", "the server's user is not looked at"),
    ("require_auth", "the server chooses how it asks for a password: use sslmode=verify-full"),
    ("sslcrl", "lists of revoked certificates are not read"),
    ("sslcrldir", "lists of revoked certificates are not read"),
    ("sslpassword", "an encrypted key cannot be read: decrypt it with openssl pkey"),
    ("sslkeylogfile", "keys are not logged"),
    ("min_protocol_version", "version 3.0 of the protocol is spoken"),
    ("max_protocol_version", "version 3.0 of the protocol is spoken"),
    ("scram_client_key", "a password is needed"),
    ("scram_server_key", "a password is needed"),
    ("oauth_issuer", "there is no OAuth here"),
    ("oauth_client_id", "there is no OAuth here"),
    ("oauth_client_secret", "there is no OAuth here"),
    ("oauth_scope", "there is no OAuth here"),
];

/// The key, if it and its value can be followed.
///
/// # Errors
/// Why not.
pub(super) fn check(key: &str, value: &str) -> Result<&'static str, Refusal> {
    if let Some(key) = USED.into_iter().find(|known| *known == key) {
        return match value.chars().any(char::is_control) {
            true => Err(Refusal::Refused(format!("{key} has a control character in it"))),
            false => Ok(key),
        };
    }
    if let Some((key, values, why)) = FIXED.into_iter().find(|(known, ..)| *known == key) {
        return match value.is_empty() || values.contains(&value) {
            true => Ok(key),
            false => Err(Refusal::Refused(format!(
                "{key} cannot have this value, but {} ({why})",
                values.join(" or ")
            ))),
        };
    }
    match REFUSED.into_iter().find(|(known, _)| *known == key) {
        Some((key, why)) => {
            Err(Refusal::Refused(format!("{key} is libpq's and cannot be followed here: {why}")))
        }
        None => Err(Refusal::Unknown(key.to_owned())),
    }
}
