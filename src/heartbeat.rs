//! The heartbeat: regular GET requests to a monitor that raises an alarm when they stop.

use std::{path::Path, time::Duration};

use secrecy::ExposeSecret;

use crate::{
    config::{secret::SecretOrText, settings::TableReader},
    http,
};

/// `[heartbeat]`: GET requests as long as the agent is healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// URL to request: `https`, or `http` on a loopback address. A string, or a secret if the service requires it.
    /// Required.
    pub url: SecretOrText,
    /// Interval between heartbeats, from `1s` to `1d`. Default: `5m`.
    pub every: Duration,
}

impl Heartbeat {
    pub(crate) fn read(mut table: TableReader<'_>, base: &Path) -> Option<Self> {
        let url = table.text_or_secret("url", base);
        if let Some(SecretOrText::Text(text)) = &url
            && let Err(error) = http::parse_url(text)
        {
            table.problem("url", error, None);
        }
        let every = table.duration("every", Duration::from_secs(1)..=Duration::from_secs(86_400));
        table.finish();
        Some(Self { url: url?, every: every.unwrap_or(Duration::from_secs(300)) })
    }

    /// Sends one heartbeat. The error message never contains the URL.
    pub async fn send(&self) -> Result<(), String> {
        let text = self.url.load().map_err(|error| error.to_string())?;
        let url = http::parse_url(text.expose_secret().trim())?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let client = http::client(&url, Duration::from_secs(10), Duration::from_secs(20), None)?;
        let response = client.get(url).send().await.map_err(|error| format!("{host}: {}", http::failure(&error).1))?;
        match http::trouble(response.status()) {
            None => Ok(()),
            Some(_) => Err(format!("{host} answered {}", response.status())),
        }
    }
}
