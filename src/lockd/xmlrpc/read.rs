//! Reads a call, event by event, and stops at the first thing that is wrong.
//!
//! R1. Nothing is fetched or expanded: a DTD is refused, and of references only
//!     the five predefined ones and those to characters are known. So what is
//!     read is never longer than what was sent.
//! R2. Depth, count and length of values are limited ([`Shape`]). A document that is over
//!     a limit is refused at that place, and the rest not looked at.
//! R3. No argument is lost: an element where none belongs is an error, so that
//!     no call is answered that was not understood. Text between elements says
//!     nothing and is passed over, as Python does.

use quick_xml::Reader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesRef, BytesStart, Event};

use super::charset;
use super::malformed::{ATTRIBUTE_BYTES, Malformed, SHOWN_CHARACTERS, shown};
use super::value::{MethodCall, Value};

/// What a document may be at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// How deep elements may be nested. An array in an array needs three.
    pub(crate) depth: usize,
    /// How many values there may be, with those in arrays and structs.
    pub(crate) values: usize,
    /// How long each text may be, in bytes.
    pub(crate) text_bytes: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { depth: 48, values: 1024, text_bytes: 64 * 1024 }
    }
}

/// Reads one call.
pub(crate) fn read(body: &[u8], shape: &Shape) -> Result<MethodCall, Malformed> {
    let text = charset::decode(body)?;
    if text.trim_ascii().is_empty() {
        return Err(Malformed::Empty);
    }
    if !text.trim_ascii_start().starts_with('<') {
        return Err(Malformed::NotXml(shown(&text)));
    }
    Document::new(&text, shape).read()
}

/// An element that is open, with what it has collected.
enum Open {
    Call,
    MethodName,
    Params,
    Param(Option<Value>),
    Value(Option<Value>),
    Scalar(Scalar),
    Array(Option<Vec<Value>>),
    Data(Vec<Value>),
    Struct(Vec<(String, Value)>),
    Member(Option<String>, Option<Value>),
    Name,
}

#[derive(Clone, Copy)]
enum Scalar {
    Int,
    Bool,
    Double,
    Text,
    Binary,
    DateTime,
    Nil,
}

impl Open {
    fn tag(&self) -> &'static str {
        match self {
            Self::Call => "methodCall",
            Self::MethodName => "methodName",
            Self::Params => "params",
            Self::Param(_) => "param",
            Self::Value(_) => "value",
            Self::Scalar(scalar) => scalar.tag(),
            Self::Array(_) => "array",
            Self::Data(_) => "data",
            Self::Struct(_) => "struct",
            Self::Member(..) => "member",
            Self::Name => "name",
        }
    }

    /// The element `tag` inside this one.
    fn child(&self, tag: &str) -> Result<Self, Malformed> {
        match (self, tag) {
            (Self::Call, "methodName") => Ok(Self::MethodName),
            (Self::Call, "params") => Ok(Self::Params),
            (Self::Params, "param") => Ok(Self::Param(None)),
            (Self::Param(_) | Self::Data(_) | Self::Member(..), "value") => Ok(Self::Value(None)),
            (Self::Array(_), "data") => Ok(Self::Data(Vec::new())),
            (Self::Struct(_), "member") => Ok(Self::Member(None, None)),
            (Self::Member(..), "name") => Ok(Self::Name),
            (Self::Value(None), "array") => Ok(Self::Array(None)),
            (Self::Value(None), "struct") => Ok(Self::Struct(Vec::new())),
            (Self::Value(None), _) => match Scalar::named(tag) {
                Some(scalar) => Ok(Self::Scalar(scalar)),
                None => Err(Malformed::Type(tag.to_owned())),
            },
            _ => Err(Malformed::Misplaced { tag: tag.to_owned(), inside: self.tag() }),
        }
    }

    fn keeps_text(&self) -> bool {
        matches!(self, Self::MethodName | Self::Name | Self::Value(None) | Self::Scalar(_))
    }
}

impl Scalar {
    fn named(tag: &str) -> Option<Self> {
        Some(match tag {
            "int" | "i1" | "i2" | "i4" | "i8" | "biginteger" => Self::Int,
            "boolean" => Self::Bool,
            "double" | "float" | "bigdecimal" => Self::Double,
            "string" => Self::Text,
            "base64" => Self::Binary,
            "dateTime.iso8601" => Self::DateTime,
            "nil" => Self::Nil,
            _ => return None,
        })
    }

    fn tag(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Bool => "boolean",
            Self::Double => "double",
            Self::Text => "string",
            Self::Binary => "base64",
            Self::DateTime => "dateTime.iso8601",
            Self::Nil => "nil",
        }
    }

    fn value(self, text: String) -> Result<Value, Malformed> {
        let wrong = |text: String| Malformed::Number { kind: self.tag(), text };
        match self {
            Self::Int => match text.trim().parse() {
                Ok(number) => Ok(Value::Int(number)),
                Err(_) => Err(wrong(text)),
            },
            Self::Bool => match text.as_str() {
                "0" => Ok(Value::Bool(false)),
                "1" => Ok(Value::Bool(true)),
                _ => Err(wrong(text)),
            },
            Self::Double => match text.trim().parse() {
                Ok(number) => Ok(Value::Double(number)),
                Err(_) => Err(wrong(text)),
            },
            Self::Text => Ok(Value::Text(text)),
            Self::Binary => Ok(Value::Binary),
            Self::DateTime => Ok(Value::DateTime),
            Self::Nil => Ok(Value::Nil),
        }
    }
}

struct Document<'a> {
    events: Reader<&'a [u8]>,
    shape: &'a Shape,
    open: Vec<Open>,
    /// The text of the innermost element, as far as it was read.
    text: String,
    values: usize,
    method: Option<String>,
    params: Option<Vec<Value>>,
    is_over: bool,
}

impl<'a> Document<'a> {
    fn new(text: &'a str, shape: &'a Shape) -> Self {
        let mut events = Reader::from_str(text);
        let config = events.config_mut();
        config.expand_empty_elements = true;
        config.check_comments = true;
        Self {
            events,
            shape,
            open: Vec::new(),
            text: String::new(),
            values: 0,
            method: None,
            params: None,
            is_over: false,
        }
    }

    fn read(mut self) -> Result<MethodCall, Malformed> {
        let mut is_first = true;
        loop {
            let event = match self.events.read_event() {
                Ok(event) => event,
                Err(error) => return Err(self.not_well_formed(&error.to_string())),
            };
            match event {
                Event::Start(start) => self.start(&start)?,
                Event::End(_) => self.end()?,
                Event::Text(text) => {
                    if text.contains("]]>") {
                        return Err(self.not_well_formed("]]> in a text"));
                    }
                    self.add(&text.xml10_content())?;
                }
                Event::CData(text) => self.add_content(&text.xml10_content())?,
                Event::GeneralRef(reference) => {
                    let mut bytes = [0; 4];
                    self.add_content(resolve(&reference)?.encode_utf8(&mut bytes))?;
                }
                Event::DocType(_) => return Err(Malformed::Doctype),
                Event::Decl(_) if !is_first => {
                    return Err(self.not_well_formed("an XML declaration that is not at the start"));
                }
                Event::Comment(text) => legal(&text)?,
                Event::PI(instruction) => legal(&instruction)?,
                Event::Decl(declaration) => {
                    let version = declaration.xml_version();
                    version.map_err(|error| self.not_well_formed(&error.to_string()))?;
                }
                Event::Eof => return self.finish(),
                Event::Empty(_) => unreachable!("BUG: empty elements are expanded"),
            }
            is_first = false;
        }
    }

    fn not_well_formed(&self, what: &str) -> Malformed {
        let what = what.chars().take(2 * SHOWN_CHARACTERS).collect();
        Malformed::NotWellFormed { at: self.events.error_position(), what }
    }

    fn start(&mut self, start: &BytesStart<'_>) -> Result<(), Malformed> {
        self.check_attributes(start)?;
        if self.open.len() >= self.shape.depth {
            return Err(Malformed::TooDeep(self.shape.depth));
        }
        let name = start.local_name();
        let tag: &str = name.as_ref();
        let open = match self.open.last() {
            Some(parent) => parent.child(tag)?,
            None if self.is_over => return Err(self.not_well_formed("a second document")),
            None if tag == "methodCall" => Open::Call,
            None => return Err(Malformed::NotACall(tag.to_owned())),
        };
        if matches!(open, Open::Value(_)) {
            self.values += 1;
            if self.values > self.shape.values {
                return Err(Malformed::TooMany(self.shape.values));
            }
        }
        self.text.clear();
        self.open.push(open);
        Ok(())
    }

    fn check_attributes(&self, start: &BytesStart<'_>) -> Result<(), Malformed> {
        if start.attributes_raw().len() > ATTRIBUTE_BYTES {
            return Err(Malformed::Attributes);
        }
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| self.not_well_formed(&error.to_string()))?;
            if attribute.value.contains('<') {
                return Err(self.not_well_formed("< in an attribute"));
            }
            let value = unescape(&attribute.value);
            legal(&value.map_err(|error| self.not_well_formed(&error.to_string()))?)?;
        }
        Ok(())
    }

    /// Text of the innermost element.
    fn add(&mut self, text: &str) -> Result<(), Malformed> {
        legal(text)?;
        let Some(open) = self.open.last() else {
            let is_blank = text.bytes().all(|byte| byte.is_ascii_whitespace());
            return if is_blank {
                Ok(())
            } else {
                Err(self.not_well_formed("text outside the document"))
            };
        };
        if open.keeps_text() {
            if self.text.len() + text.len() > self.shape.text_bytes {
                return Err(Malformed::TooLong(self.shape.text_bytes));
            }
            self.text.push_str(text);
        }
        Ok(())
    }

    /// Text that may stand in an element only, be it a blank.
    fn add_content(&mut self, text: &str) -> Result<(), Malformed> {
        if self.open.is_empty() {
            return Err(self.not_well_formed("text outside the document"));
        }
        self.add(text)
    }

    fn end(&mut self) -> Result<(), Malformed> {
        let closed = self.open.pop().expect("BUG: the reader matches ends to starts");
        let text = std::mem::take(&mut self.text);
        match closed {
            Open::Call => self.is_over = true,
            Open::MethodName => set(&mut self.method, text, "methodName", "methodCall")?,
            Open::Params => {
                self.params.get_or_insert_default();
            }
            Open::Param(value) => {
                let value = value.ok_or(Malformed::Missing { tag: "value", inside: "param" })?;
                self.params.get_or_insert_default().push(value);
            }
            Open::Value(value) => return self.give(value.unwrap_or(Value::Text(text))),
            Open::Scalar(scalar) => return self.give(scalar.value(text)?),
            Open::Array(values) => return self.give(Value::Array(values.unwrap_or_default())),
            Open::Struct(members) => return self.give(Value::Struct(members)),
            Open::Data(values) => {
                if let Some(Open::Array(array)) = self.open.last_mut() {
                    set(array, values, "data", "array")?;
                }
            }
            Open::Member(name, value) => return self.member(name, value),
            Open::Name => {
                if let Some(Open::Member(name, _)) = self.open.last_mut() {
                    set(name, text, "name", "member")?;
                }
            }
        }
        Ok(())
    }

    /// A value, to the element it stands in.
    fn give(&mut self, value: Value) -> Result<(), Malformed> {
        match self.open.last_mut() {
            Some(Open::Param(place)) => set(place, value, "value", "param"),
            Some(Open::Member(_, place)) => set(place, value, "value", "member"),
            Some(Open::Value(place)) => {
                *place = Some(value);
                Ok(())
            }
            Some(Open::Data(values)) => {
                values.push(value);
                Ok(())
            }
            _ => unreachable!("BUG: a value was let in where none belongs"),
        }
    }

    fn member(&mut self, name: Option<String>, value: Option<Value>) -> Result<(), Malformed> {
        let name = name.ok_or(Malformed::Missing { tag: "name", inside: "member" })?;
        let value = value.ok_or(Malformed::Missing { tag: "value", inside: "member" })?;
        let Some(Open::Struct(members)) = self.open.last_mut() else {
            unreachable!("BUG: a member was let in outside a struct");
        };
        match members.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => members.push((name, value)),
        }
        Ok(())
    }

    fn finish(self) -> Result<MethodCall, Malformed> {
        match self.open.last() {
            Some(open) => Err(Malformed::EndsEarly(open.tag())),
            None if !self.is_over => Err(Malformed::EndsEarly("methodCall")),
            None => Ok(MethodCall { method: self.method, params: self.params.unwrap_or_default() }),
        }
    }
}

fn set<T>(
    place: &mut Option<T>,
    value: T,
    tag: &'static str,
    inside: &'static str,
) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed::Twice { tag, inside }),
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<char, Malformed> {
    let unknown = || Malformed::Entity(reference.to_string());
    let character = match &**reference {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "apos" => '\'',
        "quot" => '"',
        _ => reference.resolve_char_ref().ok().flatten().ok_or_else(unknown)?,
    };
    Ok(character)
}

/// Whether XML 1.0 allows all these characters.
fn legal(text: &str) -> Result<(), Malformed> {
    let is_legal = |character: char| !matches!(character, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}');
    match text.chars().find(|&character| !is_legal(character)) {
        Some(character) => Err(Malformed::Character(u32::from(character))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_with(params: &str) -> String {
        format!("<methodCall><methodName>m</methodName><params>{params}</params></methodCall>")
    }

    fn params(params: &str) -> Result<Vec<Value>, Malformed> {
        read(call_with(params).as_bytes(), &Shape::default()).map(|call| call.params)
    }

    fn value(value: &str) -> Result<Value, Malformed> {
        params(&format!("<param>{value}</param>")).map(|mut values| values.pop().expect("a value"))
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn every_type_of_value_is_read() {
        for (sent, expected) in [
            ("<value>plain</value>", text("plain")),
            ("<value/>", text("")),
            ("<value></value>", text("")),
            ("<value> </value>", text(" ")),
            ("<value>\n <string>in</string> \n</value>", text("in")),
            ("<value><string/></value>", text("")),
            ("<value><string>a&lt;b&#x26;&#99;</string></value>", text("a<b&c")),
            ("<value><string><![CDATA[<a>]]&amp;]]></string></value>", text("<a>]]&amp;")),
            ("<value><string>a\r\nb\rc&#13;d</string></value>", text("a\nb\nc\rd")),
            ("<value><string>a<!-- not this -->b</string></value>", text("ab")),
            ("<value><int> -7 </int></value>", Value::Int(-7)),
            ("<value><i4>+7</i4></value>", Value::Int(7)),
            ("<value><i8>9223372036854775808</i8></value>", Value::Int(1 << 63)),
            ("<value><boolean>1</boolean></value>", Value::Bool(true)),
            ("<value><double>-1.5e3</double></value>", Value::Double(-1500.0)),
            ("<value><nil/></value>", Value::Nil),
            ("<value><ex:nil xmlns:ex='u'/></value>", Value::Nil),
            ("<value><base64>eA==</base64></value>", Value::Binary),
            ("<value><dateTime.iso8601>x</dateTime.iso8601></value>", Value::DateTime),
            ("<value><array><data/></array></value>", Value::Array(Vec::new())),
            ("<value><struct/></value>", Value::Struct(Vec::new())),
            (
                "<value><struct><member><name>n</name><value>1</value></member>\
                 <member><value>2</value><name>n</name></member></struct></value>",
                Value::Struct(vec![("n".to_owned(), text("2"))]),
            ),
            (
                "<value><array><data><value><array><data><value>x</value></data></array></value>\
                 </data></array></value>",
                Value::Array(vec![Value::Array(vec![text("x")])]),
            ),
        ] {
            assert_eq!(value(sent), Ok(expected), "{sent}");
        }
    }

    #[test]
    fn a_call_needs_neither_a_name_nor_arguments() {
        let none = MethodCall { method: None, params: Vec::new() };
        let read = |text: &str| read(text.as_bytes(), &Shape::default());
        assert_eq!(read("<methodCall/>"), Ok(none.clone()));
        assert_eq!(read("<?xml version='1.0'?>\n<methodCall><params/></methodCall>\n"), Ok(none));
        let named = MethodCall { method: Some(" m.n ".to_owned()), params: Vec::new() };
        assert_eq!(read("<methodCall><methodName> m.n </methodName></methodCall>"), Ok(named));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (sent, said) in [
            ("", "empty"),
            (" \n", "empty"),
            ("hello", "not XML: it begins with 'hello'"),
            ("<methodCall>", "ends before </methodCall>"),
            ("<methodCall><params><param><value><int>1", "ends before </int>"),
            ("<methodCall></methodcall>", "not well-formed"),
            ("<methodCall/><methodCall/>", "a second document"),
            ("<methodCall/>x", "text outside"),
            ("<methodCall/>&#32;", "text outside"),
            ("<methodCall/><![CDATA[ ]]>", "text outside"),
            (" <?xml version='1.0'?><methodCall/>", "not at the start"),
            ("<?xml vern='1.0'?><methodCall/>", "not well-formed"),
            ("<methodResponse/>", "is a 'methodResponse'"),
            ("<!DOCTYPE methodCall><methodCall/>", "DOCTYPE"),
            ("<methodCall a=b/>", "not well-formed"),
            ("<methodCall a='1' a='2'/>", "not well-formed"),
            ("<methodCall a='<'/>", "not well-formed"),
            ("<methodCall a='&b;'/>", "not well-formed"),
            ("<methodCall><!-- a -- b --></methodCall>", "not well-formed"),
            ("<methodCall><x/></methodCall>", "'x' does not belong in <methodCall>"),
            ("<methodCall>&b;</methodCall>", "entity 'b' is not known"),
            ("<methodCall>&#0;</methodCall>", "entity '#0' is not known"),
            ("<methodCall>&#1;</methodCall>", "U+0001"),
            ("<methodCall>\u{ffff}</methodCall>", "U+FFFF"),
            ("<methodCall>a & b</methodCall>", "not well-formed"),
            ("<methodCall>]]></methodCall>", "]]>"),
            ("<methodCall><methodName/><methodName/></methodCall>", "more than one <methodName>"),
            ("<?xml version='1.0' encoding='koi8-r'?><methodCall/>", "encoding 'koi8-r'"),
        ] {
            let error = read(sent.as_bytes(), &Shape::default()).expect_err(sent).to_string();
            assert!(error.contains(said), "{sent}: {error}");
        }
    }

    #[test]
    fn no_argument_is_lost() {
        for (sent, said) in [
            ("<value>1</value>", "'value' does not belong in <params>"),
            ("<param/>", "<param> has no <value>"),
            ("<param><string>x</string></param>", "'string' does not belong in <param>"),
            ("<param><value>1</value><value>2</value></param>", "more than one <value>"),
            ("<param><value><i4>1</i4><i4>2</i4></value></param>", "does not belong in <value>"),
            ("<param><value><foo/></value></param>", "'foo' is not a type"),
            ("<param><value><string><b/></string></value></param>", "does not belong in <string>"),
            ("<param><value><int>1.0</int></value></param>", "'1.0' is not a number of type int"),
            ("<param><value><boolean>2</boolean></value></param>", "type boolean"),
            ("<param><value><double/></value></param>", "'' is not a number of type double"),
            ("<param><value><array><value/></array></value></param>", "does not belong in <array>"),
            (
                "<param><value><struct><member><value/></member></struct></value></param>",
                "<member> has no <name>",
            ),
        ] {
            let error = params(sent).expect_err(sent).to_string();
            assert!(error.contains(said), "{sent}: {error}");
        }
    }

    #[test]
    fn over_a_limit_nothing_more_is_read() {
        // All of these are cut off, and that is not found any more.
        let deep = "<methodCall><params><param>".to_owned() + &"<value><array><data>".repeat(100);
        assert_eq!(read(deep.as_bytes(), &Shape::default()), Err(Malformed::TooDeep(48)));
        let many = "<methodCall><params>".to_owned() + &"<param><value/></param>".repeat(1025);
        assert_eq!(read(many.as_bytes(), &Shape::default()), Err(Malformed::TooMany(1024)));
        let long = "<methodCall><methodName>".to_owned() + &"x".repeat(64 * 1024 + 1) + "<";
        assert!(matches!(
            read(long.as_bytes(), &Shape::default()),
            Err(Malformed::TooLong(_) | Malformed::NotWellFormed { .. })
        ));
        let attributes: String = (0..500).map(|number| format!(" a{number}=''")).collect();
        let wide = format!("<methodCall{attributes}>");
        assert_eq!(read(wide.as_bytes(), &Shape::default()), Err(Malformed::Attributes));
    }

    #[test]
    fn encodings_are_those_that_are_named() {
        let call = |encoding: &str| {
            format!(
                "<?xml version='1.0' encoding='{encoding}'?><methodCall><methodName>\u{e9}\
                 </methodName></methodCall>"
            )
        };
        let method = |bytes: &[u8]| read(bytes, &Shape::default()).map(|call| call.method);
        let latin = |text: &str| -> Vec<u8> { text.chars().map(|c| c as u8).collect() };
        assert_eq!(method(call("utf-8").as_bytes()), Ok(Some("\u{e9}".to_owned())));
        assert_eq!(method(&latin(&call("ISO-8859-1"))), Ok(Some("\u{e9}".to_owned())));
        assert_eq!(method(&latin(&call("UTF-8"))), Err(Malformed::NotInEncoding("UTF-8")));
        assert_eq!(method(call("us-ascii").as_bytes()), Err(Malformed::NotInEncoding("us-ascii")));
        let wide: Vec<u8> = format!("\u{feff}{}", call("utf-16"))
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect();
        assert_eq!(method(&wide), Ok(Some("\u{e9}".to_owned())));
        assert_eq!(method(&wide[..wide.len() - 1]), Err(Malformed::NotInEncoding("UTF-16")));
    }
}
