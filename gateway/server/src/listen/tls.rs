//! TLS for TCP listeners: version 1.3, a client certificate always, and who the client is by the one URI name in it (`name.rs`).
//!
//! Sessions are never resumed: there are no tickets, so that every connection is judged by the certificates, authorities and
//! revocation lists that hold now (`judge.rs`). Whenever those change (`watch.rs`), open connections are judged anew.

mod judge;
mod name;
mod watch;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::sync::watch::{Receiver, Sender};

use self::{judge::Judge, watch::Print};
use crate::config::{TlsFiles, is_credential};

pub(super) use judge::{Chain, Claim, reason};
pub(super) use name::identity;
#[cfg(test)]
pub(super) use watch::Seen;
pub(crate) use watch::keep_current;

/// Larger files are not certificates.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Larger files are not revocation lists: room for some 400,000 revoked certificates.
const CRL_BYTES_MAX: u64 = 16 * 1024 * 1024;
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
    #[error("{path} is larger than {max} bytes")]
    TooLarge { path: PathBuf, max: u64 },
    #[error("certificate {cert} and key {key} cannot be used together")]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// What a TCP listener proves and whom it believes; replaceable while it listens.
pub(crate) struct ServerTls {
    files: TlsFiles,
    in_force: Sender<Arc<Generation>>,
}

/// What is in force from one change of the files to the next.
pub(super) struct Generation {
    pub(super) config: Arc<ServerConfig>,
    judge: Arc<Judge>,
    /// Of the files, before they were read: if they changed meanwhile, the next look sees it.
    print: Print,
}

impl ServerTls {
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let in_force = Sender::new(Arc::new(Generation::load(files)?));
        Ok(Self { files: files.clone(), in_force })
    }

    /// Reads the files again, for all connections from now on; open ones are judged anew. On an error nothing changes.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let generation = Generation::load(&self.files)?;
        self.in_force.send_replace(Arc::new(generation));
        Ok(())
    }

    /// What is in force, as the receiver's value, and word of each change from now on.
    pub(super) fn subscribe(&self) -> Receiver<Arc<Generation>> {
        self.in_force.subscribe()
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

impl Generation {
    fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let print = Print::of(files);
        let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
        let judge = Arc::new(judge(files, provider.clone())?);
        let pair_failed =
            |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(pair_failed)?
            .with_client_cert_verifier(judge.clone())
            .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)
            .map_err(pair_failed)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), judge, print })
    }
}

/// With revocation lists, every certificate of a chain must be known not to be revoked, by a list that has not expired.
fn judge(files: &TlsFiles, provider: Arc<CryptoProvider>) -> Result<Judge, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.client_ca)? {
        roots
            .add(authority)
            .map_err(|source| TlsError::Authority { path: files.client_ca.clone(), source })?;
    }
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if !files.crl.is_empty() {
        let mut lists = Vec::new();
        for path in &files.crl {
            lists.extend(revocation_lists(path)?);
        }
        verifier = verifier.with_crls(lists).enforce_revocation_expiration();
    }
    let verifier = verifier.build().map_err(|source| TlsError::Authorities {
        path: match &source {
            VerifierBuilderError::InvalidCrl(_) => files.crl.first().unwrap_or(&files.client_ca).clone(),
            _ => files.client_ca.clone(),
        },
        source,
    })?;
    Ok(Judge::new(verifier))
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let pem = read(path, CRL_BYTES_MAX, |_| Ok(()))?;
    let not_pem = || TlsError::NotPem { path: path.to_owned(), expected: "revocation list" };
    let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| not_pem())?;
    if found.is_empty() { Err(not_pem()) } else { Ok(found) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, PEM_BYTES_MAX, |_| Ok(()))?;
    let not_pem = || TlsError::NotPem { path: path.to_owned(), expected: "certificate" };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| not_pem())?;
    if found.is_empty() { Err(not_pem()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    // The group's bits of a credential are the mask of the access list that gives it to our user.
    let forbidden = if is_credential(path) { CREDENTIAL_MODE_FORBIDDEN } else { KEY_MODE_FORBIDDEN };
    let pem = read(path, PEM_BYTES_MAX, |found| match found.mode() & forbidden {
        0 => Ok(()),
        _ => Err(TlsError::KeyExposed { path: path.to_owned() }),
    })?;
    // What was wrong inside a key is not repeated: the parser's message may quote it.
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| TlsError::NotPem { path: path.to_owned(), expected: "private key" })
}

/// Reads a file of at most `max` bytes whose opened self passes `check`.
fn read(
    path: &Path,
    max: u64,
    check: impl FnOnce(&fs::Metadata) -> Result<(), TlsError>,
) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    check(&file.metadata().map_err(unreadable)?)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    // Cut off, a file of several authorities or lists would be taken for a shorter one.
    if bytes.len() as u64 > max {
        return Err(TlsError::TooLarge { path: path.to_owned(), max });
    }
    Ok(bytes)
}
