//! Syslog by RFC 5424, with the alert as JSON in the message: over UDP (one datagram each), TCP or TLS (octet counting, RFC 6587
//! and RFC 5425). Syslog does not answer: over UDP a loss goes unnoticed, over TCP and TLS a connection that breaks does not.

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
/// How long a server may take to close after all has been sent.
const CLOSING: Duration = Duration::from_secs(2);
/// The most that fits into a datagram.
const DATAGRAM: usize = 65_000;

/// What carries messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// A connection.
    Tcp,
    /// An encrypted connection.
    Tls,
}

/// Where to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The server's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What carries messages.
    pub protocol: Protocol,
    /// The facility, 0 to 23.
    pub facility: u8,
    /// Native or OCSF.
    pub format: JsonFormat,
    /// Certificates that are accepted instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let host = table.required_text("host", "\"syslog.example.com\"").map(str::to_owned);
        let protocol = table.parsed("protocol", |text| match text {
            "udp" => Ok(Protocol::Udp),
            "tcp" => Ok(Protocol::Tcp),
            "tls" => Ok(Protocol::Tls),
            other => Err(format!("write `udp`, `tcp` or `tls`, not `{other}`")),
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
                    SendOutcome::retry(format!("{}:{}: not sent in time", self.settings.host, self.settings.port))
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
                    .ok_or_else(|| Error::other("the name has no address"))?;
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

/// Sends all lines, says that there are no more, and waits until the server has closed as well: what it had not read by then,
/// it has refused.
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
        // Servers need not close at once, and not all end TLS properly.
        _ => Ok(()),
    }
}

/// The messages as they are sent: one for each alert.
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
            // RFC 5424: version, time with at most six digits of a second, host, program, process, kind of message, data.
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

/// The message with what identifies its alerts, and no more; nothing if it has no more.
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
