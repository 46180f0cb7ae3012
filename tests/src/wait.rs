//! Waiting for something to become so: polling with a deadline, never a pause that hopes.

use std::time::{Duration, Instant};

/// How long tests wait for what takes milliseconds on an idle machine.
pub const WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// What `probe` gives once it gives something; panics after [`WAIT`].
#[track_caller]
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(WAIT, what, probe)
}

#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "after {} s still not: {what}", limit.as_secs());
        std::thread::sleep(POLL);
    }
}
