//! Prices: what a model costs, where that is said, and what a call of it comes to.
//!
//! Owns the built-in table, its layers and the arithmetic of money. Leaves counting to `tally`, keeping an operator's prices
//! to `storage`, and charging to `proxy`.
//!
//! | file | what it knows |
//! |---|---|
//! | `rate` | exact decimals, and what they are for |
//! | `price`, `file` | a price as text; files of prices |
//! | `name` | the spellings of a model |
//! | `built_in` | the list prices in the program |
//! | `table`, `memo` | layers, the search, and what was found of late |
//! | `cost` | figures times rates |

mod built_in;
mod cost;
mod file;
mod memo;
mod name;
mod price;
mod rate;
mod table;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;

pub use self::built_in::pack;
pub use self::cost::Expected;
pub use self::file::{BadFile, Prices, read};
pub use self::name::{ANY, BadName, PriceName, Spelling};
pub use self::price::{Above, BadPrice, Price};
pub use self::rate::{BadRate, Item, Rate, Rates};
pub use self::table::{Layer, Listing, Overlay, PriceTable, Resolved, Said, Tried, Versioned, built_in_version};

/// A price an operator set, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceRecord {
    /// What it is the price of.
    pub name: PriceName,
    /// What it costs.
    pub price: Price,
    /// When it was set, wall time in milliseconds.
    pub set_ms: u64,
}

impl FromIterator<PriceRecord> for Overlay {
    fn from_iter<I: IntoIterator<Item = PriceRecord>>(records: I) -> Self {
        let versioned = |PriceRecord { name, price, set_ms }| {
            (name, Versioned { price, version: format!("store {}", rfc3339(set_ms)).into() })
        };
        records.into_iter().map(versioned).collect()
    }
}

/// What an entry names when its cost is the one the provider gave with the answer.
pub const REPORTED: &str = "reported";
