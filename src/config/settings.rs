//! Reads tables of `watchbell.toml`: typed, strict, and reporting all problems at once.
//!
//! Each module with settings reads its own table with a [`TableReader`]. A value of the wrong type or out of range is
//! recorded as a [`Diagnostic`] and replaced by the default, so that reading continues. [`TableReader::finish`] then
//! reports every key that was not read, with the most similar one that was.

use std::{cell::RefCell, ops::Range, path::Path, rc::Rc, sync::Arc, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    config::{
        diagnostic::{Diagnostic, suggest},
        secret::{SecretOrText, SecretOrigin},
    },
    model::time,
};

/// Maximum number of problems reported per file, because locating each one scans the text from its start.
const MAX_REPORTED: usize = 100;

/// State that all readers of one file share: its text and the problems found so far.
#[derive(Clone)]
pub struct Problems {
    file: Arc<Path>,
    text: Arc<str>,
    found: Rc<RefCell<Vec<Diagnostic>>>,
    /// Places that may contain a secret by mistake, and are never shown.
    hidden: Rc<RefCell<Vec<Range<usize>>>>,
}

impl Problems {
    /// Creates an empty list of problems for a file.
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.into(), text: text.into(), found: Rc::default(), hidden: Rc::default() }
    }

    /// Records a problem at a place in the file.
    pub fn push(&self, code: &'static str, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        let mut found = self.found.borrow_mut();
        if found.len() > MAX_REPORTED {
            return;
        }
        let (span, message, help) = if found.len() < MAX_REPORTED {
            (span, message.into(), help)
        } else {
            let end = self.text.len();
            (end..end, format!("too many problems: only the first {MAX_REPORTED} are shown"), None)
        };
        let mut diagnostic = Diagnostic::error(code, &*self.file, message).at(&self.text, span);
        diagnostic.help = help;
        found.push(diagnostic);
    }

    /// Hides this place of the file in all messages.
    fn hide(&self, span: Range<usize>) {
        self.hidden.borrow_mut().push(span);
    }

    /// Hides values on lines that look like secrets, and continuation lines. For files that are not valid TOML.
    pub fn hide_what_looks_secret(&self) {
        const WORDS: [&str; 10] =
            ["key", "secret", "token", "password", "pass", "auth", "bearer", "credential", "header", "env"];
        let mut start = 0;
        for line in self.text.split_inclusive('\n') {
            let begun = line.trim_start();
            match line.split_once('=') {
                Some((name, _)) if WORDS.iter().any(|word| name.to_lowercase().contains(word)) => {
                    self.hide(start + name.len() + 1..start + line.len());
                }
                None if !begun.starts_with(['[', '#']) => self.hide(start..start + line.len()),
                _ => {}
            }
            start += line.len();
        }
    }

    /// Hides user names and passwords in URLs, and everything after the host: some services put secrets there.
    fn hide_credentials(&self) {
        for (place, mark) in self.text.match_indices("://") {
            let start = place + mark.len();
            let rest = self.text.get(start..).unwrap_or_default();
            let end = rest.find(|character: char| "\"'".contains(character) || character.is_whitespace());
            let rest = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            if let Some(length) = rest.get(..host_end).and_then(|authority| authority.rfind('@')) {
                self.hide(start..start + length);
            }
            self.hide((start + host_end + 1).min(start + rest.len())..start + rest.len());
        }
    }

    fn count(&self) -> usize {
        self.found.borrow().len()
    }

    /// Returns all problems, in the order of the file.
    pub fn into_sorted(self) -> Vec<Diagnostic> {
        self.hide_credentials();
        let mut found = self.found.take();
        let mut bytes = self.text.as_bytes().to_vec();
        for place in self.hidden.take() {
            for byte in bytes.get_mut(place).into_iter().flatten() {
                *byte = if *byte == b'\n' { b'\n' } else { b'*' };
            }
        }
        // Whole values were replaced, so the rest is still valid UTF-8.
        let shown: Arc<str> = String::from_utf8_lossy(&bytes).as_ref().into();
        for diagnostic in &mut found {
            diagnostic.text = Arc::clone(&shown);
        }
        found.sort_by_key(|diagnostic| diagnostic.span.as_ref().map_or(0, |span| span.start));
        found
    }
}

/// A place in a file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file's path.
    pub file: Arc<Path>,
    /// The file's full text.
    pub text: Arc<str>,
    /// Byte range in `text`.
    pub span: Range<usize>,
}

impl Place {
    /// Formats the place as `overrides.toml:12`.
    pub fn short(&self) -> String {
        let line = self.text.get(..self.span.start).unwrap_or("").matches('\n').count() + 1;
        format!("{}:{line}", self.file.display())
    }

    /// Creates an error at this place.
    pub fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, &*self.file, message).at(&self.text, self.span.clone())
    }

    /// Creates a warning at this place.
    pub fn warning(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::warning(code, &*self.file, message).at(&self.text, self.span.clone())
    }
}

/// Reads the keys of one table.
pub struct TableReader<'a> {
    table: &'a DeTable<'a>,
    span: Range<usize>,
    name: String,
    known: Vec<&'static str>,
    problems: Problems,
}

impl<'a> TableReader<'a> {
    /// Creates a reader of `table`, which is at `span` and called `name` in messages.
    pub fn new(table: &'a DeTable<'a>, span: Range<usize>, name: &str, problems: &Problems) -> Self {
        Self { table, span, name: name.to_owned(), known: Vec::new(), problems: problems.clone() }
    }

    /// The span of the table's header.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The place of the table's header, to report problems later.
    pub fn place(&self) -> Place {
        Place { file: Arc::clone(&self.problems.file), text: Arc::clone(&self.problems.text), span: self.span() }
    }

    /// Records a problem at the value of `key`, or at the table if the key is absent.
    pub fn problem(&self, key: &str, message: impl Into<String>, help: Option<String>) {
        let value = self.table.get(key);
        // A value that is not a URL may be the secret itself.
        if let Some(value) = value.filter(|_| key.ends_with("url"))
            && value.get_ref().as_str().is_some_and(|text| !text.contains("://"))
        {
            self.problems.hide(value.span());
        }
        let span = value.map_or(self.span(), Spanned::span);
        self.problems.push("E101", span, message, help);
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    /// True if the key is present.
    pub fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// True if the key is present and its value is exactly this string.
    pub fn is_text(&self, key: &str, text: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().as_str() == Some(text))
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let message = format!("`{key}` must be {wanted}, found {}", describe(value.get_ref()));
        self.problems.push("E102", value.span(), message, None);
    }

    /// Reads a string.
    pub fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a string");
        }
        text
    }

    /// Reads a required string.
    pub fn required_text(&mut self, key: &'static str, example: &str) -> Option<&'a str> {
        if !self.has(key) {
            self.known.push(key);
            let message = format!("missing key `{key}` in {}", self.name);
            self.problems.push("E103", self.span(), message, Some(format!("add `{key} = {example}`")));
            return None;
        }
        self.text(key)
    }

    /// Reads a string that `parse` accepts.
    pub fn parsed<T, E: std::fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        parse(text).map_err(|error| self.problem(key, format!("`{key}`: {error}"), None)).ok()
    }

    /// Reads a boolean.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong_type(key, value, "`true` or `false`");
        }
        boolean
    }

    /// Reads a whole number within a range.
    pub fn number(&mut self, key: &'static str, allowed: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok());
        match number {
            Some(number) if allowed.contains(&number) => Some(number),
            _ => {
                let wanted = format!("a whole number from {} to {}", allowed.start(), allowed.end());
                self.wrong_type(key, value, &wanted);
                None
            }
        }
    }

    /// Reads a duration within a range, such as `"30s"`.
    pub fn duration(&mut self, key: &'static str, allowed: std::ops::RangeInclusive<Duration>) -> Option<Duration> {
        let duration = self.parsed(key, time::parse_duration)?;
        if !allowed.contains(&duration) {
            let message = format!(
                "`{key}` must be between {} and {}, found {}",
                time::show_duration(*allowed.start()),
                time::show_duration(*allowed.end()),
                time::show_duration(duration)
            );
            self.problem(key, message, None);
            return None;
        }
        Some(duration)
    }

    /// Reads a date, such as `2027-03-01`, written as a TOML date or a string.
    pub fn date(&mut self, key: &'static str) -> Option<jiff::civil::Date> {
        let value = self.value(key)?;
        let text = match value.get_ref() {
            DeValue::Datetime(datetime) => datetime.to_string(),
            DeValue::String(text) => text.to_string(),
            _ => String::new(),
        };
        let date = text.get(..10).unwrap_or(&text).parse().ok();
        if date.is_none() {
            self.wrong_type(key, value, "a date, such as 2027-03-01");
        }
        date
    }

    /// Reads a list of strings, each accepted by `parse`.
    pub fn texts<T>(&mut self, key: &'static str, mut parse: impl FnMut(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of strings");
            return None;
        };
        let mut texts = Vec::new();
        for item in items {
            match item.get_ref().as_str().map(&mut parse) {
                Some(Ok(text)) => texts.push(text),
                Some(Err(error)) => self.problems.push("E101", item.span(), error, None),
                None => self.wrong_type(key, item, "a list of strings"),
            }
        }
        Some(texts)
    }

    /// Reads the origin of a required secret: `{ env = "NAME" }` or `{ file = "PATH" }`.
    pub fn secret(&mut self, key: &'static str, base: &Path) -> Option<SecretOrigin> {
        let wanted = "`{ env = \"NAME\" }` or `{ file = \"PATH\" }`";
        let Some(value) = self.value(key) else {
            let message = format!("missing key `{key}` in {}", self.name);
            self.problems.push("E103", self.span(), message, Some(format!("set `{key}` to {wanted}")));
            return None;
        };
        let origin = self.origin(key, value, base);
        if origin.is_none() {
            let help = value
                .get_ref()
                .as_table()
                .is_none()
                .then(|| "secrets must not be written in the configuration itself".to_owned());
            self.problems.push("E104", value.span(), format!("`{key}` must be {wanted}"), help);
        }
        origin
    }

    /// Reads the origin of a secret. Any other value may be the secret itself, and is never shown.
    fn origin(&self, name: &str, value: &Spanned<DeValue<'_>>, base: &Path) -> Option<SecretOrigin> {
        let Some(table) = value.get_ref().as_table() else {
            self.problems.hide(value.span());
            return None;
        };
        let problems = self.problems.count();
        let mut reader = TableReader::new(table, value.span(), &format!("`{name}`"), &self.problems);
        let environment = reader.text("env").map(str::to_owned);
        let file = reader.text("file").map(|file| base.join(file));
        reader.finish();
        let origin = match (environment, file) {
            (Some(name), None) => Some(SecretOrigin::Environment(name)),
            (None, Some(path)) => Some(SecretOrigin::File(path)),
            _ => None,
        };
        if origin.is_none() || self.problems.count() > problems {
            self.problems.hide(value.span());
        }
        origin
    }

    /// Reads the origin of an optional secret.
    pub fn optional_secret(&mut self, key: &'static str, base: &Path) -> Option<SecretOrigin> {
        if self.has(key) {
            return self.secret(key, base);
        }
        self.known.push(key);
        None
    }

    /// Reads a required string or the origin of a secret.
    pub fn text_or_secret(&mut self, key: &'static str, base: &Path) -> Option<SecretOrText> {
        if self.table.get(key).is_some_and(|value| value.get_ref().as_str().is_some()) {
            return self.text(key).map(|text| SecretOrText::Text(text.to_owned()));
        }
        self.secret(key, base).map(SecretOrText::Secret)
    }

    /// Reads a table of named strings or secrets, such as headers.
    pub fn texts_or_secrets(&mut self, key: &'static str, base: &Path) -> Vec<(String, SecretOrText)> {
        if let Some(value) = self.table.get(key).filter(|value| value.get_ref().as_table().is_none()) {
            self.problems.hide(value.span());
        }
        let Some(table) = self.table(key) else {
            return Vec::new();
        };
        let mut entries = Vec::new();
        for (name, value) in table.table {
            let name = name.get_ref().to_string();
            if let Some(text) = value.get_ref().as_str() {
                entries.push((name, SecretOrText::Text(text.to_owned())));
            } else if let Some(origin) = self.origin(&name, value, base) {
                entries.push((name, SecretOrText::Secret(origin)));
            } else {
                self.wrong_type(&name, value, "a string, `{ env = \"NAME\" }` or `{ file = \"PATH\" }`");
            }
        }
        entries
    }

    /// Returns a reader of a nested table.
    pub fn table(&mut self, key: &'static str) -> Option<TableReader<'a>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return None;
        };
        Some(TableReader::new(table, value.span(), &format!("`[{key}]`"), &self.problems))
    }

    /// Returns readers of the tables of a list such as `[[source]]`.
    pub fn tables(&mut self, key: &'static str) -> Vec<TableReader<'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, &format!("a list of tables (`[[{key}]]`)"));
            return Vec::new();
        };
        let mut readers = Vec::new();
        for item in items {
            match item.get_ref().as_table() {
                Some(table) => {
                    readers.push(TableReader::new(table, item.span(), &format!("`[[{key}]]`"), &self.problems));
                }
                None => self.wrong_type(key, item, "a table"),
            }
        }
        readers
    }

    /// Returns each key with a reader of its table, for named tables such as `[checks."builtin.log_drop_off"]`.
    pub fn named_tables(&mut self) -> Vec<(&'a str, TableReader<'a>)> {
        let mut readers = Vec::new();
        for (key, value) in self.table {
            match value.get_ref().as_table() {
                Some(table) => {
                    let name = format!("`{}`", key.get_ref());
                    readers
                        .push((key.get_ref().as_ref(), TableReader::new(table, value.span(), &name, &self.problems)));
                }
                None => self.wrong_type(key.get_ref(), value, "a table"),
            }
        }
        readers
    }

    /// Returns the value of `key` as JSON, for settings that are validated elsewhere.
    pub fn json(&mut self, key: &'static str) -> Option<serde_json::Value> {
        self.value(key).map(|value| to_json(value.get_ref()))
    }

    /// Reports every key that was not read.
    pub fn finish(self) {
        for (key, value) in self.table {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                // The value of a misspelled `api_key` is still a secret.
                self.problems.hide(value.span());
                // The key itself may be a secret, too.
                let message = if looks_like_a_key(name) {
                    format!("unknown key `{name}` in {}", self.name)
                } else {
                    self.problems.hide(key.span());
                    format!("unknown key in {}", self.name)
                };
                let help = suggest(name, self.known.iter().copied());
                self.problems.push("E105", key.span(), message, Some(help));
            }
        }
    }
}

/// True if the name could be a misspelled key of the configuration, and not a secret: those are longer, or have digits.
fn looks_like_a_key(name: &str) -> bool {
    name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-'))
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{text}\""),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(datetime) => format!("the date {datetime}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn to_json(value: &DeValue<'_>) -> serde_json::Value {
    use serde_json::Value;
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Boolean(value) => Value::from(*value),
        DeValue::Datetime(datetime) => Value::from(datetime.to_string()),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => Value::Object(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref()))).collect(),
        ),
    }
}
