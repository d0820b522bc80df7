//! Posts messages as JSON to a URL, signed as <https://www.standardwebhooks.com> describes
//! (`webhook-id`, `webhook-timestamp`, `webhook-signature: v1,BASE64(HMAC-SHA256(key, "id.timestamp.body"))`).
//!
//! The id stays the same when a message is sent again, so a receiver can drop duplicates.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use reqwest::{
    Method, Url,
    header::{HeaderName, HeaderValue},
};
use secrecy::ExposeSecret;

use super::{
    Destination, JsonFormat, Message, OpenError, SendOutcome, Sending,
    http::{Service, secret_parts},
    json, json_format,
};
use crate::{
    config::{
        secret::{Secret, SecretOrText, SecretOrigin},
        settings::TableReader,
    },
    http,
    model::time::Clock,
};

/// Settings of a webhook (`kind = "webhook"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// URL to post to: `https`, or `http` on a loopback address. A string, or a secret if knowing the URL is enough to
    /// post. Required.
    pub url: SecretOrText,
    /// Additional HTTP headers, each a string or a secret.
    pub headers: Vec<(String, SecretOrText)>,
    /// Key to sign messages with, as a secret; base64 if it starts with `whsec_`. Default: messages are not signed.
    pub signing_key: Option<SecretOrigin>,
    /// JSON format of the messages: `native` or `ocsf`. Default: `native`.
    pub format: JsonFormat,
    /// PEM file of certificates to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let url = table.text_or_secret("url", base);
        if let Some(SecretOrText::Text(text)) = &url
            && let Err(error) = http::parse_url(text)
        {
            table.problem("url", error, None);
        }
        let headers = table.texts_or_secrets("headers", base);
        for (name, _) in &headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                table.problem("headers", format!("`{name}` is not a valid header name"), None);
            }
        }
        let signing_key = table.optional_secret("signing_key", base);
        let format = json_format(table);
        let ca_file = table.text("ca_file").map(|file| base.join(file));
        Some(Self { url: url?, headers, signing_key, format, ca_file })
    }

    pub(super) fn open(&self, clock: &Clock) -> Result<Webhook, OpenError> {
        let url = self.url()?;
        for (_, value) in &self.headers {
            value.load()?;
        }
        self.signing_key.as_ref().map(Secret::load_text).transpose()?;
        let service = Service::new(&url, self.ca_file.as_deref()).map_err(OpenError::Unusable)?;
        Ok(Webhook { settings: self.clone(), service, clock: clock.clone() })
    }

    fn url(&self) -> Result<Url, OpenError> {
        let text = self.url.load()?;
        http::parse_url(text.expose_secret().trim()).map_err(|error| OpenError::Unusable(format!("`url`: {error}")))
    }
}

/// Decodes the key: with the prefix `whsec_` it is base64, as the specification requires.
fn key_bytes(key: &str) -> Result<Vec<u8>, String> {
    match key.strip_prefix("whsec_") {
        Some(encoded) => base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|_| "the signing key is not valid base64 after `whsec_`".to_owned()),
        None => Ok(key.as_bytes().to_vec()),
    }
}

/// Returns `v1,` followed by the signature of a message.
fn sign(key: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend_from_slice(body);
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), &signed);
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(tag))
}

#[derive(Debug)]
pub(super) struct Webhook {
    settings: Settings,
    service: Service,
    clock: Clock,
}

impl Webhook {
    async fn post(&self, message: &Message) -> Result<SendOutcome, OpenError> {
        let settings = &self.settings;
        let unusable = |error: String| OpenError::Unusable(error);
        let objects = json(message, settings.format).map_err(|error| unusable(error.to_string()))?;
        let body = match objects.as_slice() {
            [object] => object.clone(),
            several => format!("[{}]", several.join(",")),
        };
        let body = body.into_bytes();
        // Secrets are read each time, because they may have been replaced.
        let url = settings.url()?;
        let id = message.key();
        let timestamp = self.clock.now().as_second();
        let mut request = self
            .service
            .request(Method::POST, url.clone())
            .header("content-type", "application/json")
            .header("idempotency-key", &id)
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp);
        if let Some(origin) = &settings.signing_key {
            let key = key_bytes(Secret::load_text(origin)?.expose()).map_err(unusable)?;
            request = request.header("webhook-signature", sign(&key, &id, timestamp, &body));
        }
        let mut secrets = match &settings.url {
            SecretOrText::Secret(_) => secret_parts(&url),
            SecretOrText::Text(_) => Vec::new(),
        };
        for (name, value) in &settings.headers {
            let value = value.load()?;
            let mut header = HeaderValue::from_str(value.expose_secret())
                .map_err(|_| unusable(format!("the value of header `{name}` has invalid characters")))?;
            header.set_sensitive(true);
            request = request.header(name, header);
            secrets.push(value.expose_secret().to_owned());
        }
        let answer = match self.service.ask(request.body(body)).await {
            Ok(answer) => answer,
            Err(verdict) => return Ok(verdict),
        };
        Ok(self.service.verdict(&answer, &secrets))
    }
}

impl Destination for Webhook {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move { self.post(message).await.unwrap_or_else(|error| SendOutcome::retry(error.to_string())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example is from the reference libraries of the Standard Webhooks specification.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let key = key_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
