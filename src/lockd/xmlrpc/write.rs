//! Writes answers, laid out as Python's `xmlrpc` lays them out.

use std::fmt::Write;

/// What a call is answered with when it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReturnValue {
    Nil,
    Text(&'static str),
    Names(&'static [&'static str]),
}

/// The document of a success.
pub(crate) fn response(answer: &ReturnValue) -> String {
    let (value, end) = match answer {
        ReturnValue::Nil => ("<value><nil/></value>".to_owned(), ""),
        ReturnValue::Text(text) => (string(text), "\n"),
        ReturnValue::Names(names) => {
            let mut values = String::from("<value><array><data>\n");
            for name in *names {
                values.push_str(&string(name));
                values.push('\n');
            }
            values.push_str("</data></array></value>");
            (values, "\n")
        }
    };
    format!(
        "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n{value}{end}</param>\n\
         </params>\n</methodResponse>\n"
    )
}

/// The document of a fault.
pub(crate) fn fault(code: u32, text: &str) -> String {
    format!(
        "<?xml version='1.0'?>\n<methodResponse>\n<fault>\n<value><struct>\n\
         <member>\n<name>faultCode</name>\n<value><int>{code}</int></value>\n</member>\n\
         <member>\n<name>faultString</name>\n{}\n</member>\n\
         </struct></value>\n</fault>\n</methodResponse>\n",
        string(text)
    )
}

fn string(text: &str) -> String {
    let mut value = String::from("<value><string>");
    for character in text.chars() {
        match character {
            '&' => value.push_str("&amp;"),
            '<' => value.push_str("&lt;"),
            '>' => value.push_str("&gt;"),
            // Sent as it is, it would arrive as a line feed.
            '\r' => value.push_str("&#13;"),
            // Not allowed in XML in any form.
            '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {
                let code = u32::from(character);
                write!(value, "\\x{code:02x}").expect("BUG: a string takes all that is written");
            }
            _ => value.push(character),
        }
    }
    value.push_str("</string></value>");
    value
}
