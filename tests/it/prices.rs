//! What calls cost: by the list in the program, by the configuration, and by what operators set.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::client::Request;
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";

/// An answer of 40 tokens to 60.
fn answer(model: &str) -> String {
    format!(
        r#"{{"model":"{model}","choices":[],"usage":{{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}}}"#
    )
}

fn chat(key: &str, model: &str) -> Request {
    Request::post(CHAT, format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hi."}}]}}"#)).bearer(key)
}

/// A provider that uses the model it is asked for.
async fn provider() -> Provider {
    Provider::start(|seen| {
        if seen.method == "GET" {
            return Message::json(200, r#"{"object":"list","data":[]}"#).into();
        }
        Reply::FromBody(Arc::new(|body| {
            let asked: Value = serde_json::from_slice(body).expect("JSON");
            Message::json(200, answer(asked["model"].as_str().expect("a model")))
        }))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_have_a_cost_or_say_that_there_is_none() {
    let provider = provider().await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await;
    for (model, cost) in [
        // 40 at 0.15 and 60 at 0.6 dollars a million.
        ("gpt-4o-mini-2024-07-18", Some("0.000042")),
        ("gpt-4o-mini", Some("0.000042")),
        ("made-up", None),
    ] {
        let answer = sidekey.send(&chat(&key.key, model)).await;
        let entry = sidekey.entry(&answer.request_id()).await;
        assert_eq!(entry["cost_usd"].as_str(), cost, "{entry}");
        let version = entry["price_version"].as_str();
        assert_eq!(version.is_some_and(|version| version.starts_with("built-in 20")), cost.is_some(), "{entry}");
    }
    let metrics = sidekey.metrics().await;
    for line in [
        &format!(r#"sidekey_key_cost_usd_total{{key_id="{}"}} 0.000084"#, key.id),
        &format!(r#"sidekey_key_requests_total{{key_id="{}",model="gpt-4o-mini"}} 1"#, key.id),
        &format!(r#"sidekey_key_requests_total{{key_id="{}",model="made-up"}} 1"#, key.id),
        &format!(r#"sidekey_key_tokens_total{{key_id="{}",model="gpt-4o-mini-2024-07-18"}} 100"#, key.id),
        r#"sidekey_key_cost_usd_total{key_id="other"} 0"#,
        r#"sidekey_cost_usd_total{provider="openai"} 0.000084"#,
        r#"sidekey_unpriced_requests_total{provider="openai"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
    let alerts = sidekey.ok(&["alerts", "-o", "json"]).await;
    assert!(alerts.contains("price.unknown") && alerts.contains("model openai/made-up"), "{alerts}");
    let shown = sidekey.ok(&["key", "show", &key.id, "-o", "json"]).await;
    assert!(shown.contains(r#""spent": "0.000084""#) || shown.contains(r#""spent":"0.000084""#), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_goes_before_the_list() {
    let provider = provider().await;
    // The document's own example.
    let readme = include_str!("../../README.md");
    let at = readme.find("[prices]").expect("an example");
    let example = &readme[at..at + readme[at..].find("```").expect("an end")];
    let options = Options::new().config(example).provider("openai", &provider.url()).own_provider(
        "my-gateway",
        "openai",
        &provider.url(),
    );
    let sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    sidekey.add_provider_key("my-gateway", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await;
    for (id, model, cost, version) in [
        // 40 at 0.12 and 60 at 0.48 dollars a million.
        ("openai", "gpt-4o-mini", Some("0.0000336"), "config "),
        ("openai", "gpt-4o", Some("0.0007"), "built-in "),
        // 40 at 3 and 60 at 15.
        ("my-gateway", "house-large", Some("0.00102"), "built-in "),
        ("my-gateway", "llama3:8b", Some("0"), "config "),
        ("my-gateway", "gpt-4o-mini", None, ""),
    ] {
        let request = Request { target: format!("/{id}/v1/chat/completions"), ..chat(&key.key, model) };
        let answer = sidekey.send(&request).await;
        let entry = sidekey.entry(&answer.request_id()).await;
        assert_eq!(entry["cost_usd"].as_str(), cost, "{entry}");
        assert!(entry["price_version"].as_str().unwrap_or_default().starts_with(version), "{entry}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_that_cost_more_or_less() {
    let provider = Provider::always(Message::new(500)).await;
    let options = ["openai", "anthropic", "openrouter", "gemini"]
        .iter()
        .fold(Options::new(), |options, id| options.provider(id, &provider.url()));
    let options = options.config("[prices]\n\"openrouter/own\" = { input = \"1\", output = \"1\" }");
    let sidekey = Sidekey::start(&options).await;
    for id in ["openai", "anthropic", "openrouter", "gemini"] {
        sidekey.add_provider_key(id, REAL_KEY).await;
    }
    let key = sidekey.create_key(&[]).await;
    let messages = "/anthropic/v1/messages";
    let chat = "/openrouter/v1/chat/completions";
    let generate = "/gemini/v1beta/models/gemini-2.5-flash:generateContent";
    for (path, answer, figure, cost, version) in [
        // 100 at 3, 200 at 3.75, 300 at 6 and 10 at 15 dollars a million, and two searches at a cent.
        (
            messages,
            r#"{"model":"claude-sonnet-4-20250514","usage":{"input_tokens":100,"cache_creation_input_tokens":500,
                "cache_creation":{"ephemeral_5m_input_tokens":200,"ephemeral_1h_input_tokens":300},
                "output_tokens":10,"server_tool_use":{"web_search_requests":2},"service_tier":"standard"}}"#,
            ("cache_write_1h", 300),
            "0.023",
            "built-in ",
        ),
        // Flex is half of 2.5 and 15.
        (
            "/openai/v1/responses",
            r#"{"model":"gpt-5.4","service_tier":"flex","usage":{"input_tokens":100,"output_tokens":10,"total_tokens":110}}"#,
            ("input", 100),
            "0.0002",
            "built-in ",
        ),
        // What OpenRouter says, unless the operator knows better.
        (
            chat,
            r#"{"model":"a/b","usage":{"prompt_tokens":5,"completion_tokens":5,"cost":1.6e-7}}"#,
            ("input", 5),
            "0.00000016",
            "reported",
        ),
        (
            chat,
            r#"{"model":"own","usage":{"prompt_tokens":5,"completion_tokens":5,"cost":1.6e-7}}"#,
            ("input", 5),
            "0.00001",
            "config ",
        ),
        // 60 of text at 0.3, 40 of audio at 1 and 10 out at 2.5.
        (
            generate,
            r#"{"modelVersion":"gemini-2.5-flash","usageMetadata":{"promptTokenCount":100,"candidatesTokenCount":10,
                "totalTokenCount":110,"promptTokensDetails":[{"modality":"TEXT","tokenCount":60},
                {"modality":"AUDIO","tokenCount":40}]}}"#,
            ("audio_input", 40),
            "0.000083",
            "built-in ",
        ),
    ] {
        provider.push(Message::json(200, answer));
        let asked = sidekey.send(&Request::post(path, r#"{"model":"x","messages":[]}"#).bearer(&key.key)).await;
        let entry = sidekey.entry(&asked.request_id()).await;
        assert_eq!(entry["cost_usd"], cost, "{entry}");
        assert_eq!(entry["tokens"][figure.0], figure.1, "{entry}");
        assert!(entry["price_version"].as_str().unwrap_or_default().starts_with(version), "{entry}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_and_a_model_without_a_price() {
    let provider = provider().await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    for (flags, status) in [
        (&["--budget", "1"][..], 403),
        (&["--budget", "1", "--unpriced", "allow"], 200),
        (&["--quota", "100000/day"], 200),
        (&[], 200),
    ] {
        let key = sidekey.create_key(flags).await;
        let answer = sidekey.send(&chat(&key.key, "made-up")).await;
        assert_eq!(answer.status, status, "{flags:?}: {}", answer.text());
        if status == 403 {
            let error = &answer.json()["error"];
            assert_eq!((&error["code"], &error["param"]), (&json!("model_not_allowed"), &json!("model")), "{error}");
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains("sidekey prices set openai/made-up"), "{message}");
            assert_eq!(answer.header("x-should-retry"), Some("false"));
        }
        assert_eq!(sidekey.entry(&answer.request_id()).await["cost_usd"], Value::Null);
        // What consumes nothing needs no price.
        let models = sidekey.send(&Request::get("/openai/v1/models").bearer(&key.key)).await;
        assert_ne!(models.status, 403, "{flags:?}: {}", models.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_are_set_while_requests_go_by() {
    let provider = provider().await;
    let mut sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&["--budget", "1"]).await;
    let cost = async |sidekey: &Sidekey, model: &str| {
        let answer = sidekey.send(&chat(&key.key, model)).await;
        if answer.status == 403 {
            return "refused".to_owned();
        }
        sidekey.entry(&answer.request_id()).await["cost_usd"].as_str().expect("a cost").to_owned()
    };
    assert_eq!(cost(&sidekey, "house").await, "refused");
    sidekey.ok(&["prices", "set", "openai/house", "input=1", "output=2", "per_request=0.001"]).await;
    assert_eq!(cost(&sidekey, "house").await, "0.00116");
    sidekey.ok(&["prices", "set", "openai/gpt-4o-mini", "same_as=openai/house"]).await;
    // What is set goes before the list, also for the dated versions that the list has.
    assert_eq!(cost(&sidekey, "gpt-4o-mini-2024-07-18").await, "0.00116");

    // What is printed can be read back, over a restart and after all was taken back.
    let printed = sidekey.ok(&["prices", "list", "--layer", "store", "-o", "json"]).await;
    let file = sidekey.folder().join("prices.json");
    std::fs::write(&file, printed).expect("a writable folder");
    for name in ["openai/house", "openai/gpt-4o-mini"] {
        sidekey.ok(&["prices", "delete", name]).await;
    }
    assert_eq!(
        (cost(&sidekey, "gpt-4o-mini").await.as_str(), &*cost(&sidekey, "house").await),
        ("0.000042", "refused")
    );
    let said = sidekey.ok(&["prices", "import", &file.to_string_lossy()]).await;
    assert_eq!(said, "imported 2 prices\n");
    sidekey.stop().await;
    sidekey.restart().await;
    assert_eq!((cost(&sidekey, "gpt-4o-mini").await.as_str(), &*cost(&sidekey, "house").await), ("0.00116", "0.00116"));

    // The past under other prices: what the file does not say costs what it does now.
    let totals = async |flags: &[&str]| {
        let said = sidekey.ok(&[&["usage", "--by", "none", "-o", "json"], flags].concat()).await;
        serde_json::from_str::<Value>(&said).expect("JSON")["totals"].clone()
    };
    // One at 0.00116 before the price of gpt-4o-mini was one, three after that, and one as it is listed.
    let before = totals(&[]).await;
    assert_eq!(before["cost_usd"], "0.004682", "{before}");
    std::fs::write(&file, r#"{"prices": {"openai/house": {"input": "0", "output": "0", "per_request": "2"}}}"#)
        .unwrap();
    let free = totals(&["--prices", &file.to_string_lossy()]).await;
    assert_eq!((&free["requests"], &free["cost_usd"]), (&before["requests"], &json!("10")), "{free}");
    assert_eq!(totals(&[]).await, before);
    let told = sidekey.ok(&["prices", "explain", "house", "--provider", "openai", "--input-tokens", "1000000"]).await;
    assert!(told.contains("costs $1.001\n") && told.contains("openai/house"), "{told}");
    let wrong = sidekey.cli(&["prices", "set", "openai/house", "inptu=1"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
    let wrong = sidekey.cli(&["prices", "show", "opnai/house"]).await;
    assert_eq!(wrong.status.code(), Some(5), "{}", String::from_utf8_lossy(&wrong.stderr));
}

/// A published list, if one lies beside the recorded traffic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_list_is_imported_whole() {
    let Some(list) = crate::transcripts::folder().map(|folder| folder.join("../prices.json")) else { return };
    let sidekey = Sidekey::with("openai", "http://127.0.0.1:9").await;
    let said = sidekey.ok(&["prices", "import", &list.to_string_lossy()]).await;
    let count: usize = said.split(' ').nth(1).and_then(|count| count.parse().ok()).expect("a count");
    assert!(count > 2_000, "{said}");
    let set = sidekey.ok(&["prices", "list", "--layer", "store", "-o", "jsonl"]).await;
    assert_eq!(set.lines().count(), count);
    // The program has the same list.
    let own = sidekey.ok(&["prices", "list", "--layer", "built-in", "-o", "jsonl"]).await;
    assert_eq!(own, "", "every price of the program is set now");
    let explained = sidekey.ok(&["prices", "explain", "openai/gpt-4o", "-o", "json"]).await;
    assert!(explained.contains("\"layer\": \"store\""), "{explained}");
}
