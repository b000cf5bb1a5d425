//! `sidekey prices`: what models cost, over the admin API.
//!
//! Owns turning flags and files into requests, and answers into output; the prices are the API's.

use std::io::Read;
use std::path::Path;

use serde_json::json;

use crate::cli::Session;
use crate::cli::args::Format;
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::keys::all_pages;
use crate::cli::out::{self, Column};
use crate::cli::price_args::{LayerArg, PriceExplain, PriceList, PricesCommand, price};
use crate::control::encoded;
use crate::pricing::{PriceName, Prices, built_in_version};

const COLUMNS: &[Column<'_>] = &[
    ("NAME", "/name"),
    ("INPUT", "/price/input"),
    ("CACHED", "/price/cached_input"),
    ("WRITTEN", "/price/cache_write"),
    ("OUTPUT", "/price/output"),
    ("SAME AS", "/price/same_as"),
    ("FROM", "/price_version"),
];

const TRIED: &[Column<'_>] = &[("LOOKED FOR", "/model"), ("HOW", "/spelling"), ("THERE IN", "/layers")];

/// Runs one.
///
/// # Errors
/// What the API refuses, or a file that cannot be read.
pub(super) async fn run(session: &Session, client: &AdminClient, command: PricesCommand) -> Result<(), Failure> {
    match command {
        PricesCommand::Delete(price) => {
            client.delete(&path(&price.name)).await?;
            out::say(&format!("deleted {}", price.name));
            Ok(())
        }
        PricesCommand::Explain(args) => explain(session, client, &args).await,
        PricesCommand::Import { file } => {
            let done = client.post("/api/prices", &json!({"prices": read(&file)?})).await?.body;
            Ok(session.out.one(&done, |done| format!("imported {} prices\n", done["imported"]))?)
        }
        PricesCommand::List(args) => list(session, client, &args).await,
        PricesCommand::Set(args) => {
            let set = client.put(&path(&args.name), &price(&args.rates)).await?;
            Ok(session.out.one(&set.body, out::card)?)
        }
        PricesCommand::Show(price) => {
            let found = client.get(&path(&price.name)).await?;
            Ok(session.out.one(&found.body, out::card)?)
        }
    }
}

/// A price's path; slashes in a model's name are the path's own.
fn path(name: &PriceName) -> String {
    let parts: Vec<String> = name.to_string().split('/').map(encoded).collect();
    format!("/api/prices/{}", parts.join("/"))
}

async fn list(session: &Session, client: &AdminClient, args: &PriceList) -> Result<(), Failure> {
    let mut asked = "/api/prices?limit=1000".to_owned();
    for (name, value) in [("provider", &args.provider), ("model", &args.model)] {
        if let Some(value) = value {
            asked.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    if let Some(layer) = args.layer {
        asked.push_str(match layer {
            LayerArg::BuiltIn => "&layer=built-in",
            LayerArg::Config => "&layer=config",
            LayerArg::Store => "&layer=store",
        });
    }
    let items = all_pages(client, &asked, "prices").await?;
    Ok(session.out.many(&json!({"built_in": built_in_version(), "prices": items}), &items, COLUMNS)?)
}

async fn explain(session: &Session, client: &AdminClient, args: &PriceExplain) -> Result<(), Failure> {
    let mut asked = format!("/api/prices/explain?model={}", encoded(&args.model));
    if let Some(provider) = &args.provider {
        asked.push_str(&format!("&provider={}", encoded(provider)));
    }
    let tokens = [
        ("input_tokens", args.input_tokens),
        ("cached_input_tokens", args.cached_input_tokens),
        ("output_tokens", args.output_tokens),
    ];
    for (name, tokens) in tokens {
        if let Some(tokens) = tokens {
            asked.push_str(&format!("&{name}={tokens}"));
        }
    }
    let told = client.get(&asked).await?.body;
    if session.out.format != Format::Table {
        return Ok(session.out.json(&told)?);
    }
    let tried = told["tried"].as_array().cloned().unwrap_or_default();
    let mut text = out::table(&tried, TRIED);
    text.push('\n');
    text.push_str(&match told["found"].is_null() {
        true => "no price\n".to_owned(),
        false => out::card(&told["found"]),
    });
    if let Some(cost) = told["cost_usd"].as_str() {
        text.push_str(&format!("\ncosts ${cost}\n"));
    }
    Ok(session.out.text(&text)?)
}

/// The prices of a file.
///
/// # Errors
/// When it cannot be read, or has none.
pub(super) fn read(file: &Path) -> Result<Prices, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Failure, format!("{}: {error}", file.display()));
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let prices = crate::pricing::read(&text.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    if prices.is_empty() {
        return Err(failed(&"has no price that can be charged"));
    }
    Ok(prices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_stay_and_all_else_is_encoded() {
        for (name, want) in [
            ("openai/gpt-4o", "/api/prices/openai/gpt-4o"),
            ("together/meta-llama/Llama 3", ""),
            ("*/llama3:8b", "/api/prices/%2A/llama3%3A8b"),
            ("bedrock/us.anthropic/a?b#c", "/api/prices/bedrock/us.anthropic/a%3Fb%23c"),
        ] {
            match name.parse() {
                Ok(name) => assert_eq!(path(&name), want),
                Err(_) => assert_eq!(want, "", "{name}"),
            }
        }
    }

    #[test]
    fn files_that_have_no_prices() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("prices");
        assert!(read(&file).unwrap_err().message.contains("No such file"));
        for (text, want) in
            [("{}", "has neither `prices` nor `models`"), (r#"{"prices": {}}"#, "has no price that can be")]
        {
            std::fs::write(&file, text).unwrap();
            let message = read(&file).unwrap_err().message;
            assert!(message.contains(want), "{message}");
        }
    }
}
