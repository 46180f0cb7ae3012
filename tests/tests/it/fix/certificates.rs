//! Certificates for both sides, from one authority.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Files in PEM.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    /// Certificate and key of the gateway's side, and of QuickFIX's.
    pub(crate) ours: [PathBuf; 2],
    pub(crate) theirs: [PathBuf; 2],
}

impl Certificates {
    pub(crate) fn make(directory: &Path) -> Self {
        let file = |name: &str, text: String| {
            let file = directory.join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "FIX test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = file("ca.pem", params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        let side = |name: &str| {
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), format!("{name}.example.org")];
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let key_file = file(&format!("{name}.key"), key.serialize_pem());
            std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
            [file(&format!("{name}.pem"), certificate.pem()), key_file]
        };
        Self { authority, ours: side("buy"), theirs: side("sell") }
    }

    /// What QuickFIX is told.
    pub(crate) fn of_partner(&self) -> Vec<String> {
        [&self.theirs[0], &self.theirs[1], &self.authority].map(|file| file.display().to_string()).to_vec()
    }
}
