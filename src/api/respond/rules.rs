//! Requests about the stored records of rules and exceptions, and about the state of rules.

use super::{Respond, Sink, put_all};
use crate::{
    api::{
        answer::{Count, ExceptionEntry, RuleEntry},
        request,
        service::{Service, ServiceError},
    },
    detect,
    model::outcome::Outcome,
    rule::Remembered,
    store::Excepted,
};

impl Respond for request::Rules {
    fn respond(self, service: &Service, sink: Sink<'_, RuleEntry>) -> Result<(), ServiceError> {
        let records = detect::rule_records(service.store.reader().state()?);
        records.into_iter().try_for_each(|(rule, record)| sink(RuleEntry { rule, record }))
    }
}

impl Respond for request::Exceptions {
    fn respond(self, service: &Service, sink: Sink<'_, ExceptionEntry>) -> Result<(), ServiceError> {
        let records = detect::exception_records(service.store.reader().state()?);
        records.into_iter().try_for_each(|(exception, record)| sink(ExceptionEntry { exception, record }))
    }
}

impl Respond for request::Excepted {
    fn respond(self, service: &Service, sink: Sink<'_, Excepted>) -> Result<(), ServiceError> {
        put_all(service.store.reader().excepted(&self.exception, self.limit), sink)
    }
}

impl Respond for request::Memory {
    fn respond(self, service: &Service, sink: Sink<'_, Remembered>) -> Result<(), ServiceError> {
        let all = detect::memory(service.store.reader().state()?).list();
        let wanted = |item: &Remembered| self.space.as_ref().is_none_or(|space| *space == item.space);
        all.into_iter().filter(wanted).try_for_each(sink)
    }
}

impl Respond for request::ClearMemory {
    fn respond(self, service: &Service, sink: Sink<'_, Count>) -> Result<(), ServiceError> {
        let count = match &service.live {
            Some(live) => live.clear_memory(self.space).map_err(ServiceError::Wrong)?,
            None => {
                let mut memory = detect::memory(service.store.reader().state()?);
                let count = memory.clear(&self.space);
                let changes = memory.take_changes();
                service.recorder.record(Outcome::default(), changes, None, service.clock.now())?;
                count
            }
        };
        sink(Count { count: count as u64 })
    }
}
