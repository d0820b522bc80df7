//! A webhook: the alert as JSON, posted to a URL, signed as <https://www.standardwebhooks.com> describes
//! (`webhook-id`, `webhook-timestamp`, `webhook-signature: v1,BASE64(HMAC-SHA256(key, "id.timestamp.body"))`).
//!
//! The id is the same whenever the same news is sent again, so a receiver can drop repetitions.

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

/// Where to, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The URL; a secret where knowing it is enough to post there.
    pub url: SecretOrText,
    /// Headers beside the usual ones.
    pub headers: Vec<(String, SecretOrText)>,
    /// The key that messages are signed with.
    pub signing_key: Option<SecretOrigin>,
    /// Native or OCSF.
    pub format: JsonFormat,
    /// Certificates that are accepted beside the system's.
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
                table.problem("headers", format!("`{name}` is not the name of a header"), None);
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

/// The key as bytes: with the prefix `whsec_` it is base64, as the specification has it.
fn key_bytes(key: &str) -> Result<Vec<u8>, String> {
    match key.strip_prefix("whsec_") {
        Some(encoded) => base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|_| "what stands behind `whsec_` in the signing key is not base64".to_owned()),
        None => Ok(key.as_bytes().to_vec()),
    }
}

/// `v1,` and the signature of a message.
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
        // Secrets are read anew each time: they may have been replaced where they are kept.
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
                .map_err(|_| unusable(format!("the value of `{name}` cannot be sent in a header")))?;
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

    /// The example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let key = key_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
