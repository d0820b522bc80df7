//! Interprets error responses. Atlassian does not document error bodies for these operations, so they are read
//! leniently: the status determines the error kind, and the body only adds details.

use reqwest::StatusCode;
use serde_json::Value;

use crate::model::{error_kind::ErrorKind, text::printable};

pub(super) fn kind(status: StatusCode, with_cursor: bool) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::KeyRefused,
        403 => ErrorKind::KeyLacksScope,
        404 => ErrorKind::OrganizationNotFound,
        400 | 410 if with_cursor => ErrorKind::CursorRefused,
        429 => ErrorKind::RateLimited,
        500..=599 => ErrorKind::ServerError,
        _ => ErrorKind::UnreadableAnswer,
    }
}

/// Returns the message in the body after a colon, or an empty string. The result never contains the key.
pub(super) fn detail(body: &[u8], key: &str) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return String::new();
    };
    let text = ["/message", "/errors/0/detail", "/errors/0/title", "/errors/0/message", "/error_description", "/error"]
        .into_iter()
        .find_map(|pointer| value.pointer(pointer).and_then(Value::as_str));
    let scopes = value
        .get("acceptableScopes")
        .map(|scopes| format!(" (acceptable scopes: {})", plain(&scopes.to_string(), key)));
    let text = text.map(|text| format!(": {}", plain(text, key)));
    format!("{}{}", text.unwrap_or_default(), scopes.unwrap_or_default())
}

/// Returns the start of a string without the key, and without control characters.
fn plain(text: &str, key: &str) -> String {
    printable(&text.replace(key, "…")).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_short_and_never_hold_the_key() {
        assert_eq!(detail(br#"{"message":"key SECRET is wrong\u0007"}"#, "SECRET"), ": key … is wrong ");
        let scopes = r#"{"message":"no\u202e","acceptableScopes":["a","SECRET\u202e"]}"#;
        assert_eq!(detail(scopes.as_bytes(), "SECRET"), ": no  (acceptable scopes: [\"a\",\"… \"])");
        assert_eq!(detail(b"<html>", "SECRET"), "");
        assert_eq!(kind(StatusCode::GONE, true), ErrorKind::CursorRefused);
        assert_eq!(kind(StatusCode::BAD_REQUEST, false), ErrorKind::UnreadableAnswer);
    }
}
