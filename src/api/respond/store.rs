//! Requests about the agent, for replays, and about the store as a whole.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Respond, Sink, put_all};
use crate::{
    api::{
        Status,
        answer::{BackupPart, Evaluated},
        request,
        service::{Service, ServiceError},
    },
    model::outcome::LoggedWatermark,
    store::{SentBlock, StoreCheck},
};

impl Respond for request::Status {
    fn respond(self, service: &Service, sink: Sink<'_, Status>) -> Result<(), ServiceError> {
        sink(service.status()?)
    }
}

impl Respond for request::Blocks {
    fn respond(self, service: &Service, sink: Sink<'_, SentBlock>) -> Result<(), ServiceError> {
        put_all(service.store.reader().sent_blocks(), sink)
    }
}

impl Respond for request::Watermarks {
    fn respond(self, service: &Service, sink: Sink<'_, LoggedWatermark>) -> Result<(), ServiceError> {
        put_all(service.store.reader().watermarks(), sink)
    }
}

impl Respond for request::Evaluation {
    fn respond(self, service: &Service, sink: Sink<'_, Evaluated>) -> Result<(), ServiceError> {
        let reader = service.store.reader();
        sink(Evaluated {
            checkpoint: reader.checkpoint()?,
            change: reader.last_change()?,
            skipped: reader.skipped().collect::<Result<_, _>>()?,
            rules: reader.logged_rules().collect::<Result<_, _>>()?,
        })
    }
}

impl Respond for request::Verify {
    fn respond(self, service: &Service, sink: Sink<'_, StoreCheck>) -> Result<(), ServiceError> {
        sink(service.store.verify()?)
    }
}

impl Respond for request::Backup {
    fn respond(self, service: &Service, sink: Sink<'_, BackupPart>) -> Result<(), ServiceError> {
        let mut result = Ok(());
        service.store.backup(&mut |bytes| {
            if result.is_ok() {
                result = sink(BackupPart { bytes: STANDARD.encode(bytes) });
            }
            result.is_ok()
        })?;
        result
    }
}
