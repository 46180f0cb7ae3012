//! What settings say of TLS. The same words in every adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateRevocationListDer, ServerName};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_platform_verifier::Verifier;
use schemars::JsonSchema;
use serde::Deserialize;

use super::misset::Misset;
use super::name::{Admission, PeerName};
use super::pem::{self, OwnCertificate};
use crate::process::Fault;

/// TLS with a partner that this adapter connects to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectTls {
    /// Files with the certificates, in PEM, of the only authorities that are trusted. Without any: the system's.
    pub ca_files: Vec<PathBuf>,
    /// Files with lists of revoked certificates, in PEM or DER. With any, a partner is trusted only if the lists of every authority between
    /// it and `ca_files` are there, are not out of date, and do not name its chain.
    pub crl_files: Vec<PathBuf>,
    /// The name, or address, that the partner's certificate must be for. Default: the host that is connected to.
    pub server_name: Option<String>,
    /// Our certificate and the ones between it and its authority, in PEM, for partners that ask for one. Goes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Our certificate's private key, in PEM.
    pub key_file: Option<PathBuf>,
    /// The oldest version of TLS that is spoken.
    pub min_version: MinVersion,
}

/// TLS with partners that connect to this adapter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenTls {
    /// Our certificate and the ones between it and its authority, in PEM.
    pub cert_file: PathBuf,
    /// Our certificate's private key, in PEM.
    pub key_file: PathBuf,
    /// Files with the certificates, in PEM, of authorities for partners' certificates. With any, every partner must show one.
    #[serde(default)]
    pub client_ca_files: Vec<PathBuf>,
    /// Files with lists of revoked certificates, in PEM or DER. With any, a partner is let in only if the lists of every authority between
    /// it and `client_ca_files` are there, are not out of date, and do not name its chain.
    #[serde(default)]
    pub crl_files: Vec<PathBuf>,
    /// Names of which a partner's certificate must have one: `uri:spiffe://clinic/lab`, `dns:lab.example.org` or `cn:Lab 1`. Without any,
    /// every certificate of `client_ca_files` is let in.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub allow_names: Vec<PeerName>,
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub min_version: MinVersion,
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum MinVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

static FROM_1_2: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
static FROM_1_3: [&SupportedProtocolVersion; 1] = [&TLS13];

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => &FROM_1_2,
            Self::Tls13 => &FROM_1_3,
        }
    }
}

impl ConnectTls {
    /// What is wrong with them; keys begin with `key`, the setting that holds them. `address` is what is connected to.
    pub fn faults(&self, key: &str, address: &str) -> Vec<Fault> {
        let mut faults = Faults::new(key);
        faults.note(self.name(address));
        faults.note(self.config());
        faults.0
    }

    /// All files, for what the process must be able to read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let trusted = self.ca_files.iter().chain(&self.crl_files);
        trusted.chain(&self.cert_file).chain(&self.key_file).map(PathBuf::as_path)
    }

    /// What the partner's certificate must be for.
    pub(super) fn name(&self, address: &str) -> Result<ServerName<'static>, Misset> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = self.server_name.as_deref().unwrap_or(host);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(bare.to_owned()).map_err(|_| {
            Misset::new(
                "server_name",
                "is no DNS name or address: give the one that the partner's certificate is for",
            )
        })
    }

    pub(super) fn config(&self) -> Result<ClientConfig, Misset> {
        let own = match (&self.cert_file, &self.key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(OwnCertificate::read(cert, key)?),
            (Some(_), None) => {
                return Err(Misset::new("key_file", "is missing: `cert_file` needs its private key"));
            }
            (None, Some(_)) => {
                return Err(Misset::new("cert_file", "is missing: `key_file` needs its certificate"));
            }
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.min_version.versions())
            .map_err(|error| Misset::new("min_version", format!("cannot be had: {error}")))?
            .dangerous()
            // One that verifies fully; rustls has this name for each verifier that is handed in.
            .with_custom_certificate_verifier(self.verifier(provider)?);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let config = builder.with_client_auth_cert(own.chain, own.key);
                config.map_err(|error| pem::mismatch(&error))?
            }
        };
        // Nothing is resumed: every connection is judged by the certificates and lists that hold now.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn verifier(&self, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Misset> {
        if self.ca_files.is_empty() && !self.crl_files.is_empty() {
            let what = "means nothing without `ca_files`: name the authorities that the lists are of";
            return Err(Misset::new("crl_files", what));
        }
        if self.ca_files.is_empty() {
            let system = Verifier::new(provider).map_err(|error| {
                let what = format!(
                    "cannot be used: the system's authorities cannot be read ({error}); name files of your own"
                );
                Misset::new("ca_files", what)
            })?;
            return Ok(Arc::new(system));
        }
        let roots = Arc::new(authorities("ca_files", &self.ca_files)?);
        let mut verifier = WebPkiServerVerifier::builder_with_provider(roots, provider);
        if !self.crl_files.is_empty() {
            verifier = verifier.with_crls(revocations(&self.crl_files)?).enforce_revocation_expiration();
        }
        Ok(verifier.build().map_err(|error| unfit("ca_files", &error))?)
    }
}

impl ListenTls {
    /// With this certificate, for whoever connects.
    pub fn new(cert_file: PathBuf, key_file: PathBuf) -> Self {
        Self {
            cert_file,
            key_file,
            client_ca_files: Vec::new(),
            crl_files: Vec::new(),
            allow_names: Vec::new(),
            min_version: MinVersion::default(),
        }
    }

    /// What is wrong with them; keys begin with `key`, the setting that holds them.
    pub fn faults(&self, key: &str) -> Vec<Fault> {
        let mut faults = Faults::new(key);
        faults.note(self.config());
        faults.0
    }

    /// All files, for what the process must be able to read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let own = [&self.cert_file, &self.key_file].into_iter();
        own.chain(&self.client_ca_files).chain(&self.crl_files).map(PathBuf::as_path)
    }

    pub(super) fn config(&self) -> Result<ServerConfig, Misset> {
        if self.client_ca_files.is_empty() && !self.allow_names.is_empty() {
            let what = "lets nobody in without `client_ca_files`: name the authorities of the partners' certificates";
            return Err(Misset::new("allow_names", what));
        }
        if self.client_ca_files.is_empty() && !self.crl_files.is_empty() {
            let what = "means nothing without `client_ca_files`: name the authorities that the lists are of";
            return Err(Misset::new("crl_files", what));
        }
        let own = OwnCertificate::read(&self.cert_file, &self.key_file)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.min_version.versions())
            .map_err(|error| Misset::new("min_version", format!("cannot be had: {error}")))?;
        let builder = if self.client_ca_files.is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(authorities("client_ca_files", &self.client_ca_files)?);
            let mut webpki = WebPkiClientVerifier::builder_with_provider(roots, provider);
            if !self.crl_files.is_empty() {
                webpki = webpki.with_crls(revocations(&self.crl_files)?).enforce_revocation_expiration();
            }
            let webpki = webpki.build().map_err(|error| unfit("client_ca_files", &error))?;
            builder.with_client_cert_verifier(Arc::new(Admission::new(webpki, self.allow_names.clone())))
        };
        let mut config =
            builder.with_single_cert(own.chain, own.key).map_err(|error| pem::mismatch(&error))?;
        // Nothing is resumed: every connection is judged by the certificates and names that hold now.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn authorities(key: &'static str, files: &[PathBuf]) -> Result<RootCertStore, Misset> {
    let mut roots = RootCertStore::empty();
    for file in files {
        for certificate in pem::certificates(key, file)? {
            roots.add(certificate).map_err(|error| {
                let file = file.display();
                Misset::new(
                    key,
                    format!("{file} has a certificate that cannot serve as an authority: {error}"),
                )
            })?;
        }
    }
    Ok(roots)
}

/// The lists of all files.
fn revocations(files: &[PathBuf]) -> Result<Vec<CertificateRevocationListDer<'static>>, Misset> {
    let mut lists = Vec::new();
    for file in files {
        lists.extend(pem::revocations(file)?);
    }
    Ok(lists)
}

/// `authorities` is the setting that names them.
fn unfit(authorities: &'static str, error: &VerifierBuilderError) -> Misset {
    match error {
        VerifierBuilderError::InvalidCrl(what) => {
            Misset::new("crl_files", format!("hold a list that cannot be used: {what:?}"))
        }
        error => Misset::new(authorities, format!("cannot be used: {error}")),
    }
}

struct Faults<'a>(Vec<Fault>, &'a str);

impl<'a> Faults<'a> {
    fn new(key: &'a str) -> Self {
        Self(Vec::new(), key)
    }

    fn note<T>(&mut self, read: Result<T, Misset>) {
        if let Err(misset) = read {
            self.0.push(Fault::new(format!("{}.{}", self.1, misset.key), misset.message));
        }
    }
}
