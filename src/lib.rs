//! sidekey.

pub mod clock;
pub mod id;
pub mod metrics;
pub mod secret;
pub mod unit;

pub mod entry;
pub mod limit;
pub mod provider_key;
pub mod scan;
pub mod tokens;
pub mod virtual_key;

pub mod provider;
pub mod tally;

pub mod net;
pub mod storage;

pub mod control;
pub mod proxy;

pub mod ingress;

pub mod config;

pub mod app;

pub mod cli;
