//! Delivers alerts to destinations.
//!
//! A destination only reports whether a message arrived and whether a retry makes sense. The worker, shared by all
//! destinations, decides when to retry and when to give up, and keeps track of pending deliveries.
//!
//! A kind of destination is one file in this directory and one line in the `kinds!` list below.

use std::{future::Future, path::Path, pin::Pin, time::Duration};

use crate::model::pattern;
use globset::GlobSet;

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

mod schedule;
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

/// The result of a delivery attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendOutcome {
    Delivered(Receipt),
    /// Temporary failure.
    Retry {
        /// What failed and why. Never contains a secret.
        reason: String,
        /// How long the receiver asked to wait.
        after: Option<Duration>,
    },
    /// Permanent failure: the receiver will never accept this message.
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

/// The receiver's answer to a delivered message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The answer as text.
    pub answer: String,
    /// The receiver's id for the alert, passed to later messages about the same alert.
    pub reference: Option<String>,
}

/// The future that sends a message.
pub type Sending<'a> = Pin<Box<dyn Future<Output = SendOutcome> + Send + 'a>>;

/// A receiver of alerts.
pub trait Destination: Send {
    /// Delivers a message at least once. The destination must limit the time this takes. `reference` is the receiver's
    /// id for the alert, from an earlier [`Receipt`].
    fn send<'a>(&'a mut self, message: &'a Message, reference: Option<&'a str>) -> Sending<'a>;
}

/// JSON representation of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JsonFormat {
    /// Watchbell's own format.
    #[default]
    Native,
    /// OCSF Detection Findings.
    Ocsf,
}

/// How late alerts are delivered: those about events that were already old when they arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Late {
    /// Several alerts in one message.
    #[default]
    Digest,
    /// One message per alert, as for any other alert.
    Each,
    /// Recorded in the store, but not delivered.
    Never,
}

/// `[[destination]]`: the settings that all destinations share, and those of its kind.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Unique name of the destination. Required.
    pub name: DestinationName,
    /// Lowest severity to deliver: `info`, `low`, `medium`, `high` or `critical`. Default: `info`.
    pub min_severity: Severity,
    /// Patterns of rule IDs, with `*` for any text; only alerts of matching rules are delivered. Default: all rules.
    pub rules: Option<GlobSet>,
    /// Patterns of tags, with `*` for any text; only alerts with a matching tag are delivered. Default: all alerts.
    pub tags: Option<GlobSet>,
    /// Maximum number of messages per hour, from 1 to 10,000; alerts beyond it are combined into one message. Messages of
    /// lower severity do not count, so the total can be larger. Default: 30 for `slack`, `teams` and `jira`, unlimited
    /// for other kinds.
    pub rate: Option<u32>,
    /// How long a delivery is retried before it becomes a dead letter, from `1m` to `30d`. Default: `24h`.
    pub give_up_after: Duration,
    /// How alerts about events that arrived late are delivered: `digest` (several in one message), `each` (one message
    /// per alert) or `never`. Default: `digest`.
    pub late: Late,
    /// Kind of destination, which determines the remaining keys. Required.
    pub kind: DestinationKind,
}

/// Defines the kinds of destinations from a list of names, variants and modules.
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
                        table.problem("kind", format!("unknown destination kind `{other}`"), Some(help));
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
    /// True if the destination receives this notice. Chat and email receive only openings, escalations, reopenings and
    /// resolutions; what users do with an alert goes to programs and trackers.
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

    /// True if an alert opens an incident or issue there, which has to be closed again.
    pub fn keeps_incidents(&self) -> bool {
        matches!(self, Self::PagerDuty(_) | Self::Jira(_))
    }
}

/// Error that keeps a destination from being set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The secret could not be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Another setting is unusable.
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
            other => Err(format!("expected `digest`, `each` or `never`, found `{other}`")),
        });
        let kind =
            table.required_text("kind", "\"file\"").and_then(|kind| DestinationKind::read(kind, &mut table, base));
        // The allowed keys depend on the kind.
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

    /// A terminal destination for all alerts: the default when none is configured.
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

    /// The directory that must exist, if the destination needs one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.kind {
            DestinationKind::File(settings) => settings.path.parent().filter(|parent| *parent != Path::new("")),
            _ => None,
        }
    }

    /// The program that must exist, if the destination runs one and gives an absolute path.
    pub fn program(&self) -> Option<&Path> {
        match &self.kind {
            DestinationKind::Command(settings) => {
                Some(settings.program.as_path()).filter(|program| program.is_absolute())
            }
            _ => None,
        }
    }

    /// Sets up the destination, and checks that its secrets can be read. Terminal destinations write to `terminal`.
    pub fn open(&self, terminal: &Terminal, clock: &Clock) -> Result<Box<dyn Destination>, OpenError> {
        self.kind.open(terminal, clock)
    }
}

impl DestinationKind {
    /// Default number of messages per hour: limited where people read chats or work on tickets.
    fn default_rate(&self) -> Option<u32> {
        matches!(self, Self::Slack(_) | Self::Teams(_) | Self::Jira(_)).then_some(30)
    }
}

fn globs(table: &mut TableReader<'_>, key: &'static str) -> Option<GlobSet> {
    let globs = table.texts(key, pattern::glob)?;
    pattern::set(globs).map_err(|error| table.problem(key, error, None)).ok()
}

/// Reads `format = "native" | "ocsf"`, for destinations that programs read.
fn json_format(table: &mut TableReader<'_>) -> JsonFormat {
    let format = table.parsed("format", |text| match text {
        "native" => Ok(JsonFormat::Native),
        "ocsf" => Ok(JsonFormat::Ocsf),
        other => Err(format!("expected `native` or `ocsf`, found `{other}`")),
    });
    format.unwrap_or_default()
}

/// Serializes a message as JSON: one object, or one per alert for OCSF.
fn json(message: &Message, format: JsonFormat) -> Result<Vec<String>, serde_json::Error> {
    match format {
        JsonFormat::Native => Ok(vec![text::to_json(message)?]),
        JsonFormat::Ocsf => ocsf::findings(message).iter().map(text::to_json).collect(),
    }
}
