//! The table as a whole: layers, spellings, and the list prices in the program.

use std::sync::Arc;

use super::*;
use crate::unit::Usage;

fn overlay(layer: &str, prices: &[(&str, &str)]) -> Overlay {
    let price = |json: &str| serde_json::from_str::<Price>(json).unwrap();
    Overlay::hashed(layer, prices.iter().map(|(name, json)| (name.parse().unwrap(), price(json))).collect())
}

fn input(price: &Price) -> String {
    price.rates[Item::Input].map(|rate| rate.format(Item::Input)).unwrap_or_default()
}

#[test]
fn layers_and_spellings() {
    let config = overlay(
        "config",
        &[
            ("openai/gpt-4o", r#"{"input":"1"}"#),
            ("openai/gpt-4o-2024-05-13", r#"{"input":"2"}"#),
            ("*/llama3:8b", r#"{"input":"3"}"#),
            ("mine/fast", r#"{"same_as":"anthropic/claude-3-5-haiku-20241022"}"#),
            ("mine/a", r#"{"same_as":"mine/b"}"#),
            ("mine/b", r#"{"same_as":"mine/a"}"#),
            ("mine/lost", r#"{"same_as":"mine/nothing"}"#),
        ],
    );
    let listing = Listing { listed_as: Some("openai".into()), region: None };
    let table = PriceTable::new(config, [("gateway".to_owned(), listing)]);
    let store = overlay("store", &[("openai/gpt-4o-mini", r#"{"input":"9"}"#)]);
    let table = table.with_store(store);
    for (provider, reported, requested, want) in [
        ("openai", Some("gpt-4o"), None, Some(("1", Layer::Config, Spelling::Exact, Said::Reported))),
        ("openai", Some("gpt-4o-2024-08-06"), None, Some(("1", Layer::Config, Spelling::WithoutDate, Said::Reported))),
        ("openai", Some("gpt-4o-2024-05-13"), None, Some(("2", Layer::Config, Spelling::Exact, Said::Reported))),
        ("openai", Some("odd"), Some("gpt-4o"), Some(("1", Layer::Config, Spelling::Exact, Said::Requested))),
        (
            "openai",
            Some("gpt-4o-mini-2024-07-18"),
            Some("gpt-4o"),
            Some(("9", Layer::Store, Spelling::WithoutDate, Said::Reported)),
        ),
        ("ollama", None, Some("llama3:8b"), Some(("3", Layer::Config, Spelling::Exact, Said::Requested))),
        ("anthropic", Some("claude-3-5-haiku-20241022"), None, {
            Some(("0.8", Layer::BuiltIn, Spelling::Exact, Said::Reported))
        }),
        ("mine", None, Some("fast"), Some(("0.8", Layer::BuiltIn, Spelling::Exact, Said::Requested))),
        ("gateway", None, Some("gpt-4.1"), Some(("2", Layer::BuiltIn, Spelling::Exact, Said::Requested))),
        // A listing borrows what is built in, not what an operator says of another provider.
        ("gateway", None, Some("gpt-4o"), Some(("2.5", Layer::BuiltIn, Spelling::Exact, Said::Requested))),
        ("mine", None, Some("a"), None),
        ("mine", None, Some("lost"), None),
        ("openai", Some("no-such-model"), Some("nor-this"), None),
        ("openai", None, None, None),
        ("nobody", None, Some("gpt-4o"), None),
    ] {
        // The second is the memo's.
        for _ in 0..2 {
            let found = table.price(provider, reported, requested);
            let shown = found.as_ref().map(|found| (input(&found.price), found.layer, found.spelling, found.said));
            let want = want.map(|(input, layer, spelling, said)| (input.to_owned(), layer, spelling, said));
            assert_eq!(shown, want, "{provider} {reported:?} {requested:?}");
        }
    }
    let fast = table.resolve("mine", "fast").unwrap();
    assert_eq!(fast.via, ["mine/fast".parse().unwrap()]);
    assert_eq!(&*fast.version, built_in_version());
}

#[test]
fn a_change_makes_another_table() {
    let before = PriceTable::default();
    let listed = before.resolve("openai", "gpt-4o").unwrap();
    let after = before.with_store(overlay("store", &[("openai/gpt-4o", r#"{"input":"7"}"#)]));
    assert_eq!(input(&after.resolve("openai", "gpt-4o").unwrap().price), "7");
    let trial = after.with_trial(overlay("trial", &[("openai/gpt-4o", r#"{"input":"8"}"#)]));
    assert_eq!(input(&trial.resolve("openai", "gpt-4o").unwrap().price), "8");
    assert_eq!(before.resolve("openai", "gpt-4o").unwrap(), listed);
    assert_eq!(after.with_store(Overlay::default()).resolve("openai", "gpt-4o").unwrap(), listed);
}

#[test]
fn versions_name_what_was_in_force() {
    let one = [("openai/gpt-4o", r#"{"input":"1"}"#)];
    let version = |prices: &[(&str, &str)]| {
        let table = PriceTable::new(overlay("config", prices), []);
        Arc::clone(&table.resolve("openai", "gpt-4o").unwrap().version)
    };
    assert_eq!(version(&one), version(&one));
    assert!(version(&one).starts_with("config "));
    assert_ne!(version(&one), version(&[("openai/gpt-4o", r#"{"input":"2"}"#)]));
    let record = PriceRecord {
        name: "openai/gpt-4o".parse().unwrap(),
        price: serde_json::from_str(r#"{"input":"1"}"#).unwrap(),
        set_ms: 1_764_115_200_000,
    };
    let table = PriceTable::default().with_store([record].into_iter().collect());
    let found = table.resolve("openai", "gpt-4o").unwrap();
    assert_eq!((&*found.version, found.layer), ("store 2025-11-26T00:00:00.000Z", Layer::Store));
}

#[test]
fn what_is_tried_is_told() {
    let table = PriceTable::new(overlay("config", &[("openai/gpt-4o", r#"{"input":"1"}"#)]), []);
    let tried = table.tried("openai", "gpt-4o-2024-08-06");
    let shown: Vec<(&str, Spelling, &[Layer])> =
        tried.iter().map(|one| (&*one.model, one.spelling, &*one.layers)).collect();
    let dated = ("gpt-4o-2024-08-06", Spelling::Exact, &[Layer::BuiltIn][..]);
    assert_eq!(shown[0], dated);
    assert_eq!(shown[1], ("gpt-4o", Spelling::WithoutDate, &[Layer::Config, Layer::BuiltIn][..]));
    let all = table.all();
    assert_eq!(all[&"openai/gpt-4o".parse().unwrap()].0, Layer::Config);
    assert_eq!(all[&"openai/gpt-4o-2024-08-06".parse().unwrap()].0, Layer::BuiltIn);
    assert_eq!(table.said(&"openai/gpt-4o".parse().unwrap()).unwrap().0, Layer::Config);
    assert_eq!(table.said(&"openai/gpt-4".parse().unwrap()).unwrap().0, Layer::BuiltIn);
    assert_eq!(table.said(&"openai/nothing".parse().unwrap()), None);
}

#[test]
fn list_prices_are_what_providers_published() {
    let table = PriceTable::default();
    let usage = Usage { input: Some(1_000_000), output: Some(1_000_000), ..Usage::default() };
    for (provider, model, dollars) in [
        ("openai", "gpt-4o", "12.5"),
        ("openai", "gpt-4o-mini-2024-07-18", "0.75"),
        ("anthropic", "claude-3-5-haiku-20241022", "4.8"),
        ("azure-openai", "gpt-4o-2024-08-06", "12.5"),
    ] {
        let found = table.resolve(provider, model).unwrap();
        let cost = found.price.cost(&usage, None).unwrap();
        assert_eq!(crate::unit::usd(cost), dollars, "{provider}/{model}");
    }
}
