//! What is wrong with a setting of TLS.

/// One setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {message}")]
pub(super) struct Misset {
    pub(super) key: &'static str,
    pub(super) message: String,
}

impl Misset {
    pub(super) fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}
