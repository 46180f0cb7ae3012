//! The demo's app: hands its messages in one after the other and repeats what got no answer, as every app should.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gatepost_api::messages::AcceptResponse;
use http::{HeaderName, HeaderValue};
use tokio::time::sleep;
use uuid::Uuid;

use super::super::client::{Call, Client};
use super::super::failure::Failure;
use super::messages::Message;

const MEDIA_TYPE: &str = "application/hl7-v2+er7";
pub(super) const SOURCE: &str = "/clinic/ehr";
/// Pause before a message that got no answer is handed in again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long an app goes on asking a gateway that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all senders have seen so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) accepted: AtomicU64,
    /// Of those: handed in again, for want of an answer.
    pub(super) repeated: AtomicU64,
    /// Of those: accepted before already.
    pub(super) duplicates: AtomicU64,
}

/// A message that the gateway has confirmed.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) id: Uuid,
    pub(super) message: Message,
    /// From the request to its answer, the last one if it was repeated.
    pub(super) after: Duration,
}

pub(super) struct Sender {
    client: Client,
    tally: Arc<Tally>,
}

impl Sender {
    pub(super) fn new(socket: PathBuf, tally: Arc<Tally>) -> Self {
        Self { client: Client::new(socket), tally }
    }

    /// Hands the messages in, in order; the next only when the one before is confirmed.
    pub(super) async fn send_all(mut self, messages: Vec<Message>) -> Result<Vec<Accepted>, Failure> {
        let mut accepted = Vec::with_capacity(messages.len());
        for message in messages {
            accepted.push(self.send(message).await?);
        }
        Ok(accepted)
    }

    pub(super) async fn send(&mut self, message: Message) -> Result<Accepted, Failure> {
        let started = Instant::now();
        let mut unanswered = false;
        loop {
            let begun = Instant::now();
            match self.client.call(call(&message)).await {
                Ok(answer) => {
                    let answer: AcceptResponse = answer.json()?;
                    let known = answer.messages.first().ok_or(Failure::Garbled { status: 202 })?;
                    self.tally.accepted.fetch_add(1, Ordering::Relaxed);
                    self.tally.repeated.fetch_add(u64::from(unanswered), Ordering::Relaxed);
                    self.tally.duplicates.fetch_add(u64::from(known.duplicate), Ordering::Relaxed);
                    return Ok(Accepted { id: known.id, message, after: begun.elapsed() });
                }
                // Whether it was accepted is unknown. Handing it in again under the same id settles that.
                Err(Failure::NoAnswer { .. }) => unanswered = true,
                Err(Failure::Unreachable { .. }) if started.elapsed() < PATIENCE => {}
                Err(failure) => return Err(failure),
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}

fn call(message: &Message) -> Call {
    let body = message.body.clone().into_bytes().into();
    let call = Call::post("/v1/messages", HeaderValue::from_static(MEDIA_TYPE), body);
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", &message.control_id),
        ("ce-source", SOURCE),
        ("ce-type", &format!("org.hl7.v2.{}", message.kind)),
        ("ce-subject", &message.control_id),
        ("ce-partitionkey", &message.patient),
    ];
    attributes.into_iter().fold(call, |call, (name, value)| {
        // Ids and types of the demo are printable ASCII.
        let value = HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("-"));
        call.header(HeaderName::from_static(name), value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    /// Reads one request with its body.
    async fn request(stream: &mut tokio::net::UnixStream) -> String {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                if body.len() >= length.unwrap() {
                    return text;
                }
            }
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn what_got_no_answer_is_handed_in_again_under_the_same_id() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let gateway = tokio::spawn(async move {
            // It dies with the first request in its hands, and knows it when it comes back.
            let (mut stream, _) = listener.accept().await.unwrap();
            let first = request(&mut stream).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            let second = request(&mut stream).await;
            let body = r#"{"messages":[{"id":"0193b3f0-0000-7000-8000-000000000001","duplicate":true,"deliveries":[]}],"durability":"fsync"}"#;
            let answer = format!("HTTP/1.1 202 Accepted\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            (first, second)
        });
        let tally = Arc::new(Tally::default());
        let message = super::super::messages::series(0, 1).remove(0);
        let sent = Sender::new(socket, Arc::clone(&tally)).send_all(vec![message]).await.unwrap();
        let (first, second) = gateway.await.unwrap();
        assert_eq!(first, second);
        assert!(first.contains("ce-id: MRN-1001-0000\r\n"), "{first}");
        assert_eq!(sent.len(), 1);
        let counts =
            [&tally.accepted, &tally.repeated, &tally.duplicates].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 1, 1]);
    }
}
