//! Posts to Slack through an incoming webhook.
//!
//! Each message consists of Block Kit blocks. Slack's documented limits: 150 characters in a header, 3,000 in a
//! section, 50 blocks. <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Destination, Message, OpenError, Sending,
    http::SecretUrl,
    message::{SHOWN, digest_line, fields, headline, more},
};
use crate::{
    config::{secret::SecretOrigin, settings::TableReader},
    model::{alert::Severity, text::clipped, time::Clock},
};

/// Settings of a Slack webhook (`kind = "slack"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// URL of the incoming webhook, as a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Required.
    pub url: SecretOrigin,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        Some(Self { url: table.secret("url", base)? })
    }

    pub(super) fn open(&self, _clock: &Clock) -> Result<Slack, OpenError> {
        SecretUrl::open(&self.url).map(Slack)
    }
}

#[derive(Debug)]
pub(super) struct Slack(SecretUrl);

impl Destination for Slack {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move { self.0.post(&body(message)).await })
    }
}

/// Escapes `&`, `<` and `>` as Slack requires.
///
/// The escaped text is cut to `units` UTF-16 units, but never inside an escape.
fn escaped(text: &str, units: usize) -> String {
    let escape = |character: char| match character {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        other => other.to_string(),
    };
    let length = |text: &str| text.encode_utf16().count();
    let whole: String = text.chars().map(escape).collect();
    if length(&whole) <= units {
        return whole;
    }
    let mut cut = String::new();
    let mut left = units.saturating_sub(1);
    for part in text.chars().map(escape) {
        match left.checked_sub(length(&part)) {
            Some(rest) => left = rest,
            None => break,
        }
        cut.push_str(&part);
    }
    cut.push('…');
    cut
}

fn body(message: &Message) -> Value {
    let mark = match message.severity() {
        Severity::Critical | Severity::High => ":red_circle:",
        Severity::Medium => ":large_orange_circle:",
        Severity::Low => ":large_yellow_circle:",
        Severity::Info => ":large_blue_circle:",
    };
    let line = headline(message);
    let mut blocks = vec![json!({
        "type": "header",
        "text": { "type": "plain_text", "text": clipped(&line, 150), "emoji": false },
    })];
    // Lines that would make the section too long are left out, so that no escape is cut.
    let section = |lines: &[String]| {
        let mut text = String::new();
        for line in lines {
            if (text.encode_utf16().count() + line.encode_utf16().count()) < 2_990 {
                text.push_str(line);
                text.push('\n');
            }
        }
        // `verbatim`: text that looks like a URL or a name must not become a link or a mention.
        json!({ "type": "section", "text": { "type": "mrkdwn", "text": text.trim_end(), "verbatim": true } })
    };
    match message {
        Message::Alert { notice, alert, .. } => {
            let lines: Vec<String> = fields(alert, *notice)
                .into_iter()
                .filter(|(name, _)| *name != "rule")
                .map(|(name, value)| {
                    format!("*{name}*  {}", escaped(&value, if name == "evidence" || name == "do" { 900 } else { 300 }))
                })
                .collect();
            if !lines.is_empty() {
                blocks.push(section(&lines));
            }
            let mut about = format!("{mark} `{}`  alert `{}`", alert.rule, alert.id.short());
            if let Some(source) = &alert.source {
                about.push_str(&format!("  source {}", escaped(source.as_str(), 500)));
            }
            blocks.push(
                json!({ "type": "context", "elements": [{ "type": "mrkdwn", "text": about, "verbatim": true }] }),
            );
        }
        Message::Digest { alerts, .. } => {
            let mut lines: Vec<String> =
                alerts.iter().take(SHOWN).map(|alert| escaped(&digest_line(alert), 140)).collect();
            let more = more(alerts.len());
            lines.extend((!more.is_empty()).then(|| more.trim().to_owned()));
            blocks.push(section(&lines));
        }
    }
    // Notifications show `text`.
    json!({ "text": escaped(&line, 500), "blocks": blocks })
}
