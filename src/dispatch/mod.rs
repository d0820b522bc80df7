//! Decides which destinations an alert goes to and what silences hold back, and stores both with the alert. `deliver`
//! does the sending.

mod record;
mod route;

pub use record::{Recorded, Recorder};
pub use route::Router;
