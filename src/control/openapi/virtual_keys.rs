//! Virtual keys, and whom they are for: plans, users, teams.

use serde_json::json;

use super::operation::Op;
use crate::control::named::ListQuery;
use crate::control::policy::With;
use crate::control::view::KeyView;
use crate::control::{keys, owners, plans, usage};
use crate::storage::UsageReport;

pub(super) fn keys() -> Vec<Op> {
    vec![
        Op::get("/api/keys", "listKeys", "Virtual keys, the oldest first")
            .query::<keys::ListQuery>()
            .gives::<keys::KeyList>(),
        Op::post("/api/keys", "createKey", "Makes a virtual key, which is shown this once")
            .takes_with::<With<keys::Wish>>(&["name"])
            .example(json!({"name": "app", "models": ["gpt-4o*"], "limits": {"rpm": 60}, "budgets": [{"usd": "100", "per": "month"}]}))
            .makes::<keys::KeyMade<'_>>()
            .leads_to("getKey", "id", "/key_data/id")
            .leads_to("updateKey", "id", "/key_data/id")
            .leads_to("getKeyUsage", "id", "/key_data/id")
            .leads_to("disableKey", "id", "/key_data/id")
            .leads_to("enableKey", "id", "/key_data/id")
            .leads_to("revokeKey", "id", "/key_data/id")
            .leads_to("rotateKey", "id", "/key_data/id")
            .leads_to("deleteKey", "id", "/key_data/id"),
        Op::post("/api/keys/validate", "validateKey", "Whether a key would be accepted now, and why not")
            .takes_with::<keys::Presented>(&["key"])
            .gives::<keys::Validated>(),
        Op::get("/api/keys/{id}", "getKey", "One virtual key").gives::<KeyView>(),
        Op::patch("/api/keys/{id}", "updateKey", "Changes what is said, and keeps the rest")
            .takes::<With<keys::Wish>>()
            .gives::<KeyView>()
            .versioned(),
        Op::delete("/api/keys/{id}", "deleteKey", "Removes a virtual key; its entries stay in the ledger").versioned(),
        Op::post("/api/keys/{id}/rotate", "rotateKey", "Gives it a new secret, which is shown this once")
            .takes::<keys::Rotation>()
            .example(json!({"grace": "1h"}))
            .gives::<keys::KeyMade<'_>>()
            .versioned()
            .may(&[409]),
        Op::post("/api/keys/{id}/enable", "enableKey", "Switches it on").gives::<KeyView>().versioned().may(&[409]),
        Op::post("/api/keys/{id}/disable", "disableKey", "Switches it off, until it is switched on")
            .gives::<KeyView>()
            .versioned()
            .may(&[409]),
        Op::post("/api/keys/{id}/revoke", "revokeKey", "Takes it back for good").gives::<KeyView>().versioned(),
        Op::get("/api/keys/{id}/usage", "getKeyUsage", "What it used, by day")
            .query::<usage::DaysQuery>()
            .gives::<UsageReport>(),
    ]
}

pub(super) fn plans() -> Vec<Op> {
    vec![
        Op::get("/api/plans", "listPlans", "Plans, by name").query::<ListQuery>().gives::<plans::PlanList>(),
        Op::post("/api/plans", "createPlan", "Makes a plan")
            .takes_with::<With<plans::Wish>>(&["name"])
            .example(json!({"name": "team", "limits": {"rpm": 600}, "shared": {"budgets": [{"usd": "500", "per": "month"}]}}))
            .makes::<plans::PlanView>()
            .leads_to("getPlan", "name", "/name")
            .leads_to("updatePlan", "name", "/name")
            .leads_to("deletePlan", "name", "/name"),
        Op::get("/api/plans/{name}", "getPlan", "One plan").gives::<plans::PlanView>(),
        Op::patch("/api/plans/{name}", "updatePlan", "Changes what is said, and keeps the rest")
            .takes::<With<plans::Wish>>()
            .gives::<plans::PlanView>()
            .versioned(),
        Op::delete("/api/plans/{name}", "deletePlan", "Removes a plan that no key needs").versioned().may(&[409]),
    ]
}

pub(super) fn holders() -> Vec<Op> {
    vec![
        Op::get("/api/users", "listUsers", "Users that have a policy, a key, or used something")
            .query::<ListQuery>()
            .gives::<owners::UserList>(),
        Op::get("/api/users/{id}", "getUser", "One user; version 0 is one without a policy")
            .gives::<owners::OwnerView>(),
        Op::patch("/api/users/{id}", "setUser", "Makes or changes the user's policy")
            .takes::<With<owners::Wish>>()
            .example(json!({"budgets": [{"usd": "20", "per": "month"}]}))
            .gives::<owners::OwnerView>()
            .versioned()
            .stays_at("getUser", "id")
            .stays_at("unsetUser", "id"),
        Op::delete("/api/users/{id}", "unsetUser", "Takes the policy away; the user stays").versioned(),
        Op::get("/api/teams", "listTeams", "Teams that have a policy, a key, or used something")
            .query::<ListQuery>()
            .gives::<owners::TeamList>(),
        Op::get("/api/teams/{id}", "getTeam", "One team; version 0 is one without a policy")
            .gives::<owners::OwnerView>(),
        Op::patch("/api/teams/{id}", "setTeam", "Makes or changes the team's policy")
            .takes::<With<owners::Wish>>()
            .example(json!({"budgets": [{"usd": "20", "per": "month"}]}))
            .gives::<owners::OwnerView>()
            .versioned()
            .stays_at("getTeam", "id")
            .stays_at("unsetTeam", "id"),
        Op::delete("/api/teams/{id}", "unsetTeam", "Takes the policy away; the team stays").versioned(),
    ]
}
