//! Getting alerts to people. A destination says only whether a message arrived and whether trying again makes sense; when
//! to try, and what is owed, is the worker's business, written once for all.

use std::{future::Future, path::Path, pin::Pin};

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::{alert::Severity, name::DestinationName, settings::TableReader};

mod file;
mod message;
mod route;
mod terminal;
mod worker;

pub use message::Message;
pub use route::Router;
pub use terminal::{Terminal, TerminalFormat, render};
pub use worker::{DestinationStatus, Worker};

/// What came of an attempt to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It arrived.
    Delivered,
    /// It did not, for a reason that may pass.
    Retry(String),
}

/// The future that sends a message.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// Somewhere alerts are delivered.
pub trait Destination: Send {
    /// Delivers a message, at least once. Bounded in time by the destination itself.
    fn send<'a>(&'a mut self, message: &'a Message) -> Sending<'a>;
}

/// What all destinations have in common, and what kind it is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub name: DestinationName,
    /// Alerts below this are not delivered here.
    pub min_severity: Severity,
    /// Rules whose alerts are delivered here; absent: all.
    pub rules: Option<GlobSet>,
    /// What kind of destination, and its own settings.
    pub kind: Kind,
}

/// The kinds of destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The terminal the agent runs in.
    Terminal,
    /// A file of JSON lines.
    File(file::Settings),
}

impl Settings {
    /// Reads a `[[destination]]` table. File names are relative to `base`.
    pub fn read(mut table: TableReader<'_>, base: &Path) -> Option<Self> {
        let name = table.required_text("name", "\"file\"").and_then(|name| {
            DestinationName::parse(name).map_err(|error| table.problem("name", error.to_string(), None)).ok()
        });
        let min_severity = table.parsed("min_severity", str::parse::<Severity>);
        let rules =
            table.texts("rules", |text| Glob::new(text).map_err(|error| format!("`{text}` is not a pattern: {error}")));
        let kind = match table.required_text("kind", "\"file\"") {
            Some("terminal") => Some(Kind::Terminal),
            Some("file") => file::Settings::read(&mut table, base).map(Kind::File),
            Some(other) => {
                let help = crate::diagnostic::suggest(other, ["terminal", "file"]);
                table.problem("kind", format!("there is no destination of kind `{other}`"), Some(help));
                None
            }
            None => None,
        };
        table.finish();
        let rules = rules.map(|globs| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                set.add(glob);
            }
            set.build().unwrap_or_default()
        });
        Some(Self { name: name?, min_severity: min_severity.unwrap_or(Severity::Info), rules, kind: kind? })
    }

    /// The terminal, for all alerts: what an agent without destinations has.
    pub fn terminal(name: DestinationName) -> Self {
        Self { name, min_severity: Severity::Info, rules: None, kind: Kind::Terminal }
    }

    /// The directory that must be there for it, if it needs one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Terminal => None,
            Kind::File(settings) => settings.path.parent().filter(|parent| *parent != Path::new("")),
        }
    }

    /// Makes the destination ready. Terminals write to `terminal`.
    pub fn open(&self, terminal: &Terminal) -> Box<dyn Destination> {
        match &self.kind {
            Kind::Terminal => Box::new(terminal.clone()),
            Kind::File(settings) => Box::new(file::FileDestination::new(settings.clone())),
        }
    }
}
