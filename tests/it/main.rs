//! The tests of the finished program: the real binary between a scripted provider and a client, over sockets.
//!
//! One binary, because linking the program's dependencies a dozen times is slow.
#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "allow-*-in-tests does not reach helper functions, and the fences are the program's, not its tests'"
)]

mod activity;
mod admin;
mod alerts;
mod audit;
mod browser;
mod budget;
mod canary;
mod clients;
mod commands;
mod config;
mod connect;
mod docs;
mod doctor;
mod drain;
mod durability;
mod edges;
mod estimate;
mod exec;
mod fixtures;
mod hostile;
mod lease;
mod limit;
mod metrics;
mod openapi;
mod plan;
mod pool;
mod prices;
mod provider_keys;
mod redirect;
mod refusals;
mod reload;
mod reverse;
mod route;
mod sdk;
mod spending;
mod storm;
mod stream;
mod support;
mod telemetry;
mod transcripts;
mod transparent;
mod trust;
mod upstream_proxy;
mod virtual_key;
