//! Getting alerts to people. A destination says only whether a message arrived and whether trying again makes sense; when
//! to try, when to give up, and what is pending is the worker's business, written once for all.
//!
//! A kind of destination is one file here and one line in the list of `kinds!` below.

use std::{future::Future, path::Path, pin::Pin, time::Duration};

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::{
    config::{secret::SecretError, settings::TableReader},
    model::{
        alert::{Notice, Severity},
        name::DestinationName,
        text,
        time::Clock,
    },
};

mod command;
#[cfg(feature = "email")]
mod email;
mod file;

mod http;
mod jira;
mod message;
mod ocsf;
mod pagerduty;

mod slack;
mod syslog;
mod teams;
mod terminal;
mod tls;
mod webhook;
mod worker;

pub use message::{DigestNotice, Message, test_alert};
pub use terminal::{Terminal, TerminalFormat, render, wrapped};
pub use worker::{DestinationStatus, Worker};

/// What came of an attempt to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendOutcome {
    /// It arrived.
    Delivered(Receipt),
    /// It did not, for a reason that may pass.
    Retry {
        /// What was tried, and what came of it; never a secret.
        reason: String,
        /// How long the receiver asked to wait.
        after: Option<Duration>,
    },
    /// The receiver does not take this message, and will not.
    Refused(String),
}

impl SendOutcome {
    pub(crate) fn delivered(answer: impl Into<String>) -> Self {
        Self::Delivered(Receipt { answer: answer.into(), reference: None })
    }

    pub(crate) fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: None }
    }
}

/// What the receiver said when it took a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// In its own words, for people.
    pub answer: String,
    /// What it calls the alert, to be found again when the alert changes.
    pub reference: Option<String>,
}

/// The future that sends a message.
pub type Sending<'a> = Pin<Box<dyn Future<Output = SendOutcome> + Send + 'a>>;

/// Somewhere alerts are delivered.
pub trait Destination: Send {
    /// Delivers a message, at least once. Bounded in time by the destination itself. `reference` is what it called the alert
    /// before.
    fn send<'a>(&'a mut self, message: &'a Message, reference: Option<&'a str>) -> Sending<'a>;
}

/// How alerts look as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JsonFormat {
    /// Watchbell's own.
    #[default]
    Native,
    /// OCSF Detection Findings.
    Ocsf,
}

/// What becomes of alerts about events that were old when they arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Late {
    /// They come together.
    #[default]
    Digest,
    /// Each like any other.
    Each,
    /// They are recorded, and not delivered here.
    Never,
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
    /// Tags of which an alert must have one; absent: any or none.
    pub tags: Option<GlobSet>,
    /// At most so many messages an hour; what is more comes together.
    pub rate: Option<u32>,
    /// How long a delivery is tried before it becomes a dead letter.
    pub give_up_after: Duration,
    /// What becomes of late alerts.
    pub late: Late,
    /// What kind of destination, and its own settings.
    pub kind: DestinationKind,
}

/// The list of kinds: name, variant, settings, destination.
macro_rules! kinds {
    ($($(#[$attribute:meta])* $name:literal $variant:ident($module:ident),)*) => {
        /// The kinds of destinations.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum DestinationKind {
            /// The terminal the agent runs in.
            Terminal,
            $(
                $(#[$attribute])*
                #[doc = concat!("See `deliver/", stringify!($module), ".rs`.")]
                $variant($module::Settings),
            )*
        }

        /// The names of all kinds.
        pub const KINDS: &[&str] = &["terminal", $($(#[$attribute])* $name,)*];

        impl DestinationKind {
            fn read(name: &str, table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
                match name {
                    "terminal" => Some(Self::Terminal),
                    $($(#[$attribute])* $name => $module::Settings::read(table, base).map(Self::$variant),)*
                    other => {
                        let help = crate::config::diagnostic::suggest(other, KINDS.iter().copied());
                        table.problem("kind", format!("there is no destination of kind `{other}`"), Some(help));
                        None
                    }
                }
            }

            /// The name in the configuration.
            pub fn name(&self) -> &'static str {
                match self {
                    Self::Terminal => "terminal",
                    $($(#[$attribute])* Self::$variant(_) => $name,)*
                }
            }

            fn open(&self, terminal: &Terminal, clock: &Clock) -> Result<Box<dyn Destination>, OpenError> {
                Ok(match self {
                    Self::Terminal => Box::new(terminal.clone()),
                    $($(#[$attribute])* Self::$variant(settings) => Box::new(settings.open(clock)?),)*
                })
            }
        }
    };
}

kinds! {
    "file" File(file),
    "webhook" Webhook(webhook),
    "slack" Slack(slack),
    "teams" Teams(teams),
    "pagerduty" PagerDuty(pagerduty),
    "jira" Jira(jira),
    #[cfg(feature = "email")]
    "email" Email(email),
    "syslog" Syslog(syslog),
    "command" Command(command),
}

impl DestinationKind {
    /// Whether people are told of this there. What one person does with an alert is for machines and trackers; a channel that
    /// many read hears when an alert comes up, gets worse, or is over.
    pub fn tells(&self, notice: Notice) -> bool {
        let quiet = matches!(notice, Notice::Acknowledged | Notice::Commented);
        match self {
            Self::Jira(_) => true,
            _ if notice == Notice::Grew => false,
            Self::Terminal | Self::File(_) | Self::Webhook(_) | Self::Syslog(_) | Self::Command(_) => true,
            Self::PagerDuty(_) => notice != Notice::Commented,
            Self::Slack(_) | Self::Teams(_) => !quiet,
            #[cfg(feature = "email")]
            Self::Email(_) => !quiet,
        }
    }

    /// Whether an alert becomes something there that has to be closed again.
    pub fn keeps_incidents(&self) -> bool {
        matches!(self, Self::PagerDuty(_) | Self::Jira(_))
    }
}

/// Why a destination could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its secret is not to be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Something else is not as it must be.
    #[error("{0}")]
    Unusable(String),
}

impl Settings {
    /// Reads a `[[destination]]` table. File names are relative to `base`.
    pub fn read(mut table: TableReader<'_>, base: &Path) -> Option<Self> {
        const HOUR: Duration = Duration::from_secs(3_600);
        let name = table.required_text("name", "\"file\"").and_then(|name| {
            DestinationName::parse(name).map_err(|error| table.problem("name", error.to_string(), None)).ok()
        });
        let min_severity = table.parsed("min_severity", str::parse::<Severity>);
        let rules = globs(&mut table, "rules");
        let tags = globs(&mut table, "tags");
        let rate = table.number("rate", 1..=10_000).and_then(|number| u32::try_from(number).ok());
        let give_up_after = table.duration("give_up_after", HOUR / 60..=720 * HOUR);
        let late = table.parsed("late", |text| match text {
            "digest" => Ok(Late::Digest),
            "each" => Ok(Late::Each),
            "never" => Ok(Late::Never),
            other => Err(format!("write `digest`, `each` or `never`, not `{other}`")),
        });
        let kind =
            table.required_text("kind", "\"file\"").and_then(|kind| DestinationKind::read(kind, &mut table, base));
        // Without its kind, nobody knows which keys a table may have.
        if kind.is_some() {
            table.finish();
        }
        Some(Self {
            name: name?,
            min_severity: min_severity.unwrap_or(Severity::Info),
            rules,
            tags,
            rate: rate.or_else(|| kind.as_ref().and_then(DestinationKind::default_rate)),
            give_up_after: give_up_after.unwrap_or(24 * HOUR),
            late: late.unwrap_or_default(),
            kind: kind?,
        })
    }

    /// The terminal, for all alerts: what an agent without destinations has.
    pub fn terminal(name: DestinationName) -> Self {
        Self {
            name,
            min_severity: Severity::Info,
            rules: None,
            tags: None,
            rate: None,
            give_up_after: Duration::from_secs(86_400),
            late: Late::Digest,
            kind: DestinationKind::Terminal,
        }
    }

    /// The directory that must be there for it, if it needs one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.kind {
            DestinationKind::File(settings) => settings.path.parent().filter(|parent| *parent != Path::new("")),
            _ => None,
        }
    }

    /// The program that must be there for it, if it runs one and says where it is.
    pub fn program(&self) -> Option<&Path> {
        match &self.kind {
            DestinationKind::Command(settings) => {
                Some(settings.program.as_path()).filter(|program| program.is_absolute())
            }
            _ => None,
        }
    }

    /// Makes the destination ready, and makes sure that its secrets are to be had. Terminals write to `terminal`.
    pub fn open(&self, terminal: &Terminal, clock: &Clock) -> Result<Box<dyn Destination>, OpenError> {
        self.kind.open(terminal, clock)
    }
}

impl DestinationKind {
    /// Messages an hour where the configuration does not say: people read chats, and work on tickets.
    fn default_rate(&self) -> Option<u32> {
        matches!(self, Self::Slack(_) | Self::Teams(_) | Self::Jira(_)).then_some(30)
    }
}

fn globs(table: &mut TableReader<'_>, key: &'static str) -> Option<GlobSet> {
    let globs = table
        .texts(key, |text| Glob::new(text).map_err(|error| format!("`{text}` is not a pattern: {}", error.kind())))?;
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(glob);
    }
    set.build().map_err(|error| table.problem(key, error.to_string(), None)).ok()
}

/// `format = "native" | "ocsf"`, for destinations that programs read.
fn json_format(table: &mut TableReader<'_>) -> JsonFormat {
    let format = table.parsed("format", |text| match text {
        "native" => Ok(JsonFormat::Native),
        "ocsf" => Ok(JsonFormat::Ocsf),
        other => Err(format!("write `native` or `ocsf`, not `{other}`")),
    });
    format.unwrap_or_default()
}

/// A message as texts of JSON: one object, or for OCSF one for each alert.
fn json(message: &Message, format: JsonFormat) -> Result<Vec<String>, serde_json::Error> {
    match format {
        JsonFormat::Native => Ok(vec![text::to_json(message)?]),
        JsonFormat::Ocsf => ocsf::findings(message).iter().map(text::to_json).collect(),
    }
}
