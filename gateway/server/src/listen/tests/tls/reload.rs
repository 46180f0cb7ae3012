//! What is in force changes while the listener serves: for everybody who comes, and for those who are there already.

use rustls::NamedGroup;

use super::{bad::revocation_list, *};
use crate::listen::tls::Seen;

fn in_a_day() -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc() + DAY
}

fn with_list(serials: &[u64]) -> impl FnOnce(&Path, &Authority, &mut TlsFiles) {
    let serials = serials.to_vec();
    move |directory, clients, files| {
        files.crl = vec![directory.join("clients.crl")];
        fs::write(&files.crl[0], revocation_list(clients, &serials, in_a_day())).unwrap();
    }
}

fn numbered(tls: &TlsRig, serial: u64) -> Identity {
    let mut params = params(&[uri(EHR)]);
    params.serial_number = Some(serial.into());
    tls.clients.issue(&params)
}

/// One request on a connection that stays open.
async fn ask(stream: &mut TlsStream<TcpStream>) -> u16 {
    stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 4096];
    let bytes = timeout(HANG, stream.read(&mut answer)).await.expect("no answer").unwrap();
    parse(&answer[..bytes]).status
}

#[tokio::test]
async fn a_reload_holds_for_new_connections_and_a_bad_one_changes_nothing() {
    let mut tls = TlsRig::start(Limits::default()).await;
    let old_client = tls.clients.issue(&params(&[uri(EHR)]));
    let mut open = tls.connect(Some(&old_client)).await.unwrap();
    assert_eq!(ask(&mut open).await, 200);

    let new_clients = Authority::new("new clients");
    let both = tls.clients.certificate.pem() + &new_clients.certificate.pem();
    fs::write(&tls.files.client_ca, both).unwrap();
    tls.tls.reload().unwrap();
    let new_client = new_clients.issue(&params(&[uri(EHR)]));
    assert_eq!(tls.get(&new_client).await.status, 200);
    assert_eq!(ask(&mut open).await, 200, "an open connection goes on");

    let good_key = fs::read(&tls.files.key).unwrap();
    fs::write(&tls.files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(tls.tls.reload(), Err(TlsError::Pair { .. })));
    assert_eq!(tls.get(&new_client).await.status, 200);
    assert_eq!(ask(&mut open).await, 200);

    fs::write(&tls.files.key, good_key).unwrap();
    fs::write(&tls.files.client_ca, new_clients.certificate.pem()).unwrap();
    tls.tls.reload().unwrap();
    assert!(read_to_close(&mut open).await.is_empty(), "its authority has left");
    assert!(tls.is_shut_out(Some(&old_client), &TLS13).await);
    tls.rig.stop().await;
}

#[tokio::test]
async fn a_new_revocation_list_ends_the_connections_that_it_revokes_and_no_other() {
    let mut tls = TlsRig::start_with(Limits::default(), with_list(&[])).await;
    let (one, other) = (numbered(&tls, 1), numbered(&tls, 2));
    let mut of_one = tls.connect(Some(&one)).await.unwrap();
    let mut of_other = tls.connect(Some(&other)).await.unwrap();
    assert_eq!((ask(&mut of_one).await, ask(&mut of_other).await), (200, 200));
    // In the middle of a request, too.
    let mut holding = tls.connect(Some(&one)).await.unwrap();
    holding.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    timeout(HANG, tls.rig.held.notified()).await.unwrap();

    fs::write(&tls.files.crl[0], revocation_list(&tls.clients, &[1], in_a_day())).unwrap();
    tls.tls.reload().unwrap();
    assert!(read_to_close(&mut of_one).await.is_empty());
    assert!(read_to_close(&mut holding).await.is_empty());
    assert_eq!(ask(&mut of_other).await, 200);
    assert!(tls.is_shut_out(Some(&one), &TLS13).await);
    assert_eq!(tls.get(&other).await.status, 200);
    tls.rig.stop().await;
}

#[tokio::test]
async fn an_expired_list_lets_nobody_in_and_ends_nobody() {
    let mut tls = TlsRig::start_with(Limits::default(), with_list(&[])).await;
    let client = numbered(&tls, 1);
    let mut open = tls.connect(Some(&client)).await.unwrap();
    assert_eq!(ask(&mut open).await, 200);
    let yesterday = time::OffsetDateTime::now_utc() - DAY;
    fs::write(&tls.files.crl[0], revocation_list(&tls.clients, &[], yesterday)).unwrap();
    tls.tls.reload().unwrap();
    assert!(tls.is_shut_out(Some(&client), &TLS13).await);
    assert_eq!(ask(&mut open).await, 200);
    until("the refusal", || tls.rig.refusal_codes() == [RefusalCode::RevocationExpired]).await;
    tls.rig.stop().await;
}

#[tokio::test]
async fn a_list_that_another_signed_says_nothing() {
    let mut tls = TlsRig::start_with(Limits::default(), with_list(&[])).await;
    let client = numbered(&tls, 1);
    let mut open = tls.connect(Some(&client)).await.unwrap();
    assert_eq!(ask(&mut open).await, 200);
    let forger = Authority::new("clients");
    fs::write(&tls.files.crl[0], revocation_list(&forger, &[1], in_a_day())).unwrap();
    tls.tls.reload().unwrap();
    assert_eq!(ask(&mut open).await, 200);
    assert!(tls.is_shut_out(Some(&client), &TLS13).await);
    until("the refusal", || tls.rig.refusal_codes() == [RefusalCode::RevocationUnknown]).await;
    tls.rig.stop().await;
}

#[tokio::test]
async fn changed_files_are_taken_once_they_are_whole_and_bad_ones_are_said_once() {
    let mut tls = TlsRig::start_with(Limits::default(), with_list(&[])).await;
    let (one, other) = (numbered(&tls, 1), numbered(&tls, 2));
    let mut seen = Seen::default();
    let look = |seen: &mut Seen| tls.tls.look(seen);
    assert!(look(&mut seen).is_none(), "nothing has changed");

    // Replaced by a rename, as certbot and Kubernetes do.
    let list = |serials: &[u64]| {
        let new = tls.rig.directory.path().join("new");
        fs::write(&new, revocation_list(&tls.clients, serials, in_a_day())).unwrap();
        fs::rename(new, &tls.files.crl[0]).unwrap();
    };
    list(&[1]);
    assert!(look(&mut seen).is_none(), "it might still be changing");
    list(&[1, 3]);
    assert!(look(&mut seen).is_none(), "it was");
    assert!(matches!(look(&mut seen), Some(Ok(()))));
    assert!(look(&mut seen).is_none());
    assert!(tls.is_shut_out(Some(&one), &TLS13).await);

    // A certificate without its key yet.
    let renewed = tls.servers.issue(&params(&[dns("localhost")]));
    fs::write(&tls.files.cert, renewed.certificate.pem()).unwrap();
    assert!(look(&mut seen).is_none());
    assert!(matches!(look(&mut seen), Some(Err(TlsError::Pair { .. }))));
    assert!(look(&mut seen).is_none() && look(&mut seen).is_none(), "said once");
    assert_eq!(tls.get(&other).await.status, 200, "what was in force still is");
    fs::write(&tls.files.key, renewed.key.serialize_pem()).unwrap();
    assert!(look(&mut seen).is_none());
    assert!(matches!(look(&mut seen), Some(Ok(()))));
    let stream = tls.connect(Some(&other)).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], renewed.certificate());

    // Gone, exposed, and mended.
    fs::remove_file(&tls.files.crl[0]).unwrap();
    assert!(look(&mut seen).is_none());
    assert!(matches!(look(&mut seen), Some(Err(TlsError::Unreadable { .. }))));
    list(&[]);
    fs::set_permissions(&tls.files.key, Permissions::from_mode(0o644)).unwrap();
    assert!(look(&mut seen).is_none());
    assert!(matches!(look(&mut seen), Some(Err(TlsError::KeyExposed { .. }))));
    assert!(tls.is_shut_out(Some(&one), &TLS13).await);
    fs::set_permissions(&tls.files.key, Permissions::from_mode(0o600)).unwrap();
    assert!(look(&mut seen).is_none());
    assert!(matches!(look(&mut seen), Some(Ok(()))));
    assert_eq!(tls.get(&one).await.status, 200);
    tls.rig.stop().await;
}

#[tokio::test]
async fn keys_are_agreed_on_in_a_way_that_a_quantum_computer_does_not_undo() {
    let mut tls = TlsRig::start(Limits::default()).await;
    let client = tls.clients.issue(&params(&[uri(EHR)]));
    let stream = tls.connect(Some(&client)).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);

    // A client that does not know it still gets in.
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let mut roots = RootCertStore::empty();
    roots.add(tls.servers.certificate.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![client.certificate()], client.private_key())
        .unwrap();
    let mut stream = tls.connect_by(config).await.unwrap();
    assert_eq!(ask(&mut stream).await, 200);
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519);
    tls.rig.stop().await;
}

#[tokio::test]
async fn nothing_of_a_connection_can_be_resumed() {
    let mut tls = TlsRig::start(Limits::default()).await;
    let client = tls.clients.issue(&params(&[uri(EHR)]));
    let config = tls.client_config(&TLS13);
    let config =
        Arc::new(config.with_client_auth_cert(vec![client.certificate()], client.private_key()).unwrap());
    for _ in 0..3 {
        let stream = TcpStream::connect(tls.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(config.clone()).connect(name, stream).await.unwrap();
        assert_eq!(ask(&mut stream).await, 200);
        let (_, session) = stream.get_ref();
        assert_eq!(session.tls13_tickets_received(), 0);
        assert_ne!(session.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
    tls.rig.stop().await;
}
