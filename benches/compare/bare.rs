//! The yardstick: the least a hyper proxy can do, done well. One thread, a map of tokens, the key swapped, bodies
//! passed on; no limits, no counting, no retries.
//!
//! The upstream connection is driven inside the response body, not by a task of its own: frames that arrived together
//! leave together.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1 as client;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::plan::{Proxy, REAL_KEY};

type Answer = Response<Either<Relay, Empty<Bytes>>>;

struct State {
    upstream: SocketAddr,
    host: HeaderValue,
    keys: HashMap<HeaderValue, HeaderValue>,
    pool: RefCell<Vec<Link>>,
}

/// A connection to the upstream that nobody else drives.
struct Link {
    sender: client::SendRequest<Incoming>,
    connection: Pin<Box<client::Connection<TokioIo<TcpStream>, Incoming>>>,
}

pub(crate) fn run(plan: &Proxy) -> Result<()> {
    let token = |text: &str| HeaderValue::from_str(&format!("Bearer {text}"));
    let mut keys = HashMap::new();
    for other in 0..1_000 {
        keys.insert(token(&format!("sk-bench-other-{other}"))?, token("unused")?);
    }
    keys.insert(token(&plan.token)?, token(REAL_KEY)?);
    let host = HeaderValue::from_str(&plan.upstream.to_string())?;
    let state = Rc::new(State { upstream: plan.upstream, host, keys, pool: RefCell::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(plan.listen, state))
}

async fn serve(listen: SocketAddr, state: Rc<State>) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let state = Rc::clone(&state);
        spawn_local(async move {
            let service = service_fn(|request| handle(request, Rc::clone(&state)));
            // A client that goes away is part of the load.
            drop(server::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn handle(mut request: Request<Incoming>, state: Rc<State>) -> Result<Answer, Infallible> {
    let headers = request.headers_mut();
    let Some(key) = headers.get(AUTHORIZATION).and_then(|token| state.keys.get(token)) else {
        return Ok(empty(StatusCode::UNAUTHORIZED));
    };
    headers.insert(AUTHORIZATION, key.clone());
    headers.insert(HOST, state.host.clone());
    headers.remove(CONNECTION);
    Ok(forward(request, state).await.unwrap_or_else(|_| empty(StatusCode::BAD_GATEWAY)))
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Either::Right(Empty::new()));
    *answer.status_mut() = status;
    answer
}

async fn forward(request: Request<Incoming>, state: Rc<State>) -> Result<Answer> {
    let pooled = state.take();
    let mut link = match pooled {
        Some(link) => link,
        None => connect(state.upstream).await?,
    };
    let Link { sender, connection } = &mut link;
    let mut answer = pin!(sender.send_request(request));
    let answer = poll_fn(|cx| {
        // Its end, good or bad, shows in the answer.
        let _ = connection.as_mut().poll(cx);
        answer.as_mut().poll(cx)
    })
    .await?;
    Ok(answer.map(|body| Either::Left(Relay { body, link: Some(link), state })))
}

async fn connect(upstream: SocketAddr) -> Result<Link> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    Ok(Link { sender, connection: Box::pin(connection) })
}

impl State {
    /// The connection last used that is still good.
    fn take(&self) -> Option<Link> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut pool = self.pool.borrow_mut();
        std::iter::from_fn(|| pool.pop())
            .find_map(|mut link| link.connection.as_mut().poll(&mut cx).is_pending().then_some(link))
    }
}

/// The upstream's body, and the connection it comes from, which goes back to the pool at its end.
struct Relay {
    body: Incoming,
    link: Option<Link>,
    state: Rc<State>,
}

impl Relay {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if let Some(link) = &mut self.link
            && link.connection.as_mut().poll(cx).is_ready()
        {
            self.link = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(self.poll_body(cx));
        if (frame.is_none() || self.body.is_end_stream())
            && let Some(mut link) = self.link.take()
            && link.connection.as_mut().poll(cx).is_pending()
            && link.sender.is_ready()
        {
            self.state.pool.borrow_mut().push(link);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.link.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
