//! Requests about alerts and silences.

use std::time::Duration;

use super::{Respond, Sink, pattern, put_all, wait};
use crate::{
    api::{
        allowed,
        answer::{AlertDetails, ChangeLine},
        request,
        service::{Service, ServiceError},
    },
    detect,
    model::{
        alert::{Alert, LoggedChange, Remark},
        silence::{Silence, rule_pattern},
        time,
    },
    store::{AlertFilter, Reader, StoreError},
};

/// The longest comment, in characters: a few sentences.
const MAX_COMMENT: usize = 4_000;
/// The longest name of an author, in characters.
const MAX_AUTHOR: usize = 200;
/// The longest silence.
const MAX_SILENCE: Duration = Duration::from_secs(366 * 86_400);

impl Respond for request::Alerts {
    fn respond(self, service: &Service, sink: Sink<'_, Alert>) -> Result<(), ServiceError> {
        let filter = AlertFilter {
            since: self.since,
            until: self.until,
            min_severity: self.severity,
            rule: pattern(self.rule.as_deref())?,
            source: self.source,
            status: self.status,
        };
        let by_actor = |alert: &Result<Alert, StoreError>| match (alert, &self.actor) {
            (Ok(alert), Some(actor)) => alert.evidence.mentions(actor),
            _ => true,
        };
        let alerts = service.store.reader().alerts(filter).filter(by_actor);
        put_all(alerts.take(self.limit.unwrap_or(usize::MAX)), sink)
    }
}

impl Respond for request::Alert {
    fn respond(self, service: &Service, sink: Sink<'_, AlertDetails>) -> Result<(), ServiceError> {
        let reader = service.store.reader();
        let mut found = reader.alerts_beginning(&self.id.to_lowercase())?;
        let alert = match (found.pop(), found.is_empty()) {
            (Some(alert), true) => alert,
            (None, _) => {
                let message = format!("no alert `{}`: `watchbell alerts list` lists them", self.id);
                return Err(ServiceError::Wrong(message));
            }
            (Some(_), false) => {
                let message = format!("several alerts begin with `{}`: give more digits", self.id);
                return Err(ServiceError::Wrong(message));
            }
        };
        sink(AlertDetails {
            changes: reader.changes_of(alert.id)?,
            events: reader.events_of_alert(alert.id).take(100).collect::<Result<_, _>>()?,
            alert,
        })
    }
}

impl Respond for request::Changes {
    fn respond(self, service: &Service, sink: Sink<'_, ChangeLine>) -> Result<(), ServiceError> {
        let reader = service.store.reader();
        let changes = match self.after {
            Some(after) => reader.changes_after(after).take(self.limit).collect::<Result<Vec<_>, _>>()?,
            None => {
                let mut last = reader.changes_newest_first().take(self.limit).collect::<Result<Vec<_>, _>>()?;
                last.reverse();
                last
            }
        };
        for change in changes {
            let alert = reader.alert(change.alert)?;
            sink(ChangeLine { change, alert })?;
        }
        Ok(())
    }

    fn wait(&self, reader: &Reader) -> Option<Duration> {
        let after = self.after?;
        wait(self.wait, reader.last_change().is_ok_and(|last| last > after))
    }
}

impl Respond for request::HandledChanges {
    fn respond(self, service: &Service, sink: Sink<'_, LoggedChange>) -> Result<(), ServiceError> {
        let by_people =
            |change: &Result<LoggedChange, StoreError>| change.as_ref().map_or(true, |change| change.author.is_some());
        put_all(service.store.reader().changes_after(0).filter(by_people), sink)
    }
}

impl Respond for request::Handle {
    fn respond(self, service: &Service, sink: Sink<'_, Alert>) -> Result<(), ServiceError> {
        let comment = checked_comment(self.comment)?;
        let remark = Remark { author: checked_author(&self.author)?, at: service.clock.now(), comment };
        let (id, action) = (self.alert, self.action);
        if let Some(live) = &service.live {
            return sink(live.handle(id, action, remark).map_err(ServiceError::Wrong)?);
        }
        let reader = service.store.reader();
        let missing = || ServiceError::Wrong(format!("no alert `{id}`"));
        let alert = reader.alert(id)?.ok_or_else(missing)?;
        let state = reader.state()?;
        allowed(&alert, action, detect::is_open_finding(state.clone(), id)).map_err(ServiceError::Wrong)?;
        let state = detect::handled(state, &alert, action);
        sink(service.recorder.handle(id, action, remark, state)?.ok_or_else(missing)?)
    }
}

impl Respond for request::Silences {
    fn respond(self, service: &Service, sink: Sink<'_, Silence>) -> Result<(), ServiceError> {
        let silences = service.store.reader().silences()?;
        silences.into_iter().rev().filter(|silence| self.all || silence.ended.is_none()).try_for_each(sink)
    }
}

impl Respond for request::AddSilence {
    fn respond(self, service: &Service, sink: Sink<'_, Silence>) -> Result<(), ServiceError> {
        let mut wanted = self.0;
        rule_pattern(&wanted.rule).map_err(ServiceError::Wrong)?;
        wanted.author = checked_author(&wanted.author)?;
        wanted.comment = checked_comment(wanted.comment)?;
        let now = service.clock.now();
        if wanted.until <= now || time::since(wanted.until, now) > MAX_SILENCE {
            return Err(ServiceError::Wrong("a silence must end in the future, within a year".to_owned()));
        }
        sink(service.recorder.add_silence(wanted, now)?)
    }
}

impl Respond for request::EndSilence {
    fn respond(self, service: &Service, sink: Sink<'_, Silence>) -> Result<(), ServiceError> {
        let ended = service.recorder.end_silence(self.id, service.clock.now())?;
        let (silence, recorded) = ended.ok_or_else(|| ServiceError::Wrong(format!("no active silence {}", self.id)))?;
        if let (Some(live), true) = (&service.live, recorded.has_pending) {
            live.pending();
        }
        sink(silence)
    }
}

fn checked_author(text: &str) -> Result<String, ServiceError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ServiceError::Wrong("missing author: use `--author NAME`".to_owned()));
    }
    if text.chars().count() > MAX_AUTHOR || text.chars().any(char::is_control) {
        let message = format!("an author has at most {MAX_AUTHOR} characters, and no control characters");
        return Err(ServiceError::Wrong(message));
    }
    Ok(text.to_owned())
}

fn checked_comment(text: Option<String>) -> Result<Option<String>, ServiceError> {
    let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    if text.as_ref().is_some_and(|text| text.chars().count() > MAX_COMMENT) {
        return Err(ServiceError::Wrong(format!("a comment has at most {MAX_COMMENT} characters")));
    }
    Ok(text)
}
