//! `lockkeeper health`: what a daemon says of itself, for probes of containers.

use std::path::PathBuf;

use clap::Args;
use tokio::time::timeout;

use super::exit::{self, Failure};
use super::text::{print, printable};
use crate::RemoteOptions;
use crate::lease::RESPONSE_LIMIT;
use crate::remote::{Endpoint, HangUp, Response};

pub(super) const EXAMPLES: &str = "\
Examples:
  lockkeeper health --server http://127.0.0.1:8000
  lockkeeper health --server http://127.0.0.1:8000 --alive";

pub(super) const CODES: &str = "\
Exit codes:
    0  locks can be had there; with --alive: it answers
    1  they cannot; the daemon's word for why is printed
   64  bad usage
   69  the daemon could not be asked";

/// The longest word of a daemon.
const WORD_BYTES: usize = 64;

/// Ask a lock daemon whether locks can be acquired there
#[derive(Debug, Args)]
#[command(after_help = super::sections(&[EXAMPLES, CODES, super::LOG_HELP]))]
pub(super) struct Health {
    /// The daemon: http:// or https://, a host and a port
    #[arg(long, value_name = "URL")]
    server: String,

    /// A file with the certificates to trust, in PEM: the daemon's is one of them, or signed by
    /// one [default: those the system trusts]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Ask only whether it is alive. A daemon on a full disk is: it can grant no lock, but still
    /// releases them. For systems that restart a container that is not well
    #[arg(long)]
    alive: bool,
}

impl Health {
    fn path(&self) -> &'static str {
        if self.alive { "/healthz" } else { "/readyz" }
    }
}

pub(super) fn health(arguments: &Health) -> Result<u8, Failure> {
    let options = RemoteOptions::default();
    let options = match &arguments.ca {
        Some(file) => options.ca_file(file),
        None => options,
    };
    let endpoint = Endpoint::new(&arguments.server, &options)?;
    let answer =
        super::runtime()?.block_on(ask(&endpoint, arguments.path())).map_err(|why| Failure {
            code: exit::SYSTEM,
            message: format!("{}: asking for its health: {why}", endpoint.url()),
        })?;
    print(word(&answer));
    Ok(if answer.status.is_success() { 0 } else { exit::HELD })
}

/// # Errors
/// Why there is no answer.
async fn ask(endpoint: &Endpoint, path: &str) -> Result<Response, String> {
    let hang_up = HangUp::default();
    match timeout(RESPONSE_LIMIT, endpoint.get(path, &hang_up)).await {
        Ok(answered) => answered.map_err(|failure| failure.error.to_string()),
        Err(_) => Err("no answer came".to_owned()),
    }
}

/// Of what is no daemon, the status.
fn word(answer: &Response) -> String {
    match std::str::from_utf8(&answer.body) {
        Ok(text) if text.len() <= WORD_BYTES => printable(text.trim()),
        _ => answer.status.to_string(),
    }
}
