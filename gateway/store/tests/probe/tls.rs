//! A server is verified where the address asks for that.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use gatepost_postgres::Cluster;
use gatepost_store::{Engines, OpenError, ServerLook, server_look};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server that shows a certificate for this name.
    fn server(&self, name: &str) -> Cluster {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Cluster::listen_with_tls(HOST, &certificate, &key.serialize_pem())
            .expect("a PostgreSQL server for the tests")
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, &self.pem).unwrap();
    }
}

async fn look(server: &Cluster, mode: &str, authority: Option<&Path>) -> Result<ServerLook, OpenError> {
    let root = authority.map(|path| format!("&sslrootcert={}", path.display())).unwrap_or_default();
    let url = server.tcp_url("postgres").unwrap().replace("gatepost@", "gatepost:s3cret@");
    server_look(&format!("{url}?sslmode={mode}{root}"), Engines::Postgres).await
}

fn assert_refused(looked: Result<ServerLook, OpenError>) {
    let text = looked.expect_err("the server was taken").to_string();
    assert!(text.contains("certificate"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_server_is_known_by_its_authority_and_its_name() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let (right_pem, wrong_pem) = (dir.path().join("right.pem"), dir.path().join("wrong.pem"));
    right.write(&right_pem);
    wrong.write(&wrong_pem);

    let server = right.server("127.0.0.1");
    assert_eq!(look(&server, "verify-full", Some(&right_pem)).await.unwrap().findings, []);
    assert_refused(look(&server, "verify-full", Some(&wrong_pem)).await);
    assert_refused(look(&server, "verify-ca", Some(&wrong_pem)).await);
    // Public authorities do not know it.
    assert_refused(look(&server, "verify-full", None).await);
    // What encrypts without verifying takes anybody, which is why it will not do elsewhere.
    look(&server, "require", None).await.unwrap();

    let other = right.server("db.example");
    assert_refused(look(&other, "verify-full", Some(&right_pem)).await);
    look(&other, "verify-ca", Some(&right_pem)).await.unwrap();
}
