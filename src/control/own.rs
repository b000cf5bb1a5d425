//! What users make for themselves must not be more than they would get anyway.
//!
//! Owns that comparison; leaves what all keys of a user may use together to the user's policy, which holds every key
//! they make whatever the key itself says.

use crate::control::caller::not_yours;
use crate::control::problem::Problem;
use crate::policy::{Budget, Policy};
use crate::virtual_key::VirtualKey;

/// Checks a user's new key against the policy it would have had and the expiry of which nothing is said.
///
/// # Errors
/// 403 naming the field that would be more.
pub(super) fn check(key: &VirtualKey, before: &Policy, latest_ms: u64) -> Result<(), Problem> {
    if key.expires_ms.is_none_or(|at| at > latest_ms) {
        return Err(not_yours("expires", "let it expire sooner: not later than keys.default_expires_days"));
    }
    let Policy { limits, budgets, quotas: _, shadow, unpriced, unrecorded, hard_stop } = &key.policy;
    let pairs = [
        ("limits.rpm", before.limits.rpm, limits.rpm),
        ("limits.tpm", before.limits.tpm, limits.tpm),
        ("limits.max_in_flight", before.limits.max_in_flight, limits.max_in_flight),
    ];
    let raised = |(_, before, after): &(&str, Option<u64>, Option<u64>)| {
        before.is_some_and(|before| after.is_none_or(|after| after > before))
    };
    if let Some((field, ..)) = pairs.iter().find(|pair| raised(pair)) {
        return Err(not_yours(field, "say less than it would be, or nothing"));
    }
    let kept = |budget: &Budget| {
        budgets.iter().any(|own| {
            let same = (own.per, &own.time_zone, own.shadow) == (budget.per, &budget.time_zone, budget.shadow);
            same && own.nano_usd <= budget.nano_usd
        })
    };
    if !before.budgets.iter().all(kept) {
        return Err(not_yours("budgets", "keep the budget a new key gets, or say a smaller one of the same window"));
    }
    let said = [
        ("limits.tpm_counts", limits.tpm_counts != before.limits.tpm_counts),
        ("shadow", shadow != &before.shadow),
        ("unpriced", *unpriced != before.unpriced),
        ("unrecorded", *unrecorded != before.unrecorded),
        ("hard_stop", *hard_stop != before.hard_stop),
    ];
    match said.into_iter().find(|(_, said)| *said) {
        Some((field, _)) => Err(not_yours(field, "leave it out, or ask an operator")),
        None => Ok(()),
    }
}
