//! Secrets: read from an environment variable or a file, never written anywhere.
//!
//! A [`Secret`] has no `Display` and no `Serialize`; its `Debug` says where it came from, not what it is.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

/// Where a secret is to be found, as the configuration says it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretOrigin {
    /// The environment variable of this name.
    Environment(String),
    /// The first line of this file.
    File(PathBuf),
}

impl fmt::Display for SecretOrigin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(formatter, "environment variable `{name}`"),
            Self::File(path) => write!(formatter, "file `{}`", path.display()),
        }
    }
}

/// A text that may be a secret, as the configuration says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretOrText {
    /// Written into the configuration: everybody may read it.
    Text(String),
    /// Kept elsewhere.
    Secret(SecretOrigin),
}

impl SecretOrText {
    /// The text, read from where it is kept.
    pub fn load(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::Text(text) => Ok(SecretString::from(text.clone())),
            Self::Secret(origin) => Secret::load_text(origin).map(|secret| secret.value),
        }
    }
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set.
    #[error(
        "environment variable {} is not set: export it before starting, or name a file with `{{ file = \"…\" }}`", shown(.0)
    )]
    Unset(String),
    /// The file cannot be read.
    #[error("file `{}` cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is nothing in it.
    #[error("{0} is empty")]
    Empty(SecretOrigin),
    /// It cannot be sent in an HTTP header.
    #[error(
        "{0} holds characters that a key never has (spaces, line breaks or letters outside ASCII): copy the key again"
    )]
    Garbled(SecretOrigin),
    /// It is more than one line.
    #[error("{0} holds control characters or more than one line")]
    SeveralLines(SecretOrigin),
}

/// The name of an environment variable, unless it may be the secret itself, written in the wrong place.
fn shown(name: &str) -> String {
    let usual = |character: u8| character.is_ascii_uppercase() || character.is_ascii_digit() || character == b'_';
    if name.len() <= 60 && name.bytes().all(usual) {
        format!("`{name}`")
    } else {
        "(a name that is not shown: it may be the secret itself)".to_owned()
    }
}

/// No secret is longer, in bytes.
const MAX_LENGTH: u64 = 64 * 1024;

fn read_file(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    // Reading a pipe waits for somebody to write to it, and a device may have no end.
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MAX_LENGTH {
        return Err(std::io::Error::other("it is larger than 64 KiB"));
    }
    std::fs::read_to_string(path)
}

/// A secret text, wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret {
    value: SecretString,
    origin: SecretOrigin,
}

impl Secret {
    /// Reads a key from where `origin` says: printable ASCII without spaces. White space around it is dropped.
    pub fn load(origin: &SecretOrigin) -> Result<Self, SecretError> {
        Self::new(Self::read(origin)?.trim(), origin.clone())
    }

    /// Reads a secret text, such as a password or a header, from where `origin` says: anything but control characters.
    /// White space around it is dropped.
    pub fn load_text(origin: &SecretOrigin) -> Result<Self, SecretError> {
        let text = Self::read(origin)?;
        let text = text.trim();
        if text.is_empty() {
            return Err(SecretError::Empty(origin.clone()));
        }
        if text.chars().any(char::is_control) {
            return Err(SecretError::SeveralLines(origin.clone()));
        }
        Ok(Self { value: SecretString::from(text.to_owned()), origin: origin.clone() })
    }

    fn read(origin: &SecretOrigin) -> Result<String, SecretError> {
        match origin {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads secrets from the environment")]
            SecretOrigin::Environment(name) => std::env::var(name).map_err(|_| SecretError::Unset(name.clone())),
            SecretOrigin::File(path) => {
                read_file(path).map_err(|error| SecretError::Unreadable { path: path.clone(), error })
            }
        }
    }

    /// A secret of this text, which must be printable ASCII without spaces.
    pub fn new(text: &str, origin: SecretOrigin) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(SecretError::Empty(origin));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SecretError::Garbled(origin));
        }
        Ok(Self { value: SecretString::from(text.to_owned()), origin })
    }

    /// The secret itself: only for the request that needs it.
    pub fn expose(&self) -> &str {
        self.value.expose_secret()
    }

    /// Where it came from.
    pub fn origin(&self) -> &SecretOrigin {
        &self.origin
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Secret({})", self.origin)
    }
}
