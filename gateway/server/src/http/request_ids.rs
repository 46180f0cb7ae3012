//! The ids under which requests stand in answers and logs.

use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// UUIDs of the eighth version (RFC 9562 §5.8): when this process began, with random bits, then a count. Unlike ids of messages
/// they need not be unguessable, and randomness for each would cost every request a system call.
#[derive(Debug)]
pub(crate) struct RequestIds {
    start: u64,
    count: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        let (start, _) = Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).as_u64_pair();
        Self { start, count: AtomicU64::new(0) }
    }

    pub(crate) fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.start.to_be_bytes());
        bytes[8..].copy_from_slice(&count.to_be_bytes());
        uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_id_is_another_uuid() {
        let ids = RequestIds::new();
        let drawn: HashSet<String> = (0..1000).map(|_| ids.next()).collect();
        assert_eq!(drawn.len(), 1000);
        assert!(drawn.iter().all(|id| Uuid::parse_str(id).unwrap().get_version_num() == 8));
    }
}
