//! [`AdminClient`]: the admin API, over the daemon's socket or in this process. Commands cannot tell which.
//!
//! Owns the two ways and the reading of answers. sled has one owner, so the store is opened only when no daemon answers.

use std::path::Path;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tower::ServiceExt;

use crate::cli::failure::{Exit, Failure};
use crate::control::socket::Reach;

/// Where the admin API is.
#[derive(Debug)]
pub enum AdminClient {
    /// In this process, over a store of its own.
    Local(Router),
    /// The daemon's socket.
    Socket(Reach),
}

/// An answer of the API, 2xx.
#[derive(Debug)]
pub struct Answer {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; null when there is none.
    pub body: Value,
}

impl AdminClient {
    /// The daemon's socket, when somebody answers there.
    pub async fn of_daemon(path: &Path) -> Option<Self> {
        let reach = Reach::to(path).ok()?;
        UnixStream::connect(&reach.path).await.ok()?;
        Some(Self::Socket(reach))
    }

    /// True when a daemon answers the requests.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// GET.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.call(Method::GET, path, None, None).await
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.call(Method::POST, path, Some(body), None).await
    }

    /// PATCH with a JSON body, of the version in `etag`.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn patch(&self, path: &str, body: &Value, etag: Option<&str>) -> Result<Answer, Failure> {
        self.call(Method::PATCH, path, Some(body), etag).await
    }

    /// PUT with a JSON body.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.call(Method::PUT, path, Some(body), None).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.call(Method::DELETE, path, None, None).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Answer, Failure> {
        let (head, bytes) = self.bytes(method, path, body, etag).await?;
        let body =
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).map_err(anyhow::Error::from)? };
        Ok(Answer { headers: head, body })
    }

    /// One request; the answer's headers and bytes.
    ///
    /// # Errors
    /// When the API refuses or does not answer.
    pub async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<(HeaderMap, Bytes), Failure> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "sidekey");
        if let Some(etag) = etag {
            request = request.header(header::IF_MATCH, etag);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body).map_err(anyhow::Error::from)?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Body::from(bytes)).map_err(anyhow::Error::from)?;
        let (head, body) = self.send(request).await?.into_parts();
        if head.status.is_success() { Ok((head.headers, body)) } else { Err(refusal(head.status, &body)) }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Bytes>, Failure> {
        match self {
            Self::Local(router) => {
                let response = match router.clone().oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                let (head, body) = response.into_parts();
                let body = body.collect().await.map_err(anyhow::Error::from)?.to_bytes();
                Ok(Response::from_parts(head, body))
            }
            Self::Socket(reach) => over_socket(reach, request).await,
        }
    }
}

async fn over_socket(reach: &Reach, request: Request<Body>) -> Result<Response<Bytes>, Failure> {
    let gone = |error: &dyn std::fmt::Display| {
        let failure = Failure::new(Exit::Unreachable, format!("the daemon does not answer: {error}"));
        failure.fix("look at its log; `sidekey status` asks again")
    };
    let stream = UnixStream::connect(&reach.path).await.map_err(|error| gone(&error))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| gone(&error))?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        Ok::<_, hyper::Error>(Response::from_parts(head, body))
    };
    // The connection moves bytes for the exchange, and ends when the sender is dropped.
    let (answer, _) = tokio::join!(exchange, connection);
    answer.map_err(|error| gone(&error))
}

/// A problem of the API as a failure.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or("no reason given");
    let message = match problem["field"].as_str() {
        Some(field) => format!("{field}: {detail}"),
        None => detail.to_owned(),
    };
    let exit = if status.is_client_error() { Exit::Refused } else { Exit::Failure };
    let failure = Failure::new(exit, message);
    match problem["fix"].as_str() {
        Some(fix) => failure.fix(fix),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::control::problem::Problem;
    use crate::control::socket::AdminSocket;

    fn api() -> Router {
        Router::new()
            .route("/ok", get(|| async { axum::Json(json!({"a": 1})) }))
            .route("/echo", post(|body: Bytes| async move { body }))
            .route("/no", get(|| async { Problem::invalid("name", "is taken").fix("choose another") }))
    }

    async fn check(client: &AdminClient) {
        assert_eq!(client.get("/ok").await.unwrap().body, json!({"a": 1}));
        assert_eq!(client.post("/echo", &json!({"b": [2]})).await.unwrap().body, json!({"b": [2]}));
        let failure = client.get("/no").await.unwrap_err();
        assert_eq!(failure.lines(), ["error: name: is taken", "  fix: choose another"]);
        assert_eq!(failure.exit, Exit::Refused);
    }

    #[tokio::test]
    async fn both_ways_are_alike() {
        check(&AdminClient::Local(api())).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        assert!(AdminClient::of_daemon(&path).await.is_none());
        let socket = AdminSocket::bind(&path).await.unwrap();
        let serving = socket.serve(api(), std::future::pending());
        let client = async { check(&AdminClient::of_daemon(&path).await.unwrap()).await };
        tokio::select! { _ = serving => unreachable!("it serves for ever"), () = client => {} }
    }

    #[test]
    fn statuses() {
        for (status, exit) in
            [(StatusCode::CONFLICT, Exit::Refused), (StatusCode::INTERNAL_SERVER_ERROR, Exit::Failure)]
        {
            assert_eq!(refusal(status, b"").exit, exit);
        }
        assert_eq!(crate::control::encoded("a b/ü"), "a%20b%2F%C3%BC");
    }
}
