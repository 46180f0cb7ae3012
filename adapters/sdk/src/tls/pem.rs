//! Certificates, keys and lists of revoked certificates from files.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::misset::Misset;
use crate::files;

/// Larger files hold no certificates.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Larger files are not revocation lists: room for some 400,000 revoked certificates.
const CRL_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Everybody on this host must not read a key. Its group may: the adapter can run as a user of its own.
const KEY_MODE_FORBIDDEN: u32 = 0o007;

/// A certificate with those between it and its authority, and its key.
pub(super) struct OwnCertificate {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl OwnCertificate {
    pub(super) fn read(cert: &Path, key: &Path) -> Result<Self, Misset> {
        Ok(Self { chain: certificates("cert_file", cert)?, key: private_key(key)? })
    }
}

pub(super) fn mismatch(error: &rustls::Error) -> Misset {
    match error {
        rustls::Error::InconsistentKeys(_) => Misset::new(
            "key_file",
            "is another certificate's: `cert_file` and `key_file` do not belong together",
        ),
        error => Misset::new("cert_file", format!("cannot be used with `key_file`: {error}")),
    }
}

pub(super) fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Misset> {
    let pem = read(key, file, PEM_BYTES_MAX)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Misset::new(key, format!("{} holds no certificate in PEM form", file.display()))),
    }
}

/// In PEM, or one in DER, as most authorities publish theirs. Whether they are lists is seen when they are used.
pub(super) fn revocations(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Misset> {
    let bytes = read("crl_files", file, CRL_BYTES_MAX)?;
    // A sequence, which no text begins with.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.into()]);
    }
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Misset::new("crl_files", format!("{} holds no revocation list", file.display()))),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, Misset> {
    const KEY: &str = "key_file";
    let fault = |what: &str| Misset::new(KEY, format!("{} {what}", file.display()));
    let open = files::open(file).map_err(|error| unreadable(KEY, file, &error))?;
    let meta = open.metadata().map_err(|error| unreadable(KEY, file, &error))?;
    if meta.mode() & KEY_MODE_FORBIDDEN != 0 {
        return Err(fault("can be read by everybody on this host; take that away (chmod o= FILE)"));
    }
    let pem = files::read_open(open, PEM_BYTES_MAX).map_err(|error| unreadable(KEY, file, &error))?;
    // What was wrong inside a key is not repeated: the parser's message may quote it.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let is_encrypted = memchr::memmem::find(&pem, b"ENCRYPTED").is_some();
        fault(if is_encrypted {
            "is encrypted with a passphrase, which nobody can type here; store the key without one (openssl pkey)"
        } else {
            "holds no private key in PEM form"
        })
    })
}

fn read(key: &'static str, file: &Path, bytes_max: u64) -> Result<Vec<u8>, Misset> {
    files::read(file, bytes_max).map_err(|error| unreadable(key, file, &error))
}

fn unreadable(key: &'static str, file: &Path, error: &std::io::Error) -> Misset {
    Misset::new(key, format!("{} cannot be read: {error}", file.display()))
}
