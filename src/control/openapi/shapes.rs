//! Schemas of types that write and read themselves.
//!
//! Owns those only; where serde derives a form, schemars derives its schema beside it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::schemas::schema;
use crate::access::Role;
use crate::control::policy::{PolicyWish, With};
use crate::event::Kind;
use crate::id::{KeyId, Owner, RequestId};
use crate::pricing::{Above, Item, Price, PriceName, Rates};
use crate::route::{Routes, Written};
use crate::storage::{Dimension, UsageReport, UsageTotals};
use crate::unit::{ServiceTier, Usage};

/// A type whose schema does not depend on others, nor on the side it is on.
macro_rules! plain {
    ($($type:ty, $name:literal => $schema:expr;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                schema($schema)
            }
        }
    )*};
}

plain! {
    KeyId, "KeyId" => json!({"type": "string", "pattern": "^[0-9a-f]{16}$", "description": "Names a key, or a token."});
    RequestId, "RequestId" => json!({"type": "string", "format": "uuid", "description": "Sorts by time."});
    Owner, "Owner" => json!({
        "type": "string",
        "pattern": r"^(system|(user|team):[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,126}[^\s\x00-\x1f\x7f-\x9f])?)$",
        "description": "Whose it is: `user:<id>`, `team:<id>` or `system`.",
    });
    Role, "Role" => json!({
        "type": "string",
        "pattern": r"^(admin|operator|reader|user:[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,126}[^\s\x00-\x1f\x7f-\x9f])?)$",
        "description": "`admin` may do everything, `operator` everything but what trust rests on, `reader` reads, and \
            `user:<id>` has what is theirs.",
    });
    Kind, "AlertKind" => json!({
        "type": "string",
        "enum": Kind::ALL.map(Kind::as_str),
        "description": "`<thing>.<what happened>`",
    });
    PriceName, "PriceName" => json!({
        "type": "string",
        "pattern": r"^[^/\s\x00-\x1f\x7f-\x9f]+/[^\s\x00-\x1f\x7f-\x9f]{1,256}$",
        "description": "`provider/model`, or `*/model` for a model at any provider.",
    });
}

impl JsonSchema for Usage {
    fn schema_name() -> Cow<'static, str> {
        "Usage".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let figure = json!({"type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX});
        let figures: Map<String, Value> = Self::NAMES.iter().map(|name| ((*name).to_owned(), figure.clone())).collect();
        let mut usage = json!({
            "type": "object",
            "description": "Tokens, and other things that are charged. `input` has cached ones in it, `output` those of \
                reasoning; a figure that nobody reported is null, or absent.",
            "properties": figures,
        });
        if generator.contract().is_serialize() {
            usage["required"] = json!(Self::NAMES[..Self::ALWAYS]);
        }
        schema(usage)
    }
}

/// Adds the properties of `more`; what it requires too.
fn extend(schema: &mut Schema, more: Schema) {
    let more = Value::from(more);
    for part in ["properties", "required"] {
        match (schema.ensure_object().entry(part).or_insert_with(|| json!([])), &more[part]) {
            (Value::Object(all), Value::Object(more)) => all.extend(more.clone()),
            (Value::Array(all), Value::Array(more)) => all.extend(more.clone()),
            _ => {}
        }
    }
}

/// One object with the fields of both.
impl<T: JsonSchema> JsonSchema for With<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        format!("With<{}>", T::schema_id()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator);
        extend(&mut schema, PolicyWish::json_schema(generator));
        schema
    }
}

impl JsonSchema for Routes {
    fn schema_name() -> Cow<'static, str> {
        "Routes".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema(json!({
            "type": "object",
            "description": "Routes by the model's name, or a glob of names.",
            "additionalProperties": generator.subschema_for::<Written>(),
        }))
    }
}

/// The rates of a price, as text; in what is asked a whole number will do.
fn rates(generator: &SchemaGenerator) -> Map<String, Value> {
    let asks = generator.contract().is_deserialize();
    let rate = |item: Item| {
        // Not more than can be kept, whatever the decimals.
        let (whole, places, most): (u32, u32, u64) = match item {
            Item::PerSecond => (1, 18, 18),
            _ if item.is_tokens() => (10, 9, 18_446_744_073),
            _ => (4, 15, 18_446),
        };
        let mut rate = match asks {
            true => json!({
                "type": ["string", "integer", "null"],
                "pattern": format!(r"^[0-9]{{1,{whole}}}(\.[0-9]{{1,{places}}})?$"),
                "minimum": 0,
                "maximum": most,
            }),
            false => json!({"type": "string", "pattern": format!(r"^[0-9]+(\.[0-9]{{1,{places}}})?$")}),
        };
        rate["description"] = json!(item.unit());
        (item.as_str().to_owned(), rate)
    };
    Item::ALL.into_iter().map(rate).collect()
}

/// Says that there is a rate at least.
fn some_rate() -> Value {
    let said =
        |item: Item| json!({"required": [item.as_str()], "properties": {item.as_str(): {"not": {"type": "null"}}}});
    Item::ALL.into_iter().map(said).collect()
}

impl JsonSchema for Rates {
    fn schema_name() -> Cow<'static, str> {
        "Rates".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema(json!({"type": "object", "properties": rates(generator), "additionalProperties": false}))
    }
}

impl JsonSchema for Above {
    fn schema_name() -> Cow<'static, str> {
        "RatesAbove".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut properties = Map::from_iter([(
            "over_input_tokens".to_owned(),
            json!({"type": "integer", "minimum": 0, "maximum": u64::MAX, "description": "The prompt has more than these."}),
        )]);
        properties.extend(rates(generator));
        schema(json!({
            "type": "object",
            "description": "Rates that hold once the prompt is long.",
            "properties": properties,
            "required": ["over_input_tokens"],
            "additionalProperties": false,
        }))
    }
}

impl JsonSchema for Price {
    fn schema_name() -> Cow<'static, str> {
        "Price".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        const WHAT: &str = "What a model costs: a rate at least, or `same_as` alone, which is the price of another.";
        let mut properties = rates(generator);
        let tiers = ServiceTier::ALL.map(|tier| (tier.as_str().to_owned(), generator.subschema_for::<Rates>().into()));
        let tiers: Map<String, Value> = tiers.into_iter().collect();
        properties.insert("above".to_owned(), json!({"type": "array", "items": generator.subschema_for::<Above>()}));
        properties.insert(
            "tiers".to_owned(),
            json!({
                "type": "object",
                "description": "Other rates for a class of service.",
                "properties": tiers,
                "additionalProperties": false,
            }),
        );
        let same = json!({"same_as": generator.subschema_for::<PriceName>()});
        if generator.contract().is_serialize() {
            properties.extend(same.as_object().cloned().unwrap_or_default());
            return schema(json!({"type": "object", "description": WHAT, "properties": properties}));
        }
        schema(json!({
            "description": WHAT,
            "oneOf": [
                {"type": "object", "properties": same, "required": ["same_as"], "additionalProperties": false},
                {"type": "object", "properties": properties, "anyOf": some_rate(), "additionalProperties": false},
            ],
        }))
    }
}

fn money() -> Value {
    json!({"type": ["string", "null"], "description": "Dollars, a decimal string; null when there is no price."})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

impl JsonSchema for UsageTotals {
    fn schema_name() -> Cow<'static, str> {
        "UsageTotals".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema(json!({
            "type": "object",
            "properties": {
                "requests": count(),
                "failed": count(),
                "tokens": generator.subschema_for::<Usage>(),
                "tokens_source": {
                    "type": "object",
                    "description": "Requests by who counted their tokens.",
                    "properties": {"reported": count(), "estimated": count(), "none": count()},
                    "required": ["reported", "estimated", "none"],
                },
                "cost_usd": money(),
                "unpriced": {"type": "integer", "minimum": 0, "description": "Requests of which no price is known."},
            },
            "required": ["requests", "failed", "tokens", "tokens_source", "cost_usd", "unpriced"],
        }))
    }
}

impl JsonSchema for UsageReport {
    fn schema_name() -> Cow<'static, str> {
        "UsageReport".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut group = UsageTotals::json_schema(generator);
        let by = Dimension::ALL.into_iter().filter(|by| *by != Dimension::None);
        let values = by.map(|by| (by.as_str().to_owned(), json!({"type": ["string", "null"]})));
        extend(&mut group, schema(json!({"properties": values.collect::<Map<String, Value>>()})));
        group.insert("description".to_owned(), json!("The sums of one value of what they are made by."));
        let part = json!({
            "type": "object",
            "properties": {"requests": count(), "tokens": count(), "cost_usd": money()},
            "required": ["requests", "tokens", "cost_usd"],
        });
        let time = json!({"type": ["string", "null"], "format": "date-time"});
        schema(json!({
            "type": "object",
            "properties": {
                "from": time,
                "to": time,
                "totals": generator.subschema_for::<UsageTotals>(),
                "key_sources": {
                    "type": "object",
                    "description": "The same by who paid.",
                    "properties": {"user": part, "team": part, "system": part, "none": part},
                    "required": ["user", "team", "system", "none"],
                },
                "cost_on_user_keys_usd": money(),
                "groups": {"type": "array", "items": group},
            },
            "required": ["from", "to", "totals", "key_sources", "cost_on_user_keys_usd", "groups"],
        }))
    }
}
