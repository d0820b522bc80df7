//! Text that an attacker may have written, such as names, titles and ids: made safe to show, and cut to a length.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

/// Returns true if a terminal, a log or a mail header would act on the character instead of showing it. Characters that
/// change the text direction are as dangerous as control characters: they show a name backwards.
pub fn is_unsafe(character: char) -> bool {
    character.is_control() || is_invisible(character)
}

/// Returns true if a character is invisible and makes a text look like another: direction marks, line separators,
/// zero-width spaces, tags. The two joiners are not included because scripts and emoji need them.
pub fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Returns true if a character is not allowed in an identifier: unsafe characters, and all others that Unicode 16
/// allows to be ignored in rendering (`Default_Ignorable_Code_Point`).
pub fn is_ignorable(character: char) -> bool {
    is_unsafe(character)
        || matches!(
            character,
            '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200c}' | '\u{200d}'
                | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}' | '\u{e0080}'..='\u{e0fff}'
        )
}

/// Replaces each unsafe character by a space: see [`is_unsafe`].
pub fn printable(text: &str) -> String {
    text.chars().map(|character| if is_unsafe(character) { ' ' } else { character }).collect()
}

/// Applies [`printable`] to each string of a JSON value, including the names of members. Line feeds are kept.
pub fn printable_json(value: Value) -> Value {
    let lines = |text: &str| text.split('\n').map(printable).collect::<Vec<_>>().join("\n");
    match value {
        Value::String(text) => Value::String(lines(&text)),
        Value::Array(items) => items.into_iter().map(printable_json).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (lines(&name), printable_json(value))).collect()
        }
        other => other,
    }
}

/// Writes each unsafe character as an escape, such as `\n` or `\u{202e}`: for logs, which must not lose anything.
pub fn escaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            unsafe_one if is_unsafe(unsafe_one) => result.extend(unsafe_one.escape_unicode()),
            other => result.push(other),
        }
    }
    result
}

/// Serializes a value as JSON on one line that is safe to show: see [`json_escaped`].
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    Ok(json_escaped(&serde_json::to_string(value)?).into_owned())
}

/// Writes each unsafe character in JSON text as an escape. The value stays the same.
pub fn json_escaped(json: &str) -> Cow<'_, str> {
    let is_acted_on = |character: char| is_unsafe(character) && character != '\n';
    if !json.contains(is_acted_on) {
        return Cow::Borrowed(json);
    }
    let mut result = String::with_capacity(json.len());
    for character in json.chars() {
        if is_acted_on(character) {
            let mut units = [0; 2];
            character.encode_utf16(&mut units).iter().for_each(|unit| result.push_str(&format!("\\u{unit:04x}")));
        } else {
            result.push(character);
        }
    }
    Cow::Owned(result)
}

/// Cuts a text to at most `units` UTF-16 units, which is how most services count. A text that was cut ends with `…`.
pub fn clipped(text: &str, units: usize) -> String {
    // A text never has more UTF-16 units than bytes.
    if text.len() <= units || text.encode_utf16().count() <= units {
        return text.to_owned();
    }
    let mut cut = start_of(text, units.saturating_sub(1)).to_owned();
    cut.push('…');
    cut
}

/// Cuts a text to at most `units` UTF-16 units, with `…` in the middle, because both ends of a name or an id are
/// significant.
pub fn shortened(text: &str, units: usize) -> String {
    if text.len() <= units || text.encode_utf16().count() <= units {
        return text.to_owned();
    }
    let room = units.saturating_sub(1);
    let start = start_of(text, room.div_ceil(2));
    let mut end = text.len();
    let mut left = room / 2;
    for (index, character) in text.char_indices().rev() {
        if character.len_utf16() > left {
            break;
        }
        left -= character.len_utf16();
        end = index;
    }
    format!("{start}…{}", text.get(end..).unwrap_or_default())
}

/// The longest prefix of a text with at most `units` UTF-16 units.
fn start_of(text: &str, units: usize) -> &str {
    let mut left = units;
    for (index, character) in text.char_indices() {
        if character.len_utf16() > left {
            return text.get(..index).unwrap_or_default();
        }
        left -= character.len_utf16();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unsafe_characters_are_replaced_or_escaped() {
        let hostile = "a\n\u{1b}[31m\u{9b}b\u{202e}c\u{2028}d\u{feff}";
        assert_eq!(printable(hostile), "a  [31m b c d ");
        assert_eq!(escaped(hostile), "a\\n\\u{1b}[31m\\u{9b}b\\u{202e}c\\u{2028}d\\u{feff}");
        assert_eq!(escaped("ünï 👍 „x“"), "ünï 👍 „x“");
    }

    #[test]
    fn cuts_count_utf16_units() {
        assert_eq!(clipped("abc", 3), "abc");
        assert_eq!(clipped("abcd", 3), "ab…");
        // Two units each.
        assert_eq!(clipped("👍👍👍", 5), "👍👍…");
        assert_eq!(clipped("👍👍", 4), "👍👍");
        assert_eq!(shortened("0123456789", 5), "01…89");
        assert_eq!(shortened("abc", 3), "abc");
    }

    #[test]
    fn json_is_printable_at_every_level() {
        let value = serde_json::json!({"a\u{202e}": ["\u{9b}b\nc", 1, {"d": "\u{2066}e"}]});
        assert_eq!(printable_json(value), serde_json::json!({"a ": [" b\nc", 1, {"d": " e"}]}));
    }

    #[test]
    fn escaped_json_is_the_same_value() {
        let value = serde_json::json!({"a\u{202e}": "\u{9b}31m \u{feff}é\n\u{1b}"});
        let shown = json_escaped(&format!("{value:#}")).into_owned();
        assert!(!shown.chars().any(|character| is_unsafe(character) && character != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    proptest! {
        #[test]
        fn cut_text_is_within_the_limit(text in ".{0,40}", units in 1_usize..50) {
            for cut in [clipped(&text, units), shortened(&text, units)] {
                prop_assert!(cut.encode_utf16().count() <= units);
                prop_assert!(cut == text || cut.contains('…'));
            }
        }
    }
}
