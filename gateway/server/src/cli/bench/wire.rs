//! A load generator's HTTP: requests prepared in advance, answers read with the least that can be read. It shares the
//! machine with the gateway it measures, so what it does not do counts.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

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

    /// The body of the last answer.
    pub(super) fn body(&self) -> &[u8] {
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

/// A request up to its body.
pub(super) fn post(path: &str, media_type: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: gatepost\r\ncontent-type: {media_type}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn parse_head(head: &[u8]) -> io::Result<(u16, usize)> {
    let malformed = || io::Error::other("the answer is not HTTP/1.1 with a length");
    let text = std::str::from_utf8(head).map_err(|_| malformed())?;
    let status =
        text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(malformed)?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    length.map(|length| (status, length)).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let head = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n";
        assert_eq!(end_of_head(head), Some(head.len()));
        assert_eq!(parse_head(head).unwrap(), (202, 12));
        assert!(parse_head(b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert_eq!(end_of_head(b"HTTP/1.1 202"), None);
    }

    #[tokio::test]
    async fn answers_are_read_whole_however_they_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            for body in ["hello", "second answer"] {
                let _ = stream.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                for byte in answer.as_bytes() {
                    stream.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut wire = Wire::connect(&socket).await.unwrap();
        let request = post("/x", "text/plain", "", b"hi");
        assert_eq!(wire.exchange(&request).await.unwrap(), 200);
        assert_eq!(wire.body(), b"hello");
        assert_eq!(wire.exchange(&request).await.unwrap(), 200);
        assert_eq!(wire.body(), b"second answer");
        server.await.unwrap();
    }
}
