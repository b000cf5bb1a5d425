//! What is read of bodies, and that a splice moves nothing else.

use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Dialect, GEMINI, OLLAMA, OPENAI};
use super::*;

fn chat() -> Call<'static> {
    OPENAI.classify(&Method::POST, "/v1/chat/completions")
}

fn read(body: &str) -> Result<Asked, BadRequest> {
    sniff(&chat(), Some("application/json"), body.as_bytes())
}

#[test]
fn fields() {
    for (body, model, stream, max_output) in [
        (r#"{"model":"m","stream":true,"max_tokens":5}"#, Some("m"), Some(true), Some(5)),
        (r#"{"messages":[{"model":"x","stream":true}],"model":"m"}"#, Some("m"), None, None),
        (r#"{"mod\u0065l":"a\"b\u00e9"}"#, Some("a\"bé"), None, None),
        (r#"{"model":null,"stream":null,"max_tokens":null}"#, None, None, None),
        (r#"{"stream":1,"max_tokens":"9"}"#, None, Some(false), None),
        (r#"{"max_completion_tokens":4.5,"n":2}"#, None, None, Some(10)),
        (r#"{"max_tokens":1e30,"n":3}"#, None, None, Some(u64::MAX)),
        (r#"{"max_tokens":-1,"n":0}"#, None, None, None),
        (r#"{"max_tokens":7,"max_completion_tokens":9}"#, None, None, Some(9)),
        (r#"{"options":{"num_predict":3}}"#, None, None, Some(3)),
        (r#"{"generationConfig":{"maxOutputTokens":3,"candidateCount":4}}"#, None, None, Some(12)),
        (r#"{"inferenceConfig":{"maxTokens":3}}"#, None, None, Some(3)),
        ("\u{feff}{\"model\":\"m\"}", Some("m"), None, None),
        (" {} ", None, None, None),
    ] {
        let asked = read(body).expect(body);
        assert_eq!((asked.model.as_deref(), asked.stream, asked.max_output), (model, stream, max_output), "{body}");
    }
}

#[test]
fn ambiguous_and_broken_bodies_are_refused() {
    for (body, param) in [
        (r#"{"model":"a","model":"b"}"#, Some("model")),
        (r#"{"model":"a","messages":[{"model":"x"}],"mod\u0065l":"b"}"#, Some("model")),
        (r#"{"stream":true,"stream":false}"#, Some("stream")),
        (r#"{"max_tokens":1,"max_tokens":2}"#, Some("max_tokens")),
        (r#"{"stream_options":{},"stream_options":{}}"#, Some("stream_options")),
        (r#"{"model":["a"]}"#, Some("model")),
        (r#"{"model":{"a":1}}"#, Some("model")),
        (r#"{"model":7}"#, Some("model")),
        (r#"[{"model":"a"}]"#, None),
        (r#""model""#, None),
        ("{", None),
        ("{}x", None),
        ("{\"a\":01}", None),
        ("", None),
        ("not json", None),
    ] {
        assert_eq!(read(body).expect_err(body).param, param, "{body}");
    }
    assert_eq!(read(&format!(r#"{{"model":"{}"}}"#, "x".repeat(2000))).unwrap_err().param, Some("model"));
    assert!(read(&format!(r#"{{"model":"m","a":{}"#, "[".repeat(100_000))).is_err());
}

#[test]
fn bodies_that_name_no_model_may_be_anything() {
    let upload = OPENAI.classify(&Method::POST, "/v1/files");
    let generate = GEMINI.classify(&Method::POST, "/v1beta/models/g:generateContent");
    for body in [&b""[..], b"%PDF-1.3 \xff", b"{\"a\":", b"[1]", b"--b\r\n"] {
        for call in [&upload, &generate] {
            assert_eq!(sniff(call, Some("application/octet-stream"), body).expect("fine").model, None);
        }
    }
    // Elsewhere the same words may mean anything; at a deployment they mean what they do in chat, but for the model.
    let odd = br#"{"model":{"a":1},"model":2}"#;
    assert!(sniff(&OPENAI.classify(&Method::POST, "/v1/unheard-of"), None, odd).is_ok());
    let azure = OPENAI.classify(&Method::POST, "/openai/deployments/d/chat/completions");
    assert_eq!(sniff(&azure, None, br#"{"model":7,"stream":true}"#).map(|asked| asked.stream), Ok(Some(true)));
    assert!(sniff(&azure, None, br#"{"stream":true,"stream":false}"#).is_err());
    let assistants = OPENAI.classify(&Method::POST, "/v1/threads/t/runs");
    assert_eq!(sniff(&assistants, None, b""), Ok(Asked::default()));
    assert!(sniff(&chat(), None, b" ").is_err());
}

#[test]
fn servers_in_go_read_keys_in_any_case() {
    let call = OLLAMA.classify(&Method::POST, "/api/chat");
    for (body, good) in [
        (r#"{"model":"a"}"#, true),
        (r#"{"model":"a","Model":"b"}"#, false),
        (r#"{"MOD\u0045L":"b"}"#, false),
        (r#"{"model":"a","messages":[{"Model":"b"}]}"#, true),
    ] {
        assert_eq!(sniff(&call, None, body.as_bytes()).is_ok(), good, "{body}");
    }
    assert!(call.is_stream(&Asked::default()) && !call.is_stream(&Asked { stream: Some(false), ..Asked::default() }));
}

#[test]
fn splices() {
    for (body, want) in [
        (r#"{"stream":true}"#, Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#)),
        (" { \"stream\" : true}", Some(" {\"stream_options\":{\"include_usage\":true}, \"stream\" : true}")),
        (r#"{"stream":true,"stream_options":{}}"#, Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#)),
        (
            r#"{"stream":true,"stream_options":{ "x":1}}"#,
            Some(r#"{"stream":true,"stream_options":{"include_usage":true, "x":1}}"#),
        ),
        (
            r#"{"stream":true,"stream_options":null}"#,
            Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
        ),
        (
            r#"{"stream_options":{"include_usage":false},"stream":true}"#,
            Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#),
        ),
        (r#"{"stream_options":{"include_usage":true},"stream":true}"#, None),
        (r#"{"stream_options":7,"stream":true}"#, None),
        (r#"{"stream":false}"#, None),
        (r#"{}"#, None),
    ] {
        let asked = read(body).unwrap();
        assert_eq!(asked.with_include_usage(body.as_bytes()).as_deref(), want.map(str::as_bytes), "{body}");
        assert_eq!(asked.can_include_usage(), want.is_some(), "{body}");
    }
    let responses = OPENAI.classify(&Method::POST, "/v1/responses");
    let body = br#"{"stream":true}"#;
    assert_eq!(sniff(&responses, None, body).unwrap().with_include_usage(body), None);
}

/// The body with another model.
fn renamed(asked: &Asked, body: &[u8], model: &str) -> Option<Vec<u8>> {
    let (at, text) = asked.model_splice(model)?;
    Some([&body[..at.start], &text, &body[at.end..]].concat())
}

#[test]
fn another_model_moves_nothing_else() {
    for (body, model, want) in [
        (r#"{"model":"a"}"#, "b", Some(r#"{"model":"b"}"#)),
        (
            " { \"x\" : 1 ,\t\"mod\\u0065l\"  :\n\"a\\\"\\u00e9\" , \"model2\":\"a\"}\n",
            "long/er",
            Some(" { \"x\" : 1 ,\t\"mod\\u0065l\"  :\n\"long/er\" , \"model2\":\"a\"}\n"),
        ),
        (
            r#"{"messages":[{"model":"x"}],"model":""}"#,
            "q\"\\é",
            Some(r#"{"messages":[{"model":"x"}],"model":"q\"\\é"}"#),
        ),
        ("\u{feff}{\"model\":\"m\"}", "n", Some("\u{feff}{\"model\":\"n\"}")),
        (r#"{"model":null}"#, "b", None),
        (r#"{"x":{"model":"a"}}"#, "b", None),
    ] {
        let got = renamed(&read(body).unwrap(), body.as_bytes(), model);
        assert_eq!(got.as_deref().map(|got| std::str::from_utf8(got).unwrap()), want, "{body}");
    }
    let transcribe = OPENAI.classify(&Method::POST, "/v1/audio/transcriptions");
    let form = |model: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n\0model\r\n--b\r\nContent-Disposition: \
                 form-data; name=\"model\"\r\n\r\n{model}\r\n--b--\r\n"
        )
    };
    let asked = sniff(&transcribe, Some("multipart/form-data; boundary=b"), form("whisper-1").as_bytes()).unwrap();
    assert_eq!(asked.model.as_deref(), Some("whisper-1"));
    assert_eq!(renamed(&asked, form("whisper-1").as_bytes(), "w2").unwrap(), form("w2").into_bytes());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 4.0)),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_key(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,6}",
        prop::sample::select(vec!["model", "stream", "max_tokens", "stream_options", "include_usage", "n", "options"])
            .prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_parser(
        mut body in prop::collection::btree_map(any_key(), any_json(), 0..8),
        model in prop::option::of("\\PC{1,12}"),
        stream in prop::option::of(any::<bool>()),
        max in prop::option::of(any::<u32>()),
        pretty in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        body.remove("n");
        body.remove("options");
        body.remove("model");
        body.remove("stream");
        body.remove("max_tokens");
        if let Some(model) = &model { body.insert("model".into(), json!(model)); }
        if let Some(stream) = stream { body.insert("stream".into(), json!(stream)); }
        if let Some(max) = max { body.insert("max_tokens".into(), json!(max)); }
        let value = Value::Object(body.into_iter().collect());
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let asked = read(&text).unwrap();
        prop_assert_eq!(&asked.model, &model);
        prop_assert_eq!(asked.stream, stream);
        prop_assert_eq!(asked.max_output, max.map(u64::from));
        // Pieces read like the whole.
        let (a, b) = text.as_bytes().split_at(cut.index(text.len() + 1));
        let mut sniffer = Sniffer::new(&chat());
        sniffer.feed(a).unwrap();
        sniffer.feed(b).unwrap();
        prop_assert_eq!(&sniffer.finish().unwrap(), &asked);
        // Another model's name changes these bytes and no others, wherever they stand.
        let other = "x\"\\\u{e9}\u{1f600}/1";
        let with_other = renamed(&asked, text.as_bytes(), other);
        prop_assert_eq!(with_other.is_some(), model.is_some());
        if let Some(spliced) = with_other {
            let (at, new) = asked.model_splice(other).unwrap();
            prop_assert_eq!(&spliced[..at.start], &text.as_bytes()[..at.start]);
            prop_assert_eq!(&spliced[at.start + new.len()..], &text.as_bytes()[at.end..]);
            let mut want = value.clone();
            want["model"] = json!(other);
            prop_assert_eq!(serde_json::from_slice::<Value>(&spliced).unwrap(), want);
            let again = read(std::str::from_utf8(&spliced).unwrap()).unwrap();
            prop_assert_eq!(again.model.as_deref(), Some(other));
        }
        // A splice sets one field and changes no other.
        let included = value["stream_options"]["include_usage"] == Value::Bool(true);
        prop_assert_eq!(asked.include_usage, included);
        if let Some(spliced) = asked.with_include_usage(text.as_bytes()) {
            let mut want = value;
            if !want["stream_options"].is_object() { want["stream_options"] = json!({}); }
            want["stream_options"]["include_usage"] = json!(true);
            prop_assert_eq!(serde_json::from_slice::<Value>(&spliced).unwrap(), want);
        }
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), form in any::<bool>()) {
        let _ = sniff(&chat(), form.then_some("multipart/form-data; boundary=-"), &bytes);
    }
}
