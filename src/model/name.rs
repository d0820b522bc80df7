//! Newtypes for the names and numbers that modules exchange.
//!
//! Each documents what it may contain, and checks it when it is parsed, so that the rest of the program can rely on it.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a text is not a valid name; the message includes what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(pub(crate) String);

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the name and checks what it contains.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map_err(NameError)?;
                Ok(Self(text.into()))
            }

            /// The name as a string slice.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    };
}

text_name!(
    /// The name of a source, as the configuration gives it: 1 to 100 characters, none of them a control character.
    SourceName,
    |text| plain_text("a source name", text, 100)
);

text_name!(
    /// The name of a destination: 1 to 100 characters, none of them a control character.
    DestinationName,
    |text| plain_text("a destination name", text, 100)
);

text_name!(
    /// The id of an event, as its source gave it. Opaque; at most 512 bytes.
    EventId,
    |text| {
        if text.is_empty() || text.len() > 512 {
            return Err(format!("an event ID must have 1 to 512 bytes, found {}", text.len()));
        }
        Ok(())
    }
);

text_name!(
    /// The id of a rule: two or more parts joined by dots, each of `a-z 0-9 _ -`, such as
    /// `atlassian.admin.impersonated_user`; at most 120 characters.
    RuleId,
    |text| {
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        if text.len() > 120 {
            return Err(format!("a rule ID must have at most 120 characters, found {}", text.len()));
        }
        if !text.contains('.') || !text.split('.').all(part) {
            return Err(format!(
                "`{text}` is not a rule ID: write parts of `a-z`, `0-9`, `_`, `-` joined by dots, such as `team.admin.added`"
            ));
        }
        Ok(())
    }
);

text_name!(
    /// The name of an exception: 1 to 100 letters, digits, `_`, `-` and `.`.
    ExceptionId,
    |text| {
        let plain = |character: char| character.is_alphanumeric() || matches!(character, '_' | '-' | '.');
        if text.is_empty() || text.chars().count() > 100 || !text.chars().all(plain) {
            return Err(format!("`{text}` is not a valid exception name: write 1 to 100 letters, digits, `_`, `-` and `.`"));
        }
        Ok(())
    }
);

text_name!(
    /// What the matches of one rule have in common when they belong to the same alert. At most 1,000 characters: see
    /// [`DedupKey::clipped`].
    DedupKey,
    |text| {
        if text.chars().count() > DedupKey::MAX_CHARACTERS {
            return Err("a dedup key must have at most 1,000 characters".to_owned());
        }
        Ok(())
    }
);

impl EventId {
    /// The id made from the hash of a text.
    pub fn of_hash(text: &str) -> Self {
        let hash = blake3::hash(text.as_bytes()).to_hex();
        Self(format!("#{}", hash.get(..32).unwrap_or_default()).into())
    }
}

impl DedupKey {
    const MAX_CHARACTERS: usize = 1_000;
    /// Characters of a longer text that are kept before its hash.
    const KEPT_CHARACTERS: usize = 900;

    /// The key for a text of any length. Of a text with more than 1,000 characters, the key keeps the beginning and a
    /// hash of the whole, so that different texts have different keys.
    pub fn clipped(text: &str) -> Self {
        if text.chars().nth(Self::MAX_CHARACTERS).is_none() {
            return Self(text.into());
        }
        let end = text.char_indices().nth(Self::KEPT_CHARACTERS).map_or(text.len(), |(index, _)| index);
        let hash = blake3::hash(text.as_bytes()).to_hex();
        Self(format!("{}…#{}", text.get(..end).unwrap_or(text), hash.get(..32).unwrap_or_default()).into())
    }
}

fn plain_text(what: &str, text: &str, limit: usize) -> Result<(), String> {
    let length = text.chars().count();
    if length == 0 || length > limit {
        return Err(format!("{what} must have 1 to {limit} characters, found {length}"));
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err(format!("{what} must not contain control characters, or begin or end with a space"));
    }
    Ok(())
}

/// The number of an event in a store, in order of arrival: 1, 2, 3 …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The number of a silence: 1, 2, 3 …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SilenceId(pub u64);

impl fmt::Display for SilenceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for SilenceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("`{text}` is not a silence number"))
    }
}

/// The id of an alert: 128 bits derived from what opened it, so that a second evaluation yields the same alert.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AlertId([u8; 16]);

impl AlertId {
    /// The id of an alert of `rule` that `opening` opened: a hash of all arguments.
    pub fn derive(rule: &RuleId, source: &str, key: &str, opening: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [rule.as_str(), source, key, opening] {
            // The length prefix distinguishes ("ab", "c") from ("a", "bc").
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(bytes)
    }

    /// The id as bytes.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The id with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The first ten hexadecimal digits: enough to name an alert in a table.
    pub fn short(self) -> String {
        self.to_string().chars().take(10).collect()
    }
}

impl fmt::Display for AlertId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for AlertId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AlertId({self})")
    }
}

impl FromStr for AlertId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError(format!("`{text}` is not an alert ID: expected 32 hexadecimal digits"));
        if text.len() != 32 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(index * 2..index * 2 + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for AlertId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<AlertId> for String {
    fn from(id: AlertId) -> Self {
        id.to_string()
    }
}

/// A hash of everything that determines what a rule detects: two rules with the same version give the same results.
/// Shown as 32 hexadecimal digits. The first releases wrote 16, which are read as a version that no current rule has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleVersion([u8; 16]);

impl RuleVersion {
    /// The version with these bytes.
    pub(crate) const fn of_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for RuleVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl From<RuleVersion> for String {
    fn from(version: RuleVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for RuleVersion {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let mut bytes = [0; 16];
        let digits: Vec<u8> =
            text.chars().filter_map(|digit| digit.to_digit(16)).filter_map(|digit| u8::try_from(digit).ok()).collect();
        if digits.len() != text.len() || !(digits.len() == 16 || digits.len() == 32) {
            return Err(NameError("a rule version must have 32 hexadecimal digits".to_owned()));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_ids_are_validated() {
        assert!(RuleId::parse("atlassian.admin.impersonated_user").is_ok());
        for wrong in ["", "nodots", "a..b", ".a", "A.b", "a.b c", "a.ü"] {
            assert!(RuleId::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn long_dedup_keys_are_clipped() {
        let key = |text: &str| DedupKey::clipped(text).as_str().to_owned();
        assert_eq!(key(&"ü".repeat(1_000)), "ü".repeat(1_000));
        let (one, other) = (format!("{}1", "ü".repeat(1_500)), format!("{}2", "ü".repeat(1_500)));
        assert!(key(&one).chars().count() <= 1_000 && DedupKey::parse(&key(&one)).is_ok());
        assert_ne!(key(&one), key(&other));
    }

    #[test]
    fn alert_ids_round_trip() {
        let id = AlertId::derive(&RuleId::parse("a.b").unwrap(), "s", "k", "e");
        assert_eq!(id.to_string().parse::<AlertId>().unwrap(), id);
        assert!("zz".parse::<AlertId>().is_err());
    }
}
