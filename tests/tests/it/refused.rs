//! Who is not let in: counted, in the audit log, and nothing of theirs parsed.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gatepost_tests::{Gateway, Port, skipped, uid, until};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use serde_json::json;

use crate::order_event;

/// `daemon`, who is everywhere. `nobody` is whom the kernel shows for users that it cannot name.
const DAEMON: &str = "1";
const EHR: &str = "spiffe://clinic.example/ehr";

#[test]
fn another_user_gets_a_fixed_401_and_one_leaf_a_minute() {
    let as_root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !as_root || Command::new("setpriv").arg("--version").output().is_err() {
        return skipped("needs root and setpriv to be another user");
    }
    let builder = Gateway::builder();
    let socket = builder.dir().join("open.sock");
    std::fs::set_permissions(builder.dir(), Permissions::from_mode(0o711)).unwrap();
    let gateway = builder
        .listen(&format!(
            "serves = \"apps\"\nunix = {:?}\nmode = \"0660\"\ngroup = \"{DAEMON}\"",
            socket.display().to_string()
        ))
        .app("shop", &["orders.*"], &["desk"])
        .inbox("desk", "")
        .route("shop", &["desk"])
        .start();
    for _ in 0..5 {
        let output = Command::new("setpriv")
            .args([
                "--reuid",
                DAEMON,
                "--regid",
                DAEMON,
                "--clear-groups",
                "curl",
                "--silent",
                "--include",
                "--unix-socket",
            ])
            .arg(&socket)
            .args(["--data", "canary-body", "http://gatepost/v1/messages"])
            .output()
            .unwrap();
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.contains("\"unauthenticated\""), "{answer}");
    }
    let counted = || gateway.metric("gatepost_connections_refused_total{code=\"unknown_peer\"}");
    until("all five are counted", || (counted() >= 5.0).then_some(()));
    assert_eq!(counted(), 5.0);
    refused_leaf(&gateway, "unknown_peer");
    // The same user in the same place is let in on the socket that it may use.
    gateway.app().event(&order_event("1", "k", &json!(1))).expect(202);
}

/// Waits for the leaf of a refusal; there is one, however often it happened within the minute.
fn refused_leaf(gateway: &Gateway, code: &str) {
    let leaves = until("the refusal is in the audit log", || {
        let mut log = gateway.audit_log();
        log.retain(|leaf| leaf["event"] == "refused" && leaf["code"] == code);
        (!log.is_empty()).then_some(log)
    });
    assert_eq!(leaves.len(), 1, "{leaves:?}");
}

#[test]
fn a_type_that_the_app_may_not_send_is_refused_for_the_whole_batch() {
    let gateway = Gateway::builder()
        .app("shop", &["orders.*"], &[])
        .inbox("desk", "")
        .inbox("other", "")
        .route("shop", &["desk"])
        .start();
    let good = order_event("1", "k", &json!(1));
    let mut bad = order_event("2", "k", &json!(2));
    bad["type"] = "payments.new".into();
    assert_eq!(gateway.app().event(&bad).problem(403), "type_not_allowed");
    assert_eq!(gateway.app().try_batch(&[good, bad]).unwrap().problem(403), "type_not_allowed");
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 0);
    assert_eq!(gateway.app().post("/v1/queues/other/lease", &json!({ "max": 1 })).problem(403), "forbidden");
    assert_eq!(gateway.app().get("/v1/queues").problem(403), "forbidden");
    assert_eq!(gateway.metric("gatepost_refused_total{code=\"type_not_allowed\"}"), 2.0);
    refused_leaf(&gateway, "type_not_allowed");
}

struct Authority(Issuer<'static, KeyPair>);

/// Of the certificate in the files of this name.
fn serial(name: &str) -> SerialNumber {
    SerialNumber::from_slice(name.as_bytes())
}

impl Authority {
    fn new(file: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self(Issuer::new(params, key))
    }

    /// Writes a list that revokes the certificates of these names, as a whole.
    fn revoke(&self, file: &Path, names: &[&str]) {
        let entry = |name: &&str| RevokedCertParams {
            serial_number: serial(name),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: names.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let new = file.with_extension("new");
        std::fs::write(&new, params.signed_by(&self.0).unwrap().pem().unwrap()).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    fn issue(&self, dir: &Path, name: &str, names: &[SanType], until_year: i32) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.serial_number = Some(serial(name));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert_file, params.signed_by(&key, &self.0).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
        (cert_file, key_file)
    }
}

#[test]
fn tls_lets_in_one_uri_name_that_is_known_and_nobody_else() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skipped("needs curl");
    }
    let builder = Gateway::builder();
    let dir = builder.dir().to_owned();
    let ca_file = dir.join("ca.pem");
    let ca = Authority::new(&ca_file);
    let stranger = Authority::new(&dir.join("stranger-ca.pem"));
    let crl_file = dir.join("clients.crl");
    ca.revoke(&crl_file, &[]);
    let (cert, key) = ca.issue(&dir, "server", &[SanType::DnsName("localhost".try_into().unwrap())], 2100);
    let port = Port::reserve();
    let gateway = builder
        .listen(&format!(
            "serves = \"apps\"\ntcp = \"127.0.0.1:{port}\"\ntls = {{ cert = {cert:?}, key = {key:?}, client_ca = {ca_file:?}, crl = {crl_file:?} }}"
        ))
        .table("[apps.ehr]", &format!("spiffe = {EHR:?}\nsend = [\"orders.*\"]"))
        .inbox("desk", "")
        .route("ehr", &["desk"])
        .start();
    let event = order_event("1", "k", &json!(1)).to_string();
    let curl = |client: Option<&(PathBuf, PathBuf)>, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "60", "--cacert"]).arg(&ca_file).args(more);
        if let Some((cert, key)) = client {
            curl.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        curl.args(["--header", "Content-Type: application/cloudevents+json", "--data", &event]);
        let output = curl.arg(format!("https://localhost:{port}/v1/messages")).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let ehr = ca.issue(&dir, "ehr", &[uri(EHR)], 2100);
    assert!(curl(Some(&ehr), &[]).contains("\"durability\":\"fsync\""));

    let refused =
        |code: &str| gateway.metric(&format!("gatepost_connections_refused_total{{code=\"{code}\"}}"));
    let none = ca.issue(&dir, "none", &[SanType::DnsName("ehr".try_into().unwrap())], 2100);
    let two = ca.issue(&dir, "two", &[uri(EHR), uri("spiffe://clinic.example/lab")], 2100);
    let unknown = ca.issue(&dir, "unknown", &[uri("spiffe://clinic.example/lab")], 2100);
    let expired = ca.issue(&dir, "expired", &[uri(EHR)], 2021);
    let foreign = stranger.issue(&dir, "foreign", &[uri(EHR)], 2100);
    for (client, code, why) in [
        (Some(&none), "certificate_name", "no URI name"),
        (Some(&two), "certificate_name", "two URI names"),
        (Some(&unknown), "unknown_peer", "a name that nobody has"),
        (Some(&expired), "certificate_expired", "expired"),
        (Some(&foreign), "certificate_invalid", "another authority of the same name"),
        (None, "certificate_missing", "no certificate"),
    ] {
        let before = refused(code);
        let answer = curl(client, &[]);
        assert!(!answer.contains("durability"), "{why} was let in");
        until(&format!("`{why}` is counted as {code}"), || (refused(code) > before).then_some(()));
    }
    let before = refused("tls_failed");
    assert!(!curl(Some(&ehr), &["--tls-max", "1.2"]).contains("durability"), "TLS 1.2 was let in");
    let mut plain = TcpStream::connect(port.address()).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // A reset is a refusal too.
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "plaintext was answered");
    until("both are counted", || {
        (refused("tls_failed") > before && refused("tls_version") > 0.0).then_some(())
    });
    refused_leaf(&gateway, "certificate_name");

    // A new list counts without a reload, and the refused one stands in the log by its name.
    ca.revoke(&crl_file, &["ehr"]);
    until("the certificate is revoked", || {
        (!curl(Some(&ehr), &[]).contains("durability") && refused("certificate_revoked") > 0.0).then_some(())
    });
    refused_leaf(&gateway, "certificate_revoked");
    let log = gateway.audit_log();
    let of = |code: &str| {
        log.iter().find(|leaf| leaf["code"] == code).unwrap_or_else(|| panic!("no {code}: {log:?}"))
    };
    assert_eq!(of("certificate_revoked")["subject_of"], EHR);
    assert_eq!(of("certificates")["event"], "config_changed");
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 1);
}

#[test]
fn a_token_is_made_used_and_revoked_while_the_gateway_runs() {
    let mut gateway = Gateway::builder()
        .table("[apps.kiosk]", &format!("user = \"{}\"\ntoken = true\nsend = [\"orders.*\"]", uid()))
        .inbox("desk", "")
        .route("kiosk", &["desk"])
        .start();
    let hand_in = |gateway: &Gateway, token: &str| {
        let (event, bearer) =
            (order_event("1", "k", &json!(1)).to_string(), format!("Authorization: Bearer {token}"));
        let headers = ["Content-Type: application/cloudevents+json", &bearer];
        gateway.app().send("POST", "/v1/messages", &headers, event.as_bytes()).unwrap().status
    };
    assert_eq!(hand_in(&gateway, "none"), 401);
    let created: serde_json::Value =
        serde_json::from_str(&gateway.cli_ok(&["--json", "token", "create", "kiosk", "--expires", "30d"]))
            .unwrap();
    let (token, id) = (created["token"].as_str().unwrap(), created["id"].as_str().unwrap());
    until("the token counts", || (hand_in(&gateway, token) == 202).then_some(()));
    gateway.cli_ok(&["token", "create", "kiosk", "--expires", "400d"]);
    for (arguments, why) in [
        (&["token", "create", "kiosk", "--expires", "1d"][..], "two live tokens"),
        (&["token", "create", "kiosk", "--expires", "401d"], "too long"),
        (&["token", "create", "kiosk"], "no expiry"),
        (&["token", "create", "nobody", "--expires", "1d"], "no such app"),
        (&["token", "revoke", "000000000000"], "no such token"),
    ] {
        assert!(!gateway.cli(arguments).status.success(), "{why}");
    }
    let list = gateway.cli_ok(&["token", "list"]);
    assert!(list.contains(id) && list.contains("live") && !list.contains(token), "{list}");
    gateway.cli_ok(&["token", "revoke", id]);
    until("the token counts no more", || (hand_in(&gateway, token) == 401).then_some(()));
    gateway.stop();
    assert!(!gateway.log().contains(token), "the token is in the log");
    let log = gateway.audit_log();
    for (code, count) in [("token_created", 2), ("token_revoked", 1)] {
        assert_eq!(log.iter().filter(|leaf| leaf["code"] == code).count(), count, "{code}: {log:?}");
    }
    gateway.audit_verifies();
}
