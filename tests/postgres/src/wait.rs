//! Waiting for something to become so: polling with a deadline.

use std::io;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(2);

pub(crate) fn until(limit: Duration, what: &str, mut probe: impl FnMut() -> bool) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    while !probe() {
        if Instant::now() >= deadline {
            let why = format!("after {} s still not: {what}", limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
