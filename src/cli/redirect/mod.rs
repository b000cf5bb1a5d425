//! `sidekey redirect`: the kernel's rules that lead connections to `listen.transparent`.
//!
//! Owns what the rules say and when they are applied; leaves their spelling to `nft` and `iptables`, the tools to
//! `tool`, and trying them from an app's side to `probe`.

mod iptables;
mod nft;
mod probe;
mod tool;

use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use crate::cli::Session;
use crate::cli::args::{Backend, RedirectArgs, RedirectCommand};
use crate::cli::checks::{self, Line};
use crate::cli::failure::{Exit, Failure};
use crate::cli::out;
use crate::cli::redirect::iptables::Iptables;
use crate::cli::redirect::tool::Step;

/// Where redirected connections go when the configuration does not say.
const DEFAULT_PORT: u16 = 15001;
/// What a rule of iptables holds.
const MOST_PORTS: usize = 15;

/// What is redirected where, and whose connections are not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules {
    /// The users whose connections pass: sidekey's own, or it would meet itself.
    uids: Vec<u32>,
    /// TCP ports, ascending. The same ports of UDP are refused, so that QUIC falls back to TCP.
    ports: Vec<u16>,
    /// The port of `listen.transparent`.
    to: u16,
}

/// A set of tools that can write rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tools {
    Nft,
    Iptables(Iptables),
}

impl Tools {
    fn install(&self, rules: &Rules) -> Vec<Step> {
        match self {
            Self::Nft => nft::install(rules),
            Self::Iptables(tools) => tools.install(rules),
        }
    }

    fn remove(&self) -> Vec<Step> {
        match self {
            Self::Nft => nft::remove(),
            Self::Iptables(tools) => tools.remove(),
        }
    }

    fn check(&self, rules: &Rules) -> Vec<Line> {
        match self {
            Self::Nft => nft::check(rules),
            Self::Iptables(tools) => tools.check(rules),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Nft => nft::PROGRAM.to_owned(),
            Self::Iptables(tools) => tools.name(),
        }
    }
}

/// Runs one.
///
/// # Errors
/// When there is no tool, it may not change rules, or nothing says whose connections are to pass.
pub(super) fn run(session: &Session, command: &RedirectCommand) -> Result<ExitCode, Failure> {
    match command {
        RedirectCommand::Install { rules, backend, dry_run } => {
            let rules = self::rules(session, rules)?;
            let tools = if *dry_run { planned(*backend) } else { usable(*backend)? };
            carry_out(session, &tools.install(&rules), *dry_run)?;
            if !dry_run {
                said(&tools, &rules);
            }
        }
        RedirectCommand::Remove { backend, dry_run } => {
            let found = if *dry_run { vec![planned(*backend)] } else { all_usable(*backend)? };
            for tools in found {
                carry_out(session, &tools.remove(), *dry_run)?;
            }
        }
        RedirectCommand::Check { rules, backend } => {
            let rules = self::rules(session, rules)?;
            let mut lines = match all_usable(*backend) {
                Ok(found) => in_force(&found, &rules),
                Err(failure) => vec![checks::warn("rules", failure.message, failure.fix.unwrap_or_default())],
            };
            lines.extend(probe::lines(&rules));
            return checks::report(session.out, &lines);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was asked for, or what the configuration and the data directory tell.
fn rules(session: &Session, args: &RedirectArgs) -> Result<Rules, Failure> {
    let mut uids = args.uid.clone();
    if uids.is_empty() {
        uids.push(daemon_uid(session)?);
    }
    let mut ports = args.ports.clone();
    ports.sort_unstable();
    ports.dedup();
    if ports.len() > MOST_PORTS {
        return Err(Failure::new(Exit::Usage, format!("--ports takes {MOST_PORTS} at most")));
    }
    let to = session.loaded.config.listen.transparent.map_or(DEFAULT_PORT, |address| address.port());
    if to == 0 {
        let failure = Failure::new(Exit::Usage, "listen.transparent has port 0, and rules need a number");
        return Err(failure.fix(format!("set listen.transparent, as \"127.0.0.1:{DEFAULT_PORT}\"")));
    }
    if ports.contains(&to) {
        let failure = Failure::new(Exit::Usage, format!("port {to} is where redirected connections go"));
        return Err(failure.fix("leave it out of --ports"));
    }
    Ok(Rules { uids, ports, to })
}

/// The daemon runs as the owner of its data directory. Root is not taken without being named: with it every program of
/// root's would pass.
fn daemon_uid(session: &Session) -> Result<u32, Failure> {
    let dir = &session.loaded.places.data_dir;
    match std::fs::metadata(dir) {
        Ok(found) if found.uid() != 0 => Ok(found.uid()),
        found => {
            let why = if found.is_ok() { "belongs to root" } else { "is not there" };
            let failure = Failure::new(Exit::Usage, format!("whose connections pass? {} {why}", dir.display()));
            Err(failure.fix("--uid with the user id that sidekey runs as"))
        }
    }
}

/// The tools that would be used, without asking the kernel.
fn planned(backend: Backend) -> Tools {
    match backend {
        Backend::Auto if !tool::exists(nft::PROGRAM) && tool::exists(iptables::FLAVOURS[0]) => {
            Tools::Iptables(Iptables::planned(iptables::FLAVOURS[0]))
        }
        Backend::Auto | Backend::Nft => Tools::Nft,
        Backend::Iptables => Tools::Iptables(Iptables::planned(iptables::FLAVOURS[0])),
        Backend::IptablesLegacy => Tools::Iptables(Iptables::planned(iptables::LEGACY)),
    }
}

/// The first tools that are there and may read the kernel's rules.
fn usable(backend: Backend) -> Result<Tools, Failure> {
    all_usable(backend).map(|mut found| found.swap_remove(0))
}

/// At least one.
fn all_usable(backend: Backend) -> Result<Vec<Tools>, Failure> {
    let mut found = Vec::new();
    let mut problems = Vec::new();
    let flavours: &[&str] = match backend {
        Backend::Auto | Backend::Iptables => &iptables::FLAVOURS,
        Backend::IptablesLegacy => &[iptables::LEGACY],
        Backend::Nft => &[],
    };
    if matches!(backend, Backend::Auto | Backend::Nft) {
        match nft::usable() {
            Ok(()) => found.push(Tools::Nft),
            Err(why) => problems.push(why),
        }
    }
    if !flavours.is_empty() {
        match Iptables::find(flavours) {
            Ok(tools) => found.push(Tools::Iptables(tools)),
            Err(why) => problems.push(why),
        }
    }
    if found.is_empty() {
        let failure = Failure::new(Exit::Failure, problems.join("; "));
        return Err(failure.fix("install nftables or iptables, and run this as root with CAP_NET_ADMIN"));
    }
    Ok(found)
}

/// What the first tools say that find the rules as they should be, else what the first say.
fn in_force(found: &[Tools], rules: &Rules) -> Vec<Line> {
    let mut said: Vec<Vec<Line>> = found.iter().map(|tools| tools.check(rules)).collect();
    let good = said.iter().position(|lines| lines.iter().all(Line::is_good));
    said.swap_remove(good.unwrap_or(0))
}

fn carry_out(session: &Session, steps: &[Step], dry_run: bool) -> Result<(), Failure> {
    for step in steps {
        if dry_run {
            session.out.text(&step.as_shell())?;
        } else {
            step.run().map_err(|why| Failure::new(Exit::Failure, why))?;
        }
    }
    Ok(())
}

fn said(tools: &Tools, rules: &Rules) {
    let Rules { uids, ports, to } = rules;
    let list = |numbers: &mut dyn Iterator<Item = String>| numbers.collect::<Vec<_>>().join(", ");
    let uids = list(&mut uids.iter().map(u32::to_string));
    let ports = list(&mut ports.iter().map(u16::to_string));
    let tools = tools.name();
    out::say(&format!("redirected by {tools}: tcp {ports} to {to}; user {uids} passes; udp {ports} is refused"));
}
