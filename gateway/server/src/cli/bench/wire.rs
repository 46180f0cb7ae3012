//! HTTP over one kept connection, for the adapter: requests prepared in advance, bodies left as they are.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::answer::{end_of_head, parse_head};

/// Heads of answers are far smaller.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// One kept connection.
pub(super) struct Wire {
    stream: UnixStream,
    buffer: Vec<u8>,
    body: std::ops::Range<usize>,
}

impl Wire {
    pub(super) async fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        Ok(Self { stream, buffer: Vec::with_capacity(READ_BYTES), body: 0..0 })
    }

    /// Sends one request and reads its whole answer; gives the status.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, status, length) = loop {
            self.read_some(READ_BYTES).await?;
            if let Some(end) = end_of_head(&self.buffer) {
                let (status, length) = parse_head(&self.buffer[..end])?;
                break (end, status, length);
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(io::Error::other("the answer's head has no end"));
            }
        };
        while self.buffer.len() < head + length {
            self.read_some(head + length - self.buffer.len()).await?;
        }
        self.body = head..head + length;
        Ok(status)
    }

    /// As [`exchange`](Self::exchange), with an error for every answer that is no success.
    pub(super) async fn call(&mut self, request: &[u8]) -> io::Result<&[u8]> {
        match self.exchange(request).await? {
            200..300 => Ok(self.body()),
            status => {
                let problem = serde_json::from_slice::<gatepost_api::Problem>(self.body());
                let code = problem.map(|problem| problem.code).unwrap_or_default();
                Err(io::Error::other(format!("the gateway answered {status} ({code})")))
            }
        }
    }

    /// The body of the last answer.
    fn body(&self) -> &[u8] {
        &self.buffer[self.body.clone()]
    }

    async fn read_some(&mut self, room: usize) -> io::Result<()> {
        self.buffer.reserve(room);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A whole request.
pub(super) fn post(path: &str, media_type: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: gatepost\r\ncontent-type: {media_type}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

pub(super) fn post_json(path: &str, body: &[u8]) -> Vec<u8> {
    post(path, "application/json", "", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_read_whole_however_they_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            for (status, body) in [(200, "hello"), (202, "second answer"), (500, "{}")] {
                let _ = stream.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 {status} OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                for byte in answer.as_bytes() {
                    stream.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut wire = Wire::connect(&socket).await.unwrap();
        let request = post("/x", "text/plain", "", b"hi");
        assert_eq!(wire.call(&request).await.unwrap(), b"hello");
        assert_eq!(wire.call(&request).await.unwrap(), b"second answer");
        assert!(wire.call(&request).await.is_err());
        server.await.unwrap();
    }
}
