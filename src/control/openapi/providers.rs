//! Who is called, and with what: providers, provider keys, pools.

use serde_json::json;

use super::operation::Op;
use crate::control::named::ListQuery;
use crate::control::policy::With;
use crate::control::view::{ProviderKeyView, ProviderView};
use crate::control::{leases, pools, provider_keys, status, usage};
use crate::storage::UsageReport;

pub(super) fn providers() -> Vec<Op> {
    vec![
        Op::get("/api/providers", "listProviders", "Providers: the built-in ones, and the operator's own")
            .query::<ListQuery>()
            .gives::<status::ProviderList>(),
        Op::get("/api/providers/{id}", "getProvider", "One provider, by its id or an alias").gives::<ProviderView>(),
    ]
}

pub(super) fn keys() -> Vec<Op> {
    vec![
        Op::get("/api/provider-keys", "listProviderKeys", "Provider keys, masked")
            .query::<provider_keys::ListQuery>()
            .gives::<provider_keys::ProviderKeyList>(),
        Op::post("/api/provider-keys", "addProviderKey", "Seals a real key, or notes where to find it")
            .takes_with::<With<provider_keys::Addition>>(&["provider", "name"])
            .example(json!({"provider": "openai", "name": "spare", "secret": "sk-the-real-key"}))
            .makes::<ProviderKeyView>()
            .leads_to("getProviderKey", "id", "/id")
            .leads_to("updateProviderKey", "id", "/id")
            .leads_to("getProviderKeyUsage", "id", "/id")
            .leads_to("testProviderKey", "id", "/id")
            .leads_to("rotateProviderKey", "id", "/id")
            .leads_to("disableProviderKey", "id", "/id")
            .leads_to("enableProviderKey", "id", "/id")
            .leads_to("deleteProviderKey", "id", "/id"),
        Op::get("/api/provider-keys/{id}", "getProviderKey", "One provider key, masked").gives::<ProviderKeyView>(),
        Op::patch("/api/provider-keys/{id}", "updateProviderKey", "Changes what is said, and keeps the rest")
            .takes::<With<provider_keys::Change>>()
            .gives::<ProviderKeyView>()
            .versioned()
            .may(&[409]),
        Op::delete("/api/provider-keys/{id}", "deleteProviderKey", "Removes a provider key").versioned().may(&[409]),
        Op::post("/api/provider-keys/{id}/rotate", "rotateProviderKey", "Puts a new secret in place of the old one")
            .takes::<provider_keys::Rotation>()
            .example(json!({"secret": "sk-the-new-key", "grace": "1h"}))
            .gives::<provider_keys::RotatedView>()
            .versioned()
            .may(&[409]),
        Op::post("/api/provider-keys/{id}/enable", "enableProviderKey", "Switches it on")
            .gives::<ProviderKeyView>()
            .versioned(),
        Op::post("/api/provider-keys/{id}/disable", "disableProviderKey", "Switches it off, until it is switched on")
            .gives::<ProviderKeyView>()
            .versioned()
            .may(&[409]),
        Op::post("/api/provider-keys/{id}/test", "testProviderKey", "Asks the provider whether it takes it")
            .gives::<provider_keys::TestedKey>(),
        Op::get("/api/provider-keys/{id}/usage", "getProviderKeyUsage", "What was used with it, by day")
            .query::<usage::DaysQuery>()
            .gives::<UsageReport>(),
    ]
}

pub(super) fn pools() -> Vec<Op> {
    vec![
        Op::get("/api/pools", "listPools", "Pools, by name").query::<ListQuery>().gives::<pools::PoolList>(),
        Op::post("/api/pools", "createPool", "Makes a pool")
            .takes_with::<pools::Wish>(&["name"])
            .example(json!({"name": "fast", "policy": "weighted"}))
            .makes::<pools::PoolView>()
            .leads_to("getPool", "name", "/name")
            .leads_to("updatePool", "name", "/name")
            .leads_to("deletePool", "name", "/name"),
        Op::get("/api/pools/{name}", "getPool", "One pool").gives::<pools::PoolView>(),
        Op::patch("/api/pools/{name}", "updatePool", "Changes what is said, and keeps the rest")
            .takes::<pools::Wish>()
            .gives::<pools::PoolView>()
            .versioned(),
        Op::delete("/api/pools/{name}", "deletePool", "Removes a pool that no key needs").versioned().may(&[409]),
        Op::post("/api/pools/{name}/lease", "lease", "Hands a real key out for a while")
            .takes::<leases::Wish>()
            .example(json!({"ttl": "5m", "reserve": {"output_tokens": 1000}}))
            .answer::<leases::Lease<'_>>(201, "It is out.")
            .may(&[402, 404, 502, 504])
            .goes_on("reportLease", "name", &json!({"lease": "$response.body#/lease", "report": "1"})),
        Op::post("/api/pools/{name}/usage", "reportLease", "Tells what was used of a lease")
            .takes_with::<leases::Report>(&["lease", "report"])
            .example(json!({"lease": "0123456789abcdef", "report": "1", "tokens": {"input": 7, "output": 3}}))
            .answer::<leases::Reported<'_>>(201, "It is recorded.")
            .answer::<leases::Reported<'_>>(200, "It had come before.")
            .may(&[404, 409]),
    ]
}
