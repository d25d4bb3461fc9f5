//! `lockkeeper lock` and `lockkeeper unlock`: one call of XML-RPC, which
//! gocept.lockd's own daemon answers as well. It is made once, or with `--reconnect`
//! until it is answered. A call has no id: a lock that was given though its answer was
//! lost stays held, and asking again is told so.

use std::io;
use std::time::Duration;

use hyper::header::HeaderValue;
use quick_xml::Reader;
use quick_xml::escape::escape;
use quick_xml::events::{BytesRef, Event};

use clap::Args;
use tokio::time::{Instant, timeout};

use super::exit::{self, Failure};
use super::remote::Credentials;
use crate::lease::Patience;
use crate::lease::RESPONSE_LIMIT;
use crate::remote::{Endpoint, HangUp, Response, is_passing};

pub(super) const EXAMPLES: &str = "\
Examples:
  lockkeeper lock web-1 \"$HOSTNAME\" --server http://locks:8000
  lockkeeper unlock web-1 \"$HOSTNAME\" --server http://locks:8000";

pub(super) const CODES: &str = "\
Exit codes:
    0  it was done
    1  the daemon refused; stderr says why, in the daemon's words
   64  bad usage
   69  the daemon could not be asked";

const XML: HeaderValue = HeaderValue::from_static("text/xml");

/// What the daemon answers where there is no lock to unlock.
const NOT_LOCKED: &str = "Resource not locked";

/// Longer texts of an answer that is none are not shown.
const SHOWN: usize = 200;

/// What is locked or unlocked, and for which client
#[derive(Debug, Args)]
#[command(after_help = super::sections(&[EXAMPLES, CODES, super::LOG_HELP]))]
pub(super) struct Call {
    /// The daemon: http:// or https://, a host and a port
    #[arg(long, value_name = "URL", group = "daemon", required_unless_present = "at")]
    server: Option<String>,

    /// The same as lockd+http:// or lockd+https://
    #[arg(long, value_name = "URL", group = "daemon")]
    at: Option<String>,

    #[command(flatten)]
    credentials: Credentials,

    /// What to lock or unlock
    #[arg(value_name = "RESOURCE")]
    resource: String,

    /// The client that holds the lock or is to hold it; no other can unlock it
    #[arg(value_name = "CLIENT")]
    client: String,
}

/// `method` is `lock` or `unlock`.
pub(super) fn call(method: &str, arguments: &Call) -> Result<u8, Failure> {
    let options = arguments.credentials.options()?;
    let url = match (&arguments.server, &arguments.at) {
        (Some(url), _) => url,
        (None, Some(at)) => at.strip_prefix("lockd+").ok_or_else(|| Failure {
            code: exit::USAGE,
            message: "--at: only a lock daemon has such locks: write lockd+http://…".to_owned(),
        })?,
        (None, None) => unreachable!("BUG: no daemon is named"),
    };
    let endpoint = Endpoint::new(url, &options)?;
    let document = document(method, [&arguments.resource, &arguments.client]);
    let reconnect = arguments.credentials.reconnect.unwrap_or_default();
    let asked = super::runtime()?.block_on(ask(&endpoint, document, reconnect));
    let unheard = |why: String| {
        let (url, verb) = (endpoint.url(), method);
        Failure { code: exit::SYSTEM, message: format!("{url}: {verb}ing: {why}") }
    };
    let Heard { answer, was_unclear } = asked.map_err(unheard)?;
    let text = String::from_utf8_lossy(&answer.body);
    match meaning(&text) {
        Some(Meaning::Done) => Ok(0),
        Some(Meaning::Fault(text)) => match (said(&text), method, was_unclear) {
            (text, "unlock", true) if text == NOT_LOCKED => Ok(0),
            (text, "lock", true) => {
                let message = format!("{text} (perhaps by a try whose answer was lost)");
                Err(Failure { code: exit::HELD, message })
            }
            (message, ..) => Err(Failure { code: exit::HELD, message }),
        },
        None if matches!(answer.status.as_u16(), 401 | 403) => {
            Err(unheard(format!("these credentials are refused: {}", text.trim())))
        }
        None => Err(unheard(strange(&answer))),
    }
}

fn strange(answer: &Response) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let start: String = text.trim().chars().take(SHOWN).collect();
    format!("this is no answer of a lock daemon: {}: {start}", answer.status)
}

struct Heard {
    answer: Response,
    /// An earlier try may have been carried out.
    was_unclear: bool,
}

/// # Errors
/// Why there is no answer.
async fn ask(endpoint: &Endpoint, document: String, reconnect: Duration) -> Result<Heard, String> {
    let (mut patience, mut was_unclear) = (Patience::new(reconnect), false);
    loop {
        let (hang_up, begun) = (HangUp::default(), Instant::now());
        let asking = endpoint.call(endpoint.rpc_path(), XML, document.clone(), &hang_up);
        let (may_be_done, error) = match timeout(RESPONSE_LIMIT, asking).await {
            Ok(Ok(answer)) if is_passing(answer.status.as_u16()) => {
                (true, io::Error::other(strange(&answer)))
            }
            Ok(Ok(answer)) => return Ok(Heard { answer, was_unclear }),
            Ok(Err(failure)) if failure.is_final() => return Err(failure.error.to_string()),
            Ok(Err(failure)) => (failure.may_have_come, failure.error),
            Err(_) => (true, io::Error::new(io::ErrorKind::TimedOut, "no answer came")),
        };
        was_unclear |= may_be_done;
        patience.pause(begun, error).await.map_err(|exhausted| exhausted.error.to_string())?;
    }
}

/// The text without the type in front that only Python understands.
fn said(fault: &str) -> String {
    let types = ["<class 'Exception'>:", "<type 'exceptions.Exception'>:"];
    let text = types.iter().find_map(|kind| fault.strip_prefix(kind));
    text.unwrap_or(fault).to_owned()
}

fn document(method: &str, arguments: [&String; 2]) -> String {
    let params: String = arguments
        .iter()
        .map(|text| {
            format!("<param><value><string>{}</string></value></param>", escape(text.as_str()))
        })
        .collect();
    format!(
        "<?xml version='1.0'?>\n<methodCall><methodName>{method}</methodName>\
         <params>{params}</params></methodCall>\n"
    )
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Done,
    /// The fault's text.
    Fault(String),
}

/// `None` if it is not the answer to a call.
fn meaning(document: &str) -> Option<Meaning> {
    let mut reader = Reader::from_str(document);
    let (mut is_fault, mut is_answer) = (false, false);
    let (mut text, mut member) = (String::new(), String::new());
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                match start.name().as_ref() {
                    "params" => is_answer = true,
                    "fault" => is_fault = true,
                    _ => {}
                }
                text.clear();
            }
            Event::End(end) => match end.name().as_ref() {
                "name" => member = std::mem::take(&mut text),
                "value" if is_fault && member == "faultString" => {
                    return Some(Meaning::Fault(text));
                }
                _ => {}
            },
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::CData(part) => text.push_str(&part.xml10_content()),
            Event::GeneralRef(reference) => text.push(resolve(&reference)?),
            Event::Eof => return is_answer.then_some(Meaning::Done),
            _ => {}
        }
    }
}

fn resolve(reference: &BytesRef<'_>) -> Option<char> {
    match &**reference {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "apos" => Some('\''),
        "quot" => Some('"'),
        _ => reference.resolve_char_ref().ok().flatten(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_from_success() {
        let done = "<?xml version='1.0'?><methodResponse><params><param><value><nil/></value>\
            </param></params></methodResponse>";
        assert_eq!(meaning(done), Some(Meaning::Done));
        let fault = "<methodResponse><fault><value><struct><member><name>faultCode</name>\
            <value><int>1</int></value></member><member><name>faultString</name><value><string>\
            &lt;class 'Exception'&gt;:Resource already locked by 'o&amp;k'</string></value>\
            </member></struct></value></fault></methodResponse>";
        let Some(Meaning::Fault(text)) = meaning(fault) else { panic!("no fault") };
        assert_eq!(said(&text), "Resource already locked by 'o&k'");
        assert_eq!(meaning("<html>hello</html>"), None);
        assert_eq!(meaning("hello"), None);
    }

    #[test]
    fn what_is_sent_is_escaped() {
        let document = document("lock", [&"a<b".to_owned(), &"c&d".to_owned()]);
        assert!(document.contains("<string>a&lt;b</string>"), "{document}");
        assert!(document.contains("<string>c&amp;d</string>"), "{document}");
    }
}
