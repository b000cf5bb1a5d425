//! Routes: what a model's name means, as an ordered list of targets, of which some share and others stand in.
//!
//! Owns the record, the order of targets and each one's share. Leaves whether there are such providers to `provider`, and
//! what may be called, and calling it, to `proxy`.
//!
//! Targets are tried as they are written, and neighbours that give a `weight` share by it. Who wants it otherwise gives
//! every target an `order`: the lower goes first, and equals share.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

/// The heaviest a target can be.
pub const MAX_WEIGHT: u32 = 1_000;
/// The most targets of a route.
pub const MAX_TARGETS: usize = 16;
/// Longest pattern, and longest name of a model.
const MAX_NAME: usize = 256;

/// Where a request may go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "RouteTarget"))]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// A provider, by id or alias.
    pub provider: String,
    /// The model's name there; unless given, the one that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its share among targets of the same order, 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// When it is tried: the lower first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<u32>,
}

/// One route as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Route"))]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    targets: Vec<Target>,
}

/// What requests for some models are led by.
#[derive(Debug)]
pub struct Route {
    /// The model's name, or a glob of names.
    pub pattern: Box<str>,
    /// As they are written.
    pub targets: Box<[Target]>,
    /// Places in `targets`, in the order in which they are tried; those that share stand together.
    groups: Box<[Group]>,
    /// Counts requests, so that shares are kept to the request.
    turn: AtomicU64,
}

/// Targets of one order.
#[derive(Debug)]
struct Group {
    members: Vec<usize>,
    total: u64,
    /// How far it is from one request's place in the total to the next one's.
    stride: u64,
}

/// Routes by what they are for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(from = "BTreeMap<String, Written>", into = "BTreeMap<String, Written>")]
pub struct Routes {
    exact: BTreeMap<Box<str>, Arc<Route>>,
    /// Those that say most of a name first.
    globs: Vec<(WildMatch, Arc<Route>)>,
}

/// What is wrong with a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the route {pattern:?}: {what}")]
pub struct Fault {
    /// The route.
    pub pattern: String,
    /// What is wrong, and the fix.
    pub what: String,
}

impl Target {
    fn weight(&self) -> u64 {
        u64::from(self.weight.unwrap_or(1).max(1))
    }
}

impl Route {
    /// Of targets that [`Routes::faults`] finds nothing wrong with.
    #[must_use]
    pub fn new(pattern: &str, targets: Vec<Target>) -> Self {
        let orders = orders(&targets);
        let mut places: Vec<usize> = (0..targets.len()).collect();
        places.sort_by_key(|place| orders[*place]);
        let groups = places.chunk_by(|a, b| orders[*a] == orders[*b]);
        let groups = groups.map(|members| Group::new(members.to_vec(), &targets)).collect();
        Self { pattern: pattern.into(), targets: targets.into(), groups, turn: AtomicU64::new(0) }
    }

    /// True when it stands for one name alone.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !is_glob(&self.pattern)
    }

    /// The places of its targets in the order in which this request tries them. Takes a turn where targets share.
    #[must_use]
    pub fn turn(&self) -> Vec<usize> {
        let shared = self.groups.iter().any(|group| group.members.len() > 1);
        let turn = if shared { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        self.groups.iter().flat_map(|group| group.order(turn, &self.targets)).collect()
    }

    /// The places of its targets in the order of groups, each with the group's number from 1. Takes no turn.
    #[must_use]
    pub fn places(&self) -> Vec<(usize, usize)> {
        let groups = self.groups.iter().zip(1..);
        groups.flat_map(|(group, number)| group.members.iter().map(move |place| (*place, number))).collect()
    }

    /// What a target's weight is of the weights it shares with.
    #[must_use]
    pub fn share(&self, place: usize) -> (u64, u64) {
        let group = self.groups.iter().find(|group| group.members.contains(&place));
        (self.targets.get(place).map_or(0, Target::weight), group.map_or(1, |group| group.total))
    }
}

/// When each target is tried.
fn orders(targets: &[Target]) -> Vec<u32> {
    let (mut at, mut shares) = (0, false);
    let order = |target: &Target| {
        if let Some(order) = target.order {
            return order;
        }
        at += u32::from(!(shares && target.weight.is_some()));
        shares = target.weight.is_some();
        at
    };
    targets.iter().map(order).collect()
}

impl Group {
    fn new(members: Vec<usize>, targets: &[Target]) -> Self {
        let total = members.iter().map(|place| targets[*place].weight()).sum::<u64>().max(1);
        // Steps of the golden section leave no gap for long; without a common divisor they come by every place.
        let mut stride = (total * 618 / 1_000).max(1);
        while gcd(stride, total) != 1 {
            stride += 1;
        }
        Self { members, total, stride }
    }

    fn order(&self, turn: u64, targets: &[Target]) -> Vec<usize> {
        let mut left = self.members.clone();
        let mut order = Vec::with_capacity(left.len());
        let mut total = self.total;
        let mut slot = turn % total * self.stride % total;
        while left.len() > 1 {
            let at = left.iter().position(|place| match slot.checked_sub(targets[*place].weight()) {
                None => true,
                Some(rest) => {
                    slot = rest;
                    false
                }
            });
            let place = left.remove(at.unwrap_or(0));
            total -= targets[place].weight();
            order.push(place);
            // Who stands in for the first is drawn anew, or one would stand in for all of its requests.
            slot = mix(turn.wrapping_add(total)) % total.max(1);
        }
        order.extend(left);
        order
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Spreads the bits of a number over all of it (the finaliser of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

impl Routes {
    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.globs.is_empty()
    }

    /// The route of a model: the one of its very name, else of the globs that match it the one that says most of it.
    #[must_use]
    pub fn find(&self, model: &str) -> Option<&Arc<Route>> {
        let glob = || self.globs.iter().find(|(glob, _)| glob.matches(model)).map(|(_, route)| route);
        self.exact.get(model).or_else(glob)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.globs.iter().map(|(_, route)| route))
    }

    /// Adds a route, or puts it in the place of the one with its pattern.
    pub fn put(&mut self, route: Route) {
        let route = Arc::new(route);
        let pattern = route.pattern.clone();
        if !is_glob(&pattern) {
            self.exact.insert(pattern, route);
            return;
        }
        self.globs.retain(|(_, other)| other.pattern != pattern);
        self.globs.push((WildMatch::new(&pattern), route));
        let said = |pattern: &str| pattern.chars().filter(|c| !matches!(c, '*' | '?')).count();
        self.globs.sort_by(|(_, a), (_, b)| said(&b.pattern).cmp(&said(&a.pattern)).then(a.pattern.cmp(&b.pattern)));
    }

    /// What is wrong with them by themselves, whatever providers there are.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let fault = |route: &Arc<Route>| {
            let what = wrong(route)?;
            Some(Fault { pattern: route.pattern.to_string(), what })
        };
        self.iter().filter_map(fault).collect()
    }
}

fn wrong(route: &Route) -> Option<String> {
    let targets = &route.targets;
    if let Some(problem) = bad_name(&route.pattern) {
        return Some(format!("its name {problem}; write a model's name or a glob such as gpt-*"));
    }
    if targets.is_empty() {
        return Some("targets is empty; name one, as { provider = \"openai\", model = \"gpt-4o\" }".to_owned());
    }
    if targets.len() > MAX_TARGETS {
        return Some(format!("targets holds {}, and {MAX_TARGETS} is the most", targets.len()));
    }
    let ordered = targets.iter().filter(|target| target.order.is_some()).count();
    if ordered > 0 && ordered < targets.len() {
        return Some("order is given for some targets; give it for all of them, or for none".to_owned());
    }
    for (place, target) in targets.iter().enumerate() {
        let at = |what: String| Some(format!("targets[{place}].{what}"));
        if let Some(weight) = target.weight.filter(|weight| !(1..=MAX_WEIGHT).contains(weight)) {
            return at(format!("weight is {weight}; write 1 to {MAX_WEIGHT}, or leave the target out"));
        }
        if let Some(problem) = target.model.as_deref().and_then(bad_name) {
            return at(format!("model {problem}; write the model's name at {}", target.provider));
        }
        if target.model.as_deref().is_some_and(is_glob) {
            return at("model is a glob; write one name, or leave it out for the one that was asked for".to_owned());
        }
        if targets[..place].iter().any(|other| other.provider == target.provider && other.model == target.model) {
            return at("provider is named with the same model before; keep one".to_owned());
        }
    }
    None
}

fn bad_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > MAX_NAME {
        Some("is longer than 256 bytes")
    } else if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Some("holds white space or a control character")
    } else {
        None
    }
}

impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        let written = |route: &Arc<Route>| (route.pattern.clone(), route.targets.clone());
        self.iter().map(written).eq(other.iter().map(written))
    }
}

impl Eq for Routes {}

impl From<BTreeMap<String, Written>> for Routes {
    fn from(written: BTreeMap<String, Written>) -> Self {
        let mut routes = Self::default();
        written.into_iter().for_each(|(pattern, written)| routes.put(Route::new(&pattern, written.targets)));
        routes
    }
}

impl From<Routes> for BTreeMap<String, Written> {
    fn from(routes: Routes) -> Self {
        let written = |route: &Arc<Route>| (route.pattern.to_string(), Written { targets: route.targets.to_vec() });
        routes.iter().map(written).collect()
    }
}

impl FromIterator<Route> for Routes {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let mut all = Self::default();
        routes.into_iter().for_each(|route| all.put(route));
        all
    }
}

/// As it is typed: `smart=openai/gpt-4o,azure/gpt-4o`, with shares `smart=3*openai/gpt-4o,1*groq/llama-3.3-70b-versatile`.
impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape =
            "write MODEL=PROVIDER/MODEL, as smart=openai/gpt-4o; more with commas, and shares as 3*openai/gpt-4o";
        let (pattern, targets) = text.split_once('=').ok_or_else(|| format!("{text:?} has no `=`: {shape}"))?;
        let targets = targets.split(',').map(|target| target_of(target.trim()).ok_or(target));
        let targets: Result<Vec<Target>, &str> = targets.collect();
        let targets = targets.map_err(|target| format!("{target:?} is no target: {shape}"))?;
        Ok(Self::new(pattern.trim(), targets))
    }
}

fn target_of(text: &str) -> Option<Target> {
    // A provider's id holds no star, a model's name may.
    let (weight, rest) = match text.split_once('*') {
        Some((weight, rest)) if !weight.contains('/') => (Some(weight.trim().parse().ok()?), rest.trim()),
        _ => (None, text),
    };
    let (provider, model) = rest.split_once('/').map_or((rest, None), |(provider, model)| (provider, Some(model)));
    let model = model.map(str::to_owned);
    (!provider.is_empty()).then(|| Target { provider: provider.to_owned(), model, weight, order: None })
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.pattern)?;
        for (place, target) in self.targets.iter().enumerate() {
            if place > 0 {
                f.write_char(',')?;
            }
            if let Some(weight) = target.weight {
                write!(f, "{weight}*")?;
            }
            f.write_str(&target.provider)?;
            if let Some(model) = &target.model {
                write!(f, "/{model}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(provider: &str, weight: Option<u32>, order: Option<u32>) -> Target {
        Target { provider: provider.to_owned(), model: None, weight, order }
    }

    #[test]
    fn targets_are_tried_as_they_are_written_and_neighbours_with_weights_share() {
        for (name, targets, want) in [
            ("as written", vec![(None, None); 3], &[(0, 1), (1, 2), (2, 3)][..]),
            ("all share", vec![(Some(3), None), (Some(1), None)], &[(0, 1), (1, 1)]),
            ("two share", vec![(Some(3), None), (Some(1), None), (None, None)], &[(0, 1), (1, 1), (2, 2)]),
            ("share later", vec![(None, None), (Some(3), None), (Some(1), None)], &[(0, 1), (1, 2), (2, 2)]),
            ("said", vec![(None, Some(9)), (Some(2), Some(1)), (None, Some(1))], &[(1, 1), (2, 1), (0, 2)]),
            (
                "two groups",
                vec![(Some(3), Some(1)), (Some(1), Some(1)), (Some(1), Some(2)), (Some(1), Some(2))],
                &[(0, 1), (1, 1), (2, 2), (3, 2)],
            ),
        ] {
            let targets = targets.into_iter().map(|(weight, order)| target("p", weight, order)).collect();
            let route = Route::new("m", targets);
            assert_eq!(route.places(), want, "{name}");
            let groups: BTreeMap<usize, usize> = route.places().into_iter().collect();
            for _ in 0..20 {
                let order: Vec<usize> = route.turn().iter().map(|place| groups[place]).collect();
                assert!(order.is_sorted() && order.len() == groups.len(), "{name}: {order:?}");
            }
        }
        let route =
            Route::new("m", vec![target("a", Some(3), None), target("b", Some(1), None), target("c", None, None)]);
        assert_eq!([route.share(0), route.share(1), route.share(2)], [(3, 4), (1, 4), (1, 1)]);
    }

    #[test]
    fn the_route_of_a_name_goes_before_globs_and_the_longest_of_these_first() {
        let routes: Routes = serde_json::from_str(
            r#"{"*":{"targets":[{"provider":"a"}]},"gpt-*":{"targets":[{"provider":"b"}]},
                "gpt-4?":{"targets":[{"provider":"c"}]},"gpt-4o":{"targets":[{"provider":"d"}]}}"#,
        )
        .unwrap();
        for (model, want) in [("gpt-4o", "gpt-4o"), ("gpt-4x", "gpt-4?"), ("gpt-3.5", "gpt-*"), ("o3", "*")] {
            assert_eq!(routes.find(model).map(|route| &*route.pattern), Some(want), "{model}");
        }
        assert!(routes.faults().is_empty() && !routes.is_empty());
        let text = serde_json::to_string(&routes).unwrap();
        assert_eq!(serde_json::from_str::<Routes>(&text).unwrap(), routes);
        assert!(serde_json::from_str::<Routes>(r#"{"a":{"targets":[],"x":1}}"#).is_err());
        assert!(serde_json::from_str::<Routes>(r#"{"a":{"targets":[{"provider":"a","modle":"b"}]}}"#).is_err());
    }

    #[test]
    fn what_is_typed() {
        for text in ["smart=openai/gpt-4o", "s=3*openai/a,1*groq/org/b:c", "gpt-*=openai,azure", "a=openai/m*x"] {
            assert_eq!(text.parse::<Route>().unwrap().to_string(), text);
        }
        let route: Route = " smart = 3*openai/gpt-4o , groq/x ".parse().unwrap();
        assert_eq!((&*route.pattern, route.targets[0].weight, &*route.targets[1].provider), ("smart", Some(3), "groq"));
        for bad in ["smart", "smart=", "smart=x*openai/a", "smart=openai/a,", "smart=/a"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }

    #[test]
    fn faults_name_field_and_fix() {
        let of = |pattern: &str, targets| Routes::from_iter([Route::new(pattern, targets)]).faults();
        let model = |model: &str| Target { model: Some(model.to_owned()), ..target("openai", None, None) };
        for (pattern, targets, want) in [
            ("m", vec![], "targets is empty; name one"),
            ("", vec![target("a", None, None)], "its name is empty"),
            ("a b", vec![target("a", None, None)], "its name holds white space"),
            ("m", vec![target("a", Some(0), None)], "targets[0].weight is 0; write 1 to 1000"),
            ("m", vec![target("a", None, Some(1)), target("b", None, None)], "order is given for some targets"),
            ("m", vec![model("")], "targets[0].model is empty; write the model's name at openai"),
            ("m", vec![model("gpt-*")], "targets[0].model is a glob"),
            ("m", vec![model("a"), model("b"), model("a")], "targets[2].provider is named with the same model"),
            ("m", (0..17).map(|n| model(&n.to_string())).collect(), "targets holds 17"),
        ] {
            let faults = of(pattern, targets);
            assert!(faults.len() == 1 && faults[0].what.starts_with(want), "{want}: {faults:?}");
            assert!(faults[0].to_string().starts_with(&format!("the route {pattern:?}: ")));
        }
    }

    proptest! {
        /// Shares keep within 2 % of their weights, of the whole group and of those that are left when one is away.
        #[test]
        fn shares_are_fair(weights in proptest::collection::vec(1..=20_u32, 2..8), away in any::<prop::sample::Index>()) {
            let targets: Vec<Target> = weights.iter().map(|weight| target("p", Some(*weight), None)).collect();
            let route = Route::new("m", targets);
            let away = away.index(weights.len());
            let (mut first, mut without) = (vec![0_u64; weights.len()], vec![0_u64; weights.len()]);
            for _ in 0..10_000 {
                let order = route.turn();
                first[order[0]] += 1;
                without[*order.iter().find(|place| **place != away).unwrap()] += 1;
            }
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (place, weight) in weights.iter().enumerate() {
                let want = 10_000 * u64::from(*weight) / total;
                prop_assert!(first[place].abs_diff(want) * 50 <= want.max(50), "{first:?} of {weights:?}");
                if place != away {
                    let want = 10_000 * u64::from(*weight) / (total - u64::from(weights[away]));
                    // The stand-ins are drawn by lot.
                    prop_assert!(without[place].abs_diff(want) <= 300, "{without:?} of {weights:?} without {away}");
                }
            }
        }
    }
}
