//! What must hold for any bytes in place of a client's certificate.

use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;

use super::tls::identity;

/// A certificate names somebody or nobody, and with one byte behind it, nobody.
pub(crate) fn certificate(input: &[u8]) {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let Ok(found) = identity(&CertificateDer::from(input), now) else { return };
    assert!(!found.uri.is_empty());
    assert!(input.windows(found.uri.len()).any(|part| part == found.uri.as_bytes()), "an invented name");
    let longer = [input, b"\0"].concat();
    assert!(identity(&CertificateDer::from(longer), now).is_err());
    assert!(identity(&CertificateDer::from(&input[..input.len() - 1]), now).is_err());
}
