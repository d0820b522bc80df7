//! Watchbell: a local detection agent for the audit log of an Atlassian Cloud organization.
//!
//! The modules, from what everything uses up to what uses everything. A module uses only what stands before it:
//!
//! | layer | modules | what they are |
//! | --- | --- | --- |
//! | 0 | [`name`] [`time`] [`secret`] [`diagnostic`] [`settings`] [`repeat`] [`text`] [`legible`] [`oversize`] [`event`] [`certainty`] [`category`] [`action`] [`alert`] [`bound`] [`outcome`] [`silence`] [`condition`] | values |
//! | 1 | [`rule`], then [`detect`] | the pure core: rules and what they find |
//! | 1 | [`store`] | memory: the only place that knows keys and encodings |
//! | 1 | [`http`] | talking HTTP |
//! | 2 | [`source`], [`deliver`] | the outside world: where events come from, where alerts go |
//! | 3 | [`config`], [`replay`] | composition |
//! | 4 | [`api`], then [`agent`] | asking a running agent or the store; the process |
//! | 4 | [`simulator`] | a small Atlassian organization on loopback |
//! | 5 | `cli` | the terminal |
//!
//! The store is the only queue: the poller appends a page and its cursor, the evaluate loop reads what follows its mark and
//! commits what it means together with the new mark, and each destination's worker reads what it still owes.

pub mod action;
pub mod agent;
pub mod alert;
pub mod api;
pub mod bound;
pub mod category;
pub mod certainty;
pub mod condition;
pub mod config;
pub mod deliver;
pub mod detect;
pub mod diagnostic;
pub mod event;
pub mod http;
pub mod legible;
pub mod name;
pub mod outcome;
pub mod oversize;
pub mod repeat;
pub mod replay;
pub mod rule;
pub mod secret;
pub mod settings;
pub mod silence;
pub mod simulator;
pub mod source;
pub mod store;
pub mod text;
pub mod time;
