//! How a client came in, and what that says of where its request goes.
//!
//! Owns the reading of the request's target; leaves everything after to [`proxy`](crate::proxy).

pub mod reverse;
