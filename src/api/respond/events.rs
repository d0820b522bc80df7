//! Requests about events, actions and sources.

use std::time::Duration;

use super::{Respond, Sink, pattern, put_all, sources, wait};
use crate::{
    api::{
        answer::{ActionEntry, EventTotals, FetchAnswer, ListAnswer},
        request,
        service::{Service, ServiceError},
    },
    model::{
        action::Catalog,
        category::Category,
        event::{Event, IncomingEvent},
        name::Sequence,
        time::Timestamp,
    },
    store::{Appended, Page, Quarantined, Reader, Refetch, ScanFilter, SourceRecord, StoreError},
};

impl Respond for request::Events {
    fn respond(self, service: &Service, sink: Sink<'_, Event>) -> Result<(), ServiceError> {
        let reader = service.store.reader();
        let filter = ScanFilter {
            since: self.since,
            until: self.until,
            action: pattern(self.action.map(|action| action.to_lowercase()).as_deref())?,
            source: self.source,
            after: Sequence(self.after.unwrap_or(0)),
        };
        let events: Box<dyn Iterator<Item = Result<Event, StoreError>>> =
            if self.newest_first { Box::new(reader.scan_newest_first(filter)) } else { Box::new(reader.scan(filter)) };
        let by_actor = |event: &Result<Event, StoreError>| match (event, &self.actor) {
            (Ok(event), Some(actor)) => event.evidence().mentions(actor),
            _ => true,
        };
        let catalog = if self.category.is_some() { reader.catalog()? } else { Catalog::default() };
        let by_category = |event: &Result<Event, StoreError>| match (event, self.category) {
            (Ok(event), Some(category)) => catalog.category(&event.action) == category,
            _ => true,
        };
        put_all(events.filter(by_category).filter(by_actor).take(self.limit.unwrap_or(usize::MAX)), sink)
    }

    fn wait(&self, reader: &Reader) -> Option<Duration> {
        let after = self.after?;
        wait(self.wait, reader.last_sequence().is_ok_and(|last| last.0 > after))
    }
}

impl Respond for request::Event {
    fn respond(self, service: &Service, sink: Sink<'_, Event>) -> Result<(), ServiceError> {
        let reader = service.store.reader();
        for source in reader.sources()?.keys() {
            if let Some(event) = reader.event(source, &self.id)? {
                return sink(event);
            }
        }
        Ok(())
    }
}

impl Respond for request::EventTotals {
    fn respond(self, service: &Service, sink: Sink<'_, EventTotals>) -> Result<(), ServiceError> {
        let reader = service.store.reader();
        let (events, _) = reader.event_totals()?;
        sink(EventTotals { events, last: reader.last_sequence()?.0 })
    }
}

impl Respond for request::Quarantined {
    fn respond(self, service: &Service, sink: Sink<'_, Quarantined>) -> Result<(), ServiceError> {
        put_all(service.store.reader().quarantined().take(self.limit), sink)
    }
}

impl Respond for request::Import {
    fn respond(self, service: &Service, sink: Sink<'_, Appended>) -> Result<(), ServiceError> {
        let mut page = Page::new(self.source, service.clock.now(), Vec::new());
        let settings = service.settings.sources.iter().find(|settings| settings.name == page.source);
        page.unwanted = settings.map(|settings| settings.unwanted.clone()).unwrap_or_default();
        page.quiet_before = (!self.evaluate).then_some(Timestamp::MAX);
        for entry in &self.entries {
            match IncomingEvent::parse(entry) {
                Ok(event) => page.events.push(event),
                Err(rejected) => page.rejected.push(rejected),
            }
        }
        let appended = service.store.import_page(page)?;
        service.live.iter().for_each(|live| live.stored());
        sink(appended)
    }
}

impl Respond for request::Fetch {
    fn respond(self, service: &Service, sink: Sink<'_, FetchAnswer>) -> Result<(), ServiceError> {
        let now = service.clock.now();
        for source in sources(service, self.source.as_ref())? {
            let refetch = Refetch::new(self.since, now);
            let begins = service.live.as_ref().is_some_and(|live| live.fetch(source, refetch.clone()));
            if !begins {
                let record = service.store.reader().source(source)?.unwrap_or_default();
                let refetch = refetch.and(record.refetch.clone());
                service.store.save_source(source, &SourceRecord { refetch: Some(refetch), ..record })?;
            }
            service.store.flush()?;
            sink(FetchAnswer { source: source.clone(), since: self.since, now: begins })?;
        }
        Ok(())
    }
}

impl Respond for request::Actions {
    fn respond(self, service: &Service, sink: Sink<'_, ActionEntry>) -> Result<(), ServiceError> {
        for action in service.store.reader().actions() {
            let (source, id, record) = action?;
            let category = Category::of(&id, record.name.as_deref(), record.group.as_deref());
            sink(ActionEntry { source, id, category, record })?;
        }
        Ok(())
    }
}

impl Respond for request::ListActions {
    fn respond(self, service: &Service, sink: Sink<'_, ListAnswer>) -> Result<(), ServiceError> {
        let no_agent = || ServiceError::Wrong("no running agent to query".to_owned());
        let live = service.live.as_ref().ok_or_else(no_agent)?;
        for source in sources(service, self.source.as_ref())? {
            let (refreshed, error) = match live.list_actions(source).ok_or_else(no_agent)? {
                Ok(refreshed) => (Some(refreshed), None),
                Err(error) => (None, Some(error)),
            };
            sink(ListAnswer { source: source.clone(), refreshed, error })?;
        }
        Ok(())
    }
}
