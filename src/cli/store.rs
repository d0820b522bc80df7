//! `watchbell store verify|backup|restore|compact|recover`: maintenance of the store.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::Engine as _;
use clap::{Args, Subcommand};
use watchbell::{
    api::{ClientError, answer, request},
    model::time::{self, Clock},
    store,
};

use super::{CliError, Context, output};

#[derive(Debug, Args)]
pub(super) struct StoreVerbs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read the whole store and check its consistency
    Verify,
    /// Write a consistent copy of the store to a file; the agent may be running
    Backup {
        /// File to write; must not exist yet
        file: PathBuf,
    },
    /// Restore the store from a backup; the agent must not be running
    Restore {
        /// Backup file
        file: PathBuf,
        /// Replace an existing store; the old one is kept under another name
        #[arg(long)]
        replace: bool,
    },
    /// Rewrite the store to free unused disk space; the agent must not be running
    Compact,
    /// Save the readable part of a damaged store to a new one, and keep the old one; the agent must not be running
    Recover,
}

/// How long Atlassian keeps the log.
const KEPT: Duration = Duration::from_secs(180 * 86_400);

impl StoreVerbs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        match self.verb {
            Verb::Verify => verify(context),
            Verb::Backup { file } => backup(context, &file),
            Verb::Restore { file, replace } => restore(context, &file, replace),
            Verb::Compact => compact(context),
            Verb::Recover => recover(context),
        }
    }
}

fn verify(context: &mut Context) -> Result<(), CliError> {
    let (_, client) = context.client()?;
    let Some(found) = client.one(request::Verify {})? else {
        return Err(CliError::Usage("the agent did not report a result".to_owned()));
    };
    let out = &context.output;
    if context.is_json() {
        out.json(&found)?;
    } else {
        out.line(&format!(
            "{} in {}, {} with {}, {}, {} pending, {} given up, {} of detection state",
            output::count(found.events, "event"),
            output::count(found.blocks, "block"),
            output::count(found.alerts, "alert"),
            if found.matches == 1 { "1 match".to_owned() } else { format!("{} matches", found.matches) },
            output::count(found.changes, "change"),
            found.pending,
            found.given_up,
            output::count(found.state, "piece"),
        ))?;
        for problem in &found.problems {
            out.line(&format!("FAILED   {}", output::printable(problem)))?;
        }
        if found.wrong == 0 {
            out.line("ok       the store is readable and consistent")?;
        }
    }
    match found.wrong {
        0 => Ok(()),
        wrong => Err(CliError::Findings(format!(
            "{} found in the store; `watchbell store recover` saves the readable part",
            output::count(wrong, "problem")
        ))),
    }
}

fn backup(context: &mut Context, file: &Path) -> Result<(), CliError> {
    let unwritable = |error: std::io::Error| CliError::Usage(format!("cannot write `{}`: {error}", file.display()));
    let (_, client) = context.client()?;
    if file.exists() {
        return Err(CliError::Usage(format!("`{}` already exists", file.display())));
    }
    // Under another name until it is complete.
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut target = super::private_file(&part)?;
    let mut bytes = 0_u64;
    let written = client.each(request::Backup {}, |piece: answer::BackupPart| {
        let piece = base64::engine::general_purpose::STANDARD
            .decode(piece.bytes)
            .map_err(|error| ClientError::Agent(error.to_string()))?;
        bytes += piece.len() as u64;
        Ok(target.write_all(&piece)?)
    });
    let finished = written.map_err(CliError::from).and_then(|()| {
        target.sync_all().map_err(unwritable)?;
        std::fs::rename(&part, file).map_err(unwritable)
    });
    if let Err(error) = finished {
        std::fs::remove_file(&part).ok();
        return Err(error);
    }
    if context.is_json() {
        return Ok(context.output.json(&serde_json::json!({ "file": file, "bytes": bytes }))?);
    }
    Ok(context.output.line(&format!("{} written to {}", output::size(bytes), file.display()))?)
}

fn restore(context: &mut Context, file: &Path, replace: bool) -> Result<(), CliError> {
    let config = context.config()?;
    let stamp = Clock::system().now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let restored = store::restore(file, &config.data_dir, replace, &stamp)?;
    if context.is_json() {
        return Ok(context.output.json(&restored)?);
    }
    context.output.line(&format!(
        "restored {} into {}",
        if restored.entries == 1 { "1 entry".to_owned() } else { format!("{} entries", restored.entries) },
        config.data_dir.display()
    ))?;
    if let Some(kept) = &restored.kept {
        context.output.line(&format!("the previous store is kept in {}", kept.display()))?;
    }
    Ok(())
}

fn compact(context: &mut Context) -> Result<(), CliError> {
    let config = context.existing_store()?;
    let compacted = store::compact(&config.data_dir)?;
    if context.is_json() {
        return Ok(context.output.json(&compacted)?);
    }
    Ok(context.output.line(&format!(
        "{} before, {} now",
        output::size(compacted.before),
        output::size(compacted.after)
    ))?)
}

fn recover(context: &mut Context) -> Result<(), CliError> {
    let config = context.existing_store()?;
    let now = Clock::system().now();
    let sources: Vec<_> = config.sources.iter().map(|source| source.name.clone()).collect();
    let kept_since = time::before(now, KEPT.min(config.retention));
    let recovered = store::recover(&config.data_dir, &sources, kept_since, now)?;
    let incomplete = if recovered.is_whole() {
        Ok(())
    } else {
        Err(CliError::Findings("not everything could be saved; the old store is kept unchanged".to_owned()))
    };
    if context.is_json() {
        context.output.json(&recovered)?;
        return incomplete;
    }
    let out = &context.output;
    out.line(&format!(
        "saved {} and {}; {} missing, {} unreadable",
        output::count(recovered.events, "event"),
        output::count(recovered.alerts, "alert"),
        if recovered.lost_events == 1 {
            "1 event is".to_owned()
        } else {
            format!("{} events are", recovered.lost_events)
        },
        output::count(recovered.unreadable, "record"),
    ))?;
    for (first, last) in recovered.missing.iter().take(20) {
        out.line(&format!("missing  events {first} to {last}"))?;
    }
    if recovered.missing.len() > 20 {
        out.line(&format!("missing  and {} more ranges of events", recovered.missing.len() - 20))?;
    }
    if recovered.searched {
        out.line("missing  past the damage, only events and alerts could be found: rule state, deliveries, silences and changes of alerts may be missing or outdated")?;
    }
    // Imported sources have no log to fetch.
    for (source, since) in recovered.fetched_again.iter().filter(|(source, _)| sources.contains(source)) {
        out.line(&format!(
            "{source}: the agent will fetch the log since {} UTC again; events are not evaluated twice",
            output::time(*since)
        ))?;
    }
    out.line(&format!("the old store is kept in {}", recovered.kept.display()))?;
    incomplete
}
