//! `watchbell replay --verify`: checks that replaying the evaluated events gives the alerts that the agent raised.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use watchbell::{
    api::{Client, answer, request},
    config::Config,
    model::time::Clock,
    replay::verify::{DifferentAlert, History, Reason, Verification, Verified},
    rule::RuleSet,
    store::{Block, StoreError},
};

use super::{
    super::{CliError, Context, on_rule_thread, output},
    feed::progress,
    page,
};

/// Maximum number of rules to name per reason for which rules could not be compared.
const RULES_SHOWN: usize = 5;
/// Number of attempts to get a consistent history: a busy agent is queried again until it has paused for a moment.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn verify(context: &Context, config: &Config, rules: &Arc<RuleSet>, show: usize) -> Result<(), CliError> {
    if !config.data_dir.join("store").exists() {
        return Err(CliError::Usage("no stored events, so there is nothing to verify".to_owned()));
    }
    let client = Client::open(config, &Clock::system())?;
    let history = history(&client)?;
    let checkpoint = history.checkpoint;
    let bar = progress(checkpoint.0);
    let mut verification = Verification::new(Arc::clone(rules), config.detection.clone(), history);
    let mut unreadable: Option<StoreError> = None;
    let fed = on_rule_thread(|| {
        let fed = client.blocks(|block| {
            match feed(&mut verification, block) {
                Ok(events) => bar.inc(events),
                Err(error) => unreadable = Some(error),
            }
            true
        });
        fed.map(|()| verification.finish())
    })?;
    bar.finish_and_clear();
    let verified = fed?;
    if let Some(error) = unreadable {
        context.output.warning(&format!("cannot read some events, which may cause differences: {error}"));
    }
    if context.is_json() {
        context.output.json(&verified)?;
    } else {
        print(context, &verified, show)?;
    }
    if verified.is_empty() {
        return Err(CliError::Findings("nothing could be compared".to_owned()));
    }
    if verified.agrees() {
        return Ok(());
    }
    Err(CliError::Findings("the replay differs from what the agent raised; please report this".to_owned()))
}

fn feed(verification: &mut Verification, block: Block) -> Result<u64, StoreError> {
    let mut block = block.unpack()?;
    for place in 0..block.len() {
        verification.event(&block.event(place)?);
    }
    Ok(block.len() as u64)
}

/// What the agent did, read as a consistent snapshot.
fn history(client: &Client) -> Result<History, CliError> {
    let evaluated = || -> Result<answer::Evaluated, CliError> {
        let answer: Option<answer::Evaluated> = client.one(request::Evaluation {})?;
        answer.ok_or_else(|| CliError::Usage("the agent did not report its checkpoint".to_owned()))
    };
    for _ in 0..ATTEMPTS {
        let before = evaluated()?;
        let alerts = client.all(request::Alerts::default())?;
        let changes = client.all(request::HandledChanges {})?;
        let watermarks = client.all(request::Watermarks {})?;
        let after = evaluated()?;
        if before == after {
            let answer::Evaluated { checkpoint, skipped, rules, .. } = after;
            return Ok(History { checkpoint, skipped, rules, changes, watermarks, alerts });
        }
        std::thread::sleep(PAUSE);
    }
    Err(CliError::Usage("the agent is busy evaluating events; try again when it has caught up".to_owned()))
}

fn print(context: &Context, verified: &Verified, show: usize) -> Result<(), CliError> {
    let out = &context.output;
    let word = match (verified.agrees(), verified.is_empty()) {
        (false, _) => "DIFFERS",
        (true, true) => "unclear",
        (true, false) => "ok",
    };
    out.line(&format!(
        "{word:<8} {} replayed; {} identical, {} missing, {} extra, {} different",
        output::count(verified.events, "event"),
        output::count(verified.same, "alert"),
        verified.missing.len(),
        verified.extra.len(),
        verified.different.len()
    ))?;
    for (reason, count) in &verified.not_compared {
        out.line(&format!("         {} not compared: {}", output::count(*count, "alert"), reason.text()))?;
    }
    let mut by_reason: BTreeMap<Reason, Vec<&str>> = BTreeMap::new();
    for (rule, reason) in &verified.rules_not_compared {
        by_reason.entry(*reason).or_default().push(rule.as_str());
    }
    for (reason, rules) in by_reason {
        let shown = rules.iter().take(RULES_SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = match rules.len().saturating_sub(RULES_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        out.line(&format!("         not all alerts of {shown}{more} compared: {}", reason.text()))?;
    }
    for (what, alerts) in [("missing in the replay", &verified.missing), ("only in the replay", &verified.extra)] {
        for alert in alerts.iter().take(show) {
            out.line(&format!("{what}: {}", page::line(alert)))?;
        }
    }
    for DifferentAlert { alert, differences } in verified.different.iter().take(show) {
        out.line(&format!("different: {}", page::line(alert)))?;
        for one in differences {
            out.line(&format!(
                "  {}: {} → {}",
                one.what,
                output::printable(&one.before),
                output::printable(&one.after)
            ))?;
        }
    }
    Ok(())
}
