//! The tokens of a daemon, and which clients' names each may use.
//!
//! The file has the SHA-256 of each token, and no token. That is enough for random tokens
//! of 128 bits or more, where no dictionary helps. It costs a microsecond for each request.
//! A password would need a slow hash, which any caller could make the daemon compute. So a
//! token of less than [`TOKEN_MIN_BYTES`] is never accepted.

#![expect(clippy::disallowed_methods, reason = "reads the token file")]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::error::Category;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::watch;

use super::tls::{FileError, WRITABLE_BY_OTHERS};
use crate::lockd::name;
use crate::sys::permissions;

/// 128 bits in hexadecimal digits.
pub(crate) const TOKEN_MIN_BYTES: usize = 32;

/// The longest token that is compared. Longer ones would cost their hash, and are none.
const TOKEN_MAX_BYTES: usize = 1024;

/// The file of the tokens, and what stood in it when it was last read.
#[derive(Clone, Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    tokens: watch::Sender<AccessTokens>,
}

impl TokenFile {
    /// # Errors
    /// The file, and what to do.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let tokens = watch::Sender::new(AccessTokens::from_file(path)?);
        Ok(Self { path: path.to_owned(), tokens })
    }

    /// Reads it again, for all requests at once, also for those that wait; how
    /// many tokens there are.
    ///
    /// # Errors
    /// As [`read`](Self::read); then the old tokens stay.
    pub(crate) fn reload(&self) -> Result<usize, FileError> {
        let tokens = AccessTokens::from_file(&self.path)?;
        let count = tokens.0.len();
        self.tokens.send_replace(tokens);
        Ok(count)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens now, and as they change.
    pub(crate) fn tokens(&self) -> watch::Receiver<AccessTokens> {
        self.tokens.subscribe()
    }
}

/// The tokens that are known.
#[derive(Debug)]
pub(crate) struct AccessTokens(Vec<AccessToken>);

/// The hash by which a token is known; no secret.
pub(crate) type TokenHash = [u8; 32];

#[derive(Debug)]
struct AccessToken {
    sha256: TokenHash,
    bearer: Bearer,
}

/// The rights of a token.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    /// Its name in the audit.
    pub(crate) name: Arc<str>,
    pub(crate) clients: Arc<[String]>,
    pub(crate) is_administrator: bool,
    /// Whether the token may only look.
    pub(crate) is_viewer: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFileContents {
    tokens: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: String,
    sha256: String,
    #[serde(default)]
    clients: Vec<String>,
    #[serde(default)]
    administrator: bool,
    #[serde(default)]
    viewer: bool,
}

impl AccessTokens {
    fn from_file(path: &Path) -> Result<Self, FileError> {
        let wrong = |why: String| FileError { path: path.to_owned(), why };
        let unread = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
        let mut file = File::open(path).map_err(unread)?;
        let mode = permissions::mode(&file.metadata().map_err(unread)?);
        if mode.is_some_and(|mode| mode & WRITABLE_BY_OTHERS != 0) {
            let why = "can be changed by others, who could make themselves administrators";
            return Err(wrong(format!("{why}: chmod go-w")));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(unread)?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let contents: TokenFileContents =
            serde_json::from_slice(text).map_err(|error| misread(&error))?;
        let tokens = contents.tokens.into_iter().map(AccessToken::from_entry);
        let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        for (position, token) in tokens.iter().enumerate() {
            let others = &tokens[..position];
            let same = others.iter().find(|other| other.sha256 == token.sha256);
            if let Some(same) = same {
                let (one, two) = (&same.bearer.name, &token.bearer.name);
                return Err(format!("has one token for both {one:?} and {two:?}"));
            }
        }
        Ok(Self(tokens))
    }

    /// The hash of this token, and its rights.
    pub(crate) fn bearer(&self, presented: &[u8]) -> Option<(TokenHash, &Bearer)> {
        if !(TOKEN_MIN_BYTES..=TOKEN_MAX_BYTES).contains(&presented.len()) {
            return None;
        }
        let sha256 = Sha256::digest(presented).into();
        self.by_hash(&sha256).map(|bearer| (sha256, bearer))
    }

    /// The bearer of this token. Takes as long for each token, right or wrong.
    pub(crate) fn by_hash(&self, sha256: &TokenHash) -> Option<&Bearer> {
        let mut found = u32::MAX;
        for (number, token) in (0..).zip(&self.0) {
            let is_it: Choice = token.sha256.ct_eq(sha256);
            found.conditional_assign(&number, is_it);
        }
        self.0.get(found as usize).map(|token| &token.bearer)
    }
}

/// Where the file is wrong, and how. serde_json says too what stands there, which may
/// be a token that was written in the wrong place.
fn misread(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        Category::Io | Category::Syntax => "this is no JSON",
        Category::Eof => "the JSON ends too early",
        Category::Data => {
            "a field is unknown, missing, there twice or of the wrong kind: each of \"tokens\" has \
             \"name\" and \"sha256\", and \"clients\", \"administrator\" or \"viewer\""
        }
    };
    let (line, column) = (error.line(), error.column());
    format!("is no list of tokens: at line {line}, column {column} {what}")
}

impl AccessToken {
    fn from_entry(entry: TokenEntry) -> Result<Self, String> {
        let TokenEntry { name, sha256, clients, administrator, viewer } = entry;
        let Some(sha256) = digest(&sha256) else {
            return Err(format!("has no SHA-256 for {name:?}: write its 64 hexadecimal digits"));
        };
        if viewer && (administrator || !clients.is_empty()) {
            let more = "yet gives it clients or makes it an administrator: remove one of both";
            return Err(format!("lets the viewer {name:?} only look, {more}"));
        }
        if clients.is_empty() && !administrator && !viewer {
            let rest = "give it clients, \"*\" for all, or make it a viewer";
            return Err(format!("lets {name:?} do nothing: {rest}"));
        }
        let clients = clients.iter().map(|client| name::stripped(client).to_owned()).collect();
        let (name, is_administrator, is_viewer) = (name.into(), administrator, viewer);
        let bearer = Bearer { name, clients, is_administrator, is_viewer };
        Ok(Self { sha256, bearer })
    }
}

impl Bearer {
    /// Whether the token may act as this client. Names are compared as the books do.
    pub(crate) fn may_use(&self, client: &str) -> bool {
        let client = name::stripped(client);
        self.clients.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(start) => client.starts_with(start),
            None => client == allowed,
        })
    }
}

fn digest(digits: &str) -> Option<TokenHash> {
    let mut digest = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn file(fields: &str, token: &str) -> String {
        let sha256: String =
            Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        format!(r#"{{"tokens": [{{"name": "n", "sha256": "{sha256}"{fields}}}]}}"#)
    }

    fn tokens(fields: &str) -> AccessTokens {
        AccessTokens::parse(file(fields, TOKEN).as_bytes()).unwrap()
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let tokens = tokens(r#", "clients": ["c"]"#);
        assert_eq!(&*tokens.bearer(TOKEN.as_bytes()).unwrap().1.name, "n");
        let wrong = TOKEN.replace('9', "8");
        for wrong in [wrong.as_str(), "", &TOKEN[1..], &format!("{TOKEN} ")] {
            assert!(tokens.bearer(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_never_accepted() {
        let short = "hunter2";
        let tokens = AccessTokens::parse(file(r#", "clients": ["*"]"#, short).as_bytes()).unwrap();
        assert!(tokens.bearer(short.as_bytes()).is_none());
    }

    #[test]
    fn a_token_is_for_its_clients() {
        let may_use = |clients: &str, client: &str| {
            let tokens = tokens(&format!(r#", "clients": {clients}"#));
            tokens.bearer(TOKEN.as_bytes()).unwrap().1.may_use(client)
        };
        assert!(may_use(r#"["a", "b"]"#, "b"));
        assert!(may_use(r#"["a"]"#, " a\n"));
        assert!(!may_use(r#"["a"]"#, "ab"));
        assert!(!may_use(r#"["a"]"#, ""));
        assert!(may_use(r#"["web-*"]"#, "web-1"));
        assert!(!may_use(r#"["web-*"]"#, "db-1"));
        assert!(may_use(r#"["*"]"#, "anybody"));
        let tokens = tokens(r#", "administrator": true"#);
        assert!(!tokens.bearer(TOKEN.as_bytes()).unwrap().1.may_use("c"));
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said() {
        let two = r#"{"tokens": [A, A]}"#.replace(
            'A',
            &format!(r#"{{"name": "n", "sha256": "{}", "clients": ["*"]}}"#, "0".repeat(64)),
        );
        for (text, expected) in [
            ("", "is no list of tokens: at line 1, column 0 the JSON ends too early"),
            ("{\n:", "at line 2, column 1 this is no JSON"),
            (r#"{"tokens": [{"name": "n", "sha256": "00", "clients": ["c"]}]}"#, "no SHA-256"),
            (&file("", TOKEN), "do nothing"),
            (&file(r#", "client": "c""#, TOKEN), "a field is unknown"),
            (&two, "for both"),
            (&file(r#", "viewer": true, "clients": ["c"]"#, TOKEN), "only look, yet"),
            (&file(r#", "viewer": true, "administrator": true"#, TOKEN), "only look, yet"),
        ] {
            let said = AccessTokens::parse(text.as_bytes()).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }
}
