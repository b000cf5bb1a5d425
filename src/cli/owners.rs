//! `sidekey user` and `sidekey team`: what all keys of one may use together, over the admin API.
//!
//! Owns turning flags into requests and answers into output.

use serde_json::Value;

use crate::cli::Session;
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::keys::all_pages;
use crate::cli::out::{self, Column};
use crate::cli::plan_args::OwnerCommand;
use crate::cli::{plans, policy};
use crate::control::encoded;

const COLUMNS: &[Column<'_>] = &[
    ("ID", "/id"),
    ("KEYS", "/keys"),
    ("MODELS", "/models"),
    ("RPM", "/limits/rpm"),
    ("TPM", "/limits/tpm"),
    ("BUDGETS", "/budgets"),
    ("QUOTAS", "/quotas"),
    ("SPENT", "/spent"),
    ("REQUESTS", "/total_requests"),
    ("LAST USED", "/last_used"),
];

/// Runs one; `kind` is `user` or `team`.
///
/// # Errors
/// What the API refuses.
pub(super) async fn run(
    session: &Session,
    client: &AdminClient,
    kind: &str,
    command: OwnerCommand,
) -> Result<(), Failure> {
    let all = format!("{kind}s");
    let path = |id: &str| format!("/api/{all}/{}", encoded(id));
    match command {
        OwnerCommand::Delete(owner) => {
            client.delete(&path(&owner.id)).await?;
            out::say(&format!("{kind} {} has no policy any more", owner.id));
            Ok(())
        }
        OwnerCommand::List => {
            let items = all_pages(client, &format!("/api/{all}?limit=1000"), &all).await?;
            plans::list(session, &all, &items, COLUMNS)
        }
        OwnerCommand::Set(args) => {
            let mut body = plans::about(&args.about);
            body.extend(policy::fields(&args.policy));
            if body.is_empty() {
                let failure = Failure::new(Exit::Usage, "nothing to change");
                return Err(failure.fix("name what to change, as --budget 20/month"));
            }
            let changed = client.patch(&path(&args.id), &Value::Object(body), None).await?;
            Ok(session.out.one(&changed.body, policy::card)?)
        }
        OwnerCommand::Show(owner) => {
            let found = client.get(&path(&owner.id)).await?;
            Ok(session.out.one(&found.body, policy::card)?)
        }
    }
}
