//! Creating a rule from an event: a working rule and two tests, without personal data.
//!
//! Everything that identifies someone or something is replaced: email addresses, names, ids, IP addresses and sites.
//! The same value always gets the same replacement.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::model::name::RuleId;
use crate::model::text::{is_invisible, is_unsafe};

/// Keys whose values are names of people or things.
const NAMES: [&str; 6] = ["name", "groupName", "siteName", "tokenLabel", "tokenName", "displayName"];
/// Keys that no rule needs.
const DROPPED: [&str; 4] = ["picture", "links", "time", "processedAt"];
/// Keys whose values are Atlassian's own terms, or similarly harmless. All other values may be personal.
const PLAIN: [&str; 12] = [
    "action",
    "type",
    "format",
    "authType",
    "accountType",
    "settingName",
    "permissionName",
    "countryName",
    "geo",
    "content",
    "product",
    "role",
];

/// Returns the event with all personal data replaced, and without the keys that a test fills in.
pub fn anonymise(event: &Value) -> Value {
    let mut replaced = Replaced::default();
    replaced.collect("", event);
    let mut result = replaced.apply(event);
    // A sentence about who did what, in which names cannot be distinguished from other words.
    let action = event.pointer("/attributes/action").and_then(Value::as_str).unwrap_or_default();
    if let Some(content) = result.pointer_mut("/message/content") {
        *content = Value::from(sentence(action));
    }
    if let Some(map) = result.as_object_mut() {
        map.remove("id");
        map.remove("relations");
    }
    result
}

/// The replacements made so far.
#[derive(Default)]
struct Replaced {
    texts: BTreeMap<String, String>,
    people: usize,
    names: usize,
    ids: usize,
    addresses: usize,
}

impl Replaced {
    fn collect(&mut self, key: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    self.collect(key, value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(key, item)),
            Value::String(text) => self.text(key, text),
            _ => {}
        }
    }

    fn text(&mut self, key: &str, text: &str) {
        if text.is_empty() || self.texts.contains_key(text) {
            return;
        }
        let replacement = if text.parse::<IpAddr>().is_ok() {
            self.addresses += 1;
            if text.contains(':') {
                format!("2001:db8::{}", self.addresses)
            } else {
                format!("203.0.113.{}", self.addresses)
            }
        } else if is_email(text) {
            self.people += 1;
            format!("person{}@example.com", self.people)
        } else if ["siteHostName", "cloudUrl"].contains(&key) {
            self.names += 1;
            format!("https://site{}.example.com", self.names)
        } else if key == "id" || key == "tokenId" || key.ends_with("Id") {
            self.ids += 1;
            format!("id-{}", self.ids)
        } else if NAMES.contains(&key) {
            self.names += 1;
            format!("Name {}", self.names)
        } else if key == "city" || key == "regionName" {
            self.names += 1;
            format!("Place {}", self.names)
        } else if PLAIN.contains(&key) || ["true", "false"].contains(&text) || text.parse::<f64>().is_ok() {
            return;
        } else {
            self.names += 1;
            format!("Text {}", self.names)
        };
        self.texts.insert(text.to_owned(), replacement);
    }

    fn apply(&self, value: &Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(
                map.iter()
                    .filter(|(key, _)| !DROPPED.contains(&key.as_str()))
                    .map(|(key, value)| (key.clone(), self.apply(value)))
                    .collect(),
            ),
            Value::Array(items) => items.iter().map(|item| self.apply(item)).collect(),
            Value::String(text) => Value::String(self.texts.get(text).unwrap_or(text).clone()),
            other => other.clone(),
        }
    }
}

fn is_email(text: &str) -> bool {
    let plain = !text.contains(char::is_whitespace);
    plain && text.split_once('@').is_some_and(|(before, after)| !before.is_empty() && after.contains('.'))
}

/// A new rule and its tests, as files to write.
#[derive(Debug)]
pub struct Scaffold {
    /// Path of the rule file, relative to the rules directory.
    pub rule_file: PathBuf,
    /// Text of the rule file.
    pub rule: String,
    /// Path of the test file, relative to the rules directory.
    pub test_file: PathBuf,
    /// Text of the test file.
    pub tests: String,
}

/// Creates a rule with this id that alerts on events like this one, which is `seen` if it is from the user's own log.
pub fn scaffold(id: &RuleId, event: &Value, seen: bool) -> Scaffold {
    let origin = if seen {
        "seen in our own audit log"
    } else {
        "from the documentation's example: compare with `watchbell actions list`"
    };
    let event = anonymise(event);
    let action = event.pointer("/attributes/action").and_then(Value::as_str).unwrap_or("user_login").to_owned();
    let parts: Vec<&str> = id.as_str().split('.').collect();
    let (folder, name) = match parts.as_slice() {
        [.., folder, name] if parts.len() > 2 => (Some(*folder), *name),
        [.., name] => (None, *name),
        [] => (None, "rule"),
    };
    let rule_file = folder.map_or_else(PathBuf::new, PathBuf::from).join(format!("{name}.rhai"));
    let what = sentence(&action);
    let target = target(&event);
    let title = match &target {
        Some(_) => format!("`${{event.actor_name()}}: {what}: ${{target(event)}}`"),
        None => format!("`${{event.actor_name()}}: {what}`"),
    };
    let function = target
        .as_ref()
        .map_or_else(String::new, |(path, _)| format!("fn target(event) {{ {path} ?? \"an unknown target\" }}\n\n"));
    let context = if target.is_some() {
        "#{ target: target(event), address: event.ip, site: event.site() }"
    } else {
        "#{ address: event.ip, site: event.site() }"
    };
    let rule = format!(
        "// What this rule detects, and why it matters.\n//\n// Action ID: {origin}.\nconst RULE = #{{\n    id: \"{id}\",\n    title: \"{}\",\n    \
         severity: \"medium\",\n    actions: [{}],\n    description: \"What a match means.\",\n    \
         runbook: \"How to verify the alert, how to undo the change, and whom to ask.\",\n    tags: [],\n    \
         // The technique that this indicates, from attack.mitre.org, or [] if none applies.\n    // attack: [\"T….…\"],\n    dedup_period: \"1h\",\n    \
         // Actors who are expected to do this. Set them in overrides.toml.\n    params: #{{ expected_actors: [] }},\n    \
         exception_slots: #{{ actor: [\"actor.email\"] }},\n}};\n\n{function}fn rule(event) {{ !(event.actor.email in params.expected_actors) }}\n\n\
         fn title(event) {{ {title} }}\n\nfn context(event) {{ {context} }}\n",
        capitalised(&what),
        quoted(&action),
    );
    let actor = event.pointer("/attributes/actor");
    let named =
        |key: &str| actor.and_then(|actor| actor.get(key)).and_then(Value::as_str).filter(|text| !text.is_empty());
    let email = named("email").filter(|email| email.contains('@'));
    let who = email.or_else(|| named("name")).or_else(|| named("id")).unwrap_or("somebody");
    let title = match &target {
        Some((_, value)) => format!("{who}: {what}: {value}"),
        None => format!("{who}: {what}"),
    };
    let json = indented(&event, 4);
    let near_miss = match email {
        Some(email) => format!(
            "- name: expected actor\n  params: {{ expected_actors: [{}] }}\n  event:\n    {json}\n  expect:\n    alert: false\n",
            quoted(email)
        ),
        None => {
            let mut other = event.clone();
            if let Some(action) = other.pointer_mut("/attributes/action") {
                *action = Value::from("something_else");
            }
            format!("- name: another action\n  event:\n    {}\n  expect:\n    alert: false\n", indented(&other, 4))
        }
    };
    let tests = format!(
        "- name: {what}\n  event:\n    {json}\n  expect:\n    alerts:\n      - title: {}\n        severity: medium\n\n{near_miss}",
        quoted(&title)
    );
    Scaffold { test_file: crate::rule::author::test_file::test_file(Path::new(&rule_file)), rule_file, rule, tests }
}

/// Returns the expression that reads the first target's name, and the name.
fn target(event: &Value) -> Option<(String, String)> {
    let context = event.pointer("/attributes/context")?;
    let first = match context {
        Value::Array(items) => items.first()?,
        other => other,
    };
    let attributes: &Map<String, Value> = first.get("attributes")?.as_object()?;
    ["email", "name", "groupName", "siteName"].into_iter().find_map(|key| {
        let value = attributes.get(key)?.as_str()?;
        Some((format!("event.targets()[0].attributes.{key}"), value.to_owned()))
    })
}

/// Turns `user_logged_in_as_user` into `user logged in as user`.
fn sentence(action: &str) -> String {
    let plain: String =
        action.chars().map(|character| if character.is_alphanumeric() { character } else { ' ' }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Returns a string literal that YAML, TOML and Rhai accept. What a terminal would not show as it is, such as characters
/// that reverse the direction of text, is written as an escape.
pub fn quoted(text: &str) -> String {
    let plain = serde_json::to_string(text).unwrap_or_default();
    let mut quoted = String::with_capacity(plain.len());
    for character in plain.chars() {
        match u32::from(character) {
            _ if !is_unsafe(character) && !is_invisible(character) => quoted.push(character),
            code @ ..=0xffff => quoted.push_str(&format!("\\u{code:04x}")),
            code => quoted.push_str(&format!("\\U{code:08x}")),
        }
    }
    quoted
}

fn indented(value: &Value, by: usize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.replace('\n', &format!("\n{}", " ".repeat(by)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_show_what_a_terminal_would_hide() {
        let hostile = "a\u{202e}b\u{200b}\u{9b}c\u{e0041}\"\n\\";
        let literal = quoted(hostile);
        assert_eq!(literal, r#""a\u202eb\u200b\u009bc\U000e0041\"\n\\""#);
        let engine = rhai::Engine::new();
        assert_eq!(engine.eval_expression::<String>(&literal).unwrap(), hostile);
        let table: toml::Table = toml::from_str(&format!("x = {literal}")).unwrap();
        assert_eq!(table["x"].as_str(), Some(hostile));
    }

    #[test]
    fn personal_data_is_replaced() {
        let event: Value = serde_json::from_str(crate::rule::script::library::EXAMPLE_EVENT).unwrap();
        let text = anonymise(&event).to_string();
        for personal in ["Dana", "dana", "Inês", "ines", "712020", "203.0.113.21", "example-corp", "Berlin", "7d0f3a52"]
        {
            assert!(!text.contains(personal), "{personal} is left in {text}");
        }
        // The same value gets the same replacement.
        let twice = serde_json::json!({ "attributes": { "action": "a", "actor": { "id": "x", "email": "p@q.de" }, "context": [{ "id": "x", "attributes": { "owner": "p@q.de", "title": "Payroll 2026", "settingValues": ["true", "corp.example"] } }] } });
        let text = anonymise(&twice).to_string();
        assert_eq!((text.matches("id-1").count(), text.matches("person1@example.com").count()), (2, 2), "{text}");
        assert!(!text.contains("Payroll") && !text.contains("corp.example") && text.contains("true"), "{text}");
    }
}
