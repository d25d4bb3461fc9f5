//! etcd without locks: the requests that any lock is made of, by the same libraries.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::wire::{
    Compare, CompareTarget, CompareWith, DeleteRangeRequest, LEASE_GRANT, LeaseGrantRequest,
    LeaseGrantResponse, Op, PutRequest, TXN, TxnRequest, TxnResponse, WATCH, WatchCreateRequest,
    WatchOp, WatchRequest, WatchResponse,
};

/// As long as a record of the engine's.
const VALUE: &[u8] = &[b'v'; 90];

/// A connection. Its driver is a task of the runtime that opened it.
#[derive(Clone)]
pub(crate) struct Bare {
    channel: Channel,
    origin: http::Uri,
}

impl Bare {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("a setting");
        let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, driver) = shaken.expect("it speaks HTTP/2");
        drop(tokio::spawn(driver));
        let origin = format!("http://{address}").parse().expect("an origin");
        Self { channel: Channel(sender), origin }
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> A
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::with_origin(self.channel.clone(), self.origin.clone());
        grpc.ready().await.expect("it is open");
        let path = PathAndQuery::from_static(path);
        let asked = grpc.unary(with_leader(request), path, ProstCodec::<Q, A>::default()).await;
        asked.expect("an answer").into_inner()
    }

    pub(crate) async fn lease(&self, ttl: i64) -> i64 {
        let granted: LeaseGrantResponse = self.call(LEASE_GRANT, LeaseGrantRequest { ttl }).await;
        granted.id
    }

    /// Put a key that is new.
    pub(crate) async fn put(&self, key: &str, lease: i64) {
        let put = PutRequest { key: key.into(), value: VALUE.to_vec(), lease };
        let is_new = Compare {
            target: CompareTarget::Create as i32,
            key: key.into(),
            with: Some(CompareWith::Create(0)),
            range_end: Vec::new(),
        };
        let request = TxnRequest {
            compare: vec![is_new],
            success: vec![Op::Put(put).into()],
            failure: Vec::new(),
        };
        let answer: TxnResponse = self.call(TXN, request).await;
        assert!(answer.succeeded, "{key} was there");
    }

    pub(crate) async fn delete(&self, key: &str) {
        let delete = DeleteRangeRequest { key: key.into() };
        let request = TxnRequest { success: vec![Op::Delete(delete).into()], ..Default::default() };
        let _: TxnResponse = self.call(TXN, request).await;
    }

    /// All that happens to a key from now on.
    pub(crate) async fn watch(&self, key: &str) -> Watch {
        let (requests, mut queue) = mpsc::unbounded_channel();
        let create = WatchCreateRequest { key: key.into(), ..Default::default() };
        requests.send(WatchRequest { op: Some(WatchOp::Create(create)) }).expect("a stream");
        let stream = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let mut grpc = Grpc::with_origin(self.channel.clone(), self.origin.clone());
        grpc.ready().await.expect("it is open");
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        let opened =
            grpc.streaming(with_leader(stream), PathAndQuery::from_static(WATCH), codec).await;
        let mut answers = opened.expect("a stream").into_inner();
        // That it was created.
        answers.message().await.expect("an answer").expect("an answer");
        Watch { answers, _requests: requests }
    }
}

pub(crate) struct Watch {
    answers: Streaming<WatchResponse>,
    _requests: mpsc::UnboundedSender<WatchRequest>,
}

impl Watch {
    /// Until the key is deleted.
    pub(crate) async fn deleted(&mut self) {
        loop {
            let answer = self.answers.message().await.expect("it goes on").expect("it goes on");
            if answer.events.iter().any(|event| event.kind == 1) {
                return;
            }
        }
    }
}

fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

#[derive(Clone)]
struct Channel(SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
