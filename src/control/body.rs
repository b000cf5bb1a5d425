//! Bodies of requests: one JSON object, read so that nobody could read it otherwise, and what is wrong with it by field.
//!
//! Owns the reading; leaves what may be said to the types of each list.
//!
//! A field that is there twice is an error, and an array is no object with its names left out, as serde would have it. A number
//! without a fraction is whole however it is written, as in JSON Schema: `5.0` is `5`.

use std::fmt;

use http::{HeaderMap, StatusCode, header};
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Map, Number, Value};

use crate::control::problem::Problem;

/// How much of serde's complaint is told: it quotes values, and a value can be a key put in the wrong field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// All of it.
    All,
    /// Names of fields only.
    Names,
}

/// Reads a JSON body; an empty one is `{}`.
pub(super) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8], tell: Tell) -> Result<T, Problem> {
    read(object(headers, body, tell)?, tell)
}

/// The fields of a body.
pub(super) fn object(headers: &HeaderMap, body: &[u8], tell: Tell) -> Result<Map<String, Value>, Problem> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    if !is_json(headers) {
        return Err(not_json());
    }
    match serde_json::from_slice::<Once>(body) {
        Ok(Once(Value::Object(fields))) => Ok(fields),
        Ok(_) => Err(bad("the body is no object")),
        Err(error) if error.is_data() => Err(named(&error.to_string(), "", tell)),
        Err(error) => Err(bad(&format!("not JSON, at line {} column {}", error.line(), error.column()))),
    }
}

/// Reads the fields of a body.
pub(super) fn read<T: DeserializeOwned>(fields: Map<String, Value>, tell: Tell) -> Result<T, Problem> {
    serde_path_to_error::deserialize(Strict(Value::Object(fields))).map_err(|error| {
        let path = error.path().to_string();
        named(&error.into_inner().to_string(), path.trim_matches('.'), tell)
    })
}

/// True when the body is said to be JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().map(str::trim) == Some("application/json")
}

/// 415.
pub(super) fn not_json() -> Problem {
    let detail = "the body's content-type must be application/json";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
        .field("content-type")
        .fix("send the header content-type: application/json")
}

fn bad(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail).fix("send one JSON object")
}

/// What is wrong, and with which field.
fn named(text: &str, path: &str, tell: Tell) -> Problem {
    // serde quotes names of fields in the first words only.
    let about = ["unknown field `", "missing field `", "duplicate field `"];
    let name = about.iter().find_map(|about| text.strip_prefix(about)?.split('`').next());
    let detail = match tell {
        _ if name.is_some() => text,
        Tell::All => text,
        Tell::Names => "is of the wrong kind",
    };
    let outer = path.strip_suffix(name.unwrap_or_default()).filter(|_| name.is_some()).unwrap_or(path);
    let field = match (outer.trim_end_matches('.'), name) {
        (outer, Some(name)) if outer.is_empty() || outer == "?" => name.to_owned(),
        (outer, Some(name)) => format!("{outer}.{name}"),
        (outer, None) => outer.to_owned(),
    };
    let fix = match name {
        Some(_) if text.starts_with("missing") => "say it",
        Some(_) if text.starts_with("duplicate") => "say it once",
        Some(_) => "leave it out, or write it as it is called",
        None => "send a value of its kind: /openapi.json has it",
    };
    let problem = Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail).fix(fix);
    if field.is_empty() { problem } else { problem.field(&field) }
}

/// JSON in which no name is there twice, and numbers without a fraction are whole.
struct Once(Value);

/// The largest number up to which a float is exact, and no other is written the same.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Once, E> {
        Ok(Once(Value::Null))
    }

    fn visit_bool<E>(self, said: bool) -> Result<Once, E> {
        Ok(Once(said.into()))
    }

    fn visit_u64<E>(self, said: u64) -> Result<Once, E> {
        Ok(Once(said.into()))
    }

    fn visit_i64<E>(self, said: i64) -> Result<Once, E> {
        Ok(Once(said.into()))
    }

    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction, and is not too large")]
    fn visit_f64<E>(self, said: f64) -> Result<Once, E> {
        let whole = said.fract() == 0.0 && said.abs() < EXACT;
        Ok(Once(if whole { (said as i64).into() } else { Number::from_f64(said).map_or(Value::Null, Value::Number) }))
    }

    fn visit_str<E>(self, said: &str) -> Result<Once, E> {
        Ok(Once(said.into()))
    }

    fn visit_string<E>(self, said: String) -> Result<Once, E> {
        Ok(Once(said.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Once, A::Error> {
        let mut items = Vec::new();
        while let Some(Once(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Once(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let Once(value) = map.next_value()?;
            if fields.contains_key(&name) {
                return Err(de::Error::custom(format!("duplicate field `{name}`")));
            }
            fields.insert(name, value);
        }
        Ok(Once(fields.into()))
    }
}

/// A value in which only an object is a struct.
struct Strict(Value);

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut seq = SeqDeserializer::new(items.into_iter().map(Strict));
                let value = visitor.visit_seq(&mut seq)?;
                seq.end().map(|()| value)
            }
            Value::Object(fields) => {
                let mut map = MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Self(value))));
                let value = visitor.visit_map(&mut map)?;
                map.end().map(|()| value)
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            Value::Array(_) => Err(de::Error::invalid_type(de::Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Named {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        count: u8,
    }

    #[test]
    fn what_is_wrong_is_told_by_field() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap());
        for (body, tell, field, want) in [
            ("", Tell::Names, Some("name"), "missing field `name`"),
            (r#"{"nam":1}"#, Tell::Names, Some("nam"), "unknown field `nam`, expected `name` or `inner`"),
            (r#"{"name":["sk-real"]}"#, Tell::All, Some("name"), "invalid type: sequence, expected a string"),
            (r#"{"name":12345}"#, Tell::Names, Some("name"), "is of the wrong kind"),
            (r#"{"name":"a","name":"b"}"#, Tell::Names, Some("name"), "duplicate field `name` at line 1 column 23"),
            (r#"{"name":"a","inner":[{"count":1},{}]}"#, Tell::Names, Some("inner[1].count"), "missing field `count`"),
            (
                r#"{"name":"a","inner":[{"x":1}]}"#,
                Tell::Names,
                Some("inner[0].x"),
                "unknown field `x`, expected `count`",
            ),
            (r#"{"name":"a","inner":[[1]]}"#, Tell::Names, Some("inner[0]"), "is of the wrong kind"),
            (r#"{"name":"a","inner":[{"count":1.5}]}"#, Tell::Names, Some("inner[0].count"), "is of the wrong kind"),
            (r#"["a"]"#, Tell::All, None, "the body is no object"),
            (r#"{"name""#, Tell::All, None, "not JSON, at line 1 column 7"),
        ] {
            let problem = parse::<Named>(&headers, body.as_bytes(), tell).expect_err(body);
            let told = (problem.status, problem.field.as_deref(), problem.detail.as_str());
            assert_eq!(told, (400, field, want), "{body}");
            assert!(problem.fix.is_some(), "{body}");
        }
        let good = br#"{"name":"a","inner":[{"count":5.0}]}"#;
        assert_eq!(parse::<Named>(&headers, good, Tell::All).unwrap().inner[0].count, 5);
        assert_eq!(parse::<Value>(&HeaderMap::new(), b"{}", Tell::All).expect_err("no content type").status, 415);
    }
}
