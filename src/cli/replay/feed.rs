//! Where the events of a replay come from, and how far it has come.

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

/// Where events come from.
pub(in crate::cli) enum Feed {
    Stored(Client, u64),
    File(Vec<Event>),
}

impl Feed {
    /// The stored events; `run` is told what happened beside them.
    pub(in crate::cli) fn stored(config: Option<&Config>, run: &mut Run) -> Result<Self, CliError> {
        let config =
            config.ok_or_else(|| CliError::Usage("there is no configuration that names a store".to_owned()))?;
        if !config.data_dir.join("store").exists() {
            return Err(CliError::Usage("there are no stored events yet: `--events FILE` replays a file".to_owned()));
        }
        let client = Client::open(config, &Clock::system())?;
        // Only for the progress bar: a damaged block keeps it from being known, and the rest is replayed all the same.
        let totals: Option<answer::EventTotals> = client.one(request::EventTotals {}).ok().flatten();
        run.changes = client.all(request::HandledChanges {})?;
        let passes: Vec<LoggedWatermark> = client.all(request::Watermarks {})?;
        run.watermarks = passes;
        Ok(Self::Stored(client, totals.map_or(0, |totals| totals.events)))
    }

    /// The events of files, as if they were of one source.
    pub(in crate::cli) fn files(
        paths: &[PathBuf],
        source: Option<SourceName>,
        context: &Context,
        now: Timestamp,
    ) -> Result<Self, CliError> {
        let mut events = Vec::new();
        for path in paths {
            let found = file::read(path)
                .map_err(|error| CliError::Usage(format!("`{}` cannot be read: {error}", path.display())))?;
            if let Some(reason) = &found.broken {
                context
                    .output
                    .warning(&format!("`{}` has parts that cannot be read and are left out: {reason}", path.display()));
                if found.events.is_empty() {
                    return Err(CliError::Usage(format!("`{}` holds no events", path.display())));
                }
            }
            if !found.rejected.is_empty() {
                let first = found.rejected.first().map_or("", |entry| entry.reason.as_str());
                context.output.warning(&format!(
                    "`{}`: {} left out, the first: {first}",
                    path.display(),
                    output::count(found.rejected.len() as u64, "entry that is no event")
                ));
            }
            events.extend(found.events);
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

    /// Hands on all events; `false` ends it.
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

/// Lets the replay end at the first Ctrl-C, and the program at the second.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the second Ctrl-C is the way out of whatever hangs")]
pub(super) fn on_interrupt(told: &ReplayProgress) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    runtime.block_on(async {
        let mut pressed = false;
        while !told.is_done() {
            tokio::select! {
                result = tokio::signal::ctrl_c() => {
                    if result.is_err() {
                        return;
                    }
                    if pressed {
                        std::process::exit(130);
                    }
                    pressed = true;
                    told.stop();
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    });
}

/// A progress bar where there is a terminal to show it.
pub(in crate::cli) fn progress(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:32} {human_pos} of {human_len} events, {rate} events/s, {eta} left");
    if let Ok(style) = style {
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            // A line that cannot be drawn is nobody's loss.
            write!(text, "{:.0}", state.per_sec()).ok();
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}
