//! sidekey: a sidecar reverse proxy for LLM APIs.
//!
//! It runs beside one app, takes the app's virtual key, swaps it for a real provider key that only it can read, holds the
//! app to its limits, forwards the request, and relays the answer byte for byte while it counts the tokens on a copy.
//!
//! # The life of a request
//!
//! ```text
//! accept -> identify -> authenticate -> select -> admit -> forward -> observe -> settle -> record
//! net       ingress     virtual_key     provider  limit    net        scan       proxy     storage
//!                                       keys               upstream   tally
//! ```
//!
//! [`proxy`] owns the order of these steps; each takes the value of the one before by move. Nothing on this way waits for
//! a disk: it reads an immutable [`Snapshot`](storage::Snapshot) of the store and hands [`Entry`](entry::Entry)s to the
//! [`Ledger`](storage::Ledger) by a bounded queue.
//!
//! # The house
//!
//! Modules import from the layers above them in this list, never from below; a test holds them to it.
//!
//! | layer | modules | what it knows |
//! |---|---|---|
//! | words | [`audit`], [`clock`], [`event`], [`id`], [`metrics`], [`secret`], [`unit`](mod@unit) | time, names, figures |
//! | domain | [`access`], [`activity`], [`virtual_key`], [`provider_key`], [`entry`], [`limit`], [`plan`], [`pool`], [`pricing`], [`route`], [`scan`], [`tokens`] | one thing each, no I/O |
//! | wire formats | [`tally`], [`provider`] | what providers send and want |
//! | resources | [`storage`], [`net`] | the disk, sockets |
//! | shared words | [`explain`], [`lease`] | what operators ask of the request path |
//! | planes | [`proxy`], [`control`] | requests of apps, requests of operators |
//! | ways in | [`ingress`], [`console`] | how a client came; what operators see in a browser |
//! | program | [`config`], [`app`], [`cli`] | what was said, what runs, what is typed |
//!
//! # Threads
//!
//! `sidekey-proxy` moves requests, `sidekey-control` answers operators, `sidekey-store` writes, `sidekey-count` counts
//! tokens that a provider did not report. See [`app`].

pub mod audit;
pub mod clock;
pub mod event;
pub mod id;
pub mod metrics;
pub mod policy;
pub mod secret;
pub mod unit;

pub mod access;
pub mod activity;
pub mod entry;
pub mod limit;
pub mod live;
pub mod owner;
pub mod plan;
pub mod pool;
pub mod pricing;
pub mod provider_key;
pub mod route;
pub mod scan;
pub mod tokens;
pub mod virtual_key;

pub mod provider;
pub mod tally;

pub mod net;
pub mod span;
pub mod storage;

pub mod explain;
pub mod lease;

pub mod control;
pub mod proxy;

pub mod console;
pub mod ingress;

pub mod config;

pub mod app;
pub mod cli;
