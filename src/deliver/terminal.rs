//! The terminal: a few lines an alert, coloured where the terminal shows colours, or one JSON object a line.

use std::{
    fmt::Write as _,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use anstyle::{AnsiColor, Style};

use super::{Destination, Message, Sending, Verdict, message};
use crate::alert::{Alert, Notice, Severity};

/// How alerts look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TerminalFormat {
    /// For people.
    #[default]
    Human,
    /// One object a line.
    Json,
}

/// Writes alerts to the terminal it is given. Clones write to the same.
#[derive(Clone)]
pub struct Terminal {
    output: Arc<Mutex<Box<dyn Write + Send>>>,
    format: TerminalFormat,
}

impl Terminal {
    /// A terminal that is written to through `output`, which strips styles where they do not belong.
    pub fn new(output: Box<dyn Write + Send>, format: TerminalFormat) -> Self {
        Self { output: Arc::new(Mutex::new(output)), format }
    }

    fn write(&self, message: &Message) -> std::io::Result<()> {
        let text = match self.format {
            TerminalFormat::Human => render(message),
            TerminalFormat::Json => json(message),
        };
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(text.as_bytes())?;
        output.flush()
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Terminal({:?})", self.format)
    }
}

impl Destination for Terminal {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move {
            match self.write(message) {
                // Nobody reads the terminal any more (`watchbell run | head`): there is nobody to deliver to.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Verdict::retry(error.to_string()),
                _ => Verdict::delivered("written"),
            }
        })
    }
}

/// A message as people read it, with styles.
pub fn render(message: &Message) -> String {
    let mut text = String::new();
    match message {
        Message::Alert { notice, alert, .. } => block(&mut text, *notice, alert),
        Message::Digest { alerts, .. } => {
            let bold = Style::new().bold();
            writeln!(text, "{bold}{}{bold:#}", message::headline(message)).ok();
            for alert in alerts.iter().take(message::SHOWN) {
                let style = style(alert.severity);
                writeln!(text, "  {style}{}{style:#}", message::digest_line(alert)).ok();
            }
            let more = message::more(alerts.len());
            if !more.is_empty() {
                write!(text, "  {more}").ok();
            }
            text.push('\n');
        }
    }
    text
}

fn block(text: &mut String, notice: Notice, alert: &Alert) {
    let bold = Style::new().bold();
    let dim = Style::new().dimmed();
    let (word, style) = match notice {
        Notice::Opened => (alert.severity.as_str().to_uppercase(), style(alert.severity)),
        Notice::Escalated => (format!("{} (raised)", alert.severity.as_str().to_uppercase()), style(alert.severity)),
        Notice::Resolved => ("RESOLVED".to_owned(), AnsiColor::Green.on_default().bold()),
        Notice::Acknowledged | Notice::Reopened | Notice::Commented | Notice::Grew => {
            (notice.as_str().to_uppercase(), AnsiColor::Cyan.on_default().bold())
        }
    };
    // Writing to a String cannot fail.
    writeln!(text, "{style}● {word:<8}{style:#}  {bold}{}{bold:#}", message::printable(&alert.title)).ok();
    for (name, value) in message::fields(alert, notice) {
        for (number, line) in value.lines().enumerate() {
            let name = if number == 0 { name } else { "" };
            writeln!(text, "  {dim}{name:<8}{dim:#}  {}", message::printable(line)).ok();
        }
    }
    text.push('\n');
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Critical => AnsiColor::White.on(AnsiColor::Red).bold(),
        Severity::High => AnsiColor::Red.on_default().bold(),
        Severity::Medium => AnsiColor::Yellow.on_default().bold(),
        Severity::Low => AnsiColor::Cyan.on_default(),
        Severity::Info => AnsiColor::Blue.on_default(),
    }
}

fn json(message: &Message) -> String {
    // An alert is made of texts, numbers and times, which always have a JSON form.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}
