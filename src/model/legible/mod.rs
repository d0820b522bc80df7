//! Reads JSON that a strict parser rejects, so that an attacker cannot hide an event by what they write into it.
//!
//! Atlassian's log contains names and titles as people typed them. Half a surrogate pair, a number too large for a
//! float, or two hundred levels make a strict parser reject the whole entry. Here each such part is replaced by the
//! nearest readable value, and a [`Flag`] records it. Everything outside of strings must be valid JSON: the structure
//! is never guessed.

use std::{borrow::Cow, collections::HashSet, fmt::Write as _};

mod flag;

pub use flag::{Flag, Flags};

/// Levels of lists and objects that are kept; deeper ones are cut.
const MAX_LEVELS: usize = 64;

/// JSON that a strict parser accepts, and what had to be changed for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legible<'a> {
    /// The entry; as received if nothing had to be changed.
    pub text: Cow<'a, str>,
    /// What is unusual about it.
    pub flags: Flags,
}

/// Reads an entry. Fails, with the reason, only if it is not JSON.
pub fn read(raw: &str) -> Result<Legible<'_>, String> {
    let mut reader = Reader::new(raw);
    reader.document()?;
    let Reader { flags, out, .. } = reader;
    let text = if flags.needs_repair() { Cow::Owned(out) } else { Cow::Borrowed(raw) };
    Ok(Legible { text, flags })
}

/// Returns the members of an object, each as it is written, without parsing the values. For objects that contain
/// entries, so that one entry that a strict parser rejects does not affect the others.
pub fn members(raw: &str) -> Result<Vec<(String, &str)>, String> {
    let mut reader = Reader::new(raw);
    let mut members = Vec::new();
    reader.each(b'{', b'}', |reader| {
        let mut name = String::new();
        if reader.peek() != Some(b'"') {
            return Err(reader.problem("expected a key"));
        }
        reader.string(Some(&mut name))?;
        reader.blanks();
        if reader.peek() != Some(b':') {
            return Err(reader.problem("expected `:`"));
        }
        reader.take(b':');
        members.push((name, reader.span()?));
        Ok(())
    })?;
    Ok(members)
}

/// Returns the items of a list, as [`members`] does; fails if there are more than `most`.
pub fn items(raw: &str, most: usize) -> Result<Vec<&str>, String> {
    let mut reader = Reader::new(raw);
    let mut items = Vec::new();
    reader.each(b'[', b']', |reader| {
        if items.len() == most {
            return Err(format!("a list has more than {most} entries"));
        }
        items.push(reader.span()?);
        Ok(())
    })?;
    Ok(items)
}

/// Returns the list or object at the beginning of a text, as [`members`] does.
pub fn first(text: &str) -> Result<&str, String> {
    let mut reader = Reader::new(text);
    reader.blanks();
    match reader.peek() {
        Some(b'{' | b'[') => reader.span(),
        _ => Err(reader.problem("expected a list or an object")),
    }
}

struct Reader<'a> {
    raw: &'a str,
    at: usize,
    flags: Flags,
    out: String,
    /// The open levels: the keys of each object so far; `None` for a list.
    levels: Vec<Option<HashSet<String>>>,
}

impl<'a> Reader<'a> {
    fn new(raw: &'a str) -> Self {
        Self { raw, at: 0, flags: Flags::default(), out: String::with_capacity(raw.len()), levels: Vec::new() }
    }

    /// Calls `one` for each element between the brackets.
    fn each(
        &mut self,
        open: u8,
        close: u8,
        mut one: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        self.blanks();
        if self.peek() != Some(open) {
            return Err(self.problem("expected a list or an object"));
        }
        self.take(open);
        self.blanks();
        if self.peek() != Some(close) {
            loop {
                self.blanks();
                one(self)?;
                self.blanks();
                match self.peek() {
                    Some(b',') => self.take(b','),
                    Some(byte) if byte == close => break,
                    Some(_) => return Err(self.problem("expected `,` or the end of the list or object")),
                    None => return Err(self.problem("unexpected end of input")),
                }
            }
        }
        self.take(close);
        self.blanks();
        if self.peek().is_some() { Err(self.problem("unexpected text after the value")) } else { Ok(()) }
    }

    /// Skips a value and returns it as it is written.
    fn span(&mut self) -> Result<&'a str, String> {
        self.blanks();
        let start = self.at;
        match self.peek() {
            Some(b'{' | b'[') => self.skip()?,
            Some(b'"') => self.string(None)?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(_) => self.word()?,
            None => return Err(self.problem("unexpected end of input")),
        }
        Ok(self.raw.get(start..self.at).unwrap_or_default())
    }

    /// Reads one value with everything in it. It does not recurse: the open levels are kept on the heap.
    fn document(&mut self) -> Result<(), String> {
        loop {
            self.blanks();
            // A value is expected here.
            let opened = match self.peek() {
                Some(b'{') => self.open(b'{')?,
                Some(b'[') => self.open(b'[')?,
                Some(b'"') => {
                    self.string(None)?;
                    false
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                    false
                }
                Some(_) => {
                    self.word()?;
                    false
                }
                None => return Err(self.problem("unexpected end of input")),
            };
            if opened {
                continue;
            }
            // What may follow a value, up to where the next value is expected.
            loop {
                self.blanks();
                let Some(level) = self.levels.last() else {
                    return if self.peek().is_none() {
                        Ok(())
                    } else {
                        Err(self.problem("unexpected text after the value"))
                    };
                };
                let is_object = level.is_some();
                match self.peek() {
                    Some(b',') => {
                        self.take(b',');
                        if is_object {
                            self.name()?;
                        }
                        break;
                    }
                    Some(b'}') if is_object => self.close(b'}'),
                    Some(b']') if !is_object => self.close(b']'),
                    Some(_) => return Err(self.problem("expected `,` or the end of the list or object")),
                    None => return Err(self.problem("unexpected end of input")),
                }
            }
        }
    }

    /// Opens a list or an object; returns true if a value is expected next.
    fn open(&mut self, bracket: u8) -> Result<bool, String> {
        if self.levels.len() == MAX_LEVELS {
            self.flags.set(Flag::TooDeep);
            self.out.push_str("null");
            self.skip()?;
            return Ok(false);
        }
        self.take(bracket);
        self.levels.push((bracket == b'{').then(HashSet::new));
        self.blanks();
        let end = if bracket == b'{' { b'}' } else { b']' };
        if self.peek() == Some(end) {
            self.close(end);
            return Ok(false);
        }
        if bracket == b'{' {
            self.name()?;
        }
        Ok(true)
    }

    fn close(&mut self, bracket: u8) {
        self.take(bracket);
        self.levels.pop();
    }

    /// Reads a key and its colon.
    fn name(&mut self) -> Result<(), String> {
        self.blanks();
        if self.peek() != Some(b'"') {
            return Err(self.problem("expected a key"));
        }
        let mut name = String::new();
        self.string(Some(&mut name))?;
        if let Some(Some(names)) = self.levels.last_mut()
            && !names.insert(name)
        {
            self.flags.set(Flag::DuplicateKey);
        }
        self.blanks();
        if self.peek() != Some(b':') {
            return Err(self.problem("expected `:`"));
        }
        self.take(b':');
        Ok(())
    }

    /// Skips a list or an object, however deep, without keeping any of it.
    fn skip(&mut self) -> Result<(), String> {
        let kept = self.out.len();
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']') => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        self.out.truncate(kept);
                        return Ok(());
                    }
                }
                Some(b'"') => {
                    self.string(None)?;
                    continue;
                }
                Some(_) => {}
                None => return Err(self.problem("unexpected end of input")),
            }
            self.at += 1;
        }
    }

    fn string(&mut self, mut decoded: Option<&mut String>) -> Result<(), String> {
        self.take(b'"');
        loop {
            let rest = self.raw.get(self.at..).unwrap_or_default();
            let Some(character) = rest.chars().next() else {
                return Err(self.problem("unterminated string"));
            };
            match character {
                '"' => {
                    self.take(b'"');
                    return Ok(());
                }
                '\\' => {
                    if let Some(character) = self.escape(rest)?
                        && let Some(decoded) = &mut decoded
                    {
                        decoded.push(character);
                    }
                }
                character => {
                    self.at += character.len_utf8();
                    self.see(character);
                    if character < ' ' {
                        // A strict parser requires an escape here.
                        self.flags.set(Flag::Control);
                        write!(self.out, "\\u{:04x}", u32::from(character)).ok();
                    } else {
                        self.out.push(character);
                    }
                    if let Some(decoded) = &mut decoded {
                        decoded.push(character);
                    }
                }
            }
        }
    }

    /// Reads the escape at the beginning of `rest` and returns the character.
    fn escape(&mut self, rest: &str) -> Result<Option<char>, String> {
        let unit = |text: &str| {
            let digits = text.strip_prefix("\\u").and_then(|text| text.get(..4));
            digits
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        };
        let simple = match rest.as_bytes().get(1) {
            Some(b'"') => Some('"'),
            Some(b'\\') => Some('\\'),
            Some(b'/') => Some('/'),
            Some(b'b') => Some('\u{8}'),
            Some(b'f') => Some('\u{c}'),
            Some(b'n') => Some('\n'),
            Some(b'r') => Some('\r'),
            Some(b't') => Some('\t'),
            _ => None,
        };
        if let Some(character) = simple {
            self.copy(rest, 2);
            self.see(character);
            return Ok(Some(character));
        }
        if let Some(first) = unit(rest) {
            let second = rest.get(6..).and_then(unit).filter(|second| (0xdc00..0xe000).contains(second));
            let character = match (first, second) {
                (0xd800..0xdc00, Some(second)) => {
                    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
                }
                _ => char::from_u32(first),
            };
            match character {
                Some(character) => {
                    self.copy(rest, if (0xd800..0xdc00).contains(&first) { 12 } else { 6 });
                    self.see(character);
                }
                None => {
                    self.flags.set(Flag::Surrogate);
                    self.at += 6;
                    self.out.push_str("\\ufffd");
                }
            }
            return Ok(character.or(Some('\u{fffd}')));
        }
        if rest.len() < 2 {
            return Err(self.problem("unterminated string"));
        }
        self.flags.set(Flag::Escape);
        self.at += 1;
        self.out.push_str("\\\\");
        Ok(Some('\\'))
    }

    /// Sets the flags for a character.
    fn see(&mut self, character: char) {
        if matches!(character, '\n' | '\r' | '\t') {
            return;
        }
        if matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            self.flags.set(Flag::Bidi);
        } else if character.is_control() {
            self.flags.set(Flag::Control);
        }
    }

    fn number(&mut self) -> Result<(), String> {
        let rest = self.raw.get(self.at..).unwrap_or_default();
        let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
        let number = rest.get(..rest.bytes().take_while(is_part).count()).unwrap_or_default();
        self.at += number.len();
        if is_number(number) {
            // What the strict parser accepts: it rejects the largest floats.
            if serde_json::from_str::<serde_json::Value>(number).is_ok() {
                self.out.push_str(number);
            } else {
                self.flags.set(Flag::Number);
                write!(self.out, "\"{number}\"").ok();
            }
            return Ok(());
        }
        Err(self.problem("invalid number"))
    }

    fn word(&mut self) -> Result<(), String> {
        for word in ["true", "false", "null"] {
            if self.raw.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
                self.at += word.len();
                self.out.push_str(word);
                return Ok(());
            }
        }
        Err(self.problem("expected a value"))
    }

    fn blanks(&mut self) {
        let rest = self.raw.get(self.at..).unwrap_or_default();
        self.at += rest.bytes().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
    }

    fn peek(&self) -> Option<u8> {
        self.raw.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) {
        self.at += 1;
        self.out.push(char::from(byte));
    }

    fn copy(&mut self, rest: &str, bytes: usize) {
        self.at += bytes;
        self.out.push_str(rest.get(..bytes).unwrap_or_default());
    }

    fn problem(&self, what: &str) -> String {
        format!("invalid JSON: {what} (byte {})", self.at)
    }
}

/// Returns true if a text is a number in JSON's grammar.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let mantissa = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(raw: &str, wanted: &Value, flags: &[Flag]) {
        let read = read(raw).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&read.text).unwrap(), *wanted, "{}", read.text);
        assert_eq!(read.flags.iter().collect::<Vec<_>>(), flags, "{raw}");
    }

    #[test]
    fn what_a_strict_parser_rejects_is_replaced() {
        check(r#"{"a":"Eve \ud83d"}"#, &json!({"a": "Eve \u{fffd}"}), &[Flag::Surrogate]);
        check(
            r#"{"a":"\udc00\ud83dx\ud83d\ud83d\ude00"}"#,
            &json!({"a": "\u{fffd}\u{fffd}x\u{fffd}😀"}),
            &[Flag::Surrogate],
        );
        check(
            r#"{"a":1e400,"b":-1E+999,"c":1e-999}"#,
            &json!({"a": "1e400", "b": "-1E+999", "c": 0.0}),
            &[Flag::Number],
        );
        check("{\"a\":\"x\ny\u{1}z\"}", &json!({"a": "x\ny\u{1}z"}), &[Flag::Control]);
        check(r#"{"a":"\u0000"}"#, &json!({"a": "\u{0}"}), &[Flag::Control]);
        check(r#"{"a":"\q\u12"}"#, &json!({"a": "\\q\\u12"}), &[Flag::Escape]);
        check(r#"{"a":1,"\u0061":2,"b":{"a":3}}"#, &json!({"a": 2, "b": {"a": 3}}), &[Flag::DuplicateKey]);
        check(r#"{"a":"\u202egnp"}"#, &json!({"a": "\u{202e}gnp"}), &[Flag::Bidi]);
        check(r#" {"a" : [ ] , "b": [1, {}], "c":"\"\\\/\t" } "#, &json!({"a": [], "b": [1, {}], "c": "\"\\/\t"}), &[]);
    }

    #[test]
    fn too_deep_parts_are_cut() {
        let raw = format!(r#"{{"a":{}"x\"]"{},"b":1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let legible = read(&raw).unwrap();
        assert!(legible.flags.has(Flag::TooDeep));
        let value: Value = serde_json::from_str(&legible.text).unwrap();
        assert_eq!(value["b"], 1);
        let raw = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(read(&raw).unwrap().flags.is_empty());
    }

    #[test]
    fn invalid_json_is_rejected() {
        for raw in [
            "",
            "{",
            "[1",
            "{\"a\"}",
            "{\"a\":}",
            "[1 2]",
            "[1,]",
            "{,}",
            "01",
            "1.",
            "tru",
            "\"a",
            "\"\\",
            "[}",
            "{]",
            "1 2",
            "{\"a\":1,}",
        ] {
            assert!(read(raw).is_err(), "{raw}");
            assert!(serde_json::from_str::<Value>(raw).is_err(), "{raw}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,5}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_json_is_unchanged(value in any_json()) {
            let raw = value.to_string();
            let legible = read(&raw).unwrap();
            let back: Value = serde_json::from_str(&legible.text).unwrap();
            prop_assert_eq!(back, serde_json::from_str::<Value>(&raw).unwrap());
        }

        /// The output always parses strictly, and everything that a strict parser accepts is read.
        #[test]
        fn the_output_parses_strictly(parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\\", "\\u", "d83d", "\\ud83d", "\\udc00", "1", "-", "1e400", "e", ".", "0", "true", "null", " ", "\n", "\u{1}", "x", "😀",
        ]), 0..20)) {
            let raw: String = parts.concat();
            match read(&raw) {
                Ok(legible) => prop_assert!(serde_json::from_str::<Value>(&legible.text).is_ok(), "{}", legible.text),
                Err(_) => prop_assert!(serde_json::from_str::<Value>(&raw).is_err()),
            }
        }
    }
}
