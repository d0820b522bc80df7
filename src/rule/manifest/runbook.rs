//! Runbooks with the event's own names in them, so that a tired person can copy a command as it stands: `{actor}`, `{target}`,
//! `{ip}` and `{time}` stand for who did it, what was acted on, from which address, and when.
//!
//! Names come from events, and so from whoever chose them. Only one that no shell takes for anything else is filled in; in place of
//! any other, and where there is no event, a word says what belongs there.

/// What may stand in a runbook, and the word for it where it is not known.
const PLACES: [(&str, &str); 4] =
    [("{actor}", "ACTOR"), ("{target}", "TARGET"), ("{ip}", "ADDRESS"), ("{time}", "TIME")];

/// The runbook without an event.
pub(in crate::rule) fn blank(runbook: &str) -> String {
    replace(runbook, |_| None)
}

/// The runbook with a value in each place, where that is one word to every shell.
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
