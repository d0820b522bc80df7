//! Sends alerts as RFC 5424 syslog messages with JSON content: over UDP (one datagram each), TCP or TLS (octet
//! counting, RFC 6587 and RFC 5425).
//!
//! Syslog has no responses. Over UDP, a lost message goes unnoticed; over TCP and TLS, a broken connection does not.

use std::{
    io::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use super::{Destination, JsonFormat, Message, OpenError, SendOutcome, Sending, json, json_format, tls};
use crate::{
    config::settings::TableReader,
    model::{
        alert::{Alert, Severity},
        bound::bounded,
        text::clipped,
        time::{Clock, Timestamp},
    },
};

const TIMEOUT: Duration = Duration::from_secs(15);
/// How long to wait for the server to close the connection after everything has been sent.
const CLOSING: Duration = Duration::from_secs(2);
/// Maximum size of a datagram in bytes.
const DATAGRAM: usize = 65_000;

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
    Tls,
}

/// Settings of a syslog server (`kind = "syslog"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Host name or address of the server. Required.
    pub host: String,
    /// Port of the server. Default: 6514 for `tls`, 514 for `udp` and `tcp`.
    pub port: u16,
    /// Transport: `tls`, `tcp` or `udp`. Default: `tls`.
    pub protocol: Protocol,
    /// Syslog facility, from 0 to 23. Default: 16 (`local0`).
    pub facility: u8,
    /// JSON format of the messages: `native` or `ocsf`. Default: `native`.
    pub format: JsonFormat,
    /// PEM file of certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let host = table.required_text("host", "\"syslog.example.com\"").map(str::to_owned);
        let protocol = table.parsed("protocol", |text| match text {
            "udp" => Ok(Protocol::Udp),
            "tcp" => Ok(Protocol::Tcp),
            "tls" => Ok(Protocol::Tls),
            other => Err(format!("expected `udp`, `tcp` or `tls`, found `{other}`")),
        });
        let protocol = protocol.unwrap_or(Protocol::Tls);
        let usual = match protocol {
            Protocol::Udp | Protocol::Tcp => 514,
            Protocol::Tls => 6514,
        };
        let port = table.number("port", 1..=65_535).and_then(|port| u16::try_from(port).ok()).unwrap_or(usual);
        let facility = table.number("facility", 0..=23).and_then(|number| u8::try_from(number).ok()).unwrap_or(16);
        let format = json_format(table);
        let ca_file = table.text("ca_file").map(|file| base.join(file));
        Some(Self { host: host?, port, protocol, facility, format, ca_file })
    }

    pub(super) fn open(&self, clock: &Clock) -> Result<Syslog, OpenError> {
        if self.protocol == Protocol::Tls {
            tls::connector(self.ca_file.as_deref()).map_err(OpenError::Unusable)?;
        }
        Ok(Syslog { settings: self.clone(), clock: clock.clone() })
    }
}

#[derive(Debug)]
pub(super) struct Syslog {
    settings: Settings,
    clock: Clock,
}

impl Destination for Syslog {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move {
            let lines = match lines(&self.settings, message, self.clock.now()) {
                Ok(lines) => lines,
                Err(error) => return SendOutcome::Refused(error),
            };
            match tokio::time::timeout(TIMEOUT, self.write(&lines)).await {
                Ok(Ok(())) => SendOutcome::delivered("sent"),
                Ok(Err(error)) => SendOutcome::retry(format!("{}:{}: {error}", self.settings.host, self.settings.port)),
                Err(_) => {
                    SendOutcome::retry(format!("{}:{}: sending timed out", self.settings.host, self.settings.port))
                }
            }
        })
    }
}

impl Syslog {
    async fn write(&self, lines: &[String]) -> std::io::Result<()> {
        let settings = &self.settings;
        let address = (settings.host.as_str(), settings.port);
        match settings.protocol {
            Protocol::Udp => {
                let server = tokio::net::lookup_host(address)
                    .await?
                    .next()
                    .ok_or_else(|| Error::other("the host name has no address"))?;
                let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(server).await?;
                for line in lines {
                    socket.send(line.as_bytes()).await?;
                }
                Ok(())
            }
            Protocol::Tcp => send_all(TcpStream::connect(address).await?, lines).await,
            Protocol::Tls => {
                let connector = tls::connector(settings.ca_file.as_deref()).map_err(Error::other)?;
                let name = ServerName::try_from(settings.host.clone()).map_err(Error::other)?;
                let stream = TcpStream::connect(address).await?;
                send_all(connector.connect(name, stream).await?, lines).await
            }
        }
    }
}

/// Sends all lines, shuts down the writing side, and waits until the server closes the connection. A reset means that
/// the server did not read everything.
async fn send_all(mut stream: impl AsyncRead + AsyncWrite + Unpin, lines: &[String]) -> std::io::Result<()> {
    for line in lines {
        stream.write_all(format!("{} {line}", line.len()).as_bytes()).await?;
    }
    stream.flush().await?;
    stream.shutdown().await?;
    let mut rest = [0; 64];
    let closed = async {
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, Error>(())
    };
    match tokio::time::timeout(CLOSING, closed).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Err(error),
        // Servers may close later, and not all of them end TLS properly.
        _ => Ok(()),
    }
}

/// Formats the syslog messages, one per alert.
fn lines(settings: &Settings, message: &Message, now: Timestamp) -> Result<Vec<String>, String> {
    let single;
    let messages: &[Message] = match (message, settings.format) {
        (Message::Digest { alerts, .. }, JsonFormat::Native) => {
            single = alerts
                .iter()
                .map(|alert| Message::alert(crate::model::alert::Notice::Opened, alert.clone()))
                .collect::<Vec<_>>();
            &single
        }
        _ => std::slice::from_ref(message),
    };
    let mut made = Vec::new();
    for message in messages {
        for value in json(message, settings.format).map_err(|error| error.to_string())? {
            let priority = u16::from(settings.facility) * 8 + level(message.severity());
            let kind = message.single().map_or("digest", |(notice, _)| notice.as_str());
            // RFC 5424: version, time with at most 6 fractional digits, host, program, process, message id, data.
            let time = now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
            let line = format!(
                "<{priority}>1 {time} {} watchbell {} {kind} - \u{feff}{value}",
                clipped(&host_name(), 255),
                std::process::id()
            );
            if settings.protocol == Protocol::Udp && line.len() > DATAGRAM {
                if let Some(smaller) = without_details(message) {
                    return lines(settings, &smaller, now);
                }
                return Err(format!("{} bytes do not fit into a datagram: use `tcp` or `tls`", line.len()));
            }
            made.push(line);
        }
    }
    Ok(made)
}

/// Returns the message with only the identifying fields of its alerts; `None` if there is nothing to remove.
fn without_details(message: &Message) -> Option<Message> {
    let has_details = |alert: &Alert| {
        !alert.context.is_empty() || alert.description.is_some() || alert.runbook.is_some() || !alert.errors.is_empty()
    };
    let plain = |alert: &Alert| {
        let alert = Alert {
            context: serde_json::Map::new(),
            description: None,
            runbook: None,
            errors: Vec::new(),
            ..alert.clone()
        };
        bounded(alert)
    };
    let mut message = message.clone();
    let alerts = match &mut message {
        Message::Alert { alert, .. } => std::slice::from_mut(&mut **alert),
        Message::Digest { alerts, .. } => alerts.as_mut_slice(),
    };
    if !alerts.iter().any(has_details) {
        return None;
    }
    alerts.iter_mut().for_each(|alert| *alert = plain(alert));
    Some(message)
}

fn level(severity: Severity) -> u16 {
    match severity {
        Severity::Critical => 2,
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 5,
        Severity::Info => 6,
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain: String = name.chars().filter(char::is_ascii_graphic).collect();
    if plain.is_empty() { "-".to_owned() } else { plain }
}
