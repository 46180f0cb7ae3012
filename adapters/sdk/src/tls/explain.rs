//! What went wrong in a TLS handshake or after it, in words that say whose certificate it was about.

use std::error::Error as _;
use std::io;

use rustls::{AlertDescription as Alert, CertificateError, Error, PeerIncompatible};

/// An error of a [`Stream`](super::Stream) or a handshake as a person reads it: `it` is the partner.
pub fn explain(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        None => error.to_string(),
    }
}

fn tls(error: &Error) -> String {
    let said = match error {
        Error::NoCertificatesPresented => "it shows no certificate",
        Error::InvalidCertificate(fault) => return certificate(fault),
        Error::InvalidCertRevocationList(_) => {
            "whether its certificate has been revoked cannot be told: a list in crl_files is not what its authority has signed"
        }
        Error::InvalidMessage(_) => "it does not speak TLS",
        Error::PeerIncompatible(what) => return incompatible(what),
        Error::AlertReceived(alert) => return told(*alert),
        error => return error.to_string(),
    };
    said.to_owned()
}

fn certificate(fault: &CertificateError) -> String {
    let said = match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet"
        }
        CertificateError::Revoked => "its certificate has been revoked",
        CertificateError::UnknownRevocationStatus => {
            "whether its certificate has been revoked cannot be told: its authority's list is not in crl_files"
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "whether its certificate has been revoked cannot be told: a list in crl_files is out of date"
        }
        CertificateError::UnknownIssuer => "its certificate is from an authority that is not trusted here",
        CertificateError::BadSignature => "its certificate is not signed by the authority that it names",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is for another purpose (its extended key usage)"
        }
        CertificateError::NotValidForName => "its certificate is for another name",
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = presented.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
            return format!("its certificate is not for {} but for {names}", expected.to_str());
        }
        CertificateError::Other(other) => return other.0.source().unwrap_or(&*other.0).to_string(),
        fault => return format!("its certificate cannot be used: {fault}"),
    };
    said.to_owned()
}

fn incompatible(what: &PeerIncompatible) -> String {
    match what {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // Which came with TLS 1.2.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic => {
            "it speaks no version of TLS that is taken here".to_owned()
        }
        what => format!("it has no way to speak TLS in common with us ({what:?})"),
    }
}

/// What the partner said of us.
fn told(alert: Alert) -> String {
    let said = match alert {
        Alert::CertificateRequired => {
            "it asks for our certificate, and there is none: set cert_file and key_file"
        }
        Alert::UnknownCA => "it does not trust the authority of our certificate",
        Alert::CertificateExpired => "it says that our certificate has expired",
        Alert::CertificateRevoked => "it says that our certificate has been revoked",
        Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::UnsupportedCertificate
        | Alert::AccessDenied => "it refuses our certificate",
        Alert::ProtocolVersion => "it speaks no version of TLS that is taken here",
        Alert::HandshakeFailure => "it has no way to speak TLS in common with us, or asks for a certificate",
        Alert::UnrecognisedName => "it does not know the name that we asked for (server_name)",
        alert => return format!("it broke the TLS connection off: {alert:?}"),
    };
    said.to_owned()
}
