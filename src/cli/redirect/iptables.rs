//! The rules as chains of iptables and ip6tables.
//!
//! Owns their spelling and which flavour of the tools is taken. `iptables-restore --noflush` replaces a chain in one
//! transaction; the jump to it is added only where it is missing, so that a second time changes nothing.

use std::fs;

use crate::cli::checks::{Line, fail, ok};
use crate::cli::redirect::Rules;
use crate::cli::redirect::tool::{Call, Step};

/// The tables of their own, which older kernels and other programs may use.
pub(super) const LEGACY: &str = "iptables-legacy";
/// The machine's own choice first, then each that may stand beside it.
pub(super) const FLAVOURS: [&str; 3] = ["iptables", "iptables-nft", LEGACY];
/// Seconds to wait for another program that holds the lock.
const WAIT: &str = "-w 5";

/// One flavour of the tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Iptables {
    v4: &'static str,
    /// False where the kernel has no IPv6, and nothing can go out by it.
    v6: bool,
}

/// One of the two families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// A chain of ours, and the jump that leads to it.
struct Chain {
    table: &'static str,
    name: &'static str,
    protocol: &'static str,
    /// Puts the jump before the rules of others, or behind them.
    place: &'static str,
}

/// Behind others: what they translate, as a cluster's services, is not ours.
const NAT: Chain = Chain { table: "nat", name: "SIDEKEY_OUT", protocol: "tcp", place: "-A" };
/// Before others: one that accepts everything would let QUIC pass.
const QUIC: Chain = Chain { table: "filter", name: "SIDEKEY_QUIC", protocol: "udp", place: "-I" };

impl Chain {
    fn rules(&self, rules: &Rules, family: Family) -> Vec<String> {
        let ports = rules.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let target = match (self.table, family) {
            ("nat", _) => format!("REDIRECT --to-ports {}", rules.to),
            (_, Family::V4) => "REJECT --reject-with icmp-port-unreachable".to_owned(),
            (_, Family::V6) => "REJECT --reject-with icmp6-port-unreachable".to_owned(),
        };
        let own = rules.uids.iter().map(|uid| format!("-m owner --uid-owner {uid} -j RETURN"));
        let rest =
            ["-o lo -j RETURN".to_owned(), format!("-p {} -m multiport --dports {ports} -j {target}", self.protocol)];
        own.chain(rest).collect()
    }

    fn jump(&self) -> String {
        format!("OUTPUT -p {} -j {}", self.protocol, self.name)
    }
}

impl Iptables {
    /// This flavour, for both families, without asking the kernel.
    pub(super) fn planned(v4: &'static str) -> Self {
        Self { v4, v6: true }
    }

    /// The first of `flavours` that may read the kernel's rules.
    ///
    /// # Errors
    /// What the first of them complained of.
    pub(super) fn find(flavours: &[&'static str]) -> Result<Self, String> {
        // Without IPv6 this file is missing or empty.
        let v6 = fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| !text.is_empty());
        let mut problem = None;
        for v4 in flavours {
            let tools = Self { v4, v6 };
            let mut calls = tools
                .families()
                .flat_map(|family| [NAT, QUIC].map(|chain| tools.call(family, chain.table, "-S OUTPUT").output()));
            match calls.find_map(Result::err) {
                None => return Ok(tools.clone()),
                Some(why) => problem = problem.or(Some(why)),
            }
        }
        Err(problem.unwrap_or_default())
    }

    pub(super) fn name(&self) -> String {
        self.v4.to_owned()
    }

    pub(super) fn install(&self, rules: &Rules) -> Vec<Step> {
        let steps = |family| {
            let chain = |chain: &Chain| {
                let lines = chain
                    .rules(rules, family)
                    .iter()
                    .map(|rule| format!("-A {} {rule}\n", chain.name))
                    .collect::<String>();
                format!("*{}\n:{} - [0:0]\n{lines}COMMIT\n", chain.table, chain.name)
            };
            let restore = Call::new(format!("{}-restore", self.program(family)), &format!("--noflush {WAIT}"));
            let chains = Step::Run(restore.input(chain(&NAT) + &chain(&QUIC)));
            let jumps = [NAT, QUIC].map(|chain| {
                let there = self.call(family, chain.table, &format!("-C {}", chain.jump()));
                Step::Unless(there, self.call(family, chain.table, &format!("{} {}", chain.place, chain.jump())))
            });
            std::iter::once(chains).chain(jumps)
        };
        self.families().flat_map(steps).collect()
    }

    pub(super) fn remove(&self) -> Vec<Step> {
        let chain = |(family, chain): (Family, Chain)| {
            let call = |words: String| self.call(family, chain.table, &words);
            let (jump, name) = (chain.jump(), chain.name);
            let there = || call(format!("-S {name}"));
            [
                Step::While(call(format!("-C {jump}")), call(format!("-D {jump}"))),
                // Only an empty chain can be deleted.
                Step::When(there(), call(format!("-F {name}"))),
                Step::When(there(), call(format!("-X {name}"))),
            ]
        };
        self.families().flat_map(|family| [(family, NAT), (family, QUIC)]).flat_map(chain).collect()
    }

    pub(super) fn check(&self, rules: &Rules) -> Vec<Line> {
        self.families().map(|family| self.check_family(rules, family)).collect()
    }

    fn check_family(&self, rules: &Rules, family: Family) -> Line {
        let check = format!("rules by {}", self.program(family));
        let fix = "`sidekey redirect install`";
        for chain in [NAT, QUIC] {
            let Ok(listed) = self.call(family, chain.table, &format!("-S {}", chain.name)).output() else {
                return fail(&check, format!("there is no chain {}", chain.name), fix);
            };
            let there = |words: String| self.call(family, chain.table, &words).succeeds();
            if !there(format!("-C {}", chain.jump())) {
                return fail(&check, format!("nothing leads to the chain {}", chain.name), fix);
            }
            let wanted = chain.rules(rules, family);
            let all = wanted.iter().all(|rule| there(format!("-C {} {rule}", chain.name)));
            if !all || listed.lines().filter(|line| line.starts_with("-A ")).count() != wanted.len() {
                return fail(&check, format!("{} is not what these ports and users want", chain.name), fix);
            }
        }
        ok(&check, "as they should be")
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        std::iter::once(Family::V4).chain(self.v6.then_some(Family::V6))
    }

    fn program(&self, family: Family) -> String {
        match family {
            Family::V4 => self.v4.to_owned(),
            Family::V6 => self.v4.replacen("iptables", "ip6tables", 1),
        }
    }

    fn call(&self, family: Family, table: &str, words: &str) -> Call {
        Call::new(self.program(family), &format!("{WAIT} -t {table} {words}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families() {
        let rules = Rules { uids: vec![65532, 0], ports: vec![443, 8443], to: 15001 };
        for (v6, families) in [(false, 1), (true, 2)] {
            let tools = Iptables { v4: "iptables-legacy", v6 };
            let script: String = tools.install(&rules).iter().map(Step::as_shell).collect();
            for (line, times) in [
                ("-A SIDEKEY_OUT -m owner --uid-owner 65532 -j RETURN\n", families),
                ("-A SIDEKEY_QUIC -m owner --uid-owner 0 -j RETURN\n", families),
                ("-A SIDEKEY_OUT -p tcp -m multiport --dports 443,8443 -j REDIRECT --to-ports 15001\n", families),
                ("--dports 443,8443 -j REJECT --reject-with icmp-port-unreachable\n", 1),
                ("--dports 443,8443 -j REJECT --reject-with icmp6-port-unreachable\n", families - 1),
                ("iptables-legacy-restore --noflush -w 5 <<", 1),
                ("ip6tables-legacy-restore --noflush -w 5 <<", families - 1),
                ("|| iptables-legacy -w 5 -t nat -A OUTPUT -p tcp -j SIDEKEY_OUT\n", 1),
                ("|| iptables-legacy -w 5 -t filter -I OUTPUT -p udp -j SIDEKEY_QUIC\n", 1),
            ] {
                let found = script.matches(line).count();
                assert_eq!(found, times, "{line} in\n{script}");
            }
        }
    }
}
