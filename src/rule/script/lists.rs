//! Named lists: files under `rules/lists/` that rules look values up in. They are reloaded when they are saved.
//!
//! `NAME.txt` has one entry per line (`#` starts a comment). `NAME.csv` has a header row; its first column has the
//! entries. `NAME.json` is a list, or an object whose keys are the entries. An entry may be a string, a pattern or a
//! network: the function that uses the list decides how it is compared (`contains`, `glob`, `in_cidr`, `same`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, OnceLock},
};

use globset::GlobSet;
use ipnet::IpNet;
use rhai::{Dynamic, ImmutableString};

use crate::config::diagnostic::{Diagnostic, suggest};
use crate::rule::{
    manifest::pattern,
    script::{address, view::frozen},
};

/// Maximum number of entries; each takes a few hundred bytes.
const MAX_ENTRIES: usize = 1_000_000;
/// Each value of a table takes a hundred bytes in memory, however short it is.
const MAX_COLUMNS: usize = 100;
const MAX_VALUES: usize = 5_000_000;
/// Maximum total size of a CSV's column names over all its rows, in bytes.
const MAX_NAMES: usize = 64 * 1024 * 1024;
/// Maximum number of patterns in a list: more would take seconds to compile.
const MAX_PATTERNS: usize = 5_000;

/// A named list, as a value that rules can use.
#[derive(Debug, Clone)]
pub(in crate::rule) struct NamedList(Arc<Content>);

#[derive(Debug)]
struct Content {
    hash: String,
    entries: Vec<ImmutableString>,
    exact: HashMap<ImmutableString, usize>,
    lower: HashMap<String, usize>,
    /// One row per entry, or empty if no entry has one.
    rows: Vec<Dynamic>,
    // Built on first use: most lists are only compared in one way.
    globs: OnceLock<Result<GlobSet, String>>,
    networks: OnceLock<Result<Networks, String>>,
}

/// Networks grouped by prefix length, so that looking up an address in a long list is as fast as in a short one.
#[derive(Debug)]
struct Networks {
    lengths: BTreeSet<u8>,
    all: HashSet<IpNet>,
}

/// All named lists of one load.
#[derive(Debug, Default)]
pub(in crate::rule) struct Lists(BTreeMap<String, NamedList>);

impl NamedList {
    fn new(text: &str, entries: Vec<(String, Dynamic)>) -> Self {
        let names: Vec<ImmutableString> = entries.iter().map(|(name, _)| name.as_str().into()).collect();
        let has_rows = entries.iter().any(|(_, row)| !row.is_unit());
        Self(Arc::new(Content {
            hash: blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect(),
            exact: names.iter().enumerate().rev().map(|(index, name)| (name.clone(), index)).collect(),
            lower: names.iter().enumerate().rev().map(|(index, name)| (name.to_lowercase(), index)).collect(),
            rows: if has_rows { entries.into_iter().map(|(_, row)| row).collect() } else { Vec::new() },
            entries: names,
            globs: OnceLock::new(),
            networks: OnceLock::new(),
        }))
    }

    pub(in crate::rule) fn entries(&self) -> &[ImmutableString] {
        &self.0.entries
    }

    pub(in crate::rule) fn contains(&self, text: &str) -> bool {
        self.0.exact.contains_key(text)
    }

    pub(in crate::rule) fn contains_any_case(&self, text: &str) -> bool {
        self.0.lower.contains_key(&text.to_lowercase())
    }

    pub(in crate::rule) fn glob(&self, text: &str) -> Result<bool, String> {
        let globs = self.0.globs.get_or_init(|| {
            let count = self.0.entries.len();
            if count > MAX_PATTERNS {
                return Err(format!(
                    "the list has {count} entries, but at most {MAX_PATTERNS} can be used as patterns; use `contains`"
                ));
            }
            pattern::glob_set(self.0.entries.iter().map(ImmutableString::as_str))
        });
        globs.as_ref().map(|globs| globs.is_match(text)).map_err(Clone::clone)
    }

    pub(in crate::rule) fn in_cidr(&self, address: IpAddr) -> Result<bool, String> {
        let networks = self.0.networks.get_or_init(|| {
            let all = self.0.entries.iter().map(|entry| address::network(entry).map(|network| network.trunc()));
            let all = all.collect::<Result<HashSet<IpNet>, String>>()?;
            Ok(Networks { lengths: all.iter().map(IpNet::prefix_len).collect(), all })
        });
        let networks = networks.as_ref().map_err(Clone::clone)?;
        Ok(networks
            .lengths
            .iter()
            .any(|length| IpNet::new(address, *length).is_ok_and(|network| networks.all.contains(&network.trunc()))))
    }

    pub(in crate::rule) fn row(&self, key: &str) -> Option<Dynamic> {
        let index = self.0.exact.get(key).or_else(|| self.0.lower.get(&key.to_lowercase()))?;
        self.0.rows.get(*index).cloned()
    }
}

impl Lists {
    /// Reads the list files of one load, given as path and text. A file that is not a valid list is reported and
    /// skipped.
    pub(in crate::rule) fn read<'a>(
        files: impl IntoIterator<Item = (&'a std::path::PathBuf, &'a Arc<str>)>,
    ) -> (Self, Vec<Diagnostic>) {
        let mut lists = BTreeMap::new();
        let mut diagnostics = Vec::new();
        for (path, text) in files {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match entries(path, text) {
                Ok(entries) if entries.len() > MAX_ENTRIES => {
                    let message = format!("the list has more than {MAX_ENTRIES} entries");
                    diagnostics.push(Diagnostic::error("E003", path, message));
                }
                Ok(_) if lists.contains_key(&name) => {
                    let message = format!("two lists are named `{name}`: only the first is used");
                    diagnostics.push(Diagnostic::error("E004", path, message));
                }
                Ok(entries) => {
                    lists.insert(name, NamedList::new(text, entries));
                }
                Err((line, problem)) => {
                    let start = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
                    let end = start + text.get(start..).unwrap_or("").lines().next().map_or(0, str::len);
                    let message = format!("cannot read the list: {problem}");
                    diagnostics.push(Diagnostic::error("E003", path, message).at(text, start..end));
                }
            }
        }
        (Self(lists), diagnostics)
    }

    pub(in crate::rule) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.keys().map(String::as_str)
    }

    /// The list with this name, or an error message that suggests what to do.
    pub(in crate::rule) fn find(&self, name: &str) -> Result<&NamedList, String> {
        self.0.get(name).ok_or_else(|| {
            let known = if self.0.is_empty() {
                "no lists are loaded; create `lists/NAME.txt` next to the rules".to_owned()
            } else {
                suggest(name, self.names())
            };
            format!("no list `{name}`: {known}")
        })
    }

    /// The content hash of a list.
    pub(in crate::rule) fn hash(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|list| list.0.hash.as_str())
    }

    /// Takes a list from an earlier load if this load has none of that name: a broken list keeps its last good
    /// version.
    pub(in crate::rule) fn keep(&mut self, name: &str, before: &Self) {
        if let (false, Some(list)) = (self.0.contains_key(name), before.0.get(name)) {
            self.0.insert(name.to_owned(), list.clone());
        }
    }
}

type Entries = Vec<(String, Dynamic)>;

/// The entries of a file, or the line and the description of a problem.
fn entries(path: &Path, text: &str) -> Result<Entries, (usize, String)> {
    let text = text.trim_start_matches('\u{feff}');
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => csv_entries(text),
        Some("json") => json_entries(text),
        _ => Ok(text
            .lines()
            // A `#` inside an entry is part of it.
            .map(|line| line.split(" #").next().unwrap_or(line).trim())
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| (line.to_owned(), Dynamic::UNIT))
            .collect()),
    }
}

fn csv_entries(text: &str) -> Result<Entries, (usize, String)> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let at = |error: csv::Error| {
        let line = error.position().map_or(1, |position| usize::try_from(position.line()).unwrap_or(1));
        (line, error.to_string())
    };
    let header = reader.headers().map_err(at)?.clone();
    if header.len() > MAX_COLUMNS {
        return Err((1, format!("the table has more than {MAX_COLUMNS} columns")));
    }
    let names: usize = header.iter().map(str::len).sum();
    let mut entries = Vec::new();
    for record in reader.records() {
        let record = record.map_err(at)?;
        // Every row repeats the column names.
        let values = entries.len().saturating_mul(header.len());
        if entries.len() > MAX_ENTRIES || values > MAX_VALUES || entries.len().saturating_mul(names) > MAX_NAMES {
            return Err((1, "the table has too many values".to_owned()));
        }
        let Some(key) = record.get(0).filter(|key| !key.is_empty()) else {
            continue;
        };
        let row: serde_json::Map<String, serde_json::Value> =
            header.iter().zip(record.iter()).map(|(name, value)| (name.to_owned(), value.into())).collect();
        entries.push((key.to_owned(), frozen(&row.into())));
    }
    Ok(entries)
}

fn json_entries(text: &str) -> Result<Entries, (usize, String)> {
    use serde_json::Value;
    let value: Value = serde_json::from_str(text).map_err(|error| (error.line(), error.to_string()))?;
    match value {
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok((text, Dynamic::UNIT)),
                Value::Number(number) => Ok((number.to_string(), Dynamic::UNIT)),
                other => Err((1, format!("expected a string or a number, found {other}"))),
            })
            .collect(),
        Value::Object(map) => Ok(map
            .into_iter()
            .map(|(key, value)| {
                let row = match value {
                    Value::Object(_) => value,
                    Value::Null => Value::Object(serde_json::Map::new()),
                    other => serde_json::json!({ "value": other }),
                };
                (key, frozen(&row))
            })
            .collect()),
        _ => Err((1, "expected a list of strings, or an object whose keys are the entries".to_owned())),
    }
}
