//! A server as a text names it: a URL, or pairs as in `host=db1 dbname=app`.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::keys::{self, Refusal};
use crate::lock::error::Error;

/// A text for people is shorter by far. If larger, a file that was pasted by mistake is
/// looked at to its end.
const LONGEST: usize = 16 * 1024;

/// What libpq's keys are set to. A key that was not given is not there.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Pairs(BTreeMap<&'static str, String>);

/// What a text says.
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) pairs: Pairs,
    /// Keys that are not libpq's, of those that were asked for.
    pub(super) own: Vec<(String, String)>,
}

impl Pairs {
    /// The value, unless there is none or an empty one.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A value for a key of libpq's.
    ///
    /// # Errors
    /// What is wrong with it, without the value of a secret.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        let key = keys::check(key, value)?;
        if self.0.insert(key, value.to_owned()).is_some() {
            return Err(Refusal::Refused(format!("{key} is given twice")));
        }
        Ok(())
    }

    /// Whether what is no key may be a piece of a password.
    fn has_secret(&self) -> bool {
        self.0.contains_key("password")
    }

    /// What the others say of keys that are not there.
    pub(super) fn complete(&mut self, others: Pairs) {
        for (key, value) in others.0 {
            self.0.entry(key).or_insert(value);
        }
    }
}

impl Parsed {
    fn add_own(&mut self, key: String, value: &str) -> Result<(), String> {
        if self.own.iter().any(|(known, _)| *known == key) {
            return Err(format!("{key} is given twice"));
        }
        // As in the URLs of other kinds of locks, a + is a space there.
        let value = decoded(&value.replace('+', " "));
        let value = value.map_err(|why| format!("the value of {key} {why}"))?;
        self.own.push((key, value));
        Ok(())
    }
}

/// How a text is read.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    /// Keys that are not libpq's, in the query of a URL.
    own: &'a [&'a str],
    may_have_password: bool,
}

impl Reader<'_> {
    /// A text that stands in a program.
    pub(super) const OF_A_PROGRAM: Self = Self { own: &[], may_have_password: true };
}

impl<'a> Reader<'a> {
    /// A URL that stands on a command line, with keys of its reader.
    pub(super) fn of_a_url(own: &'a [&'a str]) -> Self {
        Self { own, may_have_password: false }
    }

    /// # Errors
    /// [`Error::InvalidOption`].
    pub(super) fn read(self, text: &str) -> Result<Parsed, Error> {
        let scheme = ["postgresql://", "postgres://"];
        let url = scheme.iter().find_map(|scheme| text.strip_prefix(scheme));
        let option = if url.is_some() { "url" } else { "config" };
        let invalid = |why| Error::InvalidOption { option, why };
        if text.len() > LONGEST {
            return Err(invalid(format!("it is longer than {LONGEST} bytes")));
        }
        let mut parsed = Parsed::default();
        let read = match url {
            Some(rest) => self.read_url(rest, &mut parsed),
            None if !self.may_have_password => Err("it begins with postgres://".to_owned()),
            None => read_pairs(text, &mut parsed.pairs),
        };
        read.map_err(invalid)?;
        Ok(parsed)
    }

    /// `[user[:password]@][host[:port][,…]][/dbname][?key=value[&…]]`
    fn read_url(self, rest: &str, parsed: &mut Parsed) -> Result<(), String> {
        let before_path = rest.split('/').next().unwrap_or_default();
        let (user, rest) = match before_path.find('@') {
            Some(end) => (Some(&rest[..end]), &rest[end + 1..]),
            None => (None, rest),
        };
        if let Some(user) = user {
            self.read_user(user, &mut parsed.pairs)?;
        }
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let (authority, database) = match place.split_once('/') {
            Some((authority, database)) => (authority, Some(database)),
            None => (place, None),
        };
        set_hosts(&mut parsed.pairs, authority)?;
        if let Some(database) = database.filter(|name| !name.is_empty()) {
            set_decoded(&mut parsed.pairs, "dbname", database)?;
        }
        // A raw @ after the place may be that behind a password with a / in it.
        let has_secret = rest.contains('@');
        for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            self.read_query_pair(pair, index + 1, has_secret, parsed)?;
        }
        Ok(())
    }

    /// `user[:password]`
    fn read_user(self, text: &str, pairs: &mut Pairs) -> Result<(), String> {
        let user = match text.split_once(':') {
            Some((user, password)) => {
                self.refuse_password()?;
                set_decoded(pairs, "password", password)?;
                user
            }
            None => text,
        };
        // So that a host with a query and an @ in that is not taken for a user.
        if user.contains('?') {
            return Err("its user has a ? in it: write %3F".to_owned());
        }
        set_decoded(pairs, "user", user)
    }

    fn read_query_pair(
        self,
        pair: &str,
        number: usize,
        has_secret: bool,
        parsed: &mut Parsed,
    ) -> Result<(), String> {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| format!("part {number} behind its ? is not key=value"))?;
        let key = decoded(key).map_err(|why| format!("key {number} behind its ? {why}"))?;
        if self.own.contains(&key.as_str()) {
            return parsed.add_own(key, value);
        }
        if matches!(key.as_str(), "password" | "sslpassword") {
            self.refuse_password()?;
        }
        let value = decoded(value).map_err(|why| format!("value {number} behind its ? {why}"))?;
        let pair = match (key.as_str(), value.as_str()) {
            // What JDBC calls it, and libpq takes.
            ("ssl", "true") => ("sslmode", "require"),
            pair => pair,
        };
        let has_secret = has_secret || parsed.pairs.has_secret();
        let set = parsed.pairs.set(pair.0, pair.1);
        set.map_err(|refusal| refusal.of_pair(number, (!has_secret).then_some(self.own)))
    }

    fn refuse_password(self) -> Result<(), String> {
        if self.may_have_password {
            return Ok(());
        }
        Err("it has a password in it, which process lists and logs would show: write it into \
             ~/.pgpass or a file named with ?passfile=, or set PGPASSWORD"
            .to_owned())
    }
}

/// `host:port,host:port`; each may be empty, an IPv6 address stands in `[ ]`.
fn set_hosts(pairs: &mut Pairs, authority: &str) -> Result<(), String> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for (index, part) in split_outside_brackets(authority).into_iter().enumerate() {
        let number = index + 1;
        let (host, port) = host_and_port(part).map_err(|why| format!("host {number} {why}"))?;
        let host = decoded(host).map_err(|why| format!("host {number} {why}"))?;
        if host.contains([',', '@']) {
            return Err(format!(
                "host {number} has a , or an @ in it: of a user or a password that is %2C or %40"
            ));
        }
        hosts.push(host);
        ports.push(port.to_owned());
    }
    if hosts.len() > 1 && hosts.iter().any(String::is_empty) {
        return Err("it has an empty host: write postgres://h1:5432,h2:5432/app".to_owned());
    }
    for (key, values) in [("host", hosts), ("port", ports)] {
        if values.iter().any(|value| !value.is_empty()) {
            pairs.set(key, &values.join(",")).map_err(Refusal::without_name)?;
        }
    }
    Ok(())
}

fn split_outside_brackets(authority: &str) -> Vec<&str> {
    let mut is_inside = false;
    let split = authority.split(|character| {
        match character {
            '[' => is_inside = true,
            ']' => is_inside = false,
            _ => {}
        }
        character == ',' && !is_inside
    });
    split.collect()
}

fn host_and_port(part: &str) -> Result<(&str, &str), &'static str> {
    let (host, rest) = match part.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("has a [ without a ]")?;
            if host.is_empty() {
                return Err("has nothing within its [ ]");
            }
            (host, rest)
        }
        None => part.split_at(part.find(':').unwrap_or(part.len())),
    };
    match rest.strip_prefix(':') {
        // A password without its @ is a port to all appearance.
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Ok((host, port)),
        Some(_) => Err("has a port that is no number; or is that a password, without its @?"),
        None if rest.is_empty() => Ok((host, "")),
        None => Err("has something behind its ]"),
    }
}

fn set_decoded(pairs: &mut Pairs, key: &'static str, value: &str) -> Result<(), String> {
    let value = decoded(value).map_err(|why| format!("the {key} {why}"))?;
    pairs.set(key, &value).map_err(Refusal::without_name)
}

/// Decoded once.
fn decoded(text: &str) -> Result<String, &'static str> {
    let is_hex = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_hexdigit);
    if text
        .bytes()
        .enumerate()
        .any(|(at, byte)| byte == b'%' && !(is_hex(at + 1) && is_hex(at + 2)))
    {
        return Err("has a % without two hexadecimal digits: a % itself is %25");
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| "is not UTF-8")
}

/// `key = value`, where a value with white space stands in single quotes, and a backslash
/// takes the next character as it is.
fn read_pairs(text: &str, pairs: &mut Pairs) -> Result<(), String> {
    let mut rest = text.trim_start_matches(is_blank);
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let end = rest.find(|it| it == '=' || is_blank(it)).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let after = after.trim_start_matches(is_blank).strip_prefix('=').ok_or_else(|| {
            format!(
                "part {number} has no =: write host=db1 dbname=app user=bob, with ' ' around a \
                 value that has spaces in it, or a URL such as postgres://bob@db1/app"
            )
        })?;
        let (value, after) = value_and_rest(after.trim_start_matches(is_blank))
            .map_err(|why| format!("value {number} {why}"))?;
        let has_secret = pairs.has_secret();
        let set = pairs.set(key, &value);
        set.map_err(|refusal| refusal.of_pair(number, (!has_secret).then_some(&[])))?;
        rest = after.trim_start_matches(is_blank);
    }
    Ok(())
}

/// What `isspace` takes in libpq.
fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

fn value_and_rest(text: &str) -> Result<(String, &str), &'static str> {
    let (is_quoted, text) = match text.strip_prefix('\'') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' if is_quoted => return Ok((value, &text[at + 1..])),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ if !is_quoted && is_blank(character) => return Ok((value, &text[at..])),
            _ => value.push(character),
        }
    }
    if is_quoted { Err("has a ' without a second one") } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reader: Reader<'_>, text: &str) -> String {
        let error = reader.read(text).err().unwrap_or_else(|| panic!("taken: {text}"));
        assert!(!error.to_string().contains("hunter2"), "{text}: {error}");
        error.to_string()
    }

    #[test]
    fn what_is_wrong_with_a_text_is_said_without_it() {
        for (text, part) in [
            ("hunter2", "part 1 has no ="),
            ("host=a hunter2", "part 2 has no ="),
            ("host='hunter2", "value 1 has a ' without"),
            ("password=x hunter2=y", "key 2 is none that is known"),
            ("hosts=a", "there is no key \"hosts\" here, but host, hostaddr"),
            ("host=a port=1 host=hunter2", "host is given twice"),
            ("host=a sslcrl=hunter2", "sslcrl is libpq's and cannot be followed"),
            ("target_session_attrs=prefer-standby", "but read-write or any"),
            ("user='hunter2\u{1}'", "user has a control character"),
            ("user=hunter2\0", "user has a control character"),
            ("postgres://bob:hunter2/app", "port that is no number; or is that a password"),
            ("postgres://bob:hun@ter2@h/app", "host 1 has a , or an @"),
            ("postgres://bob:a/hunter2@h/app", "port that is no number"),
            ("postgres://bob:1/x?hunter2=y@h/app", "key 1 is none that is known"),
            ("postgres://h/app?password=a&hunter2=y", "key 2 is none that is known"),
            ("postgres://bob?hunter2=x@h", "its user has a ? in it"),
            ("postgres://h1,,h2/app", "empty host"),
            ("postgres://[::1/app", "a [ without a ]"),
            ("postgres://[]/app", "nothing within its [ ]"),
            ("postgres://[::1]1/app", "something behind its ]"),
            ("postgres://h%2Ci/app", "host 1 has a ,"),
            ("postgres://h/a%zz", "a % without two hexadecimal digits"),
            ("postgres://h/a%ff", "the dbname is not UTF-8"),
            ("postgres://h/a%00", "dbname has a control character"),
            ("postgres://h/a?host", "part 1 behind its ? is not key=value"),
            ("postgres://h/a?", "part 1 behind its ? is not key=value"),
            ("postgres://h/a?dbname=b", "dbname is given twice"),
            ("postgres://h/a?sslmode=disable&sslmode=hunter2", "sslmode is given twice"),
            ("postgres://h/a?lease=15s", "there is no key \"lease\""),
        ] {
            let error = refused(Reader::OF_A_PROGRAM, text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let long = format!("host=hunter2 user={}", "a".repeat(LONGEST));
        assert!(refused(Reader::OF_A_PROGRAM, &long).contains("longer than"));
    }

    #[test]
    fn a_lock_url_has_keys_of_its_own_and_no_password() {
        let reader = Reader::of_a_url(&["lease", "note"]);
        let text = "postgres://bob@h:1/app?lease=15s&sslmode=require&note=by+night%21";
        let parsed = reader.read(text).unwrap();
        let own = [("lease", "15s"), ("note", "by night!")];
        assert_eq!(parsed.own, own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(parsed.pairs.get("sslmode"), Some("require"));
        assert_eq!(parsed.pairs.get("lease"), None);
        for (text, part) in [
            ("postgres://bob:hunter2@h/app", "it has a password in it"),
            ("postgres://bob:@h/app", "it has a password in it"),
            ("postgres://h/app?password=hunter2", "it has a password in it"),
            ("postgres://h/app?sslpassword=hunter2", "it has a password in it"),
            ("postgres://h/app?lease=1s&lease=hunter2", "lease is given twice"),
            ("postgres://h/app?leese=1s", "no key \"leese\" here, but lease, note, host"),
            ("host=h password=hunter2", "it begins with postgres://"),
        ] {
            let error = refused(reader, text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
