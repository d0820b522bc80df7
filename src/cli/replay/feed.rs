//! The events of a replay, and its progress bar.

use std::{fmt::Write, io::IsTerminal, path::PathBuf, time::Duration};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use watchbell::{
    api::{Client, answer, request},
    config::Config,
    model::{
        event::Event,
        name::SourceName,
        outcome::LoggedWatermark,
        time::{Clock, Timestamp},
    },
    replay::{self, ReplayProgress, Run},
    source::file,
    store::Block,
};

use super::super::{CliError, Context, output};

pub(in crate::cli) enum Feed {
    Stored(Client, u64),
    File(Vec<Event>),
}

impl Feed {
    /// The stored events. Stored changes of alerts and watermarks are added to `run`.
    pub(in crate::cli) fn stored(config: Option<&Config>, run: &mut Run) -> Result<Self, CliError> {
        let config = config.ok_or_else(|| CliError::Usage("no configuration, so the store is unknown".to_owned()))?;
        if !config.data_dir.join("store").exists() {
            return Err(CliError::Usage("no stored events; use `--events FILE` to read a file".to_owned()));
        }
        let client = Client::open(config, &Clock::system())?;
        // Only for the progress bar: a damaged block makes the total unknown, but the rest can still be replayed.
        let totals: Option<answer::EventTotals> = client.one(request::EventTotals {}).ok().flatten();
        run.changes = client.all(request::HandledChanges {})?;
        let passes: Vec<LoggedWatermark> = client.all(request::Watermarks {})?;
        run.watermarks = passes;
        Ok(Self::Stored(client, totals.map_or(0, |totals| totals.events)))
    }

    /// The events of files, as events of one source.
    pub(in crate::cli) fn files(
        paths: &[PathBuf],
        source: Option<SourceName>,
        context: &Context,
        now: Timestamp,
    ) -> Result<Self, CliError> {
        let mut events = Vec::new();
        for path in paths {
            let contents = file::read(path)
                .map_err(|error| CliError::Usage(format!("cannot read `{}`: {error}", path.display())))?;
            if let Some(reason) = &contents.broken {
                context.output.warning(&format!("skipping unreadable parts of `{}`: {reason}", path.display()));
                if contents.events.is_empty() {
                    return Err(CliError::Usage(format!("no events in `{}`", path.display())));
                }
            }
            if !contents.rejected.is_empty() {
                let first = contents.rejected.first().map_or("", |entry| entry.reason.as_str());
                context.output.warning(&format!(
                    "skipping {} in `{}`; the first: {first}",
                    output::count(contents.rejected.len() as u64, "invalid event"),
                    path.display()
                ));
            }
            events.extend(contents.events);
        }
        let source = match source {
            Some(source) => source,
            None => SourceName::parse("file").map_err(|error| CliError::Usage(error.to_string()))?,
        };
        Ok(Self::File(replay::file_events(events, &source, now).collect()))
    }

    pub(super) fn events(&self) -> u64 {
        match self {
            Self::Stored(_, events) => *events,
            Self::File(events) => events.len() as u64,
        }
    }

    /// Passes on all events, in blocks, until `each` returns false.
    pub(in crate::cli) fn send(self, mut each: impl FnMut(Block) -> bool) -> Result<(), CliError> {
        match self {
            Self::Stored(client, _) => Ok(client.blocks(each)?),
            Self::File(mut events) => {
                while !events.is_empty() {
                    let rest = events.split_off(events.len().min(500));
                    if !each(Block::of(std::mem::replace(&mut events, rest))) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Ends the replay on the first Ctrl-C, and the program on the second.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the second Ctrl-C must end a program that hangs")]
pub(super) fn on_interrupt(state: &ReplayProgress) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    runtime.block_on(async {
        let mut pressed = false;
        while !state.is_done() {
            tokio::select! {
                result = tokio::signal::ctrl_c() => {
                    if result.is_err() {
                        return;
                    }
                    if pressed {
                        std::process::exit(130);
                    }
                    pressed = true;
                    state.stop();
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    });
}

/// A progress bar, hidden if stderr is not a terminal.
pub(in crate::cli) fn progress(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:32} {human_pos} of {human_len} events, {rate} events/s, {eta} left");
    if let Ok(style) = style {
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            // Errors of drawing are ignored.
            write!(text, "{:.0}", state.per_sec()).ok();
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}
