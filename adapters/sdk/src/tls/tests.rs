//! Both sides against each other and against partners that do it wrong, over real sockets.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::{self, Certificate};

mod revocation;

const PATIENCE: Duration = Duration::from_secs(20);

/// An authority whose certificates are told as the settings that name them.
struct Authority(testing::Authority);

impl Authority {
    fn new() -> Self {
        Self::named("Test Authority")
    }

    fn named(name: &str) -> Self {
        Self(testing::Authority::new(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn certify(&self, file: &str, change: impl FnOnce(&mut CertificateParams)) -> Value {
        told(&self.0.certify_with(file, change))
    }

    fn server(&self) -> Value {
        self.certify("server", |params| params.subject_alt_names = vec![dns("lab.example")])
    }

    fn client(&self) -> Value {
        self.certify("client", |params| {
            params.subject_alt_names =
                vec![dns("EHR.example"), SanType::URI("spiffe://clinic/ehr".try_into().unwrap())];
            params.distinguished_name.push(DnType::CommonName, "EHR 1");
        })
    }

    fn connect(&self, more: Value) -> ConnectTls {
        let mut settings = json!({"ca_files": [self.path("ca.pem")], "server_name": "lab.example"});
        extend(&mut settings, more);
        serde_json::from_value(settings).unwrap()
    }

    fn listen(&self, more: Value) -> ListenTls {
        let mut settings = self.server();
        extend(&mut settings, more);
        serde_json::from_value(settings).unwrap()
    }

    /// A partner's sides, which resume what the other side lets them.
    fn willing_to_resume(&self) -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
        let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server: ListenTls = serde_json::from_value(self.server()).unwrap();
        let chain = CertificateDer::pem_file_iter(&server.cert_file).unwrap().collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_file(&server.key_file).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider());
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider());
        let client = client.with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        (Arc::new(server.with_single_cert(chain.unwrap(), key).unwrap()), Arc::new(client))
    }

    /// Settings that ask every client for a certificate of this authority.
    fn mutual(&self, more: Value) -> ListenTls {
        let mut settings = json!({"client_ca_files": [self.path("ca.pem")]});
        extend(&mut settings, more);
        self.listen(settings)
    }
}

fn told(certificate: &Certificate) -> Value {
    json!({"cert_file": certificate.cert_file, "key_file": certificate.key_file})
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn extend(object: &mut Value, more: Value) {
    let (Value::Object(object), Value::Object(more)) = (object, more) else { panic!("not objects") };
    object.extend(more);
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

type Ended<T> = Result<T, String>;

/// Connects and says hello both ways; what each side comes to.
async fn meet(connect: &ConnectTls, listen: &ListenTls) -> (Ended<Vec<PeerName>>, Ended<Vec<PeerName>>) {
    let (listener, address) = listener().await;
    let connector = Connector::new(&address.to_string(), Some(connect)).unwrap();
    let acceptor = Acceptor::new(Some(listen)).unwrap();
    let hello = async |mut stream: Stream| {
        assert!(stream.is_tls());
        let said = async {
            stream.write_all(b"hello").await?;
            stream.flush().await?;
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).await?;
            assert_eq!(&heard, b"hello");
            Ok(())
        };
        said.await.map_err(|error| explain(&error))?;
        Ok(stream.peer_names().to_vec())
    };
    tokio::join!(
        async {
            let stream = connector.connect(PATIENCE).await.map_err(|error| error.to_string())?;
            hello(stream).await
        },
        async {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(stream, PATIENCE).await.map_err(|error| error.to_string())?;
            hello(stream).await
        }
    )
}

fn names(of: &Ended<Vec<PeerName>>) -> Vec<String> {
    of.as_ref().unwrap().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn both_sides_know_each_others_names() {
    let authority = Authority::new();
    let (partner, client) = meet(&authority.connect(json!({})), &authority.listen(json!({}))).await;
    assert_eq!(names(&partner), ["dns:lab.example", "cn:rcgen self signed cert"]);
    assert!(names(&client).is_empty(), "it was not asked for a certificate");
    let (_, client) = meet(&authority.connect(authority.client()), &authority.mutual(json!({}))).await;
    assert_eq!(names(&client), ["dns:ehr.example", "uri:spiffe://clinic/ehr", "cn:EHR 1"]);
}

#[tokio::test]
async fn of_many_names_one_that_is_allowed_is_enough() {
    let authority = Authority::new();
    let connect = authority.connect(authority.client());
    for allowed in ["dns:Ehr.Example", "uri:spiffe://clinic/ehr", "cn:EHR 1"] {
        let listen = authority.mutual(json!({"allow_names": ["dns:other", allowed]}));
        let (partner, client) = meet(&connect, &listen).await;
        assert!(partner.is_ok() && client.is_ok(), "{allowed}: {client:?}");
    }
    // The kind of a name is part of it, and nothing matches in part.
    for allowed in
        ["cn:ehr.example", "dns:spiffe://clinic/ehr", "uri:spiffe://clinic", "cn:EHR 11", "dns:*.example"]
    {
        let listen = authority.mutual(json!({"allow_names": [allowed]}));
        let (partner, client) = meet(&connect, &listen).await;
        let refused = "no TLS with the partner: its certificate is for dns:ehr.example, uri:spiffe://clinic/ehr, cn:EHR 1, \
            which is not in allow_names";
        assert_eq!(client.unwrap_err(), refused, "{allowed}");
        assert_eq!(partner.unwrap_err(), "no TLS with the partner: it refuses our certificate", "{allowed}");
    }
}

#[tokio::test]
async fn each_version_that_is_allowed_is_spoken() {
    let authority = Authority::new();
    for (connect, listen, works) in
        [("1.2", "1.2", true), ("1.3", "1.2", true), ("1.2", "1.3", true), ("1.3", "1.3", true)]
    {
        let (partner, client) = meet(
            &authority.connect(json!({"min_version": connect})),
            &authority.listen(json!({"min_version": listen})),
        )
        .await;
        assert_eq!(partner.is_ok() && client.is_ok(), works, "{connect} with {listen}");
    }
}

#[tokio::test]
async fn who_speaks_1_2_at_most_is_taken_unless_1_3_is_asked_for() {
    let authority = Authority::new();
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(authority.path("ca.pem")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    let old =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let old = tokio_rustls::TlsConnector::from(Arc::new(old));
    for (least, refused) in [
        ("1.2", None),
        ("1.3", Some("no TLS with the partner: it speaks no version of TLS that is taken here")),
    ] {
        let acceptor = Acceptor::new(Some(&authority.listen(json!({"min_version": least})))).unwrap();
        let (listener, address) = listener().await;
        let (_, ended) = tokio::join!(
            async {
                let stream = TcpStream::connect(address).await.unwrap();
                old.connect("lab.example".try_into().unwrap(), stream).await
            },
            async { acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await }
        );
        assert_eq!(ended.err().map(|error| error.to_string()).as_deref(), refused);
    }
}

#[tokio::test]
async fn a_partner_that_is_not_who_it_should_be_is_told_apart() {
    let (authority, other) = (Authority::new(), Authority::named("Another Authority"));
    let expired = authority.certify("expired", |params| {
        params.subject_alt_names = vec![dns("lab.example")];
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let future = authority.certify("future", |params| {
        params.subject_alt_names = vec![dns("lab.example")];
        params.not_before = date_time_ymd(4000, 1, 1);
    });
    let client_only = authority.certify("client-only", |params| {
        params.subject_alt_names = vec![dns("lab.example")];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    for (connect, listen, why) in [
        (
            authority.connect(json!({})),
            other.listen(json!({})),
            "its certificate is from an authority that is not trusted here",
        ),
        (
            authority.connect(json!({"ca_files": []})),
            authority.listen(json!({})),
            "its certificate is from an authority that is not trusted here",
        ),
        (
            authority.connect(json!({"server_name": "other.example"})),
            authority.listen(json!({})),
            "its certificate is not for other.example but for DnsName(\"lab.example\")",
        ),
        // By default it must be for the host that is connected to.
        (
            authority.connect(json!({"server_name": null})),
            authority.listen(json!({})),
            "its certificate is not for 127.0.0.1 but for DnsName(\"lab.example\")",
        ),
        (authority.connect(json!({})), authority.listen(expired), "its certificate has expired"),
        (authority.connect(json!({})), authority.listen(future), "its certificate is not valid yet"),
        (
            authority.connect(json!({})),
            authority.listen(client_only),
            "its certificate is for another purpose (its extended key usage)",
        ),
    ] {
        let (partner, client) = meet(&connect, &listen).await;
        assert_eq!(partner.unwrap_err(), format!("no TLS with the partner: {why}"));
        assert!(client.is_err(), "{why}: the other side thinks that it is connected");
    }
}

#[tokio::test]
async fn a_client_that_may_not_come_in_is_told_apart_and_told_why() {
    let (authority, other) = (Authority::new(), Authority::named("Another Authority"));
    let expired = authority.certify("expired", |params| params.not_after = date_time_ymd(2020, 1, 1));
    let listen = authority.mutual(json!({}));
    for (own, here, there) in [
        (
            json!({}),
            "it shows no certificate",
            "it asks for our certificate, and there is none: set cert_file and key_file",
        ),
        (
            other.client(),
            "its certificate is from an authority that is not trusted here",
            "it does not trust the authority of our certificate",
        ),
        (expired, "its certificate has expired", "it says that our certificate has expired"),
    ] {
        let (partner, client) = meet(&authority.connect(own), &listen).await;
        assert_eq!(client.unwrap_err(), format!("no TLS with the partner: {here}"));
        assert_eq!(partner.unwrap_err(), format!("no TLS with the partner: {there}"));
    }
}

/// A hello of TLS 1.1, and the answer with which a server chooses that version: record, handshake, version, random, no session, one
/// cipher suite, no compression.
fn hello(of_client: bool) -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    body.push(0);
    body.extend(if of_client { &[0, 2, 0, 0x2f, 1, 0][..] } else { &[0, 0x2f, 0][..] });
    let mut handshake = vec![if of_client { 1 } else { 2 }, 0, 0, u8::try_from(body.len()).unwrap()];
    handshake.extend(body);
    let mut record = vec![22, 3, 2, 0, u8::try_from(handshake.len()).unwrap()];
    record.extend(handshake);
    record
}

#[tokio::test]
async fn tls_1_1_is_neither_offered_nor_taken() {
    let authority = Authority::new();
    let (listener, address) = listener().await;
    let acceptor = Acceptor::new(Some(&authority.listen(json!({})))).unwrap();
    let (ended, _) =
        tokio::join!(async { acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await }, async {
            let mut old = TcpStream::connect(address).await.unwrap();
            old.write_all(&hello(true)).await.unwrap();
            let _ = old.read_to_end(&mut Vec::new()).await;
        });
    assert_eq!(
        ended.unwrap_err().to_string(),
        "no TLS with the partner: it speaks no version of TLS that is taken here"
    );

    let connector = Connector::new(&address.to_string(), Some(&authority.connect(json!({})))).unwrap();
    let (ended, offered) = tokio::join!(connector.connect(PATIENCE), async {
        let (mut old, _) = listener.accept().await.unwrap();
        let mut offered = vec![0; 2048];
        let read = old.read(&mut offered).await.unwrap();
        offered.truncate(read);
        old.write_all(&hello(false)).await.unwrap();
        let _ = old.read_to_end(&mut Vec::new()).await;
        offered
    });
    assert_eq!(
        ended.unwrap_err().to_string(),
        "no TLS with the partner: it speaks no version of TLS that is taken here"
    );
    // The extension `supported_versions` (43) with 1.3 and 1.2, in this order.
    let versions = [0, 43, 0, 5, 4, 3, 4, 3, 3];
    assert!(offered.windows(versions.len()).any(|part| part == versions), "other versions were offered");
}

#[tokio::test]
async fn who_does_not_finish_its_handshake_is_not_waited_for() {
    let authority = Authority::new();
    let (listener, address) = listener().await;
    let acceptor = Acceptor::new(Some(&authority.listen(json!({})))).unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(&hello(true)[..9]).await.unwrap();
    let accepted = listener.accept().await.unwrap().0;
    let ended = acceptor.accept(accepted, Duration::from_millis(100)).await;
    assert_eq!(ended.unwrap_err().to_string(), "the TLS handshake was not over within 100 ms");

    let connector = Connector::new(&address.to_string(), Some(&authority.connect(json!({})))).unwrap();
    let ended = connector.connect(Duration::from_millis(100)).await;
    assert_eq!(ended.unwrap_err().to_string(), "connected, but the TLS handshake was not over within 100 ms");
}

#[tokio::test]
async fn who_speaks_no_tls_and_who_hangs_up_are_told_apart() {
    let authority = Authority::new();
    let (listener, address) = listener().await;
    let connector = Connector::new(&address.to_string(), Some(&authority.connect(json!({})))).unwrap();
    for (said, why) in
        [(&b"220 mail.example ESMTP\r\n"[..], "it does not speak TLS"), (b"", "it closed the connection")]
    {
        let (ended, ()) = tokio::join!(connector.connect(PATIENCE), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // What it was sent is read, so that the kernel does not reset the connection over it.
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(said).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        assert_eq!(ended.unwrap_err().to_string(), format!("no TLS with the partner: {why}"));
    }
    drop(listener);
    assert_eq!(
        connector.connect(PATIENCE).await.unwrap_err().to_string(),
        "cannot connect: connection refused"
    );
}

#[tokio::test]
async fn without_tls_the_stream_is_the_connection() {
    let (listener, address) = listener().await;
    let connector = Connector::new(&address.to_string(), None).unwrap();
    let acceptor = Acceptor::new(None).unwrap();
    let (ours, theirs) = tokio::join!(connector.connect(PATIENCE), listener.accept());
    let (mut ours, mut theirs) = (ours.unwrap(), acceptor.accept(theirs.unwrap().0, PATIENCE).await.unwrap());
    assert!(!ours.is_tls() && ours.peer_names().is_empty() && ours.tcp().nodelay().unwrap());
    ours.write_all(b"plain").await.unwrap();
    let mut heard = [0; 5];
    theirs.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"plain");
}

/// There are partners that read once and take that for a whole message.
#[tokio::test]
async fn what_is_written_in_pieces_leaves_as_one() {
    let authority = Authority::new();
    for tls in [false, true] {
        let (connect, listen) = (authority.connect(json!({})), authority.listen(json!({})));
        let (listener, address) = listener().await;
        let connector = Connector::new(&address.to_string(), tls.then_some(&connect)).unwrap();
        let acceptor = Acceptor::new(tls.then_some(&listen)).unwrap();
        let (ours, theirs) = tokio::join!(connector.connect(PATIENCE), async {
            acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await.unwrap()
        });
        let (mut ours, mut theirs) = (ours.unwrap(), theirs);
        assert!(ours.is_write_vectored());
        let pieces = [b"\x0b".as_slice(), b"MSH|", b"\x1c\r"].map(std::io::IoSlice::new);
        assert_eq!(ours.write_vectored(&pieces).await.unwrap(), 7, "tls: {tls}");
        ours.flush().await.unwrap();
        let mut heard = [0; 16];
        assert_eq!(theirs.read(&mut heard).await.unwrap(), 7, "tls: {tls}");
    }
}

#[tokio::test]
async fn who_closes_without_a_goodbye_has_closed() {
    let authority = Authority::new();
    let (listener, address) = listener().await;
    let connector = Connector::new(&address.to_string(), Some(&authority.connect(json!({})))).unwrap();
    let acceptor = Acceptor::new(Some(&authority.listen(json!({})))).unwrap();
    let (ours, theirs) = tokio::join!(connector.connect(PATIENCE), async {
        acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await.unwrap()
    });
    // The socket is closed under it.
    drop(theirs);
    let (mut ours, mut heard) = (ours.unwrap(), Vec::new());
    ours.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
    assert!(ours.was_cut(), "anybody on the way can do that");
}

#[tokio::test]
async fn who_says_goodbye_was_not_cut_off() {
    let authority = Authority::new();
    let (listener, address) = listener().await;
    let connector = Connector::new(&address.to_string(), Some(&authority.connect(json!({})))).unwrap();
    let acceptor = Acceptor::new(Some(&authority.listen(json!({})))).unwrap();
    let (ours, mut theirs) = tokio::join!(connector.connect(PATIENCE), async {
        acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await.unwrap()
    });
    theirs.shutdown().await.unwrap();
    let mut ours = ours.unwrap();
    assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
    assert!(!ours.was_cut());
}

#[tokio::test]
async fn a_changed_certificate_is_used_with_the_next_connection_and_a_bad_one_is_not() {
    let authority = Authority::new();
    let listen = authority.listen(json!({}));
    let (listener, address) = listener().await;
    let acceptor = Arc::new(Acceptor::new(Some(&listen)).unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream, PATIENCE).await;
        }
    });
    let connect = |name: &str| {
        Connector::new(&address.to_string(), Some(&authority.connect(json!({"server_name": name})))).unwrap()
    };
    connect("lab.example").connect(PATIENCE).await.unwrap();
    authority.certify("server", |params| params.subject_alt_names = vec![dns("new.example")]);
    connect("new.example").connect(PATIENCE).await.unwrap();
    std::fs::write(authority.path("server.pem"), "broken").unwrap();
    connect("new.example").connect(PATIENCE).await.unwrap();
    assert!(connect("lab.example").connect(PATIENCE).await.is_err());
}

#[test]
fn what_is_wrong_says_where_and_what_to_do() {
    let authority = Authority::new();
    let (server, other) = (authority.server(), authority.client());
    let path = |name: &str| authority.path(name);
    std::fs::write(path("empty.pem"), "nothing").unwrap();
    let key = path("open.key");
    std::fs::copy(path("server.key"), &key).unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let encrypted = path("encrypted.key");
    std::fs::write(
        &encrypted,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    std::fs::set_permissions(&encrypted, Permissions::from_mode(0o600)).unwrap();
    let no_key = path("no.key");
    std::fs::write(&no_key, "nothing").unwrap();
    std::fs::set_permissions(&no_key, Permissions::from_mode(0o600)).unwrap();
    let connect = |more: Value| {
        let found = authority.connect(more).faults("tls", "lab.example:2575");
        found.into_iter().map(|fault| fault.to_string()).collect::<Vec<_>>().join("\n")
    };
    let listen = |more: Value| {
        let found = authority.listen(more).faults("listen_tls");
        found.into_iter().map(|fault| fault.to_string()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!((connect(json!({})), listen(json!({}))), (String::new(), String::new()));
    for (found, key, what) in [
        (connect(json!({"ca_files": ["/nonexistent"]})), "tls.ca_files", "/nonexistent cannot be read"),
        (
            connect(json!({"ca_files": [path("empty.pem")]})),
            "tls.ca_files",
            "holds no certificate in PEM form",
        ),
        (
            connect(json!({"server_name": "no name"})),
            "tls.server_name",
            "give the one that the partner's certificate is for",
        ),
        (connect(json!({"cert_file": server["cert_file"]})), "tls.key_file", "is missing"),
        (connect(json!({"key_file": server["key_file"]})), "tls.cert_file", "is missing"),
        (
            connect(json!({"cert_file": server["cert_file"], "key_file": other["key_file"]})),
            "tls.key_file",
            "do not belong together",
        ),
        (listen(json!({"key_file": other["key_file"]})), "listen_tls.key_file", "do not belong together"),
        (listen(json!({"key_file": key})), "listen_tls.key_file", "chmod o="),
        (listen(json!({"key_file": encrypted})), "listen_tls.key_file", "store the key without one"),
        (listen(json!({"key_file": no_key})), "listen_tls.key_file", "holds no private key"),
        (listen(json!({"allow_names": ["cn:x"]})), "listen_tls.allow_names", "without `client_ca_files`"),
        (
            listen(json!({"client_ca_files": [path("empty.pem")]})),
            "listen_tls.client_ca_files",
            "holds no certificate",
        ),
    ] {
        assert!(found.starts_with(&format!("{key}: ")) && found.contains(what), "{found} / {key} / {what}");
    }
    let read = |text: Value| serde_json::from_value::<ListenTls>(text).unwrap_err().to_string();
    let with = |more: Value| {
        let mut settings = server.clone();
        extend(&mut settings, more);
        settings
    };
    assert!(
        read(with(json!({"allow_names": ["lab.example"]}))).contains("must begin with uri:, dns: or cn:")
    );
    assert!(read(with(json!({"min_version": "1.1"}))).contains("1.2"));
    assert!(read(with(json!({"ca_file": "x"}))).contains("unknown field `ca_file`"));
}

/// Who resumes a session is not judged again: not by a list that has changed, nor by a certificate that has run out.
#[tokio::test]
async fn nothing_is_resumed_either_way() {
    use rustls::HandshakeKind::Full;

    let authority = Authority::new();
    let (listener, address) = listener().await;
    let resuming = authority.willing_to_resume();
    let connector = Connector::new(&address.to_string(), Some(&authority.connect(json!({})))).unwrap();
    for _ in 0..3 {
        let (ours, theirs) = tokio::join!(connector.connect(PATIENCE), async {
            tokio_rustls::TlsAcceptor::from(Arc::clone(&resuming.0))
                .accept(listener.accept().await.unwrap().0)
                .await
                .unwrap()
        });
        let (mut ours, mut theirs) = (ours.unwrap(), theirs);
        assert_eq!(theirs.get_ref().1.handshake_kind(), Some(Full));
        theirs.write_all(b"x").await.unwrap();
        // With it come the tickets.
        ours.read_exact(&mut [0]).await.unwrap();
    }
    let acceptor = Acceptor::new(Some(&authority.listen(json!({})))).unwrap();
    for _ in 0..3 {
        let name = rustls::pki_types::ServerName::try_from("lab.example").unwrap();
        let (theirs, ours) = tokio::join!(
            async {
                let stream = TcpStream::connect(address).await.unwrap();
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(&resuming.1));
                connector.connect(name, stream).await.unwrap()
            },
            async { acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await.unwrap() }
        );
        let (mut theirs, mut ours) = (theirs, ours);
        assert_eq!(theirs.get_ref().1.handshake_kind(), Some(Full));
        ours.write_all(b"x").await.unwrap();
        ours.flush().await.unwrap();
        theirs.read_exact(&mut [0]).await.unwrap();
    }
}
