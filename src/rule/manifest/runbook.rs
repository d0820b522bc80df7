//! Filling a runbook's placeholders with values from the event, so that a tired person can copy a command unchanged:
//! `{actor}`, `{target}`, `{ip}` and `{time}` are the actor, the target, the address and the time.
//!
//! The values come from events, and so may be chosen by an attacker. Only a value that every shell reads as one plain
//! word is filled in. For any other value, and if there is no event, a word says what belongs there.

/// The placeholders of a runbook, each with the word that replaces it if there is no usable value.
const PLACES: [(&str, &str); 4] =
    [("{actor}", "ACTOR"), ("{target}", "TARGET"), ("{ip}", "ADDRESS"), ("{time}", "TIME")];

/// Returns the runbook with its placeholders replaced by words.
pub(in crate::rule) fn blank(runbook: &str) -> String {
    replace(runbook, |_| None)
}

/// Returns the runbook with its placeholders replaced by values, if those are plain words to every shell.
pub(in crate::rule) fn filled(runbook: &str, value: impl Fn(&str) -> Option<String>) -> String {
    replace(runbook, |place| value(place).filter(|value| is_plain(value)))
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

/// Whether a string is one plain word to every shell, and not an option.
fn is_plain(text: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "@._:+-".contains(character);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_words_are_filled_in() {
        let runbook = "`watchbell events list --actor {actor} --since {time}`, {ip}, {target}";
        let with = |email: &'static str| {
            filled(runbook, |place| match place {
                "{actor}" => Some(email.to_owned()),
                "{time}" => Some("2026-11-25T20:21:32Z".to_owned()),
                "{ip}" => Some("2001:db8::1".to_owned()),
                _ => Some("Inês C.".to_owned()),
            })
        };
        assert_eq!(
            with("dana.wilson+x@example.com"),
            "`watchbell events list --actor dana.wilson+x@example.com --since 2026-11-25T20:21:32Z`, 2001:db8::1, TARGET"
        );
        for evil in ["$(reboot)@example.com", "a b@example.com", "--config=x@example.com", "a'@example.com", "`id`@x"] {
            assert!(with(evil).contains("--actor ACTOR --since"), "{evil}");
        }
        assert_eq!(blank(runbook), "`watchbell events list --actor ACTOR --since TIME`, ADDRESS, TARGET");
    }
}
