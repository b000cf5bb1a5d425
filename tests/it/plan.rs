//! Budgets and quotas of plans, users and teams: who is refused, what they are told, and what operators are.

use serde_json::{Value, json};

use crate::support::client::{Answer, Request};
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","max_tokens":60,"messages":[{"role":"user","content":"Hello."}]}"#;
const USAGE: &str = r#"{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}"#;

fn chat(key: &str) -> Request {
    Request::post(CHAT, BODY).bearer(key)
}

/// A provider whose every answer used 100 tokens.
async fn start() -> (Provider, Sidekey) {
    let answer = format!(r#"{{"model":"gpt-4o-mini","choices":[],"usage":{USAGE}}}"#);
    let provider = Provider::always(Message::json(200, answer)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    (provider, sidekey)
}

async fn json(sidekey: &Sidekey, args: &[&str]) -> Value {
    serde_json::from_str(&sidekey.ok(&[args, &["-o", "json"]].concat()).await).expect("JSON")
}

/// Sends it, and waits until what it used is counted.
async fn settled(sidekey: &Sidekey, request: &Request) -> Answer {
    let answer = sidekey.send(request).await;
    sidekey.entry(&answer.request_id()).await;
    answer
}

/// The limit of this name in what a record shows.
fn limit<'a>(record: &'a Value, name: &str) -> &'a Value {
    let limits = record["in_force"].as_array().unwrap_or_else(|| panic!("no limits in {record}"));
    limits.iter().find(|limit| limit["limit"] == name).unwrap_or_else(|| panic!("no {name} in {record}"))
}

/// A dialect: its provider, what is asked of it, and what it answers with 40 tokens in and 60 out.
struct Dialect {
    provider: &'static str,
    path: &'static str,
    body: &'static str,
    answer: &'static str,
    /// How it says that there is no money left.
    status: u16,
    says: &'static str,
}

const DIALECTS: [Dialect; 6] = [
    Dialect {
        provider: "openai",
        path: CHAT,
        body: BODY,
        answer: r#"{"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}"#,
        status: 429,
        says: r#""code":"insufficient_quota""#,
    },
    Dialect {
        provider: "anthropic",
        path: "/anthropic/v1/messages",
        body: r#"{"model":"claude-3-5-haiku-20241022","max_tokens":60,"messages":[{"role":"user","content":"Hello."}]}"#,
        answer: r#"{"type":"message","content":[],"usage":{"input_tokens":40,"output_tokens":60}}"#,
        status: 402,
        says: r#""type":"billing_error""#,
    },
    Dialect {
        provider: "gemini",
        path: "/gemini/v1beta/models/gemini-2.0-flash:generateContent",
        body: r#"{"contents":[{"parts":[{"text":"Hello."}]}],"generationConfig":{"maxOutputTokens":60}}"#,
        answer: r#"{"candidates":[],"usageMetadata":{"promptTokenCount":40,"candidatesTokenCount":60,"totalTokenCount":100}}"#,
        status: 429,
        says: r#""status":"RESOURCE_EXHAUSTED""#,
    },
    Dialect {
        provider: "cohere",
        path: "/cohere/v2/chat",
        body: r#"{"model":"command-r","max_tokens":60,"messages":[{"role":"user","content":"Hello."}]}"#,
        answer: r#"{"message":{},"usage":{"tokens":{"input_tokens":40,"output_tokens":60}}}"#,
        status: 429,
        says: r#""message":"#,
    },
    Dialect {
        provider: "bedrock",
        path: "/bedrock/model/amazon.nova-lite-v1:0/converse",
        body: r#"{"messages":[{"role":"user","content":[{"text":"Hello."}]}],"inferenceConfig":{"maxTokens":60}}"#,
        answer: r#"{"output":{},"usage":{"inputTokens":40,"outputTokens":60,"totalTokens":100}}"#,
        status: 429,
        says: r#""message":"#,
    },
    Dialect {
        provider: "ollama",
        path: "/ollama/api/chat",
        body: r#"{"model":"llama3","stream":false,"options":{"num_predict":60},"messages":[]}"#,
        answer: r#"{"model":"llama3","done":true,"prompt_eval_count":40,"eval_count":60}"#,
        status: 429,
        says: r#""error":"#,
    },
];

#[tokio::test]
async fn users_and_plans_are_refused_in_each_dialect() {
    let provider = Provider::always(Message::new(500)).await;
    let url = provider.url();
    let options = DIALECTS.iter().fold(Options::new(), |options, dialect| options.provider(dialect.provider, &url));
    let sidekey = Sidekey::start(&options).await;
    for Dialect { provider: name, path, body, answer, status, says } in DIALECTS {
        sidekey.add_provider_key(name, REAL_KEY).await;
        let (user, plan) = (format!("u/{name}"), format!("p {name}"));
        sidekey.ok(&["user", "set", &user, "--quota", "150/day,zone=Asia/Kathmandu"]).await;
        sidekey.ok(&["plan", "create", "--name", &plan, "--shared-quota", "150/total"]).await;
        for (flag, of, frees) in
            [("--user", &user, ":15:00.000Z"), ("--plan", &plan, "it does not begin anew: raise it")]
        {
            // Two keys of one, so that it is not the key that is held.
            let first = sidekey.create_key(&[flag, of]).await.key;
            let second = sidekey.create_key(&[flag, of]).await.key;
            provider.push(Message::json(200, answer));
            let passed = settled(&sidekey, &Request::post(path, body).bearer(&first)).await;
            assert_eq!(passed.status, 200, "{name} {flag}: {}", passed.text());
            let before = provider.count();
            let refused = settled(&sidekey, &Request::post(path, body).bearer(&second)).await;
            let text = refused.text();
            assert_eq!((refused.status, provider.count()), (status, before), "{name} {flag}: {text}");
            assert!(text.replace(": ", ":").contains(says), "{name} {flag}: {text}");
            assert_eq!(refused.header("x-should-retry"), Some("false"), "{name} {flag}");
            assert_eq!(refused.header("retry-after"), None, "{name} {flag}");
            if name == "bedrock" {
                assert_eq!(refused.header("x-amzn-errortype"), Some("ServiceQuotaExceededException"));
            }
            let (kind, per) = if flag == "--user" { ("user", "per day") } else { ("plan", "in all") };
            let want = format!(
                "quota of {kind} {of} of 150 tokens {per} has no room: 100 tokens used, 0 tokens reserved by open \
                 requests, about "
            );
            assert!(text.contains(&want) && text.contains(frees), "{name} {flag}: {text}");
            let entry = sidekey.entry(&refused.request_id()).await;
            assert_eq!((&entry["outcome"], &entry["error_code"]), (&json!("refused"), &json!("insufficient_quota")));
        }
        let shown = json(&sidekey, &["user", "show", &user]).await;
        let quota = limit(&shown, "quota");
        assert_eq!((&quota["used"], &quota["reserved"], &quota["remaining"]), (&json!(100), &json!(0), &json!(50)));
        assert_eq!(
            (&shown["keys"], &shown["total_requests"], &shown["total_tokens"]),
            (&json!(2), &json!(2), &json!(100))
        );
        let shown = json(&sidekey, &["plan", "show", &plan]).await;
        assert_eq!((&limit(&shown, "quota")["used"], &shown["keys"]), (&json!(100), &json!(2)), "{shown}");
    }
}

#[tokio::test]
async fn money_of_a_user_and_of_a_plan() {
    let provider = Provider::always(Message::new(500)).await;
    let options = Options::new().provider("openai", &provider.url()).provider("anthropic", &provider.url());
    let mut sidekey = Sidekey::start(&options).await;
    // 40 tokens in and 60 out: at 0.15 and 0.6, and at 0.8 and 4 dollars a million.
    for (Dialect { provider: name, path, body, answer, status, .. }, cost, budget) in
        DIALECTS.into_iter().zip(["0.000042", "0.000272"]).zip(["0.00006", "0.0005"]).map(|((a, b), c)| (a, b, c))
    {
        sidekey.add_provider_key(name, REAL_KEY).await;
        sidekey.ok(&["user", "set", name, "--budget", &format!("{budget}/month")]).await;
        sidekey.ok(&["plan", "create", "--name", name, "--shared-budget", &format!("{budget}/week")]).await;
        for (flag, per) in [("--user", "month"), ("--plan", "week")] {
            let key = sidekey.create_key(&[flag, name]).await;
            provider.push(Message::json(200, answer));
            let request = Request::post(path, body).bearer(&key.key);
            let passed = settled(&sidekey, &request).await;
            assert_eq!(passed.status, 200, "{name} {flag}: {}", passed.text());
            let refused = sidekey.send(&request).await;
            assert_eq!(refused.status, status, "{name} {flag}: {}", refused.text());
            let whose = flag.trim_start_matches("--");
            let want = format!(
                "budget of {whose} {name} of ${budget} per {per} has no room: ${cost} used, $0 reserved by open requests, \
                 about $0.000"
            );
            assert!(refused.text().contains(&want), "{want}\n{}", refused.text());
            assert!(refused.text().contains("it begins anew at 20"), "{}", refused.text());
            let shown = json(&sidekey, &[whose, "show", name]).await;
            let budget_left = limit(&shown, "budget");
            assert_eq!((&budget_left["used"], &shown["spent"]), (&json!(cost), &json!(cost)), "{shown}");
            // It is on the key too, which is on nothing itself.
            let shown = json(&sidekey, &["key", "show", &key.id]).await;
            assert_eq!((&shown["max_budget"], &shown["budgets"]), (&json!(budget), &Value::Null), "{shown}");
        }
    }
    // A kill forgets nothing, and more money lets it pass at once.
    sidekey.kill().await;
    sidekey.restart().await;
    let key = sidekey.create_key(&["--user", "openai"]).await.key;
    assert_eq!(sidekey.send(&chat(&key)).await.status, 429);
    provider.push(Message::json(200, DIALECTS[0].answer));
    sidekey.ok(&["user", "set", "openai", "--budget", "1/month"]).await;
    assert_eq!(settled(&sidekey, &chat(&key)).await.status, 200);
    assert_eq!(limit(&json(&sidekey, &["user", "show", "openai"]).await, "budget")["used"], "0.000084");
}

#[tokio::test]
async fn a_limit_in_shadow_refuses_nothing_and_says_what_it_would() {
    let (provider, sidekey) = start().await;
    sidekey.ok(&["team", "set", "t1", "--quota", "150/day,shadow", "--rpm", "2", "--shadow", "rpm"]).await;
    let key = sidekey.create_key(&["--team", "t1"]).await.key;
    for _ in 0..4 {
        let answer = settled(&sidekey, &chat(&key)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(provider.count(), 4);
    let metrics = sidekey.metrics().await;
    for line in [
        r#"sidekey_shadow_refusals_total{limit="quota",scope="team"} 3"#,
        r#"sidekey_shadow_refusals_total{limit="rpm",scope="team"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
    let shown = json(&sidekey, &["team", "show", "t1"]).await;
    let quota = limit(&shown, "quota");
    assert_eq!((&quota["used"], &quota["remaining"], &quota["shadow"]), (&json!(400), &json!(0), &json!(true)));
    // What is meant in earnest from now on knows of it.
    sidekey.ok(&["team", "set", "t1", "--quota", "150/day", "--shadow", ""]).await;
    let refused = sidekey.send(&chat(&key)).await;
    assert_eq!((refused.status, &*refused.code()), (429, "insufficient_quota"), "{}", refused.text());
    assert!(refused.text().contains("quota of team t1 of 150 tokens per day has no room: 400 tokens used"));
}

#[tokio::test]
async fn operators_are_told_once_when_an_amount_nears_its_end() {
    let (_provider, sidekey) = start().await;
    sidekey.ok(&["user", "set", "alice", "--quota", "400/day,alert=50:75"]).await;
    let key = sidekey.create_key(&["--user", "alice"]).await.key;
    let mut told = vec![];
    for _ in 0..3 {
        assert_eq!(settled(&sidekey, &chat(&key)).await.status, 200);
        told.push(json(&sidekey, &["alerts"]).await["alerts"].as_array().expect("a list").len());
    }
    assert_eq!(told, [0, 1, 2]);
    let alerts = json(&sidekey, &["alerts", "--limit", "1"]).await["alerts"].clone();
    let alert = &alerts[0];
    assert_eq!(
        (&alert["kind"], &alert["severity"], &alert["subject"], alerts.as_array().map(Vec::len)),
        (&json!("budget.threshold"), &json!("warning"), &json!("user alice"), Some(1))
    );
    let message = alert["message"].as_str().expect("a text");
    let want = "75 % of the quota per day is used: 300 tokens of 400 tokens; it begins anew at 20";
    assert!(message.starts_with(want), "{message}");
    assert!(sidekey.stderr().contains("75 % of the quota per day is used"), "{}", sidekey.stderr());
    assert!(sidekey.metrics().await.contains(r#"sidekey_events_total{kind="budget.threshold"} 2"#));
}

#[tokio::test]
async fn a_plan_is_changed_in_one_place() {
    let (_provider, sidekey) = start().await;
    sidekey.ok(&["plan", "create", "--name", "trial", "--models", "gpt-4o*", "--rpm", "1"]).await;
    let keys =
        [sidekey.create_key(&["--plan", "trial"]).await, sidekey.create_key(&["--plan", "trial", "--rpm", "3"]).await];
    let passed = async |key: &str| {
        let mut passed = 0;
        while sidekey.send(&chat(key)).await.status == 200 {
            passed += 1;
        }
        passed
    };
    // Each by itself, and a key's own goes before its plan's.
    assert_eq!((passed(&keys[0].key).await, passed(&keys[1].key).await), (1, 3));
    let other = Request::post(CHAT, BODY.replace("gpt-4o-mini", "o3")).bearer(&keys[1].key);
    assert_eq!(sidekey.send(&other).await.code(), "model_not_allowed");
    sidekey.ok(&["plan", "update", "trial", "--rpm", "none", "--models", "o3"]).await;
    assert_eq!(sidekey.send(&chat(&keys[0].key)).await.code(), "model_not_allowed");
    let other = Request::post(CHAT, BODY.replace("gpt-4o-mini", "o3")).bearer(&keys[0].key);
    assert_eq!(sidekey.send(&other).await.status, 200);
    let refused = sidekey.cli(&["plan", "delete", "trial"]).await;
    assert_eq!(refused.status.code(), Some(5), "{}", String::from_utf8_lossy(&refused.stderr));
    for key in &keys {
        sidekey.ok(&["key", "update", &key.id, "--plan", ""]).await;
    }
    sidekey.ok(&["plan", "delete", "trial"]).await;
    assert_eq!(sidekey.send(&chat(&keys[0].key)).await.status, 200);
}

/// Without its figures, for they change from one moment to the next.
fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect()
}

#[tokio::test]
async fn what_is_explained_is_what_happens() {
    let provider = Provider::always(Message::json(200, DIALECTS[0].answer)).await;
    let options = Options::new().provider("openai", &provider.url()).provider("anthropic", &provider.url());
    let sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key_as("openai", REAL_KEY, &["--name", "ours"]).await;
    sidekey.add_provider_key_as("openai", REAL_KEY, &["--name", "hers", "--owner", "user:alice"]).await;
    sidekey.ok(&["user", "set", "narrow", "--models", "claude-*"]).await;
    sidekey.ok(&["user", "set", "poor", "--budget", "0.00001/day"]).await;
    sidekey.ok(&["user", "set", "spent", "--quota", "100/day", "--rpm", "9"]).await;
    sidekey.ok(&["plan", "create", "--name", "closed", "--models", "o3"]).await;
    for (flags, before, provider_name, model, code) in [
        (&["--user", "alice"][..], "", "openai", "gpt-4o-mini", ""),
        (&["--budget", "1"], "", "openai", "gpt-4o-mini", ""),
        (&["--rpm", "1"], "send", "openai", "gpt-4o-mini", "rate_limit_exceeded"),
        (&["--tpm", "5"], "", "openai", "gpt-4o-mini", "rate_limit_exceeded"),
        (&["--user", "poor"], "", "openai", "gpt-4o-mini", "insufficient_quota"),
        (&["--user", "spent"], "send", "openai", "gpt-4o-mini", "insufficient_quota"),
        (&["--budget", "1"], "", "openai", "made-up", "model_not_allowed"),
        (&["--user", "narrow"], "", "openai", "gpt-4o-mini", "model_not_allowed"),
        (&["--plan", "closed"], "", "openai", "gpt-4o-mini", "model_not_allowed"),
        (&["--providers", "anthropic"], "", "openai", "gpt-4o-mini", "permission_denied"),
        (&["--endpoints", "models"], "", "openai", "gpt-4o-mini", "permission_denied"),
        (&[], "disable", "openai", "gpt-4o-mini", "permission_denied"),
        (&[], "revoke", "openai", "gpt-4o-mini", "invalid_api_key"),
        (&[], "", "anthropic", "claude-3-5-haiku-20241022", "no_provider_key"),
    ] {
        let key = sidekey.create_key(flags).await;
        match before {
            "" => {}
            "send" => drop(settled(&sidekey, &chat(&key.key)).await),
            verb => drop(sidekey.ok(&["key", verb, &key.id]).await),
        }
        let (ledger, metrics) = (sidekey.ledger().await.len(), provider.count());
        let ask = ["explain", "--key", &key.id, "--model", model, "--input-tokens", "20", "--max-tokens", "60"];
        let said = json(&sidekey, &ask).await;
        // Nothing was charged, sent or recorded, however often it is asked.
        assert_eq!(json(&sidekey, &ask).await["estimate"], said["estimate"], "{flags:?}");
        assert_eq!((sidekey.ledger().await.len(), provider.count()), (ledger, metrics), "{flags:?}");
        let path = if provider_name == "openai" { CHAT } else { "/anthropic/v1/messages" };
        let answer = sidekey.send(&Request::post(path, BODY.replace("gpt-4o-mini", model)).bearer(&key.key)).await;
        assert_eq!(said["provider"], provider_name, "{flags:?}: {said}");
        if code.is_empty() {
            assert_eq!((&said["would_be"], answer.status), (&json!("admitted"), 200), "{flags:?}: {said}");
            assert_eq!(said["refusal"], Value::Null, "{flags:?}");
        } else {
            let refusal = &said["refusal"];
            assert_eq!((&said["would_be"], &refusal["code"]), (&json!("refused"), &json!(code)), "{flags:?}: {said}");
            assert_eq!(refusal["status"], answer.status, "{flags:?}: {said}\n{}", answer.text());
            let told = answer.json()["error"]["message"].as_str().expect("a message").to_owned();
            assert_eq!(words(refusal["message"].as_str().expect("a message")), words(&told), "{flags:?}");
        }
        let refuses = |limit: &Value| limit["would_refuse"] == true;
        let limited = ["rate_limit_exceeded", "insufficient_quota"].contains(&code);
        assert_eq!(said["limits"].as_array().expect("a list").iter().any(refuses), limited, "{flags:?}: {said}");
    }

    // Whose key pays, and what it is thought to cost.
    let key = sidekey.create_key(&["--user", "alice", "--name", "app"]).await;
    let said = json(&sidekey, &["explain", "--key", "app", "--model", "gpt-4o-mini", "--input-tokens", "1000"]).await;
    let tried: Vec<&Value> =
        said["provider_keys"].as_array().expect("a list").iter().map(|key| &key["source"]).collect();
    assert_eq!(tried, ["user", "system"]);
    assert_eq!(said["provider_keys"][0]["name"], "hers");
    // 1,000 at 0.15 and 512 at 0.6 dollars a million.
    assert_eq!(said["estimate"], json!({"input": 1000, "output": 512, "cost_usd": "0.0004572"}));
    assert!(!said.to_string().contains(REAL_KEY) && !said.to_string().contains(&key.key));
    let shown = sidekey.ok(&["explain", "--key", "app", "--provider", "nobody"]).await;
    assert!(shown.starts_with("refused: 404 not_found: "), "{shown}");
}
