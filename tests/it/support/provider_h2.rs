//! The scripted provider's HTTP/2 side, on hyper.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::http1::{Head, Headers, latin1};
use super::provider::{H2, Seen};
use super::script::{End, Message, Reply, Step};

/// Says that the stream was given up, unless told that it ended.
struct Watch(Arc<Seen>, bool);

impl Watch {
    fn replied(mut self) {
        self.1 = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        H2::end(&self.0, self.1);
    }
}

pub(super) async fn serve<T>(io: Box<T>, number: usize, provider: H2) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + ?Sized + 'static,
{
    let service = service_fn(move |request| answer(number, provider.clone(), request));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await
        .map_err(io::Error::other)
}

type Body = StreamBody<std::pin::Pin<Box<dyn futures_util::Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;

async fn answer(number: usize, provider: H2, request: http::Request<Incoming>) -> io::Result<http::Response<Body>> {
    let (parts, mut body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("*", |path| path.as_str()).to_owned();
    let mut headers = Headers::from(&parts.headers);
    headers.push(":authority", parts.uri.authority().map_or("", |authority| authority.as_str()));
    let mut raw: Vec<u8> = latin1(&format!("{} {target}\r\n", parts.method)).collect();
    headers.write(&mut raw);
    let start = [parts.method.to_string(), target, "HTTP/2".to_owned()];
    let seen = provider.arrive(number, Head { start, headers, raw: raw.into() });
    let watch = Watch(Arc::clone(&seen), false);
    let reply = provider.reply(&seen);
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(io::Error::other)?.data_ref() {
            H2::grow(&seen, Some(data));
        }
    }
    H2::grow(&seen, None);
    match reply {
        Reply::Http(message) => respond(message, watch).await,
        Reply::FromBody(make) => respond(make(&seen.body()), watch).await,
        Reply::Never => std::future::pending().await,
        Reply::Raw(_) | Reply::WebSocket(_) => {
            watch.replied();
            Err(io::Error::other("HTTP/1.1 only"))
        }
    }
}

async fn respond(message: Message, watch: Watch) -> io::Result<http::Response<Body>> {
    if let Some(gate) = &message.before {
        gate.pass().await;
    }
    let mut builder = http::Response::builder().status(message.status);
    for (name, value) in &message.headers.0 {
        builder = builder.header(name, value);
    }
    let state = (message.steps.into_iter(), message.end, watch);
    let frames = stream::unfold(state, |(mut steps, end, watch)| async move {
        loop {
            match steps.next() {
                Some(Step::Gate(gate)) => gate.pass().await,
                Some(Step::Chunk(bytes)) => return Some((Ok(Frame::data(bytes)), (steps, end, watch))),
                None if end == End::Clean => {
                    watch.replied();
                    return None;
                }
                None => {
                    let error = io::Error::other("truncated as scripted");
                    return Some((Err(error), (steps, End::Clean, watch)));
                }
            }
        }
    });
    builder.body(StreamBody::new(Box::pin(frames) as _)).map_err(io::Error::other)
}
