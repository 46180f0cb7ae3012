//! TLS of the tools, by the command line.

use std::error::Error as _;
use std::path::PathBuf;

use gatepost_adapter::Failure;
use gatepost_adapter::tls::{ConnectTls, ListenTls};

#[derive(Debug, clap::Args)]
pub(crate) struct SendTls {
    /// Speak TLS; the partner's certificate must be from an authority of this system
    #[arg(long)]
    tls: bool,
    /// Speak TLS; the partner's certificate must be from an authority in this file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The name that the partner's certificate must be for [default: HOST]
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// Our certificate, for partners that ask for one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Our certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl SendTls {
    pub(crate) fn settings(&self) -> Option<ConnectTls> {
        let asked = self.tls || self.tls_ca.is_some() || self.tls_name.is_some() || self.tls_cert.is_some();
        asked.then(|| ConnectTls {
            ca_files: self.tls_ca.iter().cloned().collect(),
            server_name: self.tls_name.clone(),
            cert_file: self.tls_cert.clone(),
            key_file: self.tls_key.clone(),
            ..ConnectTls::default()
        })
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListenTlsArgs {
    /// Speak TLS with this certificate
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Senders must show a certificate from an authority in this file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

impl ListenTlsArgs {
    pub(crate) fn settings(&self) -> Option<ListenTls> {
        let (cert_file, key_file) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        let client_ca_files = self.tls_client_ca.iter().cloned().collect();
        Some(ListenTls { client_ca_files, ..ListenTls::new(cert_file, key_file) })
    }
}

/// What is wrong with the files that were named.
pub(crate) fn told(failure: &Failure) -> String {
    failure.source().map_or_else(|| failure.to_string(), ToString::to_string)
}
