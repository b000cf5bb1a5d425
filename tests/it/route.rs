//! Routes: what a model's name means, who stands in, and that nobody gets more by it than they may have.

use std::collections::BTreeMap;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::client::{Answer, Client, PATIENCE, Request};
use crate::support::encoding::Encoding;
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply, Socket};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

/// Odd on purpose: whatever is not the model's name arrives as it was sent.
const BODY: &str =
    "{ \"messages\":[{\"role\":\"user\",\"content\":\"smart\"}],\n\t\"mod\\u0065l\" :  \"smart\" , \"max_tokens\":60 }";
const USAGE: &str = r#"{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}"#;
const BARE: &str = "/v1/chat/completions";

const ROUTE: &str = r#"
[routes.smart]
targets = [{ provider = "openai", model = "gpt-4o" }, { provider = "groq", model = "org/llama" }]
[prices."groq/org/llama"]
input = "1"
output = "2"
[prices."openai/gpt-4o"]
input = "10"
output = "20"
"#;

fn body_of(model: &str) -> String {
    BODY.replace(":  \"smart\"", &format!(":  \"{model}\""))
}

fn answer(model: &str) -> Message {
    Message::json(200, format!("{{\"model\":\"{model}\", \"choices\":[] ,\"usage\":{USAGE}}}\n"))
}

fn chat(key: &str) -> Request {
    Request::post(BARE, BODY).bearer(key)
}

/// Two providers of OpenAI's dialect with a key each, and these lines of configuration.
async fn start(config: &str) -> (Provider, Provider, Sidekey) {
    let first = Provider::always(answer("gpt-4o-2024-11-20")).await;
    let second = Provider::always(answer("llama-x")).await;
    let options = Options::new().provider("openai", &first.url()).provider("groq", &second.url()).config(config);
    let sidekey = Sidekey::start(&options).await;
    for provider in ["openai", "groq"] {
        sidekey.add_provider_key(provider, REAL_KEY).await;
    }
    (first, second, sidekey)
}

async fn json(sidekey: &Sidekey, args: &[&str]) -> Value {
    serde_json::from_str(&sidekey.ok(&[args, &["-o", "json"]].concat()).await).expect("JSON")
}

async fn recorded(sidekey: &Sidekey, answer: &Answer) -> Value {
    sidekey.entry(&answer.request_id()).await
}

#[tokio::test]
async fn the_next_target_gets_the_same_bytes_under_its_own_name() {
    for (name, fault) in [
        ("429", Message::json(429, r#"{"error":{"message":"slow down","code":"rate_limit_exceeded"}}"#)),
        ("500", Message::json(500, r#"{"error":{"message":"oops"}}"#)),
        ("401", Message::json(401, r#"{"error":{"message":"no","code":"invalid_api_key"}}"#)),
    ] {
        let (first, second, sidekey) = start(ROUTE).await;
        let key = sidekey.create_key(&[]).await.key;
        let served = sidekey.send(&chat(&key)).await;
        assert_eq!((served.status, first.count(), second.count()), (200, 1, 0), "{}", served.text());
        assert_eq!(first.last().body(), body_of("gpt-4o"), "{name}");
        let entry = recorded(&sidekey, &served).await;
        assert_eq!((&entry["provider"], &entry["model_requested"]), (&json!("openai"), &json!("smart")));
        assert_eq!((&entry["model_reported"], &entry["attempts"]), (&json!("gpt-4o-2024-11-20"), &json!(1)));

        first.push(fault);
        let saved = sidekey.send(&chat(&key)).await;
        let want = format!("{{\"model\":\"llama-x\", \"choices\":[] ,\"usage\":{USAGE}}}\n");
        assert_eq!((saved.status, saved.text()), (200, want), "{name}");
        assert_eq!(first.last().body(), body_of("gpt-4o"), "{name}");
        let seen = second.last();
        assert_eq!(
            (&*seen.target, seen.body()),
            ("/openai/v1/chat/completions", body_of("org/llama").into()),
            "{name}"
        );
        assert_eq!(seen.header("content-length"), Some(&*body_of("org/llama").len().to_string()), "{name}");
        assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {REAL_KEY}")), "{name}");
        let entry = recorded(&sidekey, &saved).await;
        let groq = sidekey.admin("GET", "/api/provider-keys?provider=groq", &Value::Null).await;
        assert_eq!((&entry["provider"], &entry["model_requested"]), (&json!("groq"), &json!("smart")), "{name}");
        assert_eq!((&entry["model_reported"], &entry["attempts"]), (&json!("llama-x"), &json!(2)), "{name}");
        assert_eq!(entry["provider_key_id"], groq["provider_keys"][0]["id"], "{name}");
        // 40 tokens at a dollar a million, and 60 at two.
        assert_eq!(entry["cost_usd"], "0.00016", "{name}");
        let metrics = sidekey.metrics().await;
        assert!(metrics.contains("sidekey_failovers_total{provider=\"openai\",to=\"target\"} 1"), "{name}: {metrics}");
        assert!(metrics.contains("sidekey_failovers_total{provider=\"groq\",to=\"key\"} 0"), "{name}: {metrics}");
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_is_left() {
    let second = Provider::always(answer("llama-x")).await;
    let options = Options::new().provider("openai", "http://127.0.0.1:1").provider("groq", &second.url()).config(ROUTE);
    let sidekey = Sidekey::start(&options).await;
    for provider in ["openai", "groq"] {
        sidekey.add_provider_key(provider, REAL_KEY).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let saved = sidekey.send(&chat(&key)).await;
    assert_eq!((saved.status, second.last().body()), (200, body_of("org/llama").into()), "{}", saved.text());
    let entry = recorded(&sidekey, &saved).await;
    assert_eq!((&entry["provider"], &entry["attempts"], &entry["outcome"]), (&json!("groq"), &json!(2), &json!("ok")));
    // After five faults in a row its key rests, and is not even tried.
    for _ in 0..4 {
        sidekey.send(&chat(&key)).await;
    }
    let resting = sidekey.send(&chat(&key)).await;
    assert_eq!(recorded(&sidekey, &resting).await["attempts"], 1);
    // When the last fails too, the client gets what is worth most, and the entry names who said it.
    second.push(Message::json(503, r#"{"error":{"message":"overloaded"}}"#));
    let failed = sidekey.send(&chat(&key)).await;
    assert_eq!((failed.status, failed.text().contains("overloaded")), (503, true), "{}", failed.text());
    let entry = recorded(&sidekey, &failed).await;
    assert_eq!((&entry["provider"], &entry["status"]), (&json!("groq"), &json!(503)));
}

#[tokio::test]
async fn an_earlier_answer_that_says_more_is_told_and_recorded_as_its_giver_s() {
    let (first, second, sidekey) = start(ROUTE).await;
    let key = sidekey.create_key(&[]).await.key;
    first.push(Message::json(429, r#"{"error":{"message":"slow down"}}"#).header("retry-after", "3"));
    second.push(Message::json(401, r#"{"error":{"message":"no","code":"invalid_api_key"}}"#));
    let busy = sidekey.send(&chat(&key)).await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("3")), "{}", busy.text());
    assert_eq!((first.count(), second.count()), (1, 1));
    let entry = recorded(&sidekey, &busy).await;
    let openai = sidekey.admin("GET", "/api/provider-keys?provider=openai", &Value::Null).await;
    assert_eq!((&entry["provider"], &entry["attempts"]), (&json!("openai"), &json!(2)));
    assert_eq!(entry["provider_key_id"], openai["provider_keys"][0]["id"]);
}

#[tokio::test]
async fn what_is_really_called_must_be_allowed() {
    let (first, second, sidekey) = start(ROUTE).await;
    for (flags, calls, says) in [
        (&["--models", "org/*"][..], Some("org/llama"), "may not use the model"),
        (&["--providers", "groq"], Some("org/llama"), "may not use the provider"),
        (&["--models", "gpt-4o"], Some("gpt-4o"), ""),
        (&["--models", "smart"], None, "may not use the model"),
        (&["--endpoints", "embeddings"], None, "may not use the endpoint"),
    ] {
        let made = sidekey.create_key(flags).await;
        let before = (first.count(), second.count());
        let answer = sidekey.send(&chat(&made.key)).await;
        let called = (first.count() - before.0, second.count() - before.1);
        let want = (usize::from(calls == Some("gpt-4o")), usize::from(calls == Some("org/llama")));
        assert_eq!(
            (answer.status, called),
            (if calls.is_some() { 200 } else { 403 }, want),
            "{flags:?}: {}",
            answer.text()
        );
        let explained = json(&sidekey, &["explain", "--key", &made.id, "--model", "smart"]).await;
        let route = &explained["route"];
        assert_eq!((&route["model"], &route["of"]), (&json!("smart"), &json!("config")), "{explained}");
        let passed = &route["targets"][0]["passed_over"];
        assert!(passed.as_str().unwrap_or_default().contains(says), "{flags:?}: {explained}");
        assert_eq!(passed.is_null(), calls == Some("gpt-4o"), "{flags:?}: {explained}");
        if let Some(calls) = calls {
            assert_eq!(
                (&explained["would_be"], &explained["model"]),
                (&json!("admitted"), &json!(calls)),
                "{explained}"
            );
        } else {
            assert!(answer.text().contains("the route \\\"smart\\\" leads to openai: "), "{}", answer.text());
            assert_eq!(explained["would_be"], "refused", "{flags:?}");
            let entry = recorded(&sidekey, &answer).await;
            assert_eq!((&entry["outcome"], &entry["attempts"]), (&json!("refused"), &json!(0)));
        }
        let shown = sidekey.ok(&["explain", "--key", &made.id, "--model", "smart"]).await;
        assert!(shown.contains("PASSED OVER") && shown.contains("smart (config)"), "{shown}");
    }
}

#[tokio::test]
async fn a_budget_holds_at_each_target() {
    // The second costs ten times the first.
    let config = r#"
[routes.smart]
targets = [{ provider = "groq", model = "org/llama" }, { provider = "openai", model = "gpt-4o" }, { provider = "openai", model = "unheard-of" }]
[prices."groq/org/llama"]
input = "1"
output = "100"
[prices."openai/gpt-4o"]
input = "1"
output = "1000"
"#;
    let (dear, cheap, sidekey) = start(config).await;
    let fail = || cheap.push(Message::json(500, r#"{"error":{"message":"oops"}}"#));
    // 60 tokens are $0.006 at the one, and $0.06 at the other.
    let poor = sidekey.create_key(&["--budget", "0.03"]).await;
    fail();
    let answer = sidekey.send(&chat(&poor.key)).await;
    assert_eq!((answer.status, dear.count()), (500, 0), "it was called without money for it: {}", answer.text());
    let rich = sidekey.create_key(&["--budget", "0.1"]).await;
    fail();
    let answer = sidekey.send(&chat(&rich.key)).await;
    assert_eq!((answer.status, dear.count()), (200, 1), "{}", answer.text());
    assert_eq!(recorded(&sidekey, &answer).await["cost_usd"], "0.06004");
    let shown = json(&sidekey, &["key", "show", &rich.id]).await;
    assert_eq!((&shown["spent"], &shown["budget_remaining"]), (&json!("0.06004"), &json!("0.03996")), "{shown}");
    // The third has no price, so a key with a budget never gets to it.
    let explained = json(&sidekey, &["explain", "--key", &rich.id, "--model", "smart", "--max-tokens", "60"]).await;
    let third = explained["route"]["targets"][2]["passed_over"].as_str().unwrap_or_default();
    assert!(third.contains("nobody knows what the model \"unheard-of\" of openai costs"), "{explained}");
    // Nor would it get to the second again, for which there is no room any more.
    let second = explained["route"]["targets"][1]["passed_over"].as_str().unwrap_or_default();
    assert!(second.contains("budget of $0.1 in all has no room"), "{explained}");
}

#[tokio::test]
async fn a_key_is_tried_once_and_another_target_of_its_provider_not_at_all_then() {
    let config = r#"
[routes.smart]
targets = [{ provider = "openai", model = "a" }, { provider = "openai", model = "b" }, { provider = "groq" }]
"#;
    let (first, second, sidekey) = start(config).await;
    sidekey.add_provider_key_as("openai", "sk-real-2-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4p", &["--name", "k2"]).await;
    let key = sidekey.create_key(&[]).await.key;
    for _ in 0..2 {
        first.push(Message::json(500, r#"{"error":{"message":"oops"}}"#));
    }
    let answer = sidekey.send(&chat(&key)).await;
    assert_eq!((answer.status, first.count(), second.count()), (200, 2, 1), "{}", answer.text());
    let seen = first.seen();
    assert_ne!(seen[0].header("authorization"), seen[1].header("authorization"));
    assert!(seen.iter().all(|seen| seen.body() == body_of("a")));
    assert_eq!(second.last().body(), BODY, "without a name of its own the asked one goes as it came");
    assert_eq!(recorded(&sidekey, &answer).await["attempts"], 3);
    // A target whose provider has no usable key is left for the next.
    for name in ["main", "k2"] {
        sidekey.ok(&["provider-key", "disable", &format!("openai/{name}")]).await;
    }
    let answer = sidekey.send(&chat(&key)).await;
    assert_eq!((answer.status, first.count(), second.count()), (200, 2, 2), "{}", answer.text());
    sidekey.ok(&["provider-key", "disable", "groq/main"]).await;
    let answer = sidekey.send(&chat(&key)).await;
    assert_eq!((answer.status, &*answer.code()), (503, "no_provider_key"), "{}", answer.text());
}

#[tokio::test]
async fn weights_share_and_names_decide_when_a_route_leads() {
    let config = r#"
[routes.smart]
targets = [{ provider = "openai", model = "a", weight = 3 }, { provider = "groq", model = "b", weight = 1 }]
[routes."gpt-*"]
targets = [{ provider = "openai", model = "mini" }]
"#;
    let (first, second, sidekey) = start(config).await;
    let key = sidekey.create_key(&[]).await.key;
    for n in 0..40 {
        let path = if n % 2 == 0 { BARE } else { "/openai/v1/chat/completions" };
        assert_eq!(sidekey.send(&Request::post(path, BODY).bearer(&key)).await.status, 200);
    }
    assert_eq!((first.count(), second.count()), (30, 10));
    for (path, to_first, model) in [
        (BARE, true, "mini"),
        ("/openai/v1/chat/completions", true, "mini"),
        ("/groq/openai/v1/chat/completions", false, "gpt-oss"),
        // Nothing is called by a stored file, and no route leads there.
        ("/openai/v1/files", true, "gpt-oss"),
    ] {
        let sent = body_of("gpt-oss");
        assert_eq!(sidekey.send(&Request::post(path, sent).bearer(&key)).await.status, 200, "{path}");
        let seen = if to_first { first.last() } else { second.last() };
        assert_eq!(seen.body(), body_of(model), "{path}");
    }
}

#[tokio::test]
async fn bodies_of_every_form_are_renamed_right() {
    let config = format!("{ROUTE}[limits]\nreplay_limit = \"4KiB\"\n");
    let (first, second, sidekey) = start(&config).await;
    let key = sidekey.create_key(&[]).await.key;
    for coding in [Encoding::Gzip, Encoding::Zstd, Encoding::Br] {
        let request = chat(&key).header("content-encoding", coding.name()).body(coding.encode(BODY.as_bytes()));
        let answer = sidekey.send(&request).await;
        assert_eq!(answer.status, 200, "{}: {}", coding.name(), answer.text());
        let seen = first.last();
        assert_eq!(
            (seen.body(), seen.header("content-encoding")),
            (body_of("gpt-4o").into(), None),
            "{}",
            coding.name()
        );
    }
    // One that is not held is sent once, under the first target's name.
    let large = |model: &str| format!("{{\"model\":\"{model}\",\"x\":\"{}\"}}", "y".repeat(100_000));
    let answer = sidekey.send(&Request::post(BARE, large("smart")).bearer(&key)).await;
    assert_eq!((answer.status, first.last().body()), (200, large("gpt-4o").into()), "{}", answer.text());
    first.push(Message::json(500, r#"{"error":{"message":"oops"}}"#));
    let answer = sidekey.send(&Request::post(BARE, large("smart")).bearer(&key)).await;
    assert_eq!((answer.status, second.count()), (500, 0), "{}", answer.text());
    // But a target without a usable key costs it nothing.
    sidekey.ok(&["provider-key", "disable", "openai/main"]).await;
    let answer = sidekey.send(&Request::post(BARE, large("smart")).bearer(&key)).await;
    assert_eq!((answer.status, second.last().body()), (200, large("org/llama").into()), "{}", answer.text());
    sidekey.ok(&["provider-key", "enable", "openai/main"]).await;

    let form = |model: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"smart\"\r\n\r\nsmart\0\r\n--b\r\n\
             Content-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b--\r\n"
        )
    };
    let request =
        Request::new("POST", "/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=b");
    first.push(Message::json(500, r#"{"error":{"message":"oops"}}"#));
    let answer = sidekey.send(&request.bearer(&key).body(form("smart"))).await;
    assert_eq!((answer.status, first.last().body()), (200, form("gpt-4o").into()), "{}", answer.text());
    let seen = second.last();
    assert_eq!((&*seen.target, seen.body()), ("/openai/v1/audio/transcriptions", form("org/llama").into()));
}

#[tokio::test]
async fn where_the_path_names_the_model_the_path_changes() {
    let config = r#"
[routes.smart]
targets = [{ provider = "gemini", model = "gemini-2.0-flash" }, { provider = "my-gemini", model = "tuned:1" }]
[routes.nova]
targets = [{ provider = "bedrock", model = "amazon.nova-lite-v1:0" }]
"#;
    let answer =
        r#"{"candidates":[],"usageMetadata":{"promptTokenCount":40,"candidatesTokenCount":60,"totalTokenCount":100}}"#;
    let (first, second) =
        (Provider::always(Message::json(200, answer)).await, Provider::always(Message::json(200, answer)).await);
    let options = Options::new()
        .provider("gemini", &first.url())
        .own_provider("my-gemini", "gemini", &second.url())
        .provider("bedrock", &first.url())
        .config(config);
    let sidekey = Sidekey::start(&options).await;
    for provider in ["gemini", "my-gemini", "bedrock"] {
        sidekey.add_provider_key(provider, REAL_KEY).await;
    }
    let key = sidekey.create_key(&["--models", "gemini-*,tuned:*,amazon.*"]).await.key;
    let body = r#"{"contents":[{"parts":[{"text":"smart"}]}],"generationConfig":{"maxOutputTokens":60}}"#;
    for path in ["/v1beta/models/smart:generateContent?x=smart", "/gemini/v1beta/models/smart:generateContent?x=smart"]
    {
        first.push(Message::json(503, r#"{"error":{"status":"UNAVAILABLE"}}"#));
        let served = sidekey.send(&Request::post(path, body).header("x-goog-api-key", &*key)).await;
        assert_eq!(served.status, 200, "{path}: {}", served.text());
        assert_eq!(first.last().target, "/v1beta/models/gemini-2.0-flash:generateContent?x=smart", "{path}");
        assert_eq!(second.last().target, "/v1beta/models/tuned%3A1:generateContent?x=smart", "{path}");
        assert_eq!((first.last().body(), second.last().body()), (body.into(), body.into()), "{path}");
        let entry = recorded(&sidekey, &served).await;
        assert_eq!((&entry["provider"], &entry["model_requested"]), (&json!("my-gemini"), &json!("smart")), "{path}");
        assert_eq!(entry["model_reported"], "tuned:1", "an answer without a name is that of the model that was called");
    }
    let served = sidekey.send(&Request::post("/bedrock/model/nova/converse", "{}").bearer(&key)).await;
    assert_eq!((served.status, &*first.last().target), (200, "/model/amazon.nova-lite-v1%3A0/converse"));
}

#[tokio::test]
async fn sockets_and_events_are_led_too() {
    let config = r#"
[routes.talk]
targets = [{ provider = "openai", model = "gpt-realtime" }, { provider = "groq", model = "org/talk" }]
[routes.smart]
targets = [{ provider = "openai", model = "gpt-4o" }, { provider = "groq", model = "org/llama" }]
"#;
    let (first, second, sidekey) = start(config).await;
    let key = sidekey.create_key(&["--models", "org/*,gpt-*", "--stream-usage", "request"]).await.key;
    first.push(Message::json(503, r#"{"error":{"message":"overloaded"}}"#));
    second.push(Reply::WebSocket(Socket::Echo));
    let request = Request::get("/openai/v1/realtime?x=talk&model=talk").bearer(&key);
    let (_, mut socket) = Client::connect(sidekey.proxy).await.unwrap().websocket(request).await.expect("101");
    socket.send("echo".into()).await.unwrap();
    let message = timeout(PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap();
    assert_eq!(message.into_text().unwrap().as_str(), "echo");
    drop(socket);
    assert_eq!(first.last().target, "/v1/realtime?x=talk&model=gpt-realtime");
    assert_eq!(second.last().target, "/openai/v1/realtime?x=talk&model=org%2Ftalk");

    let events = ["data: {\"model\":\"l\",\"choices\":[]}\n\n", "data: [DONE]\n\n"];
    first.push(Message::json(500, r#"{"error":{"message":"oops"}}"#));
    second.push(Message::sse(events));
    let body = r#"{"stream":true, "model":"smart" }"#;
    let answer = sidekey.send(&Request::post(BARE, body).bearer(&key)).await;
    assert_eq!((answer.status, answer.text()), (200, events.concat()));
    let want = r#"{"stream_options":{"include_usage":true},"stream":true, "model":"org/llama" }"#;
    assert_eq!(second.last().body(), want);
}

#[tokio::test]
async fn a_plan_says_what_a_name_means() {
    let (first, second, sidekey) = start(ROUTE).await;
    sidekey.ok(&["plan", "create", "--name", "free", "--route", "smart=openai/gpt-4o-mini", "--models", "gpt-*"]).await;
    sidekey.ok(&["plan", "create", "--name", "pro", "--route", "smart=openai/gpt-4o,groq/org/llama"]).await;
    let (free, pro) = (sidekey.create_key(&["--plan", "free"]).await, sidekey.create_key(&["--plan", "pro"]).await);
    for (key, model) in [(&free.key, "gpt-4o-mini"), (&pro.key, "gpt-4o")] {
        assert_eq!(sidekey.send(&chat(key)).await.status, 200);
        assert_eq!(first.last().body(), body_of(model));
    }
    let explained = json(&sidekey, &["explain", "--key", &free.id, "--model", "smart"]).await;
    assert_eq!(
        (&explained["route"]["of"], &explained["model"]),
        (&json!("plan"), &json!("gpt-4o-mini")),
        "{explained}"
    );
    // One change, in force for the next request of every key of the plan; lists are still asked about what is called.
    let changed = json(&sidekey, &["plan", "update", "free", "--route", "smart=groq/org/llama,openai/gpt-3.5"]).await;
    assert_eq!(
        changed["routes"]["smart"]["targets"][0],
        json!({"provider": "groq", "model": "org/llama"}),
        "{changed}"
    );
    assert_eq!(sidekey.send(&chat(&free.key)).await.status, 200);
    assert_eq!((first.last().body(), second.count()), (body_of("gpt-3.5").into(), 0), "the first is not in its models");
    sidekey.ok(&["plan", "update", "free", "--models", "*"]).await;
    assert_eq!(sidekey.send(&chat(&free.key)).await.status, 200);
    assert_eq!(second.last().body(), body_of("org/llama"));
    let listed = sidekey.ok(&["plan", "list"]).await;
    assert!(listed.contains("smart=groq/org/llama,openai/gpt-3.5"), "{listed}");
    // Without a word of the plan, the configuration's holds.
    sidekey.ok(&["plan", "update", "free", "--route", "none"]).await;
    assert_eq!(sidekey.send(&chat(&free.key)).await.status, 200);
    assert_eq!(first.last().body(), body_of("gpt-4o"));

    for (route, says) in [
        ("smart=opnai/x", "targets[0].provider: there is no provider \"opnai\"; did you mean \"openai\"?"),
        ("smart=openai/x,anthropic/y", "anthropic speaks the dialect anthropic and openai openai"),
        ("smart=0*openai/x", "targets[0].weight is 0"),
    ] {
        let refused = sidekey.cli(&["plan", "update", "free", "--route", route]).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(says), "{route}: {said}");
    }
    let (status, problem) =
        sidekey.admin_as("PATCH", "/api/plans/free", "", &json!({"routes": {"smart": {"targets": []}}})).await;
    assert_eq!((status, &problem["field"]), (422, &json!("routes")), "{problem}");
}

#[tokio::test]
async fn concurrent_requests_do_not_overspend_by_what_a_stand_in_costs_more() {
    let config = r#"
[routes.smart]
targets = [{ provider = "groq", model = "org/llama" }, { provider = "openai", model = "gpt-4o" }]
[prices."groq/org/llama"]
input = "1"
output = "100"
[prices."openai/gpt-4o"]
input = "1"
output = "1000"
"#;
    let (dear, cheap, sidekey) = start(config).await;
    // $0.06 each where they end up: three of them fit.
    let key = sidekey.create_key(&["--budget", "0.2"]).await;
    sidekey.ok(&["provider-key", "disable", "groq/main"]).await;
    let answers = futures_util::future::join_all((0..12).map(|_| {
        let request = chat(&key.key);
        let sidekey = &sidekey;
        async move { sidekey.send(&request).await.status }
    }));
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for status in answers.await {
        *counts.entry(status).or_default() += 1;
    }
    assert_eq!((counts.get(&200), dear.count(), cheap.count()), (Some(&3), 3, 0), "{counts:?}");
    sidekey.entry_where("a refusal", |entry| entry["outcome"] == "refused").await;
    let shown = json(&sidekey, &["key", "show", &key.id]).await;
    assert_eq!(shown["spent"], "0.18012", "{shown}");
}
