//! The OpenAPI document of the admin API, made of the routes and of the types they read and write.
//!
//! Owns what no type says: what each operation is called and how it may go. It is made in tests only; the program has it as a
//! file, which must be what comes out here.

mod access;
mod money;
mod operation;
mod promises;
mod providers;
mod schemas;
mod shapes;
mod text;
mod virtual_keys;
mod whole;

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use self::operation::Op;
use self::schemas::Schemas;
use super::problem::Problem;
use super::routes::table;

/// The file, from here and from the root of the package.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/openapi.json");
/// Has it written anew.
const WRITE: &str = "SIDEKEY_WRITE_OPENAPI";

/// Every operation, in the order of the document.
fn operations() -> Vec<Op> {
    let parts = [
        ("Virtual keys", virtual_keys::keys()),
        ("Plans", virtual_keys::plans()),
        ("Users and teams", virtual_keys::holders()),
        ("Providers", providers::providers()),
        ("Provider keys", providers::keys()),
        ("Pools", providers::pools()),
        ("Prices", money::prices()),
        ("Usage", money::usage()),
        ("Installation", whole::operations()),
        ("Access", access::operations()),
    ];
    parts.into_iter().flat_map(|(tag, ops)| ops.into_iter().map(move |op| op.tagged(tag))).collect()
}

/// The document.
fn document() -> Value {
    let routes = table().0;
    let operations = operations();
    let changed = |path: &str| operations.iter().any(|op| op.if_match && op.path == path);
    let records: Vec<bool> = operations
        .iter()
        .map(|op| match op.method {
            Method::GET => changed(op.path),
            Method::POST => ["{id}", "{name}"].iter().any(|one| changed(&format!("{}/{one}", op.path))),
            _ => false,
        })
        .collect();
    let mut schemas = Schemas::new();
    schemas.told::<Problem>();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (op, is_record) in operations.into_iter().zip(records) {
        let found = routes.iter().find(|route| route.path == op.path && route.method == op.method);
        let route = found.unwrap_or_else(|| panic!("{} {} is described, and no route", op.method, op.path));
        let (path, method) = (op.path.replace("{*", "{"), op.method.as_str().to_lowercase());
        let written = op.write(route, is_record, &mut schemas);
        assert!(paths.entry(path).or_default().insert(method, written).is_none(), "described twice");
    }
    let mut paths = json!(paths);
    let schemas = schemas.finish(&mut paths);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "sidekey admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Over the Unix socket `admin.sock`, and over TCP at `listen.admin` with a token. Bodies are JSON. \
                What is not understood is refused, with the field and the fix.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:4142"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": problems(),
            "parameters": {
                "IfMatch": {
                    "name": "If-Match",
                    "in": "header",
                    "description": "The `ETag` of what is to be changed: of another version it is not, with 412. `*` is any.",
                    "schema": {"type": "string", "pattern": "^(\\*|\"[0-9]{1,19}\")$"},
                    "example": "\"1\"",
                },
                "ActAs": {
                    "name": "X-User-ID",
                    "in": "header",
                    "description": "Has an admin act as this user, who has what is theirs and nothing else.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]([ -~]*[!-~])?$"},
                },
            },
            "headers": {
                "ETag": {
                    "description": "The record's version, for `If-Match`.",
                    "required": true,
                    "schema": {"type": "string", "pattern": "^\"[0-9]+\"$"},
                },
                "Location": {
                    "description": "Where what was made is.",
                    "required": true,
                    "schema": {"type": "string", "format": "uri-reference"},
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `sidekey token create`. The Unix socket needs none.",
                },
                "virtualKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-sidekey-key",
                    "description": "A virtual key that may have leases.",
                },
            },
        },
    })
}

/// What went wrong, by status.
fn problems() -> Value {
    let what = |status: u16| match status {
        400 => "It cannot be read, or could be read in two ways.",
        401 => "A token is needed, or the one that was shown is not good.",
        402 => "What the virtual key may spend is spent.",
        403 => "It is not for who asks, or a page of another origin asks for it.",
        404 => "There is no such thing, or it is somebody else's.",
        408 => "The body does not come.",
        409 => "It goes against what is there.",
        412 => "Somebody changed it in between.",
        413 => "The body is too long.",
        415 => "The body is not said to be JSON.",
        421 => "This host is not served here.",
        422 => "It is understood, and cannot be: a field says why.",
        429 => "Too many failed attempts, or a limit of the virtual key.",
        500 => "A fault of sidekey.",
        502 => "No provider could be asked.",
        503 => "The store cannot be written now.",
        504 => "The provider takes too long.",
        _ => panic!("{status} is not told"),
    };
    let statuses = [400, 401, 402, 403, 404, 408, 409, 412, 413, 415, 421, 422, 429, 500, 502, 503, 504];
    let response = |status: u16| {
        let schema = json!({"$ref": "#/components/schemas/Problem"});
        let mut response =
            json!({"description": what(status), "content": {"application/problem+json": {"schema": schema}}});
        let header = |description: &str, schema: Value| json!({"description": description, "schema": schema});
        match status {
            401 => {
                let text = json!({"type": "string"});
                response["headers"] = json!({"WWW-Authenticate": header("How to show a token.", text)});
            }
            429 => {
                let seconds = json!({"type": "integer", "minimum": 0});
                response["headers"] =
                    json!({"Retry-After": header("Seconds after which trying again may help.", seconds)});
            }
            _ => {}
        }
        assert!(StatusCode::from_u16(status).is_ok_and(|status| status.canonical_reason().is_some()));
        (format!("Problem{status}"), response)
    };
    Value::Object(statuses.into_iter().map(response).collect())
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever runs the test says whether the file is to be written")]
fn the_file_is_what_the_code_says() {
    let wanted = text::write(&document(), 0) + "\n";
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(FILE, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(FILE).unwrap_or_default();
    let differs = wanted.lines().zip(found.lines()).position(|(wanted, found)| wanted != found);
    assert!(
        wanted == found,
        "src/control/openapi.json is not what the code says, from line {:?} on: write it anew with \
         `{WRITE}=1 cargo test --lib control::openapi`, and look at what has changed",
        differs.map(|line| line + 1)
    );
}

#[test]
fn every_route_is_described() {
    let operations = operations();
    for route in table().0 {
        let described = operations.iter().filter(|op| op.path == route.path && op.method == route.method).count();
        assert_eq!(described, 1, "{} {} is described so many times in control::openapi", route.method, route.path);
    }
}
