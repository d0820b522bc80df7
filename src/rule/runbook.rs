//! Runbooks with the event's own names in them, so that a tired person can copy a command as it stands: `{actor}`, `{target}`,
//! `{ip}` and `{time}` stand for who did it, what was acted on, from which address, and when.
//!
//! Names come from events, and so from whoever chose them. Only one that no shell takes for anything else is filled in; in place of
//! any other, and where there is no event, a word says what belongs there.

use rhai::Dynamic;

use super::library;

/// What may stand in a runbook, and the word for it where it is not known.
const PLACES: [(&str, &str); 4] =
    [("{actor}", "ACTOR"), ("{target}", "TARGET"), ("{ip}", "ADDRESS"), ("{time}", "TIME")];

/// The runbook about an event, as rules see it.
pub(super) fn fill(runbook: &str, event: &Dynamic) -> String {
    replace(runbook, |place| {
        let value = match place {
            "{actor}" => library::actor_name_of(event),
            "{target}" => library::target_name_of(event),
            "{ip}" => library::follow(event, "ip").map(|ip| ip.to_string()),
            _ => library::follow(event, "time").map(|time| time.to_string()),
        };
        value.filter(|value| is_plain(value))
    })
}

/// The runbook without an event.
pub(super) fn blank(runbook: &str) -> String {
    replace(runbook, |_| None)
}

fn replace(runbook: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut text = runbook.to_owned();
    for (place, word) in PLACES {
        if text.contains(place) {
            text = text.replace(place, &value(place).unwrap_or_else(|| word.to_owned()));
        }
    }
    text
}

/// Whether a text is one word to every shell, and no option.
fn is_plain(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "@._:+-".contains(character);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_shell_obeys_is_filled_in() {
        let runbook = "`watchbell events list --actor {actor} --since {time}`, {ip}, {target}";
        let event = |email: &str| {
            super::super::view::frozen(&serde_json::json!({
                "time": "2026-11-25T20:21:32Z", "ip": "2001:db8::1",
                "attributes": { "actor": { "email": email }, "context": [{ "type": "users", "attributes": { "name": "Inês C." } }] },
            }))
        };
        assert_eq!(
            fill(runbook, &event("dana.wilson+x@example.com")),
            "`watchbell events list --actor dana.wilson+x@example.com --since 2026-11-25T20:21:32Z`, 2001:db8::1, TARGET"
        );
        for evil in ["$(reboot)@example.com", "a b@example.com", "--config=x@example.com", "a'@example.com", "`id`@x"] {
            assert!(fill(runbook, &event(evil)).contains("--actor ACTOR --since"), "{evil}");
        }
        assert_eq!(blank(runbook), "`watchbell events list --actor ACTOR --since TIME`, ADDRESS, TARGET");
    }
}
