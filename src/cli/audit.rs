//! `sidekey audit`: what was done, by whom, and whether the record of it is whole.
//!
//! Owns its words and output; the answers are the API's.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::Session;
use crate::cli::args::Format;
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{self, Column, Out};
use crate::clock::{Clock, parse_rfc3339, rfc3339};
use crate::control::encoded;
use crate::unit::duration;

const COLUMNS: &[Column<'_>] = &[
    ("SEQ", "/seq"),
    ("TIME", "/time"),
    ("ACTOR", "/actor"),
    ("FROM", "/from"),
    ("ACTION", "/action"),
    ("OBJECT", "/object"),
    ("RESULT", "/result"),
    ("COUNT", "/count"),
];
/// A page of the API holds no more.
const MAX_PAGE: usize = 1000;

/// Flags of `audit`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    /// What else than a list.
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// Which records.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
}

/// Which records.
#[derive(Args, Debug)]
pub struct FilterArgs {
    /// Of this actor only: uid:1000, token:ID or sidekey
    #[arg(long)]
    pub actor: Option<String>,
    /// On this object only: 'key ID', 'plan NAME', or the id or name alone
    #[arg(long)]
    pub object: Option<String>,
    /// Of this action only: key.rotate, or key for all on virtual keys
    #[arg(long)]
    pub action: Option<String>,
    /// Since then: RFC 3339, or so long ago, as 7d or 12h
    #[arg(long, value_parser = since)]
    pub since: Option<String>,
}

/// `audit verify` and `audit export`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Every record, oldest first, byte for byte as it is kept: one a line
    Export(FilterArgs),
    /// Follows the chain from the first record to the last; exits with 6 when it is damaged
    Verify {
        /// A place in it that was noted earlier, as `verify` gave it: proves that no earlier state was put back
        #[arg(long, value_name = "SEQ:HASH")]
        head: Option<String>,
    },
}

fn since(text: &str) -> Result<String, String> {
    match duration::parse(text) {
        Ok(ago) => {
            let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
            Ok(rfc3339(Clock::system().wall_ms().saturating_sub(ago)))
        }
        Err(_) => parse_rfc3339(text)
            .map(|_| text.to_owned())
            .map_err(|_| format!("{text:?} is neither a time as 2026-01-31T12:00:00Z nor a duration as 7d")),
    }
}

pub(super) async fn run(session: &Session, client: &AdminClient, args: &AuditArgs) -> Result<(), Failure> {
    match &args.command {
        None => list(session, client, &args.filter, args.limit).await,
        Some(AuditCommand::Export(filter)) => export(session, client, filter).await,
        Some(AuditCommand::Verify { head }) => verify(session, client, head.as_deref()).await,
    }
}

impl FilterArgs {
    fn query(&self) -> String {
        let said = [("actor", &self.actor), ("object", &self.object), ("action", &self.action), ("since", &self.since)];
        let said = said.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        said.map(|(name, value)| format!("&{name}={}", encoded(value))).collect()
    }
}

/// One page, and what asks for the next.
async fn page(client: &AdminClient, query: &str, limit: usize) -> Result<(Vec<Value>, Option<String>), Failure> {
    let mut page = client.get(&format!("/api/audit?limit={limit}{query}")).await?.body;
    let records = page.get_mut("records").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    Ok((records, page["next_cursor"].as_u64().map(|next| format!("&cursor={next}"))))
}

async fn list(session: &Session, client: &AdminClient, filter: &FilterArgs, limit: usize) -> Result<(), Failure> {
    let mut records = Vec::new();
    let mut cursor = String::new();
    while records.len() < limit {
        let left = (limit - records.len()).min(MAX_PAGE);
        let (more, next) = page(client, &format!("{}{cursor}", filter.query()), left).await?;
        records.extend(more);
        match next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    Ok(session.out.many(&json!({"records": records}), &records, COLUMNS)?)
}

async fn export(session: &Session, client: &AdminClient, filter: &FilterArgs) -> Result<(), Failure> {
    if session.out.format == Format::Csv {
        return Err(Failure::new(Exit::Usage, "an export is JSON: what is hashed are its bytes").fix("use -o jsonl"));
    }
    let out = Out { format: Format::Jsonl };
    let mut cursor = String::new();
    loop {
        let (records, next) = page(client, &format!("&order=oldest{}{cursor}", filter.query()), MAX_PAGE).await?;
        out.many(&Value::Null, &records, COLUMNS)?;
        match next {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}

async fn verify(session: &Session, client: &AdminClient, head: Option<&str>) -> Result<(), Failure> {
    let query = head.map_or_else(String::new, |head| format!("?head={}", encoded(head)));
    let verdict = client.get(&format!("/api/audit/verify{query}")).await?.body;
    let bad = &verdict["bad"];
    if bad.is_null() {
        return Ok(session.out.one(&verdict, |verdict| {
            let (records, first, last, head) = (
                &verdict["records"],
                &verdict["first"],
                &verdict["last"],
                verdict["head"].as_str().unwrap_or_default(),
            );
            match records.as_u64() {
                Some(0) => "whole: no records yet\n".to_owned(),
                _ => format!("whole: {records} records, {first} to {last}\nhead:  {last}:{head}\n"),
            }
        })?);
    }
    if session.out.format != Format::Table {
        session.out.json(&verdict)?;
    }
    let (seq, reason) = (&bad["seq"], bad["reason"].as_str().unwrap_or_default());
    let (file, line) = (bad["file"].as_str().unwrap_or_default(), &bad["line"]);
    let failure =
        Failure::new(Exit::Store, format!("the audit log is damaged: record {seq} {reason} ({file}, line {line})"));
    out::say(&format!("good up to there: {} records", verdict["records"]));
    Err(failure.fix("keep the files as they are; compare them with an export or a copy from before"))
}
