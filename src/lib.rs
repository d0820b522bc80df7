//! Watchbell: a local detection agent for the audit log of an Atlassian Cloud organization.
//!
//! The modules, from the lowest layer to the highest. A module uses only what is above it in this table:
//!
//! | layer | modules | purpose |
//! | --- | --- | --- |
//! | 0 | [`model`] | values: events, alerts, actions, names, times |
//! | 0 | [`config::settings`], [`config::diagnostic`], [`config::secret`] | reading the configuration |
//! | 1 | [`rule`], then [`detect`] | the pure core: rules and what they detect |
//! | 1 | [`store`] | persistence: the only module that knows keys and encodings |
//! | 1 | [`http`], then [`heartbeat`] | the HTTP client |
//! | 2 | [`source`], [`deliver`] | the outside world: where events come from, where alerts go |
//! | 3 | [`dispatch`] | routing: which alerts go to which destinations |
//! | 3 | [`config`], [`replay`] | composition |
//! | 4 | [`api`], then [`agent`] | queries to a running agent or the store; the process |
//! | 4 | [`simulator`] | a simulated Atlassian organization on the loopback interface |
//! | 5 | `cli` | the terminal |
//!
//! The store is the only queue: the poller appends a page and its cursor, the evaluate loop reads what follows its
//! checkpoint and commits the outcome together with the new checkpoint, and each destination's worker reads its pending
//! deliveries.
//!
//! Programs that embed Watchbell use [`agent`], [`config`], [`detect`], [`model`], [`replay`], [`rule`] and [`source`];
//! see `examples/embed.rs`. The other modules are public only for the binary and the tests. They are left out of the
//! documentation and may change in any version.

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
