//! Executes requests and answers them: one small function for each request. These functions block, so they run on their
//! own threads.

use std::time::Duration;

use super::{
    request::Request,
    service::{Service, ServiceError},
};
use crate::{
    model::{name::SourceName, silence::rule_pattern},
    store::{Reader, StoreError},
};

mod alerts;
mod deliveries;
mod events;
mod rules;
mod store;

/// Receives the items of an answer, one after another.
pub type Sink<'a, T> = &'a mut dyn FnMut(T) -> Result<(), ServiceError>;

/// A request that a [`Service`] can answer.
pub trait Respond: Request {
    /// Passes each item of the answer to `sink`.
    fn respond(self, service: &Service, sink: Sink<'_, Self::Item>) -> Result<(), ServiceError>;

    /// How long the request waits for news; `None` if it does not wait or there is news.
    fn wait(&self, _reader: &Reader) -> Option<Duration> {
        None
    }
}

/// The longest time that a request waits for news.
const MAX_WAIT: u64 = 30;

fn wait(seconds: u64, has_news: bool) -> Option<Duration> {
    (!has_news && seconds > 0).then(|| Duration::from_secs(seconds.min(MAX_WAIT)))
}

/// Passes items that may fail to `sink`.
fn put_all<T>(items: impl IntoIterator<Item = Result<T, StoreError>>, sink: Sink<'_, T>) -> Result<(), ServiceError> {
    items.into_iter().try_for_each(|item| sink(item?))
}

fn pattern(text: Option<&str>) -> Result<Option<globset::GlobMatcher>, ServiceError> {
    text.map(rule_pattern).transpose().map_err(ServiceError::Wrong)
}

/// The configured sources, or only the requested one.
fn sources<'a>(service: &'a Service, wanted: Option<&SourceName>) -> Result<Vec<&'a SourceName>, ServiceError> {
    let names = || service.settings.sources.iter().map(|settings| &settings.name);
    let sources: Vec<&SourceName> = names().filter(|name| wanted.is_none_or(|wanted| wanted == *name)).collect();
    if sources.is_empty() {
        let known: Vec<String> = names().map(|name| format!("\"{name}\"")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let wanted = wanted.map_or_else(String::new, |wanted| format!(" \"{wanted}\""));
        return Err(ServiceError::Wrong(format!("no source{wanted} is configured (configured: {known})")));
    }
    Ok(sources)
}
