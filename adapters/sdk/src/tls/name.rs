//! The names in a partner's certificate, and which of them are let in.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// Names of one certificate that are read; it may hold more.
const NAMES_MAX: usize = 64;
/// Longest name, bytes; longer ones are nobody's.
const NAME_BYTES_MAX: usize = 1024;
/// Names that a refusal tells.
const TOLD_MAX: usize = 4;

/// A name in a certificate: as text `uri:…`, `dns:…` or `cn:…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum PeerName {
    /// An alternative name of the kind URI.
    Uri(String),
    /// An alternative name of the kind DNS, in lower case.
    Dns(String),
    /// The subject's common name, which older authorities put the only name into.
    CommonName(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no name in a certificate: it must begin with uri:, dns: or cn:")]
pub struct NameError;

impl TryFrom<String> for PeerName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let (kind, name) = text.split_once(':').ok_or(NameError)?;
        let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
        match kind {
            _ if !fits => Err(NameError),
            "uri" => Ok(Self::Uri(name.to_owned())),
            "dns" => Ok(Self::Dns(name.to_ascii_lowercase())),
            "cn" => Ok(Self::CommonName(name.to_owned())),
            _ => Err(NameError),
        }
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::CommonName(name) => write!(f, "cn:{name}"),
        }
    }
}

/// The names of a certificate that a handshake has validated; none of one that cannot be read.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<PeerName> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    // An error here is a second extension of alternative names, or one that cannot be read: it names nobody.
    let Ok(alternative) = parsed.subject_alternative_name() else { return Vec::new() };
    let alternative = alternative.map_or(&[][..], |names| &names.value.general_names);
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = alternative.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(PeerName::Uri((*uri).to_owned())),
        GeneralName::DNSName(name) => Some(PeerName::Dns(name.to_ascii_lowercase())),
        _ => None,
    });
    alternative.chain(common.map(|name| PeerName::CommonName(name.to_owned()))).take(NAMES_MAX).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("its certificate is for {}, which is not in allow_names", told(.0))]
struct NotAllowed(Vec<PeerName>);

fn told(names: &[PeerName]) -> String {
    if names.is_empty() {
        return "nobody".to_owned();
    }
    // From a certificate that is valid, and still somebody else's words: without what would break a line of the log.
    let name =
        |name: &PeerName| name.to_string().chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    names.iter().take(TOLD_MAX).map(name).collect::<Vec<_>>().join(", ")
}

/// Lets in certificates that are valid and have one of the names, so that the partner learns of its refusal in the handshake.
#[derive(Debug)]
pub(super) struct Admission {
    webpki: Arc<dyn ClientCertVerifier>,
    /// Everybody, where there are none.
    allowed: Vec<PeerName>,
}

impl Admission {
    pub(super) fn new(webpki: Arc<dyn ClientCertVerifier>, allowed: Vec<PeerName>) -> Self {
        Self { webpki, allowed }
    }
}

impl ClientCertVerifier for Admission {
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
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now)?;
        let names = names(end_entity);
        if self.allowed.is_empty() || names.iter().any(|name| self.allowed.contains(name)) {
            return Ok(verified);
        }
        let refusal = OtherError(Arc::new(NotAllowed(names)));
        Err(Error::InvalidCertificate(CertificateError::Other(refusal)))
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
