//! What is unusual about an event, as rules see it in `event.flags`.

use serde::{Deserialize, Serialize};

/// Something unusual about an event. People who act can bring some of it about; Atlassian does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// Half a surrogate pair: reads as U+FFFD.
    Surrogate,
    /// A number beyond what a float can be: reads as a text.
    Number,
    /// More than 64 levels: what is deeper reads as null.
    TooDeep,
    /// A name twice in one object: the last counts.
    DuplicateKey,
    /// A control character other than tab and line breaks in a text.
    Control,
    /// A character that turns the direction of text around.
    Bidi,
    /// An escape that JSON does not know: reads as it is written.
    Escape,
    /// No id, or one that cannot be kept: a hash stands for it.
    Id,
    /// No action id, or one that is written in another way than Atlassian does.
    Action,
    /// A time that is not legible or cannot be true: the time of processing or of arrival counts.
    Time,
    /// More than 5,000 values or 64 KiB of text: rules see it cut.
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

    /// Its name in `event.flags`.
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
    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(crate) fn is_empty_ref(&self) -> bool {
        self.is_empty()
    }

    /// Whether a flag is set.
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

    /// The flags as bits, to be stored.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The flags of stored bits.
    pub fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Whether the entry has to be read through [`read`](super::read).
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
