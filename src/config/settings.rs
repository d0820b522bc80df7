//! Reads tables of `watchbell.toml`: typed, strict, and telling everything that is wrong at once.
//!
//! Each module that has settings reads its own table with a [`TableReader`]. A value of the wrong type, or out of range, is
//! noted as a [`Diagnostic`] and replaced by the default, so that reading goes on; [`TableReader::finish`] then notes every
//! key that nobody asked for, with the nearest one that somebody did.

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

/// Problems of one file that are told. Each is found in the text from its beginning.
const MAX_TOLD: usize = 100;

/// What all readers of one file share: its text and the problems found so far.
#[derive(Clone)]
pub struct Problems {
    file: Arc<Path>,
    text: Arc<str>,
    found: Rc<RefCell<Vec<Diagnostic>>>,
    /// Places that may hold a secret by mistake, and are never shown.
    hidden: Rc<RefCell<Vec<Range<usize>>>>,
}

impl Problems {
    /// Nothing found yet in this file.
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.into(), text: text.into(), found: Rc::default(), hidden: Rc::default() }
    }

    /// Notes a problem at a place of the file.
    pub fn push(&self, code: &'static str, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        let mut found = self.found.borrow_mut();
        if found.len() > MAX_TOLD {
            return;
        }
        let (span, message, help) = if found.len() < MAX_TOLD {
            (span, message.into(), help)
        } else {
            let end = self.text.len();
            (end..end, format!("there are more than {MAX_TOLD} problems: only so many are shown"), None)
        };
        let mut diagnostic = Diagnostic::error(code, &*self.file, message).at(&self.text, span);
        diagnostic.help = help;
        found.push(diagnostic);
    }

    /// Never shows this place of the file, in no message.
    fn hide(&self, span: Range<usize>) {
        self.hidden.borrow_mut().push(span);
    }

    /// Hides what stands behind `=` on lines that look like secrets, and lines that go on from another: for a file that is not even
    /// TOML.
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

    /// Hides the names and passwords of URLs, and what follows on their host: some services have their secret there.
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

    /// How many problems have been found.
    fn count(&self) -> usize {
        self.found.borrow().len()
    }

    /// All that was found, in the order of the file.
    pub fn into_sorted(self) -> Vec<Diagnostic> {
        self.hide_credentials();
        let mut found = self.found.take();
        let mut bytes = self.text.as_bytes().to_vec();
        for place in self.hidden.take() {
            for byte in bytes.get_mut(place).into_iter().flatten() {
                *byte = if *byte == b'\n' { b'\n' } else { b'*' };
            }
        }
        // Whole values were replaced, so what is left is still text.
        let shown: Arc<str> = String::from_utf8_lossy(&bytes).as_ref().into();
        for diagnostic in &mut found {
            diagnostic.text = Arc::clone(&shown);
        }
        found.sort_by_key(|diagnostic| diagnostic.span.as_ref().map_or(0, |span| span.start));
        found
    }
}

/// Where something stands in a file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// Its text.
    pub text: Arc<str>,
    /// The bytes that are meant.
    pub span: Range<usize>,
}

impl Place {
    /// `overrides.toml:12`.
    pub fn short(&self) -> String {
        let line = self.text.get(..self.span.start).unwrap_or("").matches('\n').count() + 1;
        format!("{}:{line}", self.file.display())
    }

    /// An error at this place.
    pub fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, &*self.file, message).at(&self.text, self.span.clone())
    }

    /// A warning at this place.
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
    /// A reader of `table`, which stands at `span` and is called `name` in messages.
    pub fn new(table: &'a DeTable<'a>, span: Range<usize>, name: &str, problems: &Problems) -> Self {
        Self { table, span, name: name.to_owned(), known: Vec::new(), problems: problems.clone() }
    }

    /// Where the table begins: its header, not the whole of it.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Where the table begins, with the file and its text: for problems that are found later.
    pub fn place(&self) -> Place {
        Place { file: Arc::clone(&self.problems.file), text: Arc::clone(&self.problems.text), span: self.span() }
    }

    /// Notes a problem with the value of `key`, or with the table where the key is absent.
    pub fn problem(&self, key: &str, message: impl Into<String>, help: Option<String>) {
        let value = self.table.get(key);
        // In place of an address may stand the secret that belongs there.
        if let Some(value) = value.filter(|_| key.ends_with("url"))
            && value.get_ref().as_str().is_some_and(|text| !text.contains("://"))
        {
            self.problems.hide(value.span());
        }
        let span = value.map_or(self.span(), Spanned::span);
        self.problems.push("E101", span, message, help);
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Whether the key is there with just this text.
    pub fn is_text(&self, key: &str, text: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().as_str() == Some(text))
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let message = format!("`{key}` must be {wanted}, found {}", describe(value.get_ref()));
        self.problems.push("E102", value.span(), message, None);
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a text in quotes");
        }
        text
    }

    /// A text that must be there.
    pub fn required_text(&mut self, key: &'static str, example: &str) -> Option<&'a str> {
        if !self.has(key) {
            self.known.push(key);
            let message = format!("{} has no `{key}`", self.name);
            self.problems.push("E103", self.span(), message, Some(format!("add `{key} = {example}`")));
            return None;
        }
        self.text(key)
    }

    /// A text that `parse` accepts.
    pub fn parsed<T, E: std::fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        parse(text).map_err(|error| self.problem(key, format!("`{key}`: {error}"), None)).ok()
    }

    /// A truth value.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, "`true` or `false`");
        }
        found
    }

    /// A whole number within a range.
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

    /// A duration within a range, such as `"30s"`.
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

    /// A date, such as `2027-03-01`, as text.
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

    /// A list of texts, each accepted by `parse`.
    pub fn texts<T>(&mut self, key: &'static str, mut parse: impl FnMut(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of texts");
            return None;
        };
        let mut texts = Vec::new();
        for item in items {
            match item.get_ref().as_str().map(&mut parse) {
                Some(Ok(text)) => texts.push(text),
                Some(Err(error)) => self.problems.push("E101", item.span(), error, None),
                None => self.wrong_type(key, item, "a list of texts"),
            }
        }
        Some(texts)
    }

    /// Where a secret is: `{ env = "NAME" }` or `{ file = "PATH" }`.
    pub fn secret(&mut self, key: &'static str, base: &Path) -> Option<SecretOrigin> {
        let wanted = "`{ env = \"NAME\" }` or `{ file = \"PATH\" }`";
        let Some(value) = self.value(key) else {
            let message = format!("{} has no `{key}`", self.name);
            self.problems.push("E103", self.span(), message, Some(format!("add `{key} = …`, being {wanted}")));
            return None;
        };
        let origin = self.origin(key, value, base);
        if origin.is_none() {
            let help = value
                .get_ref()
                .as_table()
                .is_none()
                .then(|| "a secret is never written into the configuration itself".to_owned());
            self.problems.push("E104", value.span(), format!("`{key}` must be {wanted}"), help);
        }
        origin
    }

    /// Where a secret is. What does not say so may be the secret itself, and is never shown.
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

    /// Where a secret is, if the key is there.
    pub fn optional_secret(&mut self, key: &'static str, base: &Path) -> Option<SecretOrigin> {
        if self.has(key) {
            return self.secret(key, base);
        }
        self.known.push(key);
        None
    }

    /// A text, or where a secret is.
    pub fn text_or_secret(&mut self, key: &'static str, base: &Path) -> Option<SecretOrText> {
        if self.table.get(key).is_some_and(|value| value.get_ref().as_str().is_some()) {
            return self.text(key).map(|text| SecretOrText::Text(text.to_owned()));
        }
        self.secret(key, base).map(SecretOrText::Secret)
    }

    /// A table whose keys are names of something and whose values are texts or secrets, such as headers.
    pub fn texts_or_secrets(&mut self, key: &'static str, base: &Path) -> Vec<(String, SecretOrText)> {
        if let Some(value) = self.table.get(key).filter(|value| value.get_ref().as_table().is_none()) {
            self.problems.hide(value.span());
        }
        let Some(table) = self.table(key) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in table.table {
            let name = name.get_ref().to_string();
            if let Some(text) = value.get_ref().as_str() {
                found.push((name, SecretOrText::Text(text.to_owned())));
            } else if let Some(origin) = self.origin(&name, value, base) {
                found.push((name, SecretOrText::Secret(origin)));
            } else {
                self.wrong_type(&name, value, "a text, `{ env = \"NAME\" }` or `{ file = \"PATH\" }`");
            }
        }
        found
    }

    /// A table inside this one.
    pub fn table(&mut self, key: &'static str) -> Option<TableReader<'a>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return None;
        };
        Some(TableReader::new(table, value.span(), &format!("`[{key}]`"), &self.problems))
    }

    /// The tables of a list such as `[[source]]`.
    pub fn tables(&mut self, key: &'static str) -> Vec<TableReader<'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, &format!("a list of tables: write `[[{key}]]`"));
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

    /// Every key of the table with its table: for tables whose keys are names, such as `[checks."builtin.log_drop_off"]`.
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

    /// The value of `key` as JSON, for settings whose shape somebody else knows.
    pub fn json(&mut self, key: &'static str) -> Option<serde_json::Value> {
        self.value(key).map(|value| to_json(value.get_ref()))
    }

    /// Notes every key that was not asked for.
    pub fn finish(self) {
        for (key, value) in self.table {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                // A misspelt `api_key` holds a secret as well as a rightly spelt one.
                self.problems.hide(value.span());
                // A secret may also stand where a name belongs.
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

/// Whether it could be a misspelt key of the configuration, and not a secret: those are longer, or have digits.
fn looks_like_a_key(name: &str) -> bool {
    name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-'))
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
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
