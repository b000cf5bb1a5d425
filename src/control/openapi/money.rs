//! What things cost, and what was used: prices, usage, the ledger.

use serde_json::json;

use super::operation::Op;
use crate::control::{prices, usage};
use crate::pricing::Price;
use crate::storage::UsageReport;

pub(super) fn prices() -> Vec<Op> {
    vec![
        Op::get("/api/prices", "listPrices", "Prices, by name")
            .query::<prices::ListQuery>()
            .gives::<prices::PriceList>(),
        Op::post("/api/prices", "importPrices", "Sets many prices, or none of them")
            .takes_with::<prices::Import>(&["prices"])
            .example(json!({"prices": {"openai/my-model": {"input": "0.15", "output": "0.6"}}}))
            .gives::<prices::Imported>()
            .may(&[409]),
        Op::get("/api/prices/explain", "explainPrice", "Under which names a price is looked for, and what is found")
            .query::<prices::ExplainQuery>()
            .gives::<prices::PriceExplanation>(),
        Op::get("/api/prices/{*name}", "getPrice", "One price; version 0 is one that was not set here")
            .gives::<prices::PriceView>()
            .may(&[422]),
        Op::put("/api/prices/{*name}", "setPrice", "Sets a price, over what the configuration and the program say")
            .needs::<Price>()
            .example(json!({"input": "0.15", "cached_input": "0.075", "output": "0.6"}))
            .gives::<prices::PriceView>()
            .answer::<prices::PriceView>(201, "It is set for the first time.")
            .versioned()
            .stays_at("getPrice", "name")
            .stays_at("deletePrice", "name"),
        Op::delete("/api/prices/{*name}", "deletePrice", "Takes back what was set here").versioned().may(&[422]),
    ]
}

pub(super) fn usage() -> Vec<Op> {
    vec![
        Op::get("/api/usage", "getUsage", "What was used, summed").query::<usage::ReportQuery>().gives::<UsageReport>(),
        Op::post("/api/usage", "repriceUsage", "The same as it would be under other prices; nothing changes")
            .query::<usage::ReportQuery>()
            .takes_with::<usage::OtherPrices>(&["prices"])
            .example(json!({"prices": {"openai/gpt-4o": {"input": "2", "output": "8"}}}))
            .gives::<UsageReport>(),
        Op::get("/api/usage/groups/{id}", "getGroupUsage", "The calls of one group, and whose keys paid")
            .query::<usage::GroupQuery>()
            .gives::<usage::GroupUsage>(),
        Op::get("/api/ledger", "listEntries", "Entries, newest first")
            .query::<usage::LedgerQuery>()
            .gives::<usage::Entries>(),
    ]
}
