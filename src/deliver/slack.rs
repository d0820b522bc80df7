//! Slack, through an incoming webhook: one message of Block Kit blocks. Limits by Slack's documentation: 150 characters in a
//! header, 3,000 in a section, 50 blocks. <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Destination, Message, OpenError, Sending,
    message::{SHOWN, clipped, digest_line, fields, headline, more},
    post::SecretUrl,
};
use crate::{alert::Severity, secret::SecretOrigin, settings::TableReader, time::Clock};

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The webhook's URL, which is a secret.
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

/// The three characters that Slack's text must not hold as they are.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
    let section = |text: &str| json!({ "type": "section", "text": { "type": "mrkdwn", "text": clipped(text, 3_000) } });
    match message {
        Message::Alert { notice, alert, .. } => {
            let lines: Vec<String> = fields(alert, *notice)
                .into_iter()
                .filter(|(name, _)| *name != "rule")
                .map(|(name, value)| format!("*{name}*  {}", escaped(&clipped(&value, 700))))
                .collect();
            if !lines.is_empty() {
                blocks.push(section(&lines.join("\n")));
            }
            let mut about = format!("{mark} `{}`  alert `{}`", alert.rule, alert.id.short());
            if let Some(source) = &alert.source {
                about.push_str(&format!("  source {}", escaped(source.as_str())));
            }
            blocks.push(json!({ "type": "context", "elements": [{ "type": "mrkdwn", "text": about }] }));
        }
        Message::Digest { alerts, .. } => {
            let mut lines: Vec<String> =
                alerts.iter().take(SHOWN).map(|alert| escaped(&clipped(&digest_line(alert), 140))).collect();
            let more = more(alerts.len());
            lines.extend((!more.is_empty()).then(|| more.trim().to_owned()));
            blocks.push(section(&lines.join("\n")));
        }
    }
    // The text is what notifications show.
    json!({ "text": clipped(&escaped(&line), 3_000), "blocks": blocks })
}
