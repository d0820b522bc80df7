//! Posts to Microsoft Teams through a workflow webhook ("Post to a channel when a webhook request is received").
//!
//! Each message is one Adaptive Card. Workflows accept at most 28 KB, so long text is cut.
//! <https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using>

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

/// Settings of a Teams webhook (`kind = "teams"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// URL of the workflow's webhook, as a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Required.
    pub url: SecretOrigin,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        Some(Self { url: table.secret("url", base)? })
    }

    pub(super) fn open(&self, _clock: &Clock) -> Result<Teams, OpenError> {
        SecretUrl::open(&self.url).map(Teams)
    }
}

#[derive(Debug)]
pub(super) struct Teams(SecretUrl);

impl Destination for Teams {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move { self.0.post(&body(message)).await })
    }
}

/// Escapes Markdown, which cards render, so that names chosen by an attacker cannot add links.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | '[' | ']' | '(' | ')' | '*' | '_' | '`' | '#' | '<' | '>') {
            plain.push('\\');
        }
        plain.push(character);
    }
    plain
}

/// Maximum size of a card in bytes. Workflows accept 28 KB, but count more than what is sent, and answer an oversized
/// card as if they had accepted it.
const MAX_CARD_BYTES: usize = 18_000;

fn body(message: &Message) -> Value {
    let share = [1_500, 700, 300, 120, 40].into_iter();
    let cards = share.map(|units| card(message, units));
    // The size is also checked with the card embedded in a JSON string, which doubles its escapes.
    let fits = |card: &Value| {
        let text = card.to_string();
        text.len() <= MAX_CARD_BYTES && Value::String(text).to_string().len() <= 28_000
    };
    let mut smallest = Value::Null;
    for card in cards {
        if fits(&card) {
            return card;
        }
        smallest = card;
    }
    smallest
}

/// Builds the card with at most `units` UTF-16 units per text.
fn card(message: &Message, units: usize) -> Value {
    let colour = match message.severity() {
        Severity::Critical | Severity::High => "attention",
        Severity::Medium => "warning",
        Severity::Low | Severity::Info => "accent",
    };
    let mut body = vec![json!({
        "type": "TextBlock", "text": plain(&clipped(&headline(message), units.min(300))), "weight": "bolder", "size": "medium",
        "color": colour, "wrap": true,
    })];
    match message {
        Message::Alert { notice, alert, .. } => {
            let facts: Vec<Value> = fields(alert, *notice)
                .into_iter()
                .map(|(name, value)| json!({ "title": name, "value": plain(&clipped(&value.replace('\n', " "), units)) }))
                .collect();
            body.push(json!({ "type": "FactSet", "facts": facts }));
        }
        Message::Digest { alerts, .. } => {
            let line = |text: String| json!({ "type": "TextBlock", "text": text, "wrap": true, "spacing": "small" });
            body.extend(
                alerts.iter().take(SHOWN).map(|alert| line(plain(&clipped(&digest_line(alert), units.min(200))))),
            );
            let more = more(alerts.len());
            body.extend((!more.is_empty()).then(|| line(more.trim().to_owned())));
        }
    }
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "msteams": { "width": "Full" },
                "body": body,
            },
        }],
    })
}
