//! Whether a client's chain of certificates holds: as webpki says, by the authorities and revocation lists in force. Of one that
//! does not, the name it claims is kept for the audit log; it proves nothing and decides nothing.

use std::{cell::RefCell, future::Future, io, sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tokio::sync::watch::Receiver;

use super::{Generation, identity};
use crate::listen::RefusalCode;

tokio::task_local! {
    /// The name in the certificate that this task's handshake refused.
    static CLAIMED: RefCell<Option<String>>;
}

/// Names a refused certificate claims to have that are longer stay out of the log, bytes.
const CLAIM_BYTES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Judge {
    webpki: Arc<dyn ClientCertVerifier>,
}

impl Judge {
    pub(super) fn new(webpki: Arc<dyn ClientCertVerifier>) -> Self {
        Self { webpki }
    }
}

impl ClientCertVerifier for Judge {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.webpki.verify_client_cert(end_entity, intermediates, now).inspect_err(|_| {
            let claimed = identity(end_entity, SystemTime::now()).ok().map(|identity| identity.uri);
            // Outside of a handshake nobody asks for it.
            let _ = CLAIMED.try_with(|slot| slot.replace(claimed));
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// What a refused certificate says of itself.
pub(in crate::listen) struct Claim;

impl Claim {
    /// Runs a handshake; if that refused a certificate, with the SPIFFE id in it.
    pub(in crate::listen) async fn of<T>(handshake: impl Future<Output = T>) -> (T, Option<String>) {
        CLAIMED
            .scope(RefCell::new(None), async {
                let ended = handshake.await;
                let claimed = CLAIMED.with(RefCell::take);
                (ended, claimed.filter(|claimed| claimed.len() <= CLAIM_BYTES_MAX))
            })
            .await
    }
}

/// Why a handshake failed, as the log names it.
pub(in crate::listen) fn reason(error: &io::Error) -> RefusalCode {
    let Some(error) = error.get_ref().and_then(|source| source.downcast_ref::<Error>()) else {
        return RefusalCode::TlsFailed;
    };
    match error {
        Error::NoCertificatesPresented => RefusalCode::CertificateMissing,
        Error::PeerIncompatible(_) => RefusalCode::TlsVersion,
        // A list whose issuer may not sign lists, or whose signature is another's, says nothing.
        Error::InvalidCertRevocationList(_) => RefusalCode::RevocationUnknown,
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                RefusalCode::CertificateExpired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                RefusalCode::CertificateNotYetValid
            }
            CertificateError::UnknownIssuer => RefusalCode::CertificateIssuer,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                RefusalCode::CertificatePurpose
            }
            CertificateError::Revoked => RefusalCode::CertificateRevoked,
            CertificateError::UnknownRevocationStatus => RefusalCode::RevocationUnknown,
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => RefusalCode::RevocationExpired,
            _ => RefusalCode::CertificateInvalid,
        },
        _ => RefusalCode::TlsFailed,
    }
}

/// The chain of an open connection, to be judged anew when what is in force changes.
pub(in crate::listen) struct Chain {
    pub(in crate::listen) certificates: Vec<CertificateDer<'static>>,
    pub(in crate::listen) in_force: Receiver<Arc<Generation>>,
}

impl Chain {
    /// Returns when the chain no longer holds: revoked, or its authority left. Lists that expired, are not sound or do not know it let nobody in,
    /// but end no connection: nothing was said against this certificate.
    pub(in crate::listen) async fn refused(&self) {
        let mut in_force = self.in_force.clone();
        loop {
            if in_force.changed().await.is_err() {
                // The listener is gone, and with it whoever could change anything.
                return std::future::pending().await;
            }
            let judge = in_force.borrow_and_update().judge.clone();
            let Some((end_entity, intermediates)) = self.certificates.split_first() else { return };
            match judge.verify_client_cert(end_entity, intermediates, UnixTime::now()) {
                Ok(_)
                | Err(Error::InvalidCertRevocationList(_))
                | Err(Error::InvalidCertificate(
                    CertificateError::UnknownRevocationStatus
                    | CertificateError::ExpiredRevocationList
                    | CertificateError::ExpiredRevocationListContext { .. },
                )) => {}
                Err(error) => {
                    tracing::info!(%error, "a connection is closed: its certificate no longer holds");
                    return;
                }
            }
        }
    }
}
