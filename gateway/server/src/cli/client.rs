//! HTTP/1.1 over the gateway's Unix socket, for the commands: one kept connection, a deadline per call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use gatepost_api::Problem;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::failure::Failure;

/// The gateway is on this host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer that is read: a payload may have 64 MiB by default, and its base64 a third more.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

pub(crate) struct Client {
    socket: PathBuf,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// One request.
pub(crate) struct Call {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    deadline: Duration,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { method: Method::GET, path: path.into(), headers, body, deadline: CALL_DEADLINE }
    }

    pub(crate) fn post(path: impl Into<String>, media_type: HeaderValue, body: Bytes) -> Self {
        let headers = vec![(header::CONTENT_TYPE, media_type)];
        Self { method: Method::POST, headers, body, ..Self::get(path) }
    }

    pub(crate) fn post_json(path: impl Into<String>, body: &impl Serialize) -> Self {
        // Unwrap safety: the requests are our own structs with string keys, whose serialisation cannot fail.
        let body = serde_json::to_vec(body).unwrap_or_default();
        Self::post(path, HeaderValue::from_static("application/json"), body.into())
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The gateway may hold the answer back for this long.
    pub(crate) fn held_for(mut self, wait: Duration) -> Self {
        self.deadline = CALL_DEADLINE + wait;
        self
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|_| Failure::Garbled { status: self.status.as_u16() })
    }
}

impl Client {
    pub(crate) fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), connection: None }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: impl Into<String>) -> Result<T, Failure> {
        self.call(Call::get(path)).await?.json()
    }

    /// Makes the call; every answer that is not a success is a failure.
    pub(crate) async fn call(&mut self, call: Call) -> Result<Answer, Failure> {
        let answer = self.exchange(call).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(refused(&answer)) }
    }

    /// Makes the call and gives any answer.
    pub(crate) async fn exchange(&mut self, call: Call) -> Result<Answer, Failure> {
        let connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        let deadline = call.deadline;
        match timeout(deadline, exchange_on(connection, call)).await {
            Ok(Ok((answer, connection))) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Ok(Err(what)) => Err(self.no_answer(what)),
            Err(_) => Err(self.no_answer(format!("nothing within {} s", deadline.as_secs()))),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let unreachable = |source| Failure::Unreachable { socket: self.socket.clone(), source };
        let stream = timeout(CONNECT_DEADLINE, UnixStream::connect(&self.socket))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(unreachable)?;
        let (connection, driver) =
            handshake(TokioIo::new(stream)).await.map_err(|error| self.no_answer(error.to_string()))?;
        // Ends by itself when the connection closes or its handle is dropped; its error is the caller's error too.
        tokio::spawn(driver);
        Ok(connection)
    }

    fn no_answer(&self, what: String) -> Failure {
        Failure::NoAnswer { socket: self.socket.clone(), what }
    }
}

type Connection = SendRequest<Full<Bytes>>;

async fn exchange_on(mut connection: Connection, call: Call) -> Result<(Answer, Connection), String> {
    let mut request = Request::builder().method(call.method).uri(&call.path).header(header::HOST, "gatepost");
    for (name, value) in call.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(call.body)).map_err(|error| error.to_string())?;
    connection.ready().await.map_err(|error| error.to_string())?;
    let answer = connection.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok((Answer { status: head.status, body: body.to_bytes() }, connection))
}

pub(crate) fn refused(answer: &Answer) -> Failure {
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => Failure::Refused(Box::new(problem)),
        Err(_) => Failure::Garbled { status: answer.status.as_u16() },
    }
}

/// A path with a query; values are percent-encoded, absent ones left out.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut text = path.to_owned();
    for (name, value) in parameters {
        if let Some(value) = value {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(name);
            text.push('=');
            text.push_str(&percent_encoded(value));
        }
    }
    text
}

/// Everything but RFC 3986's unreserved characters encoded: fits a path segment as well as a query value.
pub(crate) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded_and_absent_values_left_out() {
        let path = with_query("/v1/messages", &[("app", Some("a&b")), ("type", None), ("key", Some("ä/1"))]);
        assert_eq!(path, "/v1/messages?app=a%26b&key=%C3%A4%2F1");
    }
}
