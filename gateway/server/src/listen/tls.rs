//! TLS for TCP listeners: version 1.3, a client certificate always, and who the client is by the one URI name in it.
//!
//! Names in subjects, common names and DNS entries are no identity here: matching on them has let strangers in elsewhere (NATS, AWS-LC).
//! Sessions are never resumed, so that every connection is judged by the certificates and authorities that hold now.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::config::{TlsFiles, is_credential};

/// Larger files are not certificates.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Others than the owner may do nothing with a key.
const KEY_MODE_FORBIDDEN: u32 = 0o077;
const CREDENTIAL_MODE_FORBIDDEN: u32 = 0o007;
/// The only protocol that is negotiated.
const ALPN: &[u8] = b"http/1.1";

#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("key {path}: others than its owner have rights on it; take them away (chmod 0600)")]
    KeyExposed { path: PathBuf },
    #[error("{path} holds no {expected} in PEM form")]
    NotPem { path: PathBuf, expected: &'static str },
    #[error("client authorities {path}: a certificate in it cannot serve as an authority")]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("client authorities {path} cannot be used")]
    Authorities { path: PathBuf, source: VerifierBuilderError },
    #[error("certificate {cert} and key {key} cannot be used together")]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// What a TCP listener proves and whom it believes; replaceable while it listens.
pub(crate) struct ServerTls {
    current: ArcSwap<ServerConfig>,
}

impl ServerTls {
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { current: ArcSwap::new(Arc::new(server_config(files)?)) })
    }

    /// Takes `files` for all connections from now on. On an error nothing changes.
    pub(crate) fn reload(&self, files: &TlsFiles) -> Result<(), TlsError> {
        self.current.store(Arc::new(server_config(files)?));
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let pair_failed = |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };

    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.client_ca)? {
        roots
            .add(authority)
            .map_err(|source| TlsError::Authority { path: files.client_ca.clone(), source })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|source| TlsError::Authorities { path: files.client_ca.clone(), source })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(pair_failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)
        .map_err(pair_failed)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, |_| Ok(()))?;
    let not_pem = || TlsError::NotPem { path: path.to_owned(), expected: "certificate" };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| not_pem())?;
    if found.is_empty() { Err(not_pem()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    // The group's bits of a credential are the mask of the access list that gives it to our user.
    let forbidden = if is_credential(path) { CREDENTIAL_MODE_FORBIDDEN } else { KEY_MODE_FORBIDDEN };
    let pem = read(path, |found| match found.mode() & forbidden {
        0 => Ok(()),
        _ => Err(TlsError::KeyExposed { path: path.to_owned() }),
    })?;
    // What was wrong inside a key is not repeated: the parser's message may quote it.
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| TlsError::NotPem { path: path.to_owned(), expected: "private key" })
}

/// Reads a small file whose opened self passes `check`.
fn read(path: &Path, check: impl FnOnce(&fs::Metadata) -> Result<(), TlsError>) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    check(&file.metadata().map_err(unreadable)?)?;
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// The identity in a client certificate, and for how long it holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CertificateIdentity {
    pub(super) uri: String,
    pub(super) valid_for: Duration,
}

/// Reads a certificate that the handshake has validated. `None` unless it has exactly one URI name (as SPIFFE demands of an X.509-SVID).
pub(super) fn identity(certificate: &CertificateDer<'_>, now: SystemTime) -> Option<CertificateIdentity> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    // An error here is a second extension of alternative names, or one that cannot be read: no identity either way.
    let names = &parsed.subject_alternative_name().ok()??.value.general_names;
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return None;
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let ends = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    (!uri.is_empty()).then(|| CertificateIdentity {
        uri: uri.to_owned(),
        valid_for: Duration::from_secs(ends.saturating_sub(now)),
    })
}
