//! Certificates and keys from files in PEM form.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::settings::Misset;

/// Larger files hold no certificates.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
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
    let pem = read(key, file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Misset::new(key, format!("{} holds no certificate in PEM form", file.display()))),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, Misset> {
    const KEY: &str = "key_file";
    let fault = |what: &str| Misset::new(KEY, format!("{} {what}", file.display()));
    let meta = std::fs::metadata(file).map_err(|error| unreadable(KEY, file, &error))?;
    if meta.mode() & KEY_MODE_FORBIDDEN != 0 {
        return Err(fault("can be read by everybody on this host; take that away (chmod o= FILE)"));
    }
    let pem = read(KEY, file)?;
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

fn read(key: &'static str, file: &Path) -> Result<Vec<u8>, Misset> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(key, file, &error))?;
    // Cut off, a file of several authorities would be taken for a shorter one.
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(Misset::new(key, format!("{} is larger than {PEM_BYTES_MAX} bytes", file.display())));
    }
    Ok(bytes)
}

fn unreadable(key: &'static str, file: &Path, error: &std::io::Error) -> Misset {
    Misset::new(key, format!("{} cannot be read: {error}", file.display()))
}
