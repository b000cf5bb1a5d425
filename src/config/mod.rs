//! The configuration: what was said in `sidekey.toml`, the environment and flags, as one value of sections.
//!
//! Owns reading, precedence (flags > `SIDEKEY_*` > file > defaults) and where each value came from. The sections of
//! other modules live beside the code they configure; here stand only the listeners' and the log's.

pub mod env;
mod fault;
mod inputs;
mod keys;
mod load;
mod places;
mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::alerts::section::AlertsSection;
use crate::control::section::AdminSection;
use crate::ingress::section::ConnectSection;
use crate::pricing::{ANY, Listing, Overlay, PriceName, PriceTable, Prices};
use crate::provider::{ConfigFault, ProviderSection, Registry};
use crate::provider_key::ProviderKeysSection;
use crate::proxy::section::ProxySection;
use crate::route::Routes;
use crate::storage::StoreSection;
use crate::unit::duration;
use crate::virtual_key::{KeysSection, is_prefix};

pub use self::env::Environment;
pub use self::fault::{Fault, Origin, nearest};
pub use self::keys::{KEYS, Key, Kind, schema, template};
pub use self::load::{Effective, Loaded, Overrides, load};
pub use self::places::{FILE_NAME, NoPlace, Places};

/// Everything that can be said in `sidekey.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who is told of events.
    pub alerts: AlertsSection,
    /// Addresses.
    pub listen: ListenSection,
    /// The admin API.
    pub admin: AdminSection,
    /// Clients that use sidekey as a proxy.
    pub connect: ConnectSection,
    /// What new virtual keys get.
    pub keys: KeysSection,
    /// Bounds of the request path.
    pub limits: ProxySection,
    /// The log.
    pub log: LogSection,
    /// What models cost, over the list in the program.
    pub prices: Prices,
    /// What sidekey does with provider keys by itself.
    pub provider_keys: ProviderKeysSection,
    /// What differs from the built-in providers, and the operator's own.
    pub providers: BTreeMap<String, ProviderSection>,
    /// What names of models mean.
    pub routes: Routes,
    /// How sidekey ends.
    pub shutdown: ShutdownSection,
    /// The store.
    pub store: StoreSection,
    /// Where traces and metrics go.
    pub telemetry: TelemetrySection,
}

/// `[listen]`: the addresses sidekey answers on. A port of 0 takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSection {
    /// Reverse and connect.
    pub proxy: SocketAddr,
    /// The admin API and the console, beside the Unix socket; `None` is off.
    #[serde(with = "off")]
    pub admin: Option<SocketAddr>,
    /// `/livez`, `/readyz`, `/healthz`, `/metrics`.
    pub telemetry: SocketAddr,
    /// Connections redirected by the kernel; off unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transparent: Option<SocketAddr>,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self { proxy: loopback(4141), admin: Some(loopback(4142)), telemetry: loopback(4143), transparent: None }
    }
}

/// An address, or `"off"`.
mod off {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    const OFF: &str = "off";

    #[expect(clippy::ref_option, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str(OFF),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == OFF {
            return Ok(None);
        }
        text.parse().map(Some).map_err(serde::de::Error::custom)
    }
}

fn loopback(port: u16) -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, port).into()
}

/// `[shutdown]`: what happens between SIGTERM and the end, besides `limits.drain_timeout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSection {
    /// Clients are served for this long, so that those who have not yet heard of the end are not turned away.
    #[serde(with = "duration")]
    pub min_delay: Duration,
}

/// `[telemetry]`: traces and metrics for a collector of OpenTelemetry. `/metrics` needs none of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySection {
    /// `http://host:4318`; `/v1/traces` and `/v1/metrics` follow. Off unless set, here or in the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// What it calls itself there; `sidekey` unless set, here or in the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Of how many in a hundred requests a span is sent, where the client has not decided.
    pub sample_percent: u8,
    /// Whether the client's `traceparent`, `tracestate` and `baggage` go on to providers.
    pub forward_trace_context: bool,
}

impl Default for TelemetrySection {
    fn default() -> Self {
        Self { otlp_endpoint: None, service_name: None, sample_percent: 100, forward_trace_context: false }
    }
}

/// `[log]`: the log on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// How a line looks.
    pub format: LogFormat,
    /// The least level shown.
    pub level: LogLevel,
    /// One line for each request.
    pub access: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `pretty` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// The least level of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "tracing's own levels")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// What is wrong, and the keys that make it so, the one to name first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The keys.
    pub keys: Vec<String>,
    /// What is wrong.
    pub what: String,
}

fn wrong(keys: &[&str], what: impl Into<String>) -> Wrong {
    Wrong { keys: keys.iter().map(|key| (*key).to_owned()).collect(), what: what.into() }
}

/// The default of `limits.default_provider`.
const BUILT_IN_DEFAULT: &str = "openai";

impl Config {
    /// The section of the request path, with what it needs of others.
    #[must_use]
    pub fn proxy(&self) -> ProxySection {
        ProxySection { unknown_keys: self.keys.unknown_keys, ..self.limits.clone() }
    }

    /// What serde cannot see: values that are wrong together or in themselves, by the keys they stand at.
    #[must_use]
    pub fn check(&self) -> Vec<Wrong> {
        let mut faults = Vec::new();
        if !is_prefix(&self.keys.prefix) {
            let text = "a prefix is 1 to 32 letters, digits, `-` and `_`, and does not end in a dash".to_owned();
            faults.push(wrong(&["keys.prefix"], text));
        }
        if self.keys.default_expires_days == 0 {
            faults.push(wrong(&["keys.default_expires_days"], "a key must live at least 1 day".to_owned()));
        }
        if let Some(max) = self.keys.max_expires_days
            && self.keys.default_expires_days > max
        {
            let text = format!("{} is more than keys.max_expires_days = {max}", self.keys.default_expires_days);
            faults.push(wrong(&["keys.default_expires_days", "keys.max_expires_days"], text));
        }
        for (key, limit) in [("keys.default_rpm", self.keys.default_rpm), ("keys.default_tpm", self.keys.default_tpm)] {
            if limit == Some(0) {
                faults
                    .push(wrong(&[key], "a limit of 0 would refuse everything; leave it out for no limit".to_owned()));
            }
        }
        if self.limits.replay_limit > self.limits.max_body {
            faults.push(wrong(&["limits.replay_limit", "limits.max_body"], "is more than limits.max_body".to_owned()));
        }
        if !self.shutdown.min_delay.is_zero() && self.shutdown.min_delay >= self.limits.drain_timeout {
            let text = "leaves open requests no time to end; limits.drain_timeout must be longer";
            faults.push(wrong(&["shutdown.min_delay", "limits.drain_timeout"], text));
        }
        let keys = &self.provider_keys;
        if keys.retest_first < Duration::from_secs(1) {
            faults.push(wrong(
                &["provider_keys.retest_first"],
                "must be at least 1s; provider_keys.retest = false switches it off",
            ));
        }
        if keys.retest_first > keys.retest_max {
            let both = ["provider_keys.retest_first", "provider_keys.retest_max"];
            faults.push(wrong(&both, "is more than provider_keys.retest_max"));
        }
        if self.store.queue_capacity == 0 {
            faults.push(wrong(&["store.queue_capacity"], "a queue of 0 would record nothing"));
        }
        for (field, what) in self.alerts.faults() {
            faults.push(wrong(&[&format!("alerts.{field}"), "alerts"], what));
        }
        faults.extend(self.open_admin());
        if self.telemetry.sample_percent > 100 {
            faults.push(wrong(&["telemetry.sample_percent"], "is a number from 0 to 100"));
        }
        if let Some(endpoint) = &self.telemetry.otlp_endpoint
            && !["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
        {
            faults.push(wrong(&["telemetry.otlp_endpoint"], "is no collector; write \"http://host:4318\""));
        }
        faults.extend(self.shared_addresses());
        match self.registry() {
            Ok(registry) => {
                faults.extend(self.unknown_prices(&registry));
                let routes = registry.route_faults(&self.routes).into_iter();
                faults.extend(routes.map(|fault| wrong(&[&format!("routes.{}", fault.pattern)], fault.what)));
            }
            Err(wrongs) => faults.extend(wrongs.into_iter().map(|fault| self.of_provider(fault))),
        }
        faults
    }

    /// Prices of providers that there are not, or that are the same as one that there is not.
    fn unknown_prices(&self, registry: &Registry) -> Vec<Wrong> {
        for name in self.prices.keys().filter(|name| &*name.provider != ANY) {
            if let Err(unknown) = registry.id_of(&name.provider) {
                return vec![wrong(&[&format!("prices.{name}")], unknown.to_string())];
            }
        }
        let table = self.prices(registry);
        let same = self.prices.iter().filter_map(|(name, price)| Some((name, price.same_as.as_ref()?)));
        let unknown = same.filter(|(name, _)| table.resolve(&name.provider, &name.model).is_none());
        let what = |(name, other)| wrong(&[&format!("prices.{name}")], format!("there is no price of {other}"));
        unknown.map(what).collect()
    }

    /// The prices in force, but for those set in the store.
    #[must_use]
    pub fn prices(&self, registry: &Registry) -> PriceTable {
        let listings = registry.iter().map(|upstream| {
            let listed_as = upstream.vendor().map(Into::into);
            (upstream.id.to_string(), Listing { listed_as, region: upstream.region().map(Into::into) })
        });
        // By its id, where the operator wrote an alias.
        let id = |name: PriceName| match registry.id_of(&name.provider) {
            Ok(id) => PriceName { provider: (&*id).into(), ..name },
            Err(_) => name,
        };
        let prices: Prices = self.prices.clone().into_iter().map(|(name, price)| (id(name), price)).collect();
        PriceTable::new(Overlay::hashed("config", prices), listings)
    }

    /// The providers in force, and the routes to them.
    ///
    /// # Errors
    /// Every fault of the providers' sections; [`Config::check`] tells those of routes.
    pub fn registry(&self) -> Result<Registry, Vec<ConfigFault>> {
        // The built-in default may be switched off; only one that was asked for must be there.
        let default = Some(self.limits.default_provider.as_str()).filter(|said| *said != BUILT_IN_DEFAULT);
        Ok(Registry::build(&self.providers, default)?.with_routes(self.routes.clone()))
    }

    /// A fault of a provider's section; one of a provider without a section is that of the default provider.
    fn of_provider(&self, fault: ConfigFault) -> Wrong {
        if !self.providers.contains_key(&fault.provider) {
            return wrong(&["limits.default_provider"], fault.problem);
        }
        let section = format!("providers.{}", fault.provider);
        let key = if fault.field.is_empty() { section } else { format!("{section}.{}", fault.field) };
        Wrong { keys: vec![key, format!("providers.{}", fault.provider)], what: fault.problem }
    }

    /// A token that anybody on the network can try, and that travels in clear text, is not enough.
    fn open_admin(&self) -> Option<Wrong> {
        let tls = match self.admin.tls.files() {
            Ok(tls) => tls,
            Err(missing) => {
                let key = format!("admin.tls.{missing}");
                return Some(wrong(&[&key, "admin.tls"], "is missing: TLS takes cert, key and client_ca"));
            }
        };
        let address = self.listen.admin.filter(|address| !address.ip().is_loopback() && tls.is_none())?;
        let what = format!(
            "{address} can be reached from elsewhere: set admin.tls (cert, key and client_ca), or listen on 127.0.0.1"
        );
        Some(wrong(&["listen.admin"], what))
    }

    /// Two listeners on one address: the second would fail to bind, and its name is what the reader needs.
    fn shared_addresses(&self) -> Option<Wrong> {
        let said = [
            ("listen.proxy", Some(self.listen.proxy)),
            ("listen.telemetry", Some(self.listen.telemetry)),
            ("listen.admin", self.listen.admin),
            ("listen.transparent", self.listen.transparent),
        ];
        let mut seen: BTreeMap<SocketAddr, &'static str> = BTreeMap::new();
        for (key, address) in said.into_iter().filter_map(|(key, address)| Some((key, address?))) {
            if address.port() == 0 {
                continue;
            }
            if let Some(other) = seen.insert(address, key) {
                return Some(wrong(&[key, other], format!("{address} is also {other}")));
            }
        }
        None
    }
}
