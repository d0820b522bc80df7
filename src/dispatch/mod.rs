//! Deciding what is sent to whom: which destinations an alert goes to, what silences hold back, and writing both down with
//! the alert. Sending is the business of `deliver`.

mod record;
mod route;

pub use record::{Recorded, Recorder};
pub use route::Router;
