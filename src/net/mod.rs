//! Sockets: listening, dialling, TLS, pooling, draining.
//!
//! Owns connections and certificates; knows no keys, no providers and no limits.

pub mod ahead;
pub mod body;
pub mod ca;
pub mod dial;
pub mod drain;
pub mod listener;
pub mod original_dst;
pub mod own;
mod patient;
pub mod pkcs12;
pub mod sni;
pub mod socks;
pub mod splice;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod validity;
pub mod via;
