//! Who a client is: the one URI name in its certificate, a SPIFFE id.
//!
//! Names in subjects, common names and DNS entries are no identity here: matching on them has let strangers in elsewhere (NATS, AWS-LC).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::{config::spiffe_fault, listen::RefusalCode};

/// The identity in a client certificate, and for how long it holds.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::listen) struct CertificateIdentity {
    pub(in crate::listen) uri: String,
    pub(in crate::listen) valid_for: Duration,
}

/// Why a certificate names nobody.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::listen) struct Nameless {
    pub(in crate::listen) code: RefusalCode,
    pub(in crate::listen) why: &'static str,
}

const fn no_single_name(why: &'static str) -> Nameless {
    Nameless { code: RefusalCode::CertificateName, why }
}

/// Reads a certificate that the handshake has validated. It must have exactly one URI name (as SPIFFE demands of an X.509-SVID).
pub(in crate::listen) fn identity(
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<CertificateIdentity, Nameless> {
    let unreadable = || no_single_name("the certificate cannot be read");
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    if !rest.is_empty() {
        return Err(unreadable());
    }
    // An error here is a second extension of alternative names, or one that cannot be read: no identity either way.
    let names = parsed.subject_alternative_name().map_err(|_| no_single_name("its names cannot be read"))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(no_single_name("its names cannot be read"));
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = match (uris.next(), uris.next()) {
        (Some(uri), None) => uri,
        (None, _) => return Err(no_single_name("it has no URI name")),
        (Some(_), Some(_)) => return Err(no_single_name("it has more than one URI name")),
    };
    if let Some(why) = spiffe_fault(uri) {
        return Err(Nameless { code: RefusalCode::CertificateSpiffe, why });
    }
    let now = now.duration_since(UNIX_EPOCH).map_err(|_| unreadable())?.as_secs();
    let ends = u64::try_from(parsed.validity().not_after.timestamp()).map_err(|_| unreadable())?;
    Ok(CertificateIdentity { uri: uri.to_owned(), valid_for: Duration::from_secs(ends.saturating_sub(now)) })
}
