//! `sidekey token`: admin tokens over the admin API.
//!
//! Owns turning flags into requests and answers into output.

use serde_json::{Value, json};

use crate::cli::Session;
use crate::cli::args::{Format, TokenCommand, as_id};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::keys::all_pages;
use crate::cli::out::{self, Column};

const COLUMNS: &[Column<'_>] = &[
    ("ID", "/id"),
    ("NAME", "/name"),
    ("ROLE", "/role"),
    ("STATUS", "/status"),
    ("CREATED", "/created"),
    ("EXPIRES", "/expires"),
    ("LAST USED", "/last_used"),
];

/// Runs one.
///
/// # Errors
/// What the API refuses.
pub(super) async fn run(session: &Session, client: &AdminClient, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { name, role, expires_days } => {
            let mut body = json!({"name": name, "role": role});
            if let Some(days) = expires_days {
                body["expires_days"] = json!(days.0);
            }
            let made = client.post("/api/tokens", &body).await?.body;
            if session.out.format != Format::Table {
                return Ok(session.out.json(&made)?);
            }
            // Alone on standard output, so that it can be piped.
            session.out.text(&format!("{}\n", made["token"].as_str().unwrap_or_default()))?;
            out::say("this is shown once: keep it where only its holder can read it");
            Ok(())
        }
        TokenCommand::List => {
            let items = all(client).await?;
            Ok(session.out.many(&json!({"tokens": items}), &items, COLUMNS)?)
        }
        TokenCommand::Revoke { token } => {
            let id = resolve(client, &token).await?;
            client.delete(&format!("/api/tokens/{id}")).await?;
            out::say(&format!("revoked {id}"));
            Ok(())
        }
    }
}

async fn all(client: &AdminClient) -> Result<Vec<Value>, Failure> {
    all_pages(client, "/api/tokens?limit=1000", "tokens").await
}

/// The id of the token that is named.
async fn resolve(client: &AdminClient, named: &str) -> Result<String, Failure> {
    if let Some(id) = as_id(named) {
        return Ok(id.to_string());
    }
    let tokens = all(client).await?;
    let mut found = tokens.iter().filter(|token| token["name"] == named).filter_map(|token| token["id"].as_str());
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.to_owned()),
        (Some(_), Some(_)) => {
            let failure = Failure::new(Exit::Refused, format!("several tokens are called {named:?}"));
            Err(failure.fix("name its id: `sidekey token list`"))
        }
        (None, _) => {
            let failure = Failure::new(Exit::Refused, format!("there is no token {named:?}"));
            Err(failure.fix("`sidekey token list` shows them"))
        }
    }
}
