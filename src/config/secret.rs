//! Secrets: read from an environment variable or a file, and never written anywhere.
//!
//! [`Secret`] does not implement `Display` or `Serialize`; its `Debug` output shows only the origin.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

/// Where a secret is read from: `{ env = "NAME" }` or `{ file = "PATH" }`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretOrigin {
    /// The name of an environment variable.
    Environment(String),
    /// The path of a file with nothing but the secret; surrounding white space is removed.
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

/// A string in the configuration that may also be given as a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretOrText {
    /// The string itself, written in the configuration. Not secret.
    Text(String),
    /// The origin of a secret.
    Secret(SecretOrigin),
}

impl SecretOrText {
    /// Returns the string, reading it from its origin if it is a secret.
    pub fn load(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::Text(text) => Ok(SecretString::from(text.clone())),
            Self::Secret(origin) => Secret::load_text(origin).map(|secret| secret.value),
        }
    }
}

/// Error that occurs when reading a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment variable is not set, or not valid UTF-8.
    #[error("environment variable {} is not set: set it, or use a file with `{{ file = \"…\" }}`", shown(.0))]
    Unset(String),
    /// The file cannot be read.
    #[error("cannot read file `{}`: {error}", path.display())]
    Unreadable {
        /// The configured path.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The variable or file is empty.
    #[error("{0} is empty")]
    Empty(SecretOrigin),
    /// The key has characters that cannot be sent in an HTTP header.
    #[error(
        "{0} contains characters that a key cannot have (spaces, line breaks or non-ASCII letters): copy the key again"
    )]
    Garbled(SecretOrigin),
    /// The secret has several lines or other control characters.
    #[error("{0} contains control characters or more than one line")]
    SeveralLines(SecretOrigin),
}

/// The name of an environment variable, hidden if it may be the secret itself, written in the wrong place.
fn shown(name: &str) -> String {
    let usual = |character: u8| character.is_ascii_uppercase() || character.is_ascii_digit() || character == b'_';
    if name.len() <= 60 && name.bytes().all(usual) {
        format!("`{name}`")
    } else {
        "(name not shown: it may be the secret itself)".to_owned()
    }
}

/// Maximum size of a secret file in bytes.
const MAX_LENGTH: u64 = 64 * 1024;

fn read_file(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    // Reading a pipe blocks until something is written to it, and a device may be endless.
    if !metadata.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    if metadata.len() > MAX_LENGTH {
        return Err(std::io::Error::other("larger than 64 KiB"));
    }
    std::fs::read_to_string(path)
}

/// A secret string, wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret {
    value: SecretString,
    origin: SecretOrigin,
}

impl Secret {
    /// Reads a key from `origin`: printable ASCII without spaces. Surrounding white space is removed.
    pub fn load(origin: &SecretOrigin) -> Result<Self, SecretError> {
        Self::new(Self::read(origin)?.trim(), origin.clone())
    }

    /// Reads a secret string, such as a password or a header, from `origin`: one line without control characters.
    /// Surrounding white space is removed.
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

    /// Creates a secret from `text`, which must be printable ASCII without spaces.
    pub fn new(text: &str, origin: SecretOrigin) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(SecretError::Empty(origin));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SecretError::Garbled(origin));
        }
        Ok(Self { value: SecretString::from(text.to_owned()), origin })
    }

    /// Returns the secret itself. Use it only in the request that needs it.
    pub fn expose(&self) -> &str {
        self.value.expose_secret()
    }

    /// Returns where the secret was read from.
    pub fn origin(&self) -> &SecretOrigin {
        &self.origin
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Secret({})", self.origin)
    }
}
