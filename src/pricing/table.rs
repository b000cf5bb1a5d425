//! The [`PriceTable`]: layers of prices, and the search for the one that a call costs.
//!
//! # Which price
//! What an operator says goes before what is built in: first prices set in the store, then those of the configuration. In each
//! layer the model that the provider says it used is looked for under all its [`Spelling`]s, the most specific first, and
//! then the one that was asked for. So a price set for `openai/gpt-4o` holds for its dated versions too, unless one of
//! these has a price of its own in the same layer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::built_in::built_in;
use super::memo::Memo;
use super::name::{ANY, Place, spellings};
use super::{Price, PriceName, Prices, Spelling};

/// `same_as` may lead on so many times.
const CHAIN_MAX: usize = 4;

/// Providers that say in dollars what each call cost.
const REPORTING: [&str; 2] = ["openrouter", "perplexity"];

/// Where a price was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PriceLayer"))]
pub enum Layer {
    /// In the store: `sidekey prices set`.
    #[serde(rename = "store")]
    Store,
    /// In the configuration: `[prices]`.
    #[serde(rename = "config")]
    Config,
    /// In the program.
    #[serde(rename = "built-in")]
    BuiltIn,
}

impl Layer {
    /// All of them, the first to count first.
    pub const ALL: [Self; 3] = [Self::Store, Self::Config, Self::BuiltIn];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in",
            Self::Config => "config",
            Self::Store => "store",
        }
    }
}

/// A price and the version of it, as entries name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The price.
    pub price: Price,
    /// Which table it is from, and which state of it.
    pub version: Arc<str>,
}

/// Prices that an operator said in one place.
#[derive(Clone, Debug, Default)]
pub struct Overlay(BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<Versioned>>>);

impl FromIterator<(PriceName, Versioned)> for Overlay {
    fn from_iter<I: IntoIterator<Item = (PriceName, Versioned)>>(prices: I) -> Self {
        let mut overlay = Self::default();
        for (PriceName { provider, model }, price) in prices {
            overlay.0.entry(provider).or_default().insert(model, Arc::new(price));
        }
        overlay
    }
}

impl Overlay {
    /// Prices of one version, which is made of what they say: `config 1a2b3c4d`.
    #[must_use]
    pub fn hashed(layer: &str, prices: Prices) -> Self {
        let text = serde_json::to_vec(&prices).unwrap_or_default();
        let version: Arc<str> = format!("{layer} {}", &blake3::hash(&text).to_hex()[..8]).into();
        prices.into_iter().map(|(name, price)| (name, Versioned { price, version: Arc::clone(&version) })).collect()
    }

    /// The price of a model at a provider, else at any.
    fn get(&self, provider: &str, model: &str) -> Option<(PriceName, &Versioned)> {
        [provider, ANY].into_iter().find_map(|provider| {
            let price = self.0.get(provider)?.get(model)?;
            Some((PriceName { provider: provider.into(), model: model.into() }, &**price))
        })
    }

    fn iter(&self) -> impl Iterator<Item = (PriceName, &Versioned)> {
        self.0.iter().flat_map(|(provider, models)| {
            models
                .iter()
                .map(|(model, price)| (PriceName { provider: provider.clone(), model: model.clone() }, &**price))
        })
    }
}

/// Whose built-in prices hold for a provider that is not in the built-in table by its own name, and in which region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The id under which the built-in table has its models; its own unless said.
    pub listed_as: Option<Box<str>>,
    /// The region it is called in, where models have a price by region (`us-gov-west-1/…`).
    pub region: Option<Box<str>>,
}

/// What does not change while the program runs.
#[derive(Debug, Default)]
struct Ground {
    config: Overlay,
    listings: HashMap<Box<str>, Listing>,
}

/// All prices, as of one moment. Never changed in place: a change makes another.
#[derive(Debug, Default)]
pub struct PriceTable {
    store: Overlay,
    ground: Arc<Ground>,
    /// In front of all others: a table that somebody wants to see applied.
    trial: Option<Overlay>,
    memo: Memo<Resolved>,
}

/// Which of a call's two names led to the price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The one the provider says it used.
    Reported,
    /// The one the client asked for.
    Requested,
}

/// The price of a model, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The price, never one that is `same_as` another.
    pub price: Price,
    /// Which table and which state of it: what entries keep.
    pub version: Arc<str>,
    /// Where it was said.
    pub layer: Layer,
    /// Under which name.
    pub name: PriceName,
    /// How that came from what was said.
    pub spelling: Spelling,
    /// Which of the call's names it is.
    pub said: Said,
    /// The names that were `same_as` the next, the first first.
    pub via: Vec<PriceName>,
}

/// A name that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "TriedPrice"))]
pub struct Tried {
    /// The model's name.
    pub model: String,
    /// How it came from what was said.
    pub spelling: Spelling,
    /// Where there is a price of it.
    pub layers: Vec<Layer>,
}

impl PriceTable {
    /// The built-in table under the configuration's prices.
    #[must_use]
    pub fn new(config: Overlay, listings: impl IntoIterator<Item = (String, Listing)>) -> Self {
        let listings = listings.into_iter().map(|(id, listing)| (id.into(), listing)).collect();
        Self { ground: Arc::new(Ground { config, listings }), ..Self::default() }
    }

    /// The same under other prices of the store.
    #[must_use]
    pub fn with_store(&self, store: Overlay) -> Self {
        Self { store, ground: Arc::clone(&self.ground), ..Self::default() }
    }

    /// The same under a table that goes before all.
    #[must_use]
    pub fn with_trial(&self, trial: Overlay) -> Self {
        let store = self.store.clone();
        Self { store, ground: Arc::clone(&self.ground), trial: Some(trial), ..Self::default() }
    }

    /// The price of a call; `None` when there is none. Costs a look at a memo when it was asked for before.
    #[must_use]
    pub fn price(&self, provider: &str, reported: Option<&str>, requested: Option<&str>) -> Option<Arc<Resolved>> {
        self.memo.get((provider, reported, requested), || self.find(provider, reported, requested))
    }

    /// The price of one model.
    #[must_use]
    pub fn resolve(&self, provider: &str, model: &str) -> Option<Arc<Resolved>> {
        self.price(provider, None, Some(model))
    }

    /// True when the provider says in dollars what each call cost.
    #[must_use]
    pub fn reports_cost(&self, provider: &str) -> bool {
        REPORTING.contains(&self.place(provider).listed_as)
    }

    fn place<'a>(&'a self, provider: &'a str) -> Place<'a> {
        let listing = self.ground.listings.get(provider);
        Place {
            provider,
            listed_as: listing.and_then(|listing| listing.listed_as.as_deref()).unwrap_or(provider),
            region: listing.and_then(|listing| listing.region.as_deref()),
        }
    }

    fn find(&self, provider: &str, reported: Option<&str>, requested: Option<&str>) -> Option<Resolved> {
        let mut found = self.find_once(provider, reported, requested)?;
        let mut via = Vec::new();
        while let Some(other) = found.price.same_as.take() {
            if via.len() == CHAIN_MAX {
                return None;
            }
            via.push(found.name);
            found = Resolved { said: found.said, ..self.find_once(&other.provider, None, Some(&other.model))? };
        }
        Some(Resolved { via, ..found })
    }

    fn find_once(&self, provider: &str, reported: Option<&str>, requested: Option<&str>) -> Option<Resolved> {
        let place = self.place(provider);
        let requested = requested.filter(|requested| reported != Some(requested));
        let names = [(Said::Reported, reported), (Said::Requested, requested)];
        let names: Vec<(Said, Vec<(Spelling, String)>)> =
            names.into_iter().filter_map(|(said, name)| Some((said, spellings(place, name?)))).collect();
        for (layer, overlay) in self.overlays() {
            for (said, spelled) in &names {
                for (spelling, model) in spelled {
                    if let Some((name, price)) = overlay.get(provider, model) {
                        let (price, version) = (price.price.clone(), Arc::clone(&price.version));
                        let (spelling, said) = (*spelling, *said);
                        return Some(Resolved { price, version, layer, name, spelling, said, via: Vec::new() });
                    }
                }
            }
        }
        names.iter().find_map(|(said, spelled)| listed(place, *said, spelled))
    }

    fn overlays(&self) -> impl Iterator<Item = (Layer, &Overlay)> {
        let trial = self.trial.iter().map(|trial| (Layer::Store, trial));
        trial.chain([(Layer::Store, &self.store), (Layer::Config, &self.ground.config)])
    }

    /// The names that are looked for when a model is said, in their order, and where each has a price.
    #[must_use]
    pub fn tried(&self, provider: &str, model: &str) -> Vec<Tried> {
        let place = self.place(provider);
        let spelled = spellings(place, model);
        let dated = newest_dated(place, &spelled).map(|name| (Spelling::NewestDated, name.to_owned()));
        spelled
            .into_iter()
            .chain(dated)
            .map(|(spelling, model)| {
                let own = self.overlays().filter(|(_, overlay)| overlay.get(provider, &model).is_some());
                let mut layers: Vec<Layer> = own.map(|(layer, _)| layer).collect();
                if built_in().get(place.listed_as, &model).is_some() {
                    layers.push(Layer::BuiltIn);
                }
                Tried { model, spelling, layers }
            })
            .collect()
    }

    /// Every price that is said, by name; of a name said in several layers, the one that counts.
    #[must_use]
    pub fn all(&self) -> BTreeMap<PriceName, (Layer, Versioned)> {
        let version: Arc<str> = built_in().version.as_ref().into();
        let listed = built_in()
            .iter()
            .map(|(name, price)| (name, (Layer::BuiltIn, Versioned { price, version: Arc::clone(&version) })));
        let mut all: BTreeMap<_, _> = listed.collect();
        for overlay in [(Layer::Config, &self.ground.config), (Layer::Store, &self.store)] {
            all.extend(overlay.1.iter().map(|(name, price)| (name, (overlay.0, price.clone()))));
        }
        all
    }

    /// What is said under exactly this name.
    #[must_use]
    pub fn said(&self, name: &PriceName) -> Option<(Layer, Versioned)> {
        for (layer, overlay) in self.overlays() {
            if let Some(price) = overlay.0.get(&name.provider).and_then(|models| models.get(&name.model)) {
                return Some((layer, (**price).clone()));
            }
        }
        let price = built_in().get(&name.provider, &name.model)?;
        Some((Layer::BuiltIn, Versioned { price, version: built_in().version.as_ref().into() }))
    }
}

/// The version of the table in the program.
#[must_use]
pub fn built_in_version() -> &'static str {
    &built_in().version
}

/// The built-in price of the first of these names that has one, else of the newest of its dated versions.
fn listed(place: Place<'_>, said: Said, spelled: &[(Spelling, String)]) -> Option<Resolved> {
    let table = built_in();
    let exact = spelled
        .iter()
        .find_map(|(spelling, model)| Some((*spelling, model.as_str(), table.get(place.listed_as, model)?)));
    let dated = || {
        let name = newest_dated(place, spelled)?;
        Some((Spelling::NewestDated, name, table.get(place.listed_as, name)?))
    };
    let (spelling, model, price) = exact.or_else(dated)?;
    Some(Resolved {
        price,
        version: table.version.as_ref().into(),
        layer: Layer::BuiltIn,
        name: PriceName { provider: place.listed_as.into(), model: model.into() },
        spelling,
        said,
        via: Vec::new(),
    })
}

fn newest_dated(place: Place<'_>, spelled: &[(Spelling, String)]) -> Option<&'static str> {
    spelled.iter().find_map(|(_, model)| built_in().newest_dated(place.listed_as, model))
}
