//! Standard Webhooks signatures: HMAC-SHA-256 over id, timestamp and body.

use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_adapter::files;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Longer files hold no secret and no header.
const TEXT_BYTES_MAX: u64 = 64 * 1024;
const PREFIX: &str = "whsec_";
/// The bounds of the specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A shared secret with the endpoint.
#[derive(Clone)]
pub(crate) struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("cannot be read: {0}")]
    File(#[from] io::Error),
    #[error("does not hold a secret: write `whsec_` and 24 to 64 bytes in base64")]
    Form,
}

impl Secret {
    pub(crate) fn from_file(path: &Path) -> Result<Self, SecretError> {
        Self::parse(text(path)?.trim())
    }

    pub(crate) fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(SecretError::Form)?;
        let bytes = BASE64.decode(encoded).map_err(|_| SecretError::Form)?;
        if SECRET_BYTES.contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(SecretError::Form) }
    }

    /// `v1,` and the signature in base64.
    fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        // Unwrap safety: HMAC takes keys of any length; the error exists for other algorithms of the trait.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}

/// What stands in a file of the settings.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    let bytes = files::read(path, TEXT_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))
}

/// The header `webhook-signature`: one signature for each secret, so that the endpoint may change from one to the next.
/// `None` without secrets.
pub(crate) fn signatures(secrets: &[Secret], id: &str, timestamp: u64, body: &[u8]) -> Option<String> {
    let signed: Vec<String> = secrets.iter().map(|secret| secret.sign(id, timestamp, body)).collect();
    (!signed.is_empty()).then(|| signed.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_vector_of_the_specification() {
        let secret = Secret::parse(SECRET).unwrap();
        assert_eq!(
            signatures(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#)
                .unwrap(),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn while_secrets_change_both_sign() {
        let old = Secret::parse(SECRET).unwrap();
        let new = Secret::parse(&format!("whsec_{}", BASE64.encode([7; 32]))).unwrap();
        let both = signatures(&[new.clone(), old.clone()], "id", 1, b"x").unwrap();
        let alone = [new, old].map(|secret| signatures(&[secret], "id", 1, b"x").unwrap());
        assert_eq!(both, alone.join(" "));
        assert_eq!(signatures(&[], "id", 1, b"x"), None);
    }

    #[test]
    fn what_is_no_secret_is_refused_and_never_shown() {
        let form = |text: &str| matches!(Secret::parse(text), Err(SecretError::Form));
        assert!(form("") && form("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw") && form("whsec_%"));
        assert!(form(&format!("whsec_{}", BASE64.encode([1; 23]))));
        assert!(form(&format!("whsec_{}", BASE64.encode([1; 65]))));
        assert_eq!(format!("{:?}", Secret::parse(SECRET).unwrap()), "Secret(24 bytes)");
    }

    #[test]
    fn a_secret_comes_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(matches!(Secret::from_file(&path), Err(SecretError::File(_))));
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        assert_eq!(Secret::from_file(&path).unwrap().0, Secret::parse(SECRET).unwrap().0);
    }
}
