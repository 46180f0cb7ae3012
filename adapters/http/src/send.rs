//! One request per attempt; what is not an answer is doubt, unless nothing can have left.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gatepost_adapter::tls::ConnectError;
use gatepost_adapter::{DataError, Delivery, Outcome, Worker};
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Error;
use tokio::time::{Instant, sleep, timeout_at};

use crate::answer::{Answer, BODY_BYTES_MAX};
use crate::content::Content;
use crate::endpoint::{Access, Endpoint};
use crate::request::{Attempt, headers};

/// The gateway's own default for the largest message.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Endpoint {
    async fn exchange(&self, access: &Access, headers: HeaderMap, body: Bytes) -> Outcome {
        let (content, leaving) = Content::new(body);
        let request = access.request(headers, content);
        // Connecting has a limit of its own, so that this one can only pass once bytes may have left.
        let patience = async {
            let _ = leaving.await;
            sleep(self.settings.timeout()).await;
        };
        let response = tokio::select! {
            biased;
            sent = access.client.request(request) => match sent {
                Ok(response) => response,
                Err(error) => return failed(&error),
            },
            () = patience => {
                return Outcome::in_doubt(format!("no answer within {} ms", self.settings.timeout_ms));
            }
        };
        let answer = read(response, Instant::now() + self.settings.timeout()).await;
        answer.outcome(SystemTime::now())
    }
}

/// One request at a time.
pub(crate) struct Sender {
    endpoint: Arc<Endpoint>,
}

impl Sender {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint }
    }
}

impl Worker for Sender {
    async fn deliver(&mut self, delivery: &Delivery) -> Outcome {
        let body = match delivery.data(PAYLOAD_BYTES_MAX).await {
            Ok(body) => body,
            Err(DataError::Call(error)) if error.retryable() => {
                tracing::warn!(%error, "giving the delivery back");
                return Outcome::Release;
            }
            Err(error) => return Outcome::reject(error.to_string()),
        };
        // A clock before 1970 makes signatures that no endpoint takes, which then says so.
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = delivery.id().to_string();
        let attempt = Attempt { id: &id, timestamp };
        let access = self.endpoint.access();
        let headers = match headers(delivery.event(), &body, &attempt, &access.target.secrets) {
            Ok(headers) => headers,
            Err(_) => return Outcome::reject("datacontenttype cannot stand in a header"),
        };
        if delivery.begin().await.is_err() {
            return Outcome::LeaseLost;
        }
        self.endpoint.exchange(&access, headers, body).await
    }
}

/// No answer: whose trouble, and can anything have left? Not before there is a connection, with TLS where the URL says so. What
/// fails on one may have left, also if it was a moment too late for that.
fn failed(error: &Error) -> Outcome {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
        if let Some(error) = cause.downcast_ref::<ConnectError>() {
            return Outcome::destination_down(error.to_string());
        }
    }
    Outcome::in_doubt(format!("no answer: {cause}"))
}

/// The status and the first bytes of the body. The status is the answer: a body that breaks off or never ends does not
/// take it back.
async fn read(response: Response<Incoming>, until: Instant) -> Answer {
    let (head, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    let cut = loop {
        match timeout_at(until, incoming.frame()).await {
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing that is kept.
                let Ok(chunk) = frame.into_data() else { continue };
                let free = BODY_BYTES_MAX - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(free)]);
                if chunk.len() > free {
                    break true;
                }
            }
            Ok(None) => break false,
            Ok(Some(Err(_))) | Err(_) => break true,
        }
    };
    Answer { status: head.status, headers: head.headers, body, cut }
}
