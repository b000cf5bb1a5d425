//! The rules as one table of nftables, for IPv4 and IPv6 alike.
//!
//! Owns their spelling and how they are recognised. One transaction declares, deletes and defines the table: it can be
//! repeated, and there is no moment without rules.

use crate::cli::checks::{Line, fail, ok};
use crate::cli::redirect::Rules;
use crate::cli::redirect::tool::{Call, Step};

pub(super) const PROGRAM: &str = "nft";
const TABLE: &str = "inet sidekey";

/// Whether nft may read the kernel's rules.
///
/// # Errors
/// Why not.
pub(super) fn usable() -> Result<(), String> {
    Call::new(PROGRAM, "list tables").output().map(drop)
}

pub(super) fn install(rules: &Rules) -> Vec<Step> {
    let [nat, filter] = chains(rules).map(|lines| lines.map(|line| format!("    {line}\n")).concat());
    let text = format!(
        "table {TABLE}\n\
         delete table {TABLE}\n\
         table {TABLE} {{\n\
         \x20 chain output_nat {{\n    type nat hook output priority -100; policy accept;\n{nat}  }}\n\
         \x20 chain output_filter {{\n    type filter hook output priority 0; policy accept;\n{filter}  }}\n\
         }}\n"
    );
    vec![Step::Run(Call::new(PROGRAM, "-f -").input(text))]
}

pub(super) fn remove() -> Vec<Step> {
    let text = format!("table {TABLE}\ndelete table {TABLE}\n");
    vec![Step::Run(Call::new(PROGRAM, "-f -").input(text))]
}

pub(super) fn check(rules: &Rules) -> Vec<Line> {
    let found = Call::new(PROGRAM, &format!("-n list table {TABLE}")).output();
    let fix = "`sidekey redirect install`";
    let Ok(text) = found else { return vec![fail("rules by nft", "there are none", fix)] };
    if rules_in(&text) == chains(rules).concat() {
        return vec![ok("rules by nft", "as they should be, for IPv4 and IPv6")];
    }
    vec![fail("rules by nft", "they are not what these ports and users want", fix)]
}

/// The rules of both chains, each as nft prints it.
fn chains(rules: &Rules) -> [[String; 3]; 2] {
    let uids = set(&rules.uids);
    let ports = set(&rules.ports);
    let passes = format!("meta skuid {uids} return");
    [
        // What stays on the machine has no name that could be a provider's.
        [passes.clone(), "oifname \"lo\" return".to_owned(), format!("tcp dport {ports} redirect to :{}", rules.to)],
        [passes, "oifname \"lo\" return".to_owned(), format!("udp dport {ports} reject")],
    ]
}

/// As nft prints one number, or several.
fn set<T: ToString + Ord>(numbers: &[T]) -> String {
    let mut numbers: Vec<&T> = numbers.iter().collect();
    numbers.sort();
    let numbers: Vec<String> = numbers.into_iter().map(T::to_string).collect();
    match numbers.as_slice() {
        [one] => one.clone(),
        many => format!("{{ {} }}", many.join(", ")),
    }
}

/// The lines of a listing that are rules.
fn rules_in(listing: &str) -> Vec<String> {
    let frame = |line: &&str| line.is_empty() || line.ends_with('{') || *line == "}" || line.starts_with("type ");
    listing.lines().map(str::trim).filter(|line| !frame(line)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        for (uids, ports) in [(vec![65532], vec![443]), (vec![7, 5], vec![443, 8443])] {
            let rules = Rules { uids, ports, to: 15001 };
            let [step] = install(&rules).try_into().unwrap();
            let text = step.as_shell();
            let table = text.split_once("delete table inet sidekey\n").unwrap().1;
            let table = table.strip_suffix("END\n").unwrap();
            assert_eq!(rules_in(table), chains(&rules).concat());
            let other = Rules { to: 15002, ..rules };
            assert_ne!(rules_in(table), chains(&other).concat());
        }
        let rules = Rules { uids: vec![7, 5], ports: vec![443], to: 1 };
        assert_eq!(chains(&rules)[0][0], "meta skuid { 5, 7 } return");
    }
}
