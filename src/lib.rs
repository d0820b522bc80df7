//! Watchbell: a local detection agent for the audit log of an Atlassian Cloud organization.
//!
//! The modules, from what everything uses up to what uses everything. A module uses only what is above it in this table:
//!
//! | layer | modules | what they are |
//! | --- | --- | --- |
//! | 0 | [`model`] | values: events, alerts, actions, names, times |
//! | 0 | [`config::settings`], [`config::diagnostic`], [`config::secret`] | how a table of the configuration is read and what is wrong in it |
//! | 1 | [`rule`], then [`detect`] | the pure core: rules and what they find |
//! | 1 | [`store`] | memory: the only place that knows keys and encodings |
//! | 1 | [`http`], then [`heartbeat`] | talking HTTP |
//! | 2 | [`source`], [`deliver`] | the outside world: where events come from, where alerts go |
//! | 3 | [`dispatch`] | which alerts go where |
//! | 3 | [`config`], [`replay`] | composition |
//! | 4 | [`api`], then [`agent`] | asking a running agent or the store; the process |
//! | 4 | [`simulator`] | a small Atlassian organization on loopback |
//! | 5 | `cli` | the terminal |
//!
//! The store is the only queue: the poller appends a page and its cursor, the evaluate loop reads what follows its checkpoint
//! and commits what it found together with the new checkpoint, and each destination's worker reads what is pending for it.
//!
//! Programs that embed Watchbell use [`agent`], [`config`], [`detect`], [`model`], [`replay`], [`rule`] and [`source`]:
//! `examples/embed.rs` shows how. The other modules are public for the binary and the tests only, are left out of the
//! documentation, and may change in any version.

pub mod agent;
#[doc(hidden)]
pub mod api;
pub mod config;
#[doc(hidden)]
pub mod deliver;
pub mod detect;
#[doc(hidden)]
pub mod dispatch;
#[doc(hidden)]
pub mod heartbeat;
#[doc(hidden)]
pub mod http;
pub mod model;
pub mod replay;
pub mod rule;
#[doc(hidden)]
pub mod simulator;
pub mod source;
#[doc(hidden)]
pub mod store;
