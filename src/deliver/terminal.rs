//! Writes alerts to the terminal: a few lines per alert, with colors if the terminal supports them, or JSON Lines.

use std::{
    fmt::Write as _,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use anstyle::{AnsiColor, Style};

use super::{Destination, Message, SendOutcome, Sending, message};
use crate::model::alert::{Alert, Notice, Severity};

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TerminalFormat {
    /// Readable text.
    #[default]
    Human,
    /// JSON Lines, one message per line.
    Json,
}

/// A destination that writes to a terminal. Clones share the output.
#[derive(Clone)]
pub struct Terminal {
    output: Arc<Mutex<Box<dyn Write + Send>>>,
    format: TerminalFormat,
    width: Option<usize>,
}

impl Terminal {
    /// Creates a terminal that writes to `output`, which must strip styles where they are not supported.
    pub fn new(output: Box<dyn Write + Send>, format: TerminalFormat) -> Self {
        Self { output: Arc::new(Mutex::new(output)), format, width: None }
    }

    /// Wraps lines at `width` columns.
    #[must_use]
    pub fn with_width(self, width: Option<usize>) -> Self {
        Self { width, ..self }
    }

    fn write(&self, message: &Message) -> std::io::Result<()> {
        let text = match self.format {
            TerminalFormat::Human => render(message, self.width),
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
                // A broken pipe counts as delivered: the reader is gone (`watchbell run | head`).
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => SendOutcome::retry(error.to_string()),
                _ => SendOutcome::delivered("written"),
            }
        })
    }
}

/// Formats a message as styled text, wrapped at `width` columns if given.
pub fn render(message: &Message, width: Option<usize>) -> String {
    let mut text = String::new();
    match message {
        Message::Alert { notice, alert, .. } => block(&mut text, *notice, alert, width),
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

/// Columns before the value of a field.
const INDENT: usize = 12;

fn block(text: &mut String, notice: Notice, alert: &Alert, width: Option<usize>) {
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
    let title = wrapped(&crate::model::text::printable(&alert.title), width, INDENT);
    writeln!(text, "{style}● {word:<8}{style:#}  {bold}{title}{bold:#}").ok();
    for (name, value) in message::fields(alert, notice) {
        for (number, line) in value.lines().enumerate() {
            let name = if number == 0 { name } else { "" };
            // Wrapped lines of a numbered step are aligned with its text, not with its number.
            let step = line.find(|character: char| !character.is_ascii_digit()).filter(|at| *at > 0);
            let step =
                step.filter(|at| line.get(*at..).is_some_and(|rest| rest.starts_with(". "))).map_or(0, |at| at + 2);
            let line = wrapped(&crate::model::text::printable(line), width, INDENT + step);
            writeln!(text, "  {dim}{name:<8}{dim:#}  {line}").ok();
        }
    }
    text.push('\n');
}

/// Wraps text between words at `width` columns. The text starts at column `indent`, and following lines are indented to
/// it. Words longer than a line are not broken, so that URLs and commands can be copied.
pub fn wrapped(text: &str, width: Option<usize>, indent: usize) -> String {
    let Some(room) = width.and_then(|width| width.checked_sub(indent)).filter(|room| *room >= 20) else {
        return text.to_owned();
    };
    let mut result = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > room {
            result.push('\n');
            result.extend(std::iter::repeat_n(' ', indent));
            used = 0;
        } else if used > 0 {
            result.push(' ');
            used += 1;
        }
        result.push_str(word);
        used += length;
    }
    result
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
    // Alerts consist of strings, numbers and times, which can always be serialized.
    let mut line = crate::model::text::to_json(message).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn text_is_wrapped_between_words_and_indented() {
        let text = "Look at `watchbell events list` and call the administrator";
        assert_eq!(wrapped(text, None, 4), text);
        assert_eq!(wrapped(text, Some(30), 4), "Look at `watchbell events\n    list` and call the\n    administrator");
        // A word longer than a line is not broken.
        let long = "x".repeat(50);
        assert_eq!(wrapped(&format!("see {long} there"), Some(34), 4), format!("see\n    {long}\n    there"));
        // Too narrow to be useful: left to the terminal.
        assert_eq!(wrapped(text, Some(20), 12), text);
    }
}
