//! Output: data goes to stdout, everything else to stderr. Colour is used only on a terminal.

use std::{
    io::{IsTerminal, Write},
    path::Path,
};

use annotate_snippets::{AnnotationKind, Group, Level as SnippetLevel, Renderer, Snippet};
use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;
use watchbell::{
    config::diagnostic::{Diagnostic, Level},
    model::{
        alert::Severity,
        text::{escaped, is_unsafe, json_escaped, to_json},
        time::Timestamp,
    },
};

use super::Format;

/// Prints the results and messages of verbs.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// The width of the terminal on stdout; `None` if stdout is not a terminal.
    pub(super) fn width(&self) -> Option<usize> {
        terminal_width()
    }

    /// Prints a line of data.
    pub(super) fn line(&self, text: &str) -> std::io::Result<()> {
        writeln!(anstream::stdout(), "{text}")
    }

    /// Prints text without a line break.
    pub(super) fn raw(&self, text: &str) -> std::io::Result<()> {
        let mut stdout = anstream::stdout();
        write!(stdout, "{text}")?;
        stdout.flush()
    }

    /// Prints a line that is not data.
    pub(super) fn note(&self, text: &str) {
        // Ignored: if stderr is closed, there is nowhere to report it.
        writeln!(anstream::stderr(), "{text}").ok();
    }

    pub(super) fn error(&self, text: &str, hint: Option<&str>) {
        let red = AnsiColor::Red.on_default().bold();
        self.note(&format!("{red}error{red:#}: {text}"));
        if let Some(hint) = hint {
            let bold = Style::new().bold();
            self.note(&format!("\n{bold}hint{bold:#}: {hint}"));
        }
    }

    pub(super) fn warning(&self, text: &str) {
        let yellow = AnsiColor::Yellow.on_default().bold();
        self.note(&format!("{yellow}warning{yellow:#}: {text}"));
    }

    /// Prints a JSON document.
    pub(super) fn json<T: Serialize + ?Sized>(&self, value: &T) -> std::io::Result<()> {
        let json = serde_json::to_string_pretty(value)?;
        writeln!(std::io::stdout().lock(), "{}", json_escaped(&json))
    }

    /// Prints a JSON object on one line.
    pub(super) fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> std::io::Result<()> {
        let json = to_json(value)?;
        writeln!(std::io::stdout().lock(), "{json}")
    }

    /// Prints a table. Columns shrink to the terminal's width.
    pub(super) fn table(&self, header: &[&str], rows: Vec<Vec<String>>) -> std::io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // Below this width, words broken in the middle are harder to read than lines that the terminal wraps.
        if std::io::stdout().is_terminal() && table.width().is_some_and(|width| width >= 80) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        table.set_header(header.iter().map(|name| Cell::new(name.to_uppercase())));
        for row in rows {
            table.add_row(row.iter().map(|cell| Cell::new(printable(cell))));
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Prints problems in users' files, each with its line and a caret; as JSON, one object per line.
    pub(super) fn diagnostics(&self, diagnostics: &[Diagnostic]) {
        for diagnostic in diagnostics {
            if self.format == Format::Json {
                let line = to_json(diagnostic).unwrap_or_default();
                self.note(&line);
            } else {
                self.note(&draw(diagnostic));
            }
        }
    }
}

/// The width of the terminal on stdout; `None` if stdout is not a terminal, or a very narrow one.
pub(super) fn terminal_width() -> Option<usize> {
    let width = std::io::stdout().is_terminal().then(|| Table::new().width()).flatten();
    width.map(usize::from).filter(|width| *width >= NARROWEST)
}

/// Below this width, the terminal's own wrapping is easier to read than ours.
const NARROWEST: usize = 40;

/// Renders a diagnostic for the terminal.
fn draw(diagnostic: &Diagnostic) -> String {
    let level = match diagnostic.level {
        Level::Error => SnippetLevel::ERROR,
        Level::Warning => SnippetLevel::WARNING,
    };
    let message = printable_lines(&diagnostic.message);
    let title = level.primary_title(message.as_str()).id(diagnostic.code);
    let path = escaped(&diagnostic.file.display().to_string());
    let help = diagnostic.help.as_deref().map(printable_lines);
    let text = masked(&diagnostic.text);
    let mut group = match &diagnostic.span {
        Some(span) => {
            let annotation = AnnotationKind::Primary.span(span.clone());
            let annotation =
                if diagnostic.label.is_empty() { annotation } else { annotation.label(diagnostic.label.as_str()) };
            title.element(Snippet::source(text.as_str()).path(path.as_str()).annotation(annotation))
        }
        None => Group::with_title(title).element(annotate_snippets::Origin::path(path.as_str())),
    };
    if let Some(help) = &help {
        group = group.element(SnippetLevel::HELP.message(help.as_str()));
    }
    let renderer = if std::io::stderr().is_terminal() { Renderer::styled() } else { Renderer::plain() };
    format!("{}\n", renderer.render(&[group]))
}

/// A file's text with a question mark for each byte of an unsafe character, so that offsets stay valid.
fn masked(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) && !matches!(character, '\n' | '\r' | '\t') {
            masked.extend(std::iter::repeat_n('?', character.len_utf8()));
        } else {
            masked.push(character);
        }
    }
    masked
}

/// Escapes characters that a terminal would act on, except for line breaks.
fn printable_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

/// Diagnostics as GitHub Actions annotations.
pub(super) fn annotations(diagnostics: &[Diagnostic]) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        let level = if diagnostic.level == Level::Error { "error" } else { "warning" };
        let help = diagnostic.help.as_ref().map_or_else(String::new, |help| format!("\n{help}"));
        let message = format!("{}{help}", diagnostic.message);
        text.push_str(&annotation(level, &diagnostic.file, diagnostic.line, diagnostic.code, &message));
    }
    text
}

/// A GitHub Actions annotation.
pub(super) fn annotation(level: &str, file: &Path, line: Option<usize>, title: &str, message: &str) -> String {
    // The same escapes as in GitHub's own toolkit.
    let data = |text: &str| printable_lines(text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let line = line.map_or_else(String::new, |line| format!(",line={line}"));
    let file = property(&escaped(&file.display().to_string()));
    format!("::{level} file={file}{line},title={}::{}\n", property(title), data(message))
}

/// A severity in a table.
pub(super) fn severity(severity: Severity) -> String {
    severity.as_str().to_owned()
}

/// A time in a table.
pub(super) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long ago, or `never`.
pub(super) fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(
        || "never".to_owned(),
        |time| format!("{} ago", watchbell::model::time::show_duration(watchbell::model::time::since(now, time))),
    )
}

/// `512 KiB`, `17 MiB`.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes.div_ceil(1024)) } else { format!("{} MiB", bytes >> 20) }
}

/// `1 event`, `2 events`.
pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Escapes text for XML and HTML, in elements and in quoted attributes.
pub(super) fn xml(text: &str) -> String {
    let plain: String = text.chars().filter(|character| !is_unsafe(*character) || *character == '\n').collect();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Escapes text from events, so that a terminal does not act on it.
pub(super) fn printable(text: &str) -> String {
    watchbell::model::text::printable(text)
}
