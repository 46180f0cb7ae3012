//! What only a connection with certificates can show: who answers, and who has ended it.

use std::net::Shutdown;
use std::path::PathBuf;
use std::time::Duration;

use gatepost_adapter::testing::rcgen::{DistinguishedName, SanType};
use gatepost_adapter::testing::{self, Gateway};
use gatepost_adapter::tls::{Acceptor, Connector, Stream};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::sending::Partner;
use super::{HANG, adt, awaited, framed, leased};
use crate::peer::{Answerers, Peer};
use crate::receive::Receiver;
use crate::settings::Settings;

struct Authority(testing::Authority);

impl Authority {
    fn new() -> Self {
        Self(testing::Authority::new("Test Authority"))
    }

    /// `cert_file` and `key_file` of a new certificate for this name, and no other.
    fn certify(&self, name: &str) -> Value {
        let certificate = self.0.certify_with(name, |params| {
            params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
            params.distinguished_name = DistinguishedName::new();
        });
        json!({"cert_file": certificate.cert_file, "key_file": certificate.key_file})
    }

    fn ca(&self) -> PathBuf {
        self.0.ca_file()
    }

    /// A connection as `name` sees the partner `lab.example`, and as that one sees `name`.
    async fn connected(&self, name: &str) -> (Stream, Stream) {
        let mut listen = self.certify("lab.example");
        listen["client_ca_files"] = json!([self.ca()]);
        let mut connect = self.certify(name);
        connect["ca_files"] = json!([self.ca()]);
        connect["server_name"] = "lab.example".into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connect = serde_json::from_value(connect).unwrap();
        let listen = serde_json::from_value(listen).unwrap();
        let connector = Connector::new(&address, Some(&connect)).unwrap();
        let acceptor = Acceptor::new(Some(&listen)).unwrap();
        let (ours, theirs) = tokio::join!(connector.connect(HANG), async {
            acceptor.accept(listener.accept().await.unwrap().0, HANG).await.unwrap()
        });
        (ours.unwrap(), theirs)
    }
}

#[tokio::test]
async fn behind_one_address_each_answers_only_for_its_own_certificate() {
    let authority = Authority::new();
    let (lab, ward) = authority.connected("ward.example").await;
    let (sent_to, ward) = (Peer::of(&lab).unwrap(), Peer::of(&ward).unwrap());
    assert!(!Answerers::Partner.include(&ward, Some(&sent_to)));
    let (_, lab) = authority.connected("lab.example").await;
    assert!(Answerers::Partner.include(&Peer::of(&lab).unwrap(), Some(&sent_to)));
}

/// Sends the adapter a frame without its CR over TLS and ends the connection, with or without the goodbye; what comes back.
async fn cut_at_its_end(goodbye: bool) -> (Gateway, Vec<u8>) {
    let authority = Authority::new();
    let listen_tls = authority.certify("ehr.example");
    let settings: Settings = serde_json::from_value(
        json!({"listen": "127.0.0.1:1", "lenient_end_ms": 5000, "listen_tls": listen_tls}),
    )
    .unwrap();
    let settings = std::sync::Arc::new(settings);
    let (gateway, session) = Gateway::open(json!({})).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (awaited, _late) = awaited(&settings, &session);
    let receiver = Receiver::new(settings, session, awaited).unwrap();
    tokio::spawn(receiver.serve_listener(listener));
    let connect = json!({"ca_files": [authority.ca()], "server_name": "ehr.example"});
    let connect = serde_json::from_value(connect).unwrap();
    let connector = Connector::new(&address.to_string(), Some(&connect)).unwrap();
    let mut stream = connector.connect(HANG).await.unwrap();
    let frame = framed(&adt("M1"));
    stream.write_all(&frame[..frame.len() - 1]).await.unwrap();
    stream.flush().await.unwrap();
    if goodbye {
        stream.shutdown().await.unwrap();
    } else {
        // As who cuts the connection can do it, without the keys.
        SockRef::from(&stream).shutdown(Shutdown::Write).unwrap();
    }
    (gateway, {
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(Duration::from_millis(500), stream.read_to_end(&mut heard)).await;
        heard
    })
}

#[tokio::test]
async fn a_cut_connection_ends_no_frame_and_one_that_its_sender_has_ended_does() {
    let (mut gateway, _) = cut_at_its_end(true).await;
    assert_eq!(gateway.next("/v1/messages").await.body["subject"], "M1");
    let (mut gateway, heard) = cut_at_its_end(false).await;
    let taken = tokio::time::timeout(Duration::from_millis(300), gateway.next("/v1/messages")).await;
    assert!(taken.is_err() && heard.is_empty(), "the half that came was taken for the message");
}

#[tokio::test]
async fn a_partner_that_does_not_get_connected_in_time_is_no_fault_of_the_message() {
    let authority = Authority::new();
    let settings = json!({"connect_timeout_ms": 100, "tls": {"ca_files": [authority.ca()]}});
    // It takes the connection, and says nothing.
    let mut partner = Partner::new(settings).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let result = tokio::time::timeout(HANG, partner.settled()).await.expect("it is waited for too long");
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
    assert!(result["reason"].as_str().unwrap().contains("within 100 ms"), "{result}");
}
