//! What a neighbour talks to when it does not talk to the gateway: answers every request with 429 and knows nothing. It shows what
//! part of a neighbour's cost is that of a busy machine.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::LocalSet;

use super::super::answer::end_of_head;

/// As many as the gateway lets one user have.
const CONNECTIONS_MAX: usize = 256;
/// A body that is announced as larger is not read.
const BODY_BYTES_MAX: usize = 256 * 1024;
const READ_BYTES: usize = 64 * 1024;
const ANSWER: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}";

/// Listens at `path`, and serves on a thread of its own for as long as the process lives.
pub(super) fn start(path: &Path) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("stand-in".to_owned())
        .spawn(move || runtime.block_on(LocalSet::new().run_until(serve(listener))))?;
    Ok(())
}

async fn serve(listener: std::os::unix::net::UnixListener) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let open = Rc::new(Cell::new(0));
    // An error is one connection's; without descriptors nobody measures anything.
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        if open.get() >= CONNECTIONS_MAX {
            let _ = stream.try_write(ANSWER);
            continue;
        }
        open.set(open.get() + 1);
        let open = Rc::clone(&open);
        tokio::task::spawn_local(async move {
            // However it ends, the neighbour connects anew.
            let _ = answer(&mut stream).await;
            open.set(open.get() - 1);
        });
    }
}

async fn answer(stream: &mut UnixStream) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(READ_BYTES);
    let mut scratch = vec![0; READ_BYTES];
    loop {
        while let Some(head) = end_of_head(&bytes) {
            let whole = head + announced(&bytes[..head]);
            if whole - head > BODY_BYTES_MAX {
                return stream.write_all(ANSWER).await;
            }
            while bytes.len() < whole {
                read(stream, &mut scratch, &mut bytes).await?;
            }
            bytes.drain(..whole);
            stream.write_all(ANSWER).await?;
        }
        read(stream, &mut scratch, &mut bytes).await?;
    }
}

async fn read(stream: &mut UnixStream, scratch: &mut [u8], bytes: &mut Vec<u8>) -> io::Result<()> {
    match stream.read(scratch).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => {
            bytes.extend_from_slice(&scratch[..length]);
            Ok(())
        }
    }
}

/// The body's length.
fn announced(head: &[u8]) -> usize {
    const LENGTH: &[u8] = b"content-length:";
    let line = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(LENGTH.len())?;
        name.eq_ignore_ascii_case(LENGTH).then(|| value.trim_ascii())
    });
    line.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
}
