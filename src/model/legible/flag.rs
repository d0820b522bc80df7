//! What is unusual about an event; rules see it in `event.flags`.

use serde::{Deserialize, Serialize};

/// Something unusual about an event. An actor can cause some of these; Atlassian does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// Half a surrogate pair; read as U+FFFD.
    Surrogate,
    /// A number that a float cannot represent; read as a string.
    Number,
    /// More than 64 levels; what is deeper is read as null.
    TooDeep,
    /// A name that occurs twice in one object; the last one is used.
    DuplicateKey,
    /// A control character other than a tab or a line break in a string.
    Control,
    /// A character that changes the text direction.
    Bidi,
    /// An escape that JSON does not define; read literally.
    Escape,
    /// The id is missing or cannot be kept; a hash replaces it.
    Id,
    /// The action id is missing or not in the form that Atlassian uses.
    Action,
    /// A time that is unreadable or implausible; the time of processing or of arrival is used.
    Time,
    /// More than 5,000 values or 64 KiB of text; rules see the entry cut.
    TooLarge,
}

impl Flag {
    /// All flags, in the order of their bits.
    pub const ALL: [Self; 11] = [
        Self::Surrogate,
        Self::Number,
        Self::TooDeep,
        Self::DuplicateKey,
        Self::Control,
        Self::Bidi,
        Self::Escape,
        Self::Id,
        Self::Action,
        Self::Time,
        Self::TooLarge,
    ];

    /// The name in `event.flags`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Surrogate => "surrogate",
            Self::Number => "number",
            Self::TooDeep => "too_deep",
            Self::DuplicateKey => "duplicate_key",
            Self::Control => "control",
            Self::Bidi => "bidi",
            Self::Escape => "escape",
            Self::Id => "id",
            Self::Action => "action",
            Self::Time => "time",
            Self::TooLarge => "too_large",
        }
    }
}

/// A set of flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u16);

impl Flags {
    /// Returns true if no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde expects")]
    pub(crate) fn is_empty_ref(&self) -> bool {
        self.is_empty()
    }

    /// Returns true if the flag is set.
    pub fn has(self, flag: Flag) -> bool {
        self.0 & (1 << flag as u16) != 0
    }

    /// Sets a flag.
    pub fn set(&mut self, flag: Flag) {
        self.0 |= 1 << flag as u16;
    }

    /// The flags that are set, in the order of [`Flag::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        Flag::ALL.into_iter().filter(move |flag| self.has(*flag))
    }

    /// The flags as bits, as they are stored.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The flags with these stored bits.
    pub fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Returns true if the entry must be read with [`read`](super::read).
    pub fn needs_repair(self) -> bool {
        [Flag::Surrogate, Flag::Number, Flag::TooDeep, Flag::Control, Flag::Escape]
            .into_iter()
            .any(|flag| self.has(flag))
    }
}

impl Serialize for Flags {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Flags {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut flags = Self::default();
        Vec::<Flag>::deserialize(deserializer)?.into_iter().for_each(|flag| flags.set(flag));
        Ok(flags)
    }
}
