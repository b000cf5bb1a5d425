//! The schemas of the document, of what is asked and of what is told.
//!
//! Owns their names and their form. A type may be asked for otherwise than it is told: then what is asked is a `Wish`.

use std::collections::{BTreeMap, BTreeSet};

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

const AT: &str = "#/components/schemas/";

/// Schemas that were asked for so far.
pub(super) struct Schemas {
    asked: SchemaGenerator,
    told: SchemaGenerator,
}

impl Schemas {
    pub(super) fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self { asked: settings().for_deserialize().into_generator(), told: settings().for_serialize().into_generator() }
    }

    /// Of a body that is sent to us. Which side it is on is known by its mark until the end.
    pub(super) fn asked<T: JsonSchema>(&mut self) -> Value {
        marked(self.asked.subschema_for::<T>().into())
    }

    /// Of a body that we send.
    pub(super) fn told<T: JsonSchema>(&mut self) -> Value {
        self.told.subschema_for::<T>().into()
    }

    /// The parameters of a query string.
    pub(super) fn query<T: JsonSchema>(&mut self) -> Vec<Value> {
        let schema: Value = marked(T::json_schema(&mut self.asked).into());
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let parameter = |(name, mut schema): (String, Value)| {
            tidy(&mut schema);
            without_null(&mut schema);
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            let mut parameter = json!({"name": name, "in": "query", "schema": schema});
            if let Some(description) = description {
                parameter["description"] = description;
            }
            if required.contains(&json!(name)) {
                parameter["required"] = json!(true);
            }
            parameter
        };
        let Value::Object(mut schema) = schema else { return Vec::new() };
        let Some(Value::Object(properties)) = schema.remove("properties") else { return Vec::new() };
        properties.into_iter().map(parameter).collect()
    }

    /// All of them by name, and what `paths` refers to by the names they have now.
    pub(super) fn finish(mut self, paths: &mut Value) -> Map<String, Value> {
        let tidied = |definitions: Map<String, Value>| {
            let each = definitions.into_iter().map(|(name, mut schema)| {
                tidy(&mut schema);
                (name, schema)
            });
            each.collect::<BTreeMap<_, _>>()
        };
        let (asked, mut all) = (tidied(self.asked.take_definitions(true)), tidied(self.told.take_definitions(true)));
        let apart = told_otherwise(&asked, &all);
        let name = |name: &str| if apart.contains(name) { format!("{name}Wish") } else { name.to_owned() };
        for (of, mut schema) in asked {
            rename(&mut schema, AT, &name);
            if let Some(other) = all.insert(name(&of), schema.clone()) {
                assert_eq!(other, schema, "two schemas are called {}", name(&of));
            }
        }
        rename(paths, MARK, &name);
        all.into_iter().collect()
    }
}

/// Where what is asked refers to, until both sides have their names.
const MARK: &str = "#/asked/";

fn marked(mut schema: Value) -> Value {
    walk(&mut schema, &mut |object| {
        if let Some(Value::String(at)) = object.get_mut("$ref") {
            *at = at.replace(AT, MARK);
        }
    });
    schema
}

/// Names that mean one thing when asked and another when told, in themselves or in what they refer to.
fn told_otherwise(asked: &BTreeMap<String, Value>, told: &BTreeMap<String, Value>) -> BTreeSet<String> {
    let differs = |name: &&String| told.get(*name).is_some_and(|other| *other != asked[*name]);
    let mut apart: BTreeSet<String> = asked.keys().filter(differs).cloned().collect();
    loop {
        let refers = |name: &&String| {
            let text = asked[*name].to_string();
            told.contains_key(*name) && apart.iter().any(|other| text.contains(&format!("\"{AT}{other}\"")))
        };
        let more: Vec<String> = asked.keys().filter(|name| !apart.contains(*name)).filter(refers).cloned().collect();
        if more.is_empty() {
            return apart;
        }
        apart.extend(more);
    }
}

fn rename(schema: &mut Value, from: &str, name: &dyn Fn(&str) -> String) {
    walk(schema, &mut |object| {
        if let Some(Value::String(at)) = object.get_mut("$ref")
            && let Some(old) = at.strip_prefix(from)
        {
            *at = format!("{AT}{}", name(old));
        }
    });
}

/// Visits every object in it, the inner ones first.
fn walk(value: &mut Value, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| walk(item, visit)),
        Value::Object(object) => {
            object.values_mut().for_each(|item| walk(item, visit));
            visit(object);
        }
        _ => {}
    }
}

/// In the form of the document: words as one list, whole numbers with their end, no default that is absence.
fn tidy(schema: &mut Value) {
    walk(schema, &mut |object| {
        if object.get("default").is_some_and(Value::is_null) {
            object.remove("default");
        }
        if let Some(words) = object.get("oneOf").and_then(words) {
            object.remove("oneOf");
            let said = words.iter().map(|(word, what)| format!("- `{word}`: {what}")).collect::<Vec<_>>().join("\n");
            let whole = object.get("description").and_then(Value::as_str).unwrap_or_default();
            let whole = format!("{whole}\n\n{said}").trim().to_owned();
            object.insert("description".to_owned(), json!(whole));
            object.insert("type".to_owned(), json!("string"));
            object.insert("enum".to_owned(), words.into_iter().map(|(word, _)| word).collect());
        }
        let most = match object.get("format").and_then(Value::as_str) {
            Some("uint8") => u64::from(u8::MAX),
            Some("uint16") => u64::from(u16::MAX),
            Some("uint32") => u64::from(u32::MAX),
            Some("uint64" | "uint") => u64::MAX,
            _ => return,
        };
        object.remove("format");
        object.entry("maximum").or_insert(json!(most));
    });
}

/// The words of an enum, each with what it means.
fn words(one_of: &Value) -> Option<Vec<(String, String)>> {
    let word =
        |one: &Value| Some((one.get("const")?.as_str()?.to_owned(), one.get("description")?.as_str()?.to_owned()));
    one_of.as_array()?.iter().map(word).collect()
}

/// No query string has a null.
fn without_null(schema: &mut Value) {
    if let Some(kinds) = schema.get("type").and_then(Value::as_array) {
        let kinds: Vec<Value> = kinds.iter().filter(|kind| **kind != json!("null")).cloned().collect();
        schema["type"] = if let [only] = &kinds[..] { only.clone() } else { Value::Array(kinds) };
    }
    let others = schema
        .get("anyOf")
        .and_then(Value::as_array)
        .map(|any| any.iter().filter(|one| **one != json!({"type": "null"})).cloned().collect::<Vec<_>>());
    if let Some([only]) = others.as_deref() {
        let only = only.as_object().cloned().unwrap_or_default();
        if let Value::Object(object) = schema {
            object.remove("anyOf");
            object.extend(only);
        }
    }
}

/// A schema out of JSON.
pub(super) fn schema(value: Value) -> Schema {
    value.try_into().expect("an object is a schema")
}
