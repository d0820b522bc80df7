//! `watchbell state list|show|clear`: the state that rules keep between events.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;
use watchbell::{
    api::{answer, request},
    model::time,
    rule::Remembered,
};

use super::{CliError, Context, output};

#[derive(Debug, Args)]
pub(super) struct StateVerbs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the rules that have state, with their numbers of keys
    List,
    /// Show the state of a rule
    Show {
        /// ID of the rule, or `common/NAME` for state that rules share
        #[arg(long, value_name = "ID")]
        rule: String,
        /// Only keys that contain this text
        #[arg(long, value_name = "TEXT")]
        key: Option<String>,
    },
    /// Clear the state of a rule: counts, first sightings, marks and notes; alerts are kept
    Clear {
        /// ID of the rule, or `common/NAME` for state that rules share
        #[arg(long, value_name = "ID")]
        rule: String,
    },
}

impl StateVerbs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let (_, client) = context.client()?;
        match self.verb {
            Verb::List => {
                let all: Vec<Remembered> = client.all(request::Memory { space: None })?;
                list(context, &all)
            }
            Verb::Show { rule, key } => {
                let mut all: Vec<Remembered> = client.all(request::Memory { space: Some(rule) })?;
                all.retain(|item| key.as_ref().is_none_or(|key| item.key.contains(key.as_str())));
                show(context, &all)
            }
            Verb::Clear { rule } => {
                let count: Option<answer::Count> = client.one(request::ClearMemory { space: rule.clone() })?;
                let count = count.map_or(0, |count| count.count);
                if context.is_json() {
                    return Ok(context.output.json(&json!({ "rule": rule, "forgotten": count }))?);
                }
                Ok(context.output.line(&format!("cleared {} of {rule}", output::count(count, "key")))?)
            }
        }
    }
}

fn list(context: &Context, all: &[Remembered]) -> Result<(), CliError> {
    let mut spaces: BTreeMap<&str, u64> = BTreeMap::new();
    for item in all {
        *spaces.entry(&item.space).or_default() += 1;
    }
    if context.is_json() {
        for (space, keys) in spaces {
            context.output.json_line(&json!({ "rule": space, "keys": keys }))?;
        }
        return Ok(());
    }
    if spaces.is_empty() {
        context.output.note("no rule has state");
        return Ok(());
    }
    let rows = spaces.into_iter().map(|(space, keys)| vec![space.to_owned(), keys.to_string()]).collect();
    Ok(context.output.table(&["rule", "keys"], rows)?)
}

fn show(context: &Context, all: &[Remembered]) -> Result<(), CliError> {
    if context.is_json() {
        for item in all {
            context.output.json_line(item)?;
        }
        return Ok(());
    }
    if all.is_empty() {
        context.output.note("no state");
        return Ok(());
    }
    let until = |item: &Remembered| match item.expires {
        i64::MAX => "never".to_owned(),
        expires => output::time(time::from_millis(expires)),
    };
    let rows = all.iter().map(|item| vec![item.key.clone(), item.what.clone(), until(item)]).collect();
    Ok(context.output.table(&["key", "value", "expires (utc)"], rows)?)
}
