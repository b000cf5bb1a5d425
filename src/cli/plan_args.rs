//! What can be typed of plans, users and teams.
//!
//! Owns names, flags and help, as `args` does for the other commands.

use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, Subcommand};

use crate::cli::args::{OrNone, PolicyArgs};
use crate::policy::{Budget, Quota};
use crate::route::Route;

/// `sidekey plan`.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// Makes a plan
    Create(Box<PlanCreate>),
    /// All of them
    #[command(alias = "ls")]
    List,
    /// One of them, and how its limits stand
    Show(PlanRef),
    /// Changes one, for all of its keys at once
    Update(Box<PlanUpdate>),
    /// Removes one that no key is on
    Delete(PlanRef),
}

/// A plan.
#[derive(Args, Clone, Debug)]
pub struct PlanRef {
    /// Its name
    pub name: String,
}

/// `sidekey plan create`.
#[derive(Args, Clone, Debug)]
pub struct PlanCreate {
    /// What keys name it by: key create --plan
    #[arg(long)]
    pub name: String,
    /// What its keys may do.
    #[command(flatten)]
    pub terms: PlanTerms,
}

/// `sidekey plan update`.
#[derive(Args, Clone, Debug)]
pub struct PlanUpdate {
    /// Its name
    pub name: String,
    /// What its keys may do.
    #[command(flatten)]
    pub terms: PlanTerms,
}

/// What the keys of a plan may do.
#[derive(Args, Clone, Debug, Default)]
pub struct PlanTerms {
    /// Who and what it is for.
    #[command(flatten)]
    pub about: AboutArgs,
    /// What a model's name means to its keys, as smart=openai/gpt-4o; the next target with a comma, shares as
    /// 3*openai/gpt-4o; may be repeated; none takes all of them away
    #[arg(long, value_name = "MODEL=PROVIDER/MODEL")]
    pub route: Vec<RouteArg>,
    /// What each key may use.
    #[command(flatten)]
    pub each: PolicyArgs,
    /// What all keys may use together.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// A route as it is typed, or `none`.
#[derive(Clone, Debug)]
pub struct RouteArg(pub Option<Arc<Route>>);

impl FromStr for RouteArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(|OrNone(route)| Self(route.map(Arc::new)))
    }
}

/// Models, and notes.
#[derive(Args, Clone, Debug, Default)]
pub struct AboutArgs {
    /// Globs of models its keys may call, with commas; '*' or '' is all
    #[arg(long, value_delimiter = ',', value_name = "GLOBS")]
    pub models: Option<Vec<String>>,
    /// A note of your own; '' is none
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

/// What all keys of a plan may use together.
#[derive(Args, Clone, Debug, Default)]
pub struct SharedArgs {
    /// Requests per minute of all its keys together, or none
    #[arg(long, value_name = "N")]
    pub shared_rpm: Option<OrNone<u64>>,
    /// Tokens per minute of all its keys together, or none
    #[arg(long, value_name = "N")]
    pub shared_tpm: Option<OrNone<u64>>,
    /// Requests at the same time of all its keys together, or none
    #[arg(long, value_name = "N")]
    pub shared_max_in_flight: Option<OrNone<u64>>,
    /// Dollars of all its keys together, as --budget; may be repeated; none is no budget
    #[arg(long, value_name = "USD[/WINDOW]")]
    pub shared_budget: Vec<OrNone<Budget>>,
    /// Tokens of all its keys together, as --quota; may be repeated; none is no quota
    #[arg(long, value_name = "N[/WINDOW]")]
    pub shared_quota: Vec<OrNone<Quota>>,
}

impl SharedArgs {
    /// The same flags without `shared`.
    #[must_use]
    pub fn policy(&self) -> PolicyArgs {
        PolicyArgs {
            rpm: self.shared_rpm,
            tpm: self.shared_tpm,
            max_in_flight: self.shared_max_in_flight,
            budget: self.shared_budget.clone(),
            quota: self.shared_quota.clone(),
            ..PolicyArgs::default()
        }
    }
}

/// `sidekey user` and `sidekey team`.
#[derive(Debug, Subcommand)]
pub enum OwnerCommand {
    /// All that have a policy, or that a key names
    #[command(alias = "ls")]
    List,
    /// One of them, and how its limits stand
    Show(OwnerRef),
    /// Says what all of its keys may use together
    #[command(alias = "update")]
    Set(Box<OwnerSet>),
    /// Takes its policy away; its keys and what they used stay
    Delete(OwnerRef),
}

/// A user or a team.
#[derive(Args, Clone, Debug)]
pub struct OwnerRef {
    /// Its id, as on keys
    pub id: String,
}

/// `sidekey user set`.
#[derive(Args, Clone, Debug)]
pub struct OwnerSet {
    /// Its id, as on keys
    pub id: String,
    /// What it is about.
    #[command(flatten)]
    pub about: AboutArgs,
    /// What its keys may use together.
    #[command(flatten)]
    pub policy: PolicyArgs,
}
