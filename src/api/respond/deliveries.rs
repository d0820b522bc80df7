//! Requests about dead letters.

use super::{Respond, Sink};
use crate::{
    api::{
        answer::Count,
        request,
        service::{Service, ServiceError},
    },
    store::Delivery,
};

impl Respond for request::DeadLetters {
    fn respond(self, service: &Service, sink: Sink<'_, Delivery>) -> Result<(), ServiceError> {
        service.store.reader().dead_letters(self.destination.as_ref())?.into_iter().try_for_each(sink)
    }
}

impl Respond for request::Settle {
    fn respond(self, service: &Service, sink: Sink<'_, Count>) -> Result<(), ServiceError> {
        let letters = service.store.reader().dead_letters(self.destination.as_ref())?;
        if self.discard {
            service.store.discard(&letters)?;
        } else {
            service.store.revive(&letters, service.clock.now())?;
            service.live.iter().for_each(|live| live.pending());
        }
        sink(Count { count: letters.len() as u64 })
    }
}
