//! A socket between an adapter and its gateway that passes everything on and notes when what went by.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

const READ_BYTES: usize = 64 * 1024;

/// What went by, of a delivery that was alone on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// The answer that gives it out.
    Lease,
    /// The adapter's call that begins it.
    Begin,
    /// The answer to that.
    Begun,
}

/// Lives as long as the process.
#[derive(Clone)]
pub(crate) struct Tap {
    pub(crate) socket: PathBuf,
    passed: Arc<Mutex<Vec<(Passed, Instant)>>>,
}

impl Tap {
    pub(crate) fn start(socket: PathBuf, gateway: &Path) -> Self {
        let listener = UnixListener::bind(&socket).expect("the socket can be made");
        let passed: Arc<Mutex<Vec<(Passed, Instant)>>> = Arc::default();
        let tap = Self { socket, passed };
        let (noting, gateway) = (tap.clone(), gateway.to_owned());
        thread::spawn(move || {
            for adapter in listener.incoming().map_while(Result::ok) {
                if let Ok(gateway) = UnixStream::connect(&gateway) {
                    noting.join(adapter, gateway);
                }
            }
        });
        tap
    }

    /// What went by since the last time.
    pub(crate) fn take(&self) -> Vec<(Passed, Instant)> {
        std::mem::take(&mut self.passed.lock().expect("no thread of it panics"))
    }

    fn join(&self, adapter: UnixStream, gateway: UnixStream) {
        let clone = |stream: &UnixStream| stream.try_clone().expect("a socket can be shared");
        let (from, to) = (clone(&adapter), clone(&gateway));
        // A connection carries one call at a time.
        let begins = Arc::new(AtomicBool::new(false));
        let (tap, asked) = (self.clone(), Arc::clone(&begins));
        thread::spawn(move || {
            pass(from, to, |bytes| {
                let is_begin = contains(bytes, b"\"outcome\":\"begin\"");
                asked.store(is_begin, Ordering::Release);
                is_begin.then(|| tap.note(Passed::Begin));
            })
        });
        let tap = self.clone();
        thread::spawn(move || {
            pass(gateway, adapter, |bytes| {
                if contains(bytes, b"\"token\"") {
                    tap.note(Passed::Lease);
                } else if begins.swap(false, Ordering::AcqRel) {
                    tap.note(Passed::Begun);
                }
            })
        });
    }

    fn note(&self, what: Passed) {
        self.passed.lock().expect("no thread of it panics").push((what, Instant::now()));
    }
}

/// Shows what comes, then passes it on, until one side has closed.
fn pass(mut from: UnixStream, mut to: UnixStream, show: impl Fn(&[u8])) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        show(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other direction may have closed it already.
    let _ = to.shutdown(Shutdown::Both);
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|part| part == what)
}
