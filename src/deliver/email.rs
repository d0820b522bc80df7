//! Sends email over SMTP with TLS, as plain text and HTML.
//!
//! All messages about an alert share one thread: the first one's message id is derived from the alert's id, and later
//! ones reply to it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message as Mail, Tokio1Executor,
    message::{Mailbox, MultiPart},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use super::{
    Destination, Message, OpenError, SendOutcome, Sending,
    message::{SHOWN, digest_line, fields, headline, more, plain_text},
};
use crate::{
    config::{
        secret::{Secret, SecretOrigin},
        settings::TableReader,
    },
    http,
    model::{alert::Notice, text::clipped, time::Clock},
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// How the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// TLS from the first byte, usually on port 465.
    Implicit,
    /// TLS after `STARTTLS`, usually on port 587. Required: without it the connection fails.
    StartTls,
    /// Unencrypted, to a loopback address only.
    None,
}

/// Settings of email (`kind = "email"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Host name of the SMTP server. Required.
    pub host: String,
    /// Port of the SMTP server. Default: 465 for `implicit`, 587 for `starttls`, 25 for `none`.
    pub port: u16,
    /// - `tls`: How the connection is encrypted: `implicit`, `starttls`, or `none` (loopback only). Default: `implicit`.
    pub encryption: Encryption,
    /// - `username`: User name for the server. Default: no login.
    /// - `password`: Password of the user, as a secret: `{ env = "NAME" }` or `{ file = "PATH" }`.
    pub login: Option<(String, SecretOrigin)>,
    /// Sender address. Required.
    pub from: Mailbox,
    /// Recipient addresses; at least one. Required.
    pub to: Vec<Mailbox>,
    /// PEM file of certificates to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let host = table.required_text("host", "\"smtp.example.com\"").map(str::to_owned);
        let encryption = table.parsed("tls", |text| match text {
            "implicit" => Ok(Encryption::Implicit),
            "starttls" => Ok(Encryption::StartTls),
            "none" => Ok(Encryption::None),
            other => Err(format!("expected `implicit`, `starttls` or `none`, found `{other}`")),
        });
        let encryption = encryption.unwrap_or(Encryption::Implicit);
        if let (Encryption::None, Some(host)) = (encryption, &host)
            && !http::is_loopback_host(host)
        {
            table.problem("tls", "`tls` may be `none` only for a loopback host: mail would be sent unencrypted", None);
        }
        let usual = match encryption {
            Encryption::Implicit => 465,
            Encryption::StartTls => 587,
            Encryption::None => 25,
        };
        let port = table.number("port", 1..=65_535).and_then(|port| u16::try_from(port).ok()).unwrap_or(usual);
        let username = table.text("username").map(str::to_owned);
        let password = table.optional_secret("password", base);
        let login = match (username, password) {
            (Some(username), Some(password)) => Some((username, password)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                table.problem("username", "`username` and `password` must be set together", None);
                None
            }
        };
        let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|_| format!("`{text}` is not an email address"));
        table.required_text("from", "\"watchbell@example.com\"");
        let from = table.has("from").then(|| table.parsed("from", mailbox)).flatten();
        let to = table.texts("to", mailbox).unwrap_or_default();
        if to.is_empty() {
            table.problem("to", "`to` has no recipients", Some("add `to = [\"security@example.com\"]`".to_owned()));
        }
        let ca_file = table.text("ca_file").map(|file| base.join(file));
        Some(Self { host: host?, port, encryption, login, from: from?, to, ca_file })
    }

    pub(super) fn open(&self, clock: &Clock) -> Result<Email, OpenError> {
        let email = Email { settings: self.clone(), clock: clock.clone() };
        email.transport()?;
        Ok(email)
    }
}

#[derive(Debug)]
pub(super) struct Email {
    settings: Settings,
    clock: Clock,
}

impl Email {
    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>, OpenError> {
        let settings = &self.settings;
        let unusable = |error: lettre::transport::smtp::Error| OpenError::Unusable(error.to_string());
        let parameters = || -> Result<TlsParameters, OpenError> {
            let mut builder = TlsParameters::builder(settings.host.clone());
            if let Some(file) = &settings.ca_file {
                let bytes = std::fs::read(file)
                    .map_err(|error| OpenError::Unusable(format!("cannot read `{}`: {error}", file.display())))?;
                builder = builder.add_root_certificate(Certificate::from_pem(&bytes).map_err(unusable)?);
            }
            builder.build_rustls().map_err(unusable)
        };
        let tls = match settings.encryption {
            Encryption::Implicit => Tls::Wrapper(parameters()?),
            Encryption::StartTls => Tls::Required(parameters()?),
            Encryption::None => Tls::None,
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&settings.host)
            .port(settings.port)
            .tls(tls)
            .timeout(Some(TIMEOUT));
        if let Some((username, password)) = &settings.login {
            let password = Secret::load_text(password)?;
            builder = builder.credentials(Credentials::new(username.clone(), password.expose().to_owned()));
        }
        Ok(builder.build())
    }

    fn mail(&self, message: &Message) -> Result<Mail, String> {
        let settings = &self.settings;
        let mut builder = Mail::builder()
            .from(settings.from.clone())
            .subject(clipped(&headline(message), 200))
            .date(SystemTime::from(self.clock.now()));
        for receiver in &settings.to {
            builder = builder.to(receiver.clone());
        }
        let id = |name: &str| format!("<{name}@watchbell.invalid>");
        builder = match message.single() {
            Some((Notice::Opened, alert)) => builder.message_id(Some(id(&alert.id.to_string()))),
            Some((_, alert)) => {
                let first = id(&alert.id.to_string());
                builder.message_id(Some(id(&message.key()))).in_reply_to(first.clone()).references(first)
            }
            None => builder.message_id(Some(id(&message.key()))),
        };
        builder
            .multipart(MultiPart::alternative_plain_html(plain_text(message), html(message)))
            .map_err(|error| error.to_string())
    }
}

impl Destination for Email {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move {
            let transport = match self.transport() {
                Ok(transport) => transport,
                Err(error) => return SendOutcome::retry(error.to_string()),
            };
            let mail = match self.mail(message) {
                Ok(mail) => mail,
                Err(error) => return SendOutcome::Refused(format!("cannot compose the email: {error}")),
            };
            // The transport's own timeout applies to each command.
            match tokio::time::timeout(2 * TIMEOUT, transport.send(mail)).await {
                Ok(Ok(response)) => {
                    let words: Vec<&str> = response.message().collect();
                    SendOutcome::delivered(format!("{} {}", response.code(), words.join(" ")))
                }
                Ok(Err(error)) => self.failed(&error),
                Err(_) => SendOutcome::retry(format!("{}: no response in time", self.settings.host)),
            }
        })
    }
}

impl Email {
    fn failed(&self, error: &lettre::transport::smtp::Error) -> SendOutcome {
        let causes: Vec<String> = std::iter::successors(std::error::Error::source(error), |cause| cause.source())
            .map(ToString::to_string)
            .collect();
        let cause = causes.last().map_or_else(String::new, |cause| format!(" ({cause})"));
        let reason = crate::model::text::printable(&format!("{}: {error}{cause}", self.settings.host));
        // The mail itself was rejected. Everything else, including wrong addresses and passwords, can be fixed.
        match error.status().map(|code| code.to_string()).as_deref() {
            Some("552" | "554") => SendOutcome::Refused(reason),
            _ => SendOutcome::retry(reason),
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn html(message: &Message) -> String {
    let mut body = format!("<h3>{}</h3>\n", escaped(&headline(message)));
    match message {
        Message::Alert { notice, alert, .. } => {
            body.push_str("<table cellpadding=\"4\">\n");
            for (name, value) in fields(alert, *notice) {
                body.push_str(&format!(
                    "<tr><td valign=\"top\"><b>{name}</b></td><td>{}</td></tr>\n",
                    value
                        .lines()
                        .map(|line| escaped(&crate::model::text::printable(line)))
                        .collect::<Vec<_>>()
                        .join("<br>")
                ));
            }
            body.push_str("</table>\n");
        }
        Message::Digest { alerts, .. } => {
            body.push_str("<ul>\n");
            for alert in alerts.iter().take(SHOWN) {
                body.push_str(&format!("<li>{}</li>\n", escaped(&digest_line(alert))));
            }
            body.push_str("</ul>\n");
            body.push_str(&escaped(&more(alerts.len())));
        }
    }
    format!("<html><body>\n{body}</body></html>\n")
}
