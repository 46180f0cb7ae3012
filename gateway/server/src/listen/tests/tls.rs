//! TCP: only TLS 1.3, only with a certificate, and only one URI name is an identity.

mod bad;
mod reload;
mod testssl;

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    time::SystemTime,
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::WantsClientCert,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::pressure::{A_WHILE, HOURS};
use super::*;
use crate::config::{ListenAt, Serves::Apps, TcpListen, TlsFiles};
use crate::listen::tls::{TlsError, identity};

const EHR: &str = "spiffe://clinic.example/ehr";
const LAB: &str = "spiffe://clinic.example/lab";
const DAY: time::Duration = time::Duration::DAY;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate, key, intermediates: Vec::new() }
    }
}

struct Identity {
    certificate: Certificate,
    key: KeyPair,
    /// Sent after its own.
    intermediates: Vec<CertificateDer<'static>>,
}

impl Identity {
    fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

fn params(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    // What is in the subject must never matter.
    params.distinguished_name.push(DnType::CommonName, EHR);
    params.subject_alt_names = names.to_vec();
    params
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A server whose clients must come from `clients`; it trusts nobody else, and itself is certified by `servers`.
struct TlsRig {
    rig: Rig,
    address: SocketAddr,
    servers: Authority,
    clients: Authority,
    files: TlsFiles,
    tls: Arc<ServerTls>,
}

impl TlsRig {
    async fn start(limits: Limits) -> Self {
        Self::start_with(limits, |_, _, _| {}).await
    }

    /// With whatever else `write` puts into the directory and the files.
    async fn start_with(limits: Limits, write: impl FnOnce(&Path, &Authority, &mut TlsFiles)) -> Self {
        let mut rig = Rig::new(Gate { uris: vec![EHR.to_owned()], ..Gate::default() }, limits);
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let mut files = write_files(rig.directory.path(), &servers, &clients);
        write(rig.directory.path(), &clients, &mut files);
        let address = "127.0.0.1:0".parse().unwrap();
        let at = ListenAt::Tcp(TcpListen { address, tls: files.clone() });
        let listener = Listener::bind(&config::Listen { serves: Apps, at }).await.unwrap();
        let (address, tls) = (listener.address().unwrap(), listener.tls().unwrap());
        rig.serve(listener);
        Self { rig, address, servers, clients, files, tls }
    }

    async fn connect(&self, client: Option<&Identity>) -> io::Result<TlsStream<TcpStream>> {
        self.connect_with(client, &TLS13).await
    }

    async fn connect_with(
        &self,
        client: Option<&Identity>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = self.client_config(version);
        let config = match client {
            Some(client) => {
                let chain = [vec![client.certificate()], client.intermediates.clone()].concat();
                return self.connect_chain(chain, client.private_key(), version).await;
            }
            None => config.with_no_client_auth(),
        };
        self.connect_by(config).await
    }

    /// Whatever the chain is: a client's own checks must not stand in for the server's.
    async fn connect_chain(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<TlsStream<TcpStream>> {
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let own = Arc::new(CertifiedKey::new(chain, key));
        let config = self.client_config(version);
        self.connect_by(config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))).await
    }

    fn client_config(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(self.servers.certificate.der().clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
    }

    async fn connect_by(&self, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    async fn get(&self, client: &Identity) -> Answer {
        get_and_close(&mut self.connect(Some(client)).await.unwrap(), "/who").await
    }

    /// Whether the handshake, or what in TLS 1.3 is told to the client after it, fails.
    async fn is_shut_out(
        &self,
        client: Option<&Identity>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> bool {
        let Ok(mut stream) = self.connect_with(client, version).await else { return true };
        let _ = stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let read = timeout(HANG, stream.read_to_end(&mut answer)).await.expect("it was not closed");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        read.is_err()
    }
}

fn write_files(directory: &Path, servers: &Authority, clients: &Authority) -> TlsFiles {
    let mut server = params(&[dns("localhost")]);
    let now = time::OffsetDateTime::now_utc();
    // As long as authorities give: a longer one is a finding of its own.
    (server.not_before, server.not_after) = (now - DAY, now + DAY * 90);
    let server = servers.issue(&server);
    let files = TlsFiles {
        cert: directory.join("server.pem"),
        key: directory.join("server.key"),
        client_ca: directory.join("clients.pem"),
        crl: Vec::new(),
    };
    fs::write(&files.cert, server.certificate.pem()).unwrap();
    fs::write(&files.key, server.key.serialize_pem()).unwrap();
    fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
    fs::write(&files.client_ca, clients.certificate.pem()).unwrap();
    files
}

#[tokio::test]
async fn one_uri_name_is_the_identity_and_nothing_else_is() {
    let mut tls = TlsRig::start(Limits::default()).await;
    for names in [vec![uri(EHR)], vec![dns("ehr.example"), uri(EHR)]] {
        let answer = tls.get(&tls.clients.issue(&params(&names))).await;
        assert_eq!(answer.status, 200, "{names:?}");
        assert_eq!(answer.body, format!("apps None [] Some({EHR:?}) None"));
    }
    let cases = [
        (vec![], RefusalCode::CertificateName),
        (vec![dns("ehr.example")], RefusalCode::CertificateName),
        (vec![uri(EHR), uri(LAB)], RefusalCode::CertificateName),
        (vec![uri(EHR), uri(EHR)], RefusalCode::CertificateName),
        (vec![uri("")], RefusalCode::CertificateSpiffe),
        (vec![uri(LAB)], RefusalCode::UnknownPeer),
        (vec![uri("spiffe://clinic.example/EHR")], RefusalCode::UnknownPeer),
        (vec![uri("spiffe://clinic.example/ehr/")], RefusalCode::CertificateSpiffe),
    ];
    for (names, code) in cases {
        assert_eq!(tls.get(&tls.clients.issue(&params(&names))).await.status, 401, "{names:?}");
        let refusal = tls.rig.refusals().pop().unwrap();
        assert_eq!(refusal.code, code, "{names:?}");
        assert!(refusal.remote.is_some());
    }
    tls.rig.stop().await;
}

#[tokio::test]
async fn certificates_that_do_not_hold_are_shut_out() {
    let mut tls = TlsRig::start(Limits::default()).await;
    let now = time::OffsetDateTime::now_utc();
    let good = params(&[uri(EHR)]);
    let mut expired = good.clone();
    (expired.not_before, expired.not_after) = (now - DAY * 2, now - DAY);
    let mut future = good.clone();
    (future.not_before, future.not_after) = (now + DAY, now + DAY * 2);
    let mut for_servers = good.clone();
    for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut authority = good.clone();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own_key = KeyPair::generate().unwrap();
    let certificate = good.self_signed(&own_key).unwrap();
    let self_signed = Identity { certificate, key: own_key, intermediates: Vec::new() };

    let cases = [
        ("expired", Some(tls.clients.issue(&expired))),
        ("not yet valid", Some(tls.clients.issue(&future))),
        ("for servers only", Some(tls.clients.issue(&for_servers))),
        ("an authority's", Some(tls.clients.issue(&authority))),
        ("another authority's", Some(tls.servers.issue(&good))),
        ("a same-named authority's", Some(Authority::new("clients").issue(&good))),
        ("self-signed", Some(self_signed)),
        ("none", None),
    ];
    for (what, client) in &cases {
        assert!(tls.is_shut_out(client.as_ref(), &TLS13).await, "{what}");
    }
    let client = tls.clients.issue(&good);
    assert!(tls.is_shut_out(Some(&client), &TLS12).await, "TLS 1.2");
    assert_eq!(tls.get(&client).await.status, 200, "the certificate was not at fault");
    until("every refusal", || tls.rig.refusals().len() == cases.len() + 1).await;
    tls.rig.stop().await;
}

#[tokio::test]
async fn plaintext_and_silence_get_nowhere() {
    let mut tls = TlsRig::start(Limits { handshake: Duration::from_secs(2), ..Limits::default() }).await;
    let mut plain = TcpStream::connect(tls.address).await.unwrap();
    plain.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = read_to_close(&mut plain).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    until("the refusal", || tls.rig.refusal_codes() == [RefusalCode::TlsFailed]).await;

    let mut silent = TcpStream::connect(tls.address).await.unwrap();
    assert!(read_to_close(&mut silent).await.is_empty());
    until("the refusal", || tls.rig.refusal_codes().last() == Some(&RefusalCode::TlsTimeout)).await;
    tls.rig.stop().await;
}

#[tokio::test]
async fn a_handshake_waits_for_its_turn_and_one_that_fails_was_in_vain() {
    let mut tls = TlsRig::start(Limits { in_vain: HOURS, ..Limits::default() }).await;
    let client = tls.clients.issue(&params(&[uri(EHR)]));
    assert_eq!(tls.get(&client).await.status, 200);
    assert!(tls.is_shut_out(None, &TLS13).await);
    until("its end", || tls.rig.counters.open() == 0).await;
    assert!(timeout(A_WHILE, tls.connect(Some(&client))).await.is_err(), "nothing is shaken yet");
    tls.rig.stop().await;
}

#[test]
fn files_that_cannot_serve_are_named() {
    let root = tempfile::tempdir().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let files = write_files(root.path(), &servers, &clients);
    ServerTls::load(&files).unwrap();

    fs::set_permissions(&files.key, Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(ServerTls::load(&files), Err(TlsError::KeyExposed { path }) if path == files.key));
    fs::set_permissions(&files.key, Permissions::from_mode(0o400)).unwrap();

    let load = |files: TlsFiles| ServerTls::load(&files).unwrap_err();
    let cert_as_key = TlsFiles { client_ca: files.key.clone(), ..files.clone() };
    assert!(
        matches!(load(cert_as_key), TlsError::NotPem { path, expected: "certificate" } if path == files.key)
    );
    let missing = root.path().join("missing");
    let no_key = TlsFiles { key: missing.clone(), ..files.clone() };
    assert!(matches!(load(no_key), TlsError::Unreadable { path, .. } if path == missing));
    let empty = root.path().join("empty");
    fs::write(&empty, "").unwrap();
    let no_roots = TlsFiles { client_ca: empty.clone(), ..files.clone() };
    assert!(matches!(load(no_roots), TlsError::NotPem { path, .. } if path == empty));
    let no_lists = TlsFiles { crl: vec![empty.clone()], ..files.clone() };
    assert!(
        matches!(load(no_lists), TlsError::NotPem { path, expected: "revocation list" } if path == empty)
    );
    let vast = root.path().join("vast");
    fs::File::create(&vast).unwrap().set_len(1 << 30).unwrap();
    let cut = TlsFiles { client_ca: vast.clone(), ..files };
    assert!(matches!(load(cut), TlsError::TooLarge { path, .. } if path == vast));
}

#[test]
fn an_identity_knows_how_long_it_holds() {
    let now = SystemTime::now();
    let mut params = params(&[uri(EHR)]);
    params.not_after = time::OffsetDateTime::from(now + Duration::from_secs(90));
    let client = Authority::new("clients").issue(&params);
    let found = identity(&client.certificate(), now).unwrap();
    assert_eq!(found.uri, EHR);
    assert!((89..=90).contains(&found.valid_for.as_secs()), "{found:?}");
    assert_eq!(
        identity(&client.certificate(), now + Duration::from_secs(200)).unwrap().valid_for,
        Duration::ZERO
    );
    assert!(identity(&CertificateDer::from(vec![0x30, 0]), now).is_err());
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let mut tls = TlsRig::start(Limits::default()).await;
    // Who is held up comes too late with the first.
    for seconds in [3, 30] {
        let mut params = params(&[uri(EHR)]);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let client = tls.clients.issue(&params);
        let Ok(mut open) = tls.connect(Some(&client)).await else { continue };
        let _ = open.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let answer = read_to_close(&mut open).await;
        if !answer.is_empty() {
            assert_eq!(parse(&answer).status, 200, "one request was served, then the connection was closed");
            return tls.rig.stop().await;
        }
    }
    panic!("no request was served");
}
