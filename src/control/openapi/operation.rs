//! An [`Op`]: what the document says of one route beside its method, its path and its least role.
//!
//! Owns the words of that; what follows from the route by itself (who may, which errors all have) is added here.

use std::collections::BTreeSet;

use http::Method;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::schemas::Schemas;
use crate::control::routes::Route;

/// A schema of a body, once all of them are gathered.
type Body = Box<dyn FnOnce(&mut Schemas) -> Value>;

/// What is said of one route.
pub(super) struct Op {
    pub(super) method: Method,
    pub(super) path: &'static str,
    id: &'static str,
    summary: &'static str,
    tag: &'static str,
    query: Option<fn(&mut Schemas) -> Vec<Value>>,
    request: Option<Body>,
    answers: Vec<(u16, &'static str, Option<Answer>)>,
    /// Says where what it made is.
    locates: bool,
    problems: BTreeSet<u16>,
    pub(super) if_match: bool,
    links: Vec<(&'static str, Value)>,
    example: Option<Value>,
}

/// What is in an answer.
enum Answer {
    Json(fn(&mut Schemas) -> Value),
    /// Of this media type.
    Other(&'static str),
}

/// Problems that any request may meet.
const ALWAYS: [u16; 7] = [400, 401, 403, 421, 429, 500, 503];

impl Op {
    fn new(method: Method, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        let problems = BTreeSet::from(ALWAYS);
        let (query, request, answers, links) = (None, None, Vec::new(), Vec::new());
        let (tag, locates, if_match, example) = ("", false, false, None);
        Self { method, path, id, summary, tag, query, request, answers, locates, problems, if_match, links, example }
    }

    pub(super) fn get(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::GET, path, id, summary)
    }

    pub(super) fn post(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::POST, path, id, summary)
    }

    pub(super) fn put(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::PUT, path, id, summary)
    }

    pub(super) fn patch(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::PATCH, path, id, summary)
    }

    /// A deletion answers with nothing.
    pub(super) fn delete(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        let mut op = Self::new(Method::DELETE, path, id, summary);
        op.answers.push((204, "It is gone.", None));
        op
    }

    /// Under this heading.
    pub(super) fn tagged(self, tag: &'static str) -> Self {
        Self { tag, ..self }
    }

    /// Takes these in its query string.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(Schemas::query::<T>);
        self.may(&[422])
    }

    /// Takes this as its body, or nothing.
    pub(super) fn takes<T: JsonSchema>(self) -> Self {
        self.reads(|schemas| json!({"schema": schemas.asked::<T>(), "required": false}))
    }

    /// Needs this as its body.
    pub(super) fn needs<T: JsonSchema>(self) -> Self {
        self.reads(|schemas| json!({"schema": schemas.asked::<T>(), "required": true}))
    }

    /// Needs this as its body, with these fields.
    pub(super) fn takes_with<T: JsonSchema>(self, required: &'static [&'static str]) -> Self {
        self.reads(move |schemas| {
            let schema = json!({"allOf": [schemas.asked::<T>(), {"type": "object", "required": required}]});
            json!({"schema": schema, "required": true})
        })
    }

    fn reads(mut self, body: impl FnOnce(&mut Schemas) -> Value + 'static) -> Self {
        self.request = Some(Box::new(body));
        self.may(&[408, 413, 415, 422])
    }

    /// True when it reads a body.
    pub(super) fn takes_body(&self) -> bool {
        self.request.is_some()
    }

    /// True when it reads a query string.
    pub(super) fn takes_query(&self) -> bool {
        self.query.is_some()
    }

    /// A body that it takes.
    pub(super) fn example(self, body: Value) -> Self {
        Self { example: Some(body), ..self }
    }

    /// Answers with this.
    pub(super) fn gives<T: JsonSchema>(self) -> Self {
        self.answer::<T>(200, "Here it is.")
    }

    /// Answers with this when it was made.
    pub(super) fn makes<T: JsonSchema>(mut self) -> Self {
        self.locates = true;
        self.answer::<T>(201, "It is made.").may(&[409])
    }

    /// Answers with this status and body.
    pub(super) fn answer<T: JsonSchema>(mut self, status: u16, what: &'static str) -> Self {
        self.answers.push((status, what, Some(Answer::Json(Schemas::told::<T>))));
        self
    }

    /// Answers with something of this media type.
    pub(super) fn gives_other(mut self, media_type: &'static str) -> Self {
        self.answers.push((200, "Here it is.", Some(Answer::Other(media_type))));
        self
    }

    /// May be refused with these statuses too.
    pub(super) fn may(mut self, statuses: &[u16]) -> Self {
        self.problems.extend(statuses);
        self
    }

    /// Holds to `If-Match`, and shows the version of what it changes.
    pub(super) fn versioned(mut self) -> Self {
        self.if_match = true;
        self.may(&[412])
    }

    /// The answer leads to another operation: what its path needs is at this pointer of the answer's body.
    pub(super) fn leads_to(self, id: &'static str, parameter: &str, at: &str) -> Self {
        self.links_to(id, parameter, &format!("$response.body#{at}"))
    }

    /// Leads to another operation of the same path parameter.
    pub(super) fn stays_at(self, id: &'static str, parameter: &str) -> Self {
        self.links_to(id, parameter, &format!("$request.path.{parameter}"))
    }

    /// Leads to another operation of the same path parameter, with this body.
    pub(super) fn goes_on(mut self, id: &'static str, parameter: &str, body: &Value) -> Self {
        let parameters = json!({parameter: format!("$request.path.{parameter}")});
        self.links.push((id, json!({"operationId": id, "parameters": parameters, "requestBody": body})));
        self
    }

    fn links_to(mut self, id: &'static str, parameter: &str, expression: &str) -> Self {
        let parameters = json!({parameter: expression});
        self.links.push((id, json!({"operationId": id, "parameters": parameters})));
        self
    }

    /// The operation as it stands in the document. `is_record` when it shows or makes what has a version.
    pub(super) fn write(mut self, route: &Route, is_record: bool, schemas: &mut Schemas) -> Value {
        let mut parameters = path_parameters(self.path);
        let query = self.query.map(|query| query(schemas)).unwrap_or_default();
        let is_page = query.iter().any(|parameter| parameter["name"] == "cursor");
        parameters.extend(query);
        let reference = |kind: &str, name: &str| json!({"$ref": format!("#/components/{kind}/{name}")});
        if self.if_match {
            parameters.push(reference("parameters", "IfMatch"));
        }
        if route.least.is_for_users() && !route.least.is_anyone() {
            parameters.push(reference("parameters", "ActAs"));
        }
        if !path_parameters(self.path).is_empty() {
            self.problems.insert(404);
        }
        let mut responses = Map::new();
        let links: Map<String, Value> = self.links.drain(..).map(|(id, link)| (id.to_owned(), link)).collect();
        for (status, what, answer) in std::mem::take(&mut self.answers) {
            let mut response = json!({"description": what});
            let mut headers = Map::new();
            if status != 204 && (self.if_match || is_record) {
                headers.insert("ETag".to_owned(), reference("headers", "ETag"));
            }
            if status == 201 && self.locates {
                headers.insert("Location".to_owned(), reference("headers", "Location"));
            }
            if !headers.is_empty() {
                response["headers"] = Value::Object(headers);
            }
            if let Some(answer) = answer {
                let (media_type, schema) = match answer {
                    Answer::Json(body) => ("application/json", json!({"schema": body(schemas)})),
                    Answer::Other(media_type) => (media_type, json!({})),
                };
                response["content"] = json!({media_type: schema});
            }
            if !links.is_empty() && status < 300 {
                response["links"] = Value::Object(links.clone());
            }
            responses.insert(status.to_string(), response);
        }
        for status in &self.problems {
            responses.insert(status.to_string(), reference("responses", &format!("Problem{status}")));
        }
        let mut written = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": who(route, is_page),
            "security": security(route),
            "parameters": parameters,
        });
        if let Some(request) = self.request {
            let Value::Object(mut request) = request(schemas) else { unreachable!("made above") };
            let mut content = json!({"application/json": {"schema": request.remove("schema")}});
            if let Some(example) = self.example {
                content["application/json"]["example"] = example;
            }
            written["requestBody"] = json!({"required": request["required"], "content": content});
        }
        written["responses"] = Value::Object(responses);
        written
    }
}

/// Who may, in words.
fn who(route: &Route, is_page: bool) -> String {
    let who = match (route.least.to_string().as_str(), route.least.is_for_users()) {
        ("anyone", _) => "Open to anyone.".to_owned(),
        ("virtual key", _) => "For who holds a virtual key.".to_owned(),
        (least, true) => format!("Least role: {least}; users over what is theirs."),
        (least, false) => format!("Least role: {least}."),
    };
    let page = " In pages: `next_cursor` of an answer is the `cursor` of the next; null ends them.";
    format!("{who}{}", if is_page { page } else { "" })
}

fn security(route: &Route) -> Value {
    match route.least.to_string().as_str() {
        "anyone" => json!([]),
        "virtual key" => json!([{"virtualKey": []}]),
        _ => json!([{"token": []}]),
    }
}

/// What stands in braces in the path.
fn path_parameters(path: &str) -> Vec<Value> {
    let key = json!({"$ref": "#/components/schemas/KeyId"});
    // What a path of the TCP address may not have is no name there.
    let name = json!({"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[^\x00-\x1f\x7f\\;/]+$"});
    let plain = json!({"type": "string", "minLength": 1, "maxLength": 320, "pattern": r"^[^\x00-\x1f\x7f\\;]+$"});
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |said: &str| {
        let called = said.trim_start_matches('*');
        let of_key = ["/api/keys/", "/api/provider-keys/", "/api/tokens/"].iter().any(|of| path.starts_with(of));
        let (schema, what) = match said {
            "*name" => (plain.clone(), "`provider/model`, or `*/model`; slashes as `%2F`, or as they are."),
            "*path" => (plain.clone(), "May have slashes."),
            _ if of_key => (key.clone(), "Its id."),
            "id" => (name.clone(), "Its id."),
            _ => (name.clone(), "Its name."),
        };
        json!({"name": called, "in": "path", "required": true, "description": what, "schema": schema})
    };
    names.map(parameter).collect()
}
