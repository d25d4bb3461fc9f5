//! `.pgpass`: passwords that only their owner can read.

#![expect(clippy::disallowed_methods, reason = "reads the file that libpq would read")]

use std::path::Path;

use crate::sys::permissions;

/// Of a file that is a password file. If larger, one that is none is held in memory.
const LARGEST: u64 = 1024 * 1024;

/// All that is not its owner's.
const OF_OTHERS: u32 = 0o077;

/// The lines of a file. They are secret.
#[derive(Default)]
pub(super) struct PasswordFile(String);

/// What a password is for.
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    /// `localhost` for the usual directory of sockets.
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

impl PasswordFile {
    /// A file that may not be used has no password in it: that is logged, as libpq warns.
    /// So it is with a file that is not there, if the user named it.
    pub(super) fn read(file: &Path, is_named: bool) -> Self {
        match text_of(file) {
            Ok(text) => Self(text),
            Err(why) => {
                if is_named || file.exists() {
                    tracing::warn!(file = %file.display(), "no password is read from it: {why}");
                }
                Self::default()
            }
        }
    }

    /// The password of the first line that fits.
    pub(super) fn password(&self, purpose: Purpose<'_>) -> Option<String> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| password_in(line, purpose)).next().filter(|it| !it.is_empty())
    }
}

fn text_of(file: &Path) -> Result<String, String> {
    let about = std::fs::metadata(file).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is no plain file".to_owned());
    }
    if permissions::mode(&about).is_some_and(|mode| mode & OF_OTHERS != 0) {
        return Err("others have rights on it: chmod 600".to_owned());
    }
    if about.len() > LARGEST {
        return Err(format!("it is larger than {LARGEST} bytes"));
    }
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    // A line that is not UTF-8 fits nothing.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Of a line `host:port:database:user:password`.
fn password_in(line: &str, purpose: Purpose<'_>) -> Option<String> {
    let port = purpose.port.to_string();
    let rest = after(line, purpose.host)?;
    let rest = after(rest, &port)?;
    let rest = after(rest, purpose.database)?;
    let rest = after(rest, purpose.user)?;
    let mut password = String::new();
    let mut characters = rest.chars();
    // What follows another colon is not looked at.
    while let Some(character) = characters.next().filter(|character| *character != ':') {
        // A backslash at the end stands for itself.
        let taken = if character == '\\' { characters.next() } else { None };
        password.push(taken.unwrap_or(character));
    }
    Some(password)
}

/// What follows a field that is this text, or `*`.
fn after<'a>(line: &'a str, text: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut rest = line;
    for wanted in text.chars() {
        rest = rest.strip_prefix('\\').unwrap_or(rest).strip_prefix(wanted)?;
    }
    rest.strip_prefix(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str, host: &str, database: &str) -> Option<String> {
        let purpose = Purpose { host, port: 5432, database, user: "bob" };
        PasswordFile(text.to_owned()).password(purpose)
    }

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let text = "#h:5432:app:bob:comment\nh:5433:app:bob:port\nh:5432:app:eve:user\n\
                    h:5432:app:bob:first\r\n*:*:*:*:any\n";
        assert_eq!(password(text, "h", "app").as_deref(), Some("first"));
        assert_eq!(password(text, "h", "ap").as_deref(), Some("any"));
        assert_eq!(password("h:5432:app:bob", "h", "app"), None);
    }

    #[test]
    fn a_backslash_takes_the_next_character_as_it_is() {
        let text = r"fe80\:\:1:5432:a\\b:bob:s\:e\\c\ret\:rest";
        assert_eq!(password(text, "fe80::1", r"a\b").as_deref(), Some(r"s:e\cret:rest"));
        assert_eq!(password(r"h:5432:a:bob:x\", "h", "a").as_deref(), Some(r"x\"));
        assert_eq!(password(r"h:5432:a:bob:x:y", "h", "a").as_deref(), Some("x"));
        // A * that is escaped, or not alone, is one.
        assert_eq!(password(r"\*:5432:a:bob:x", "h", "a"), None);
        assert_eq!(password(r"h*:5432:a:bob:x", "h", "a"), None);
    }
}
