//! Lists of revoked certificates, both ways.

use rcgen::{
    BasicConstraints, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    SerialNumber,
};

use super::*;

const REVOKED: &str = "no TLS with the partner: its certificate has been revoked";
const NOT_LISTED: &str = "no TLS with the partner: whether its certificate has been revoked cannot be told: its authority's list is not in crl_files";
const OUT_OF_DATE: &str = "no TLS with the partner: whether its certificate has been revoked cannot be told: a list in crl_files is out of date";

struct Both {
    authority: Authority,
    lab: Certificate,
    ehr: Certificate,
}

impl Both {
    fn new() -> Self {
        let authority = Authority::new();
        let lab = authority.0.certify("lab", &["lab.example"]);
        let ehr = authority.0.certify("ehr", &["ehr.example"]);
        Self { authority, lab, ehr }
    }

    /// Both sides go by these lists.
    fn settings(&self, lists: &[PathBuf]) -> (ConnectTls, ListenTls) {
        let (mut connect, mut listen) = (told(&self.ehr), told(&self.lab));
        extend(&mut connect, json!({ "crl_files": lists }));
        extend(&mut listen, json!({ "crl_files": lists }));
        (self.authority.connect(connect), self.authority.mutual(listen))
    }

    /// What each side comes to; the one that connects is the first to judge.
    async fn meet(&self, lists: &[PathBuf]) -> (Option<String>, Option<String>) {
        let (connect, listen) = self.settings(lists);
        let (partner, client) = meet(&connect, &listen).await;
        (partner.err(), client.err())
    }
}

#[tokio::test]
async fn who_is_revoked_is_refused_and_the_others_are_not() {
    let both = Both::new();
    let stranger = both.authority.0.certify("stranger", &["stranger.example"]);
    let harmless = both.authority.0.revoke("harmless", &[&stranger]);
    assert_eq!(both.meet(&[harmless]).await, (None, None));
    let (partner, _) = both.meet(&[both.authority.0.revoke("lab", &[&both.lab])]).await;
    assert_eq!(partner.unwrap(), REVOKED);
    let (partner, client) = both.meet(&[both.authority.0.revoke("ehr", &[&stranger, &both.ehr])]).await;
    assert_eq!(client.unwrap(), REVOKED);
    assert_eq!(partner.unwrap(), "no TLS with the partner: it says that our certificate has been revoked");
}

#[tokio::test]
async fn where_it_cannot_be_told_nobody_is_trusted() {
    let (both, other) = (Both::new(), Authority::named("Another Authority"));
    let foreign = other.0.revoke("foreign", &[]);
    let old = both.authority.0.revoke_until("old", &[], 2021);
    for (list, told) in [(&foreign, NOT_LISTED), (&old, OUT_OF_DATE)] {
        let (partner, _) = both.meet(std::slice::from_ref(list)).await;
        assert_eq!(partner.unwrap(), told);
        // The one that listens judges by itself: here the other has no list.
        let (connect, _) = both.settings(&[]);
        let (_, listen) = both.settings(std::slice::from_ref(list));
        let (_, client) = meet(&connect, &listen).await;
        assert_eq!(client.unwrap_err(), told);
    }
    let own = both.authority.0.revoke("own", &[]);
    assert_eq!(both.meet(&[foreign, own]).await, (None, None), "one file for each authority");
}

#[tokio::test]
async fn a_list_that_is_replaced_holds_from_the_next_connection_on_and_ends_none() {
    let both = Both::new();
    let list = both.authority.0.revoke("list", &[]);
    let (connect, listen) = both.settings(std::slice::from_ref(&list));
    let (listener, address) = listener().await;
    let connector = Connector::new(&address.to_string(), Some(&connect)).unwrap();
    let acceptor = Acceptor::new(Some(&listen)).unwrap();
    let both_ends = async || {
        tokio::join!(connector.connect(PATIENCE), async {
            acceptor.accept(listener.accept().await.unwrap().0, PATIENCE).await
        })
    };
    let (ours, theirs) = both_ends().await;
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    let replace = |with: PathBuf| std::fs::rename(with, &list).unwrap();
    replace(both.authority.0.revoke("new", &[&both.ehr]));
    let (_, refused) = both_ends().await;
    assert_eq!(refused.unwrap_err().to_string(), REVOKED);
    // The connection that there was goes on.
    ours.write_all(b"hello").await.unwrap();
    theirs.read_exact(&mut [0; 5]).await.unwrap();
    // What is no list leaves the last one in force, and so does none.
    std::fs::write(both.authority.path("broken"), "broken").unwrap();
    replace(both.authority.path("broken"));
    assert_eq!(both_ends().await.1.unwrap_err().to_string(), REVOKED);
    std::fs::remove_file(&list).unwrap();
    assert_eq!(both_ends().await.1.unwrap_err().to_string(), REVOKED);
    both.authority.0.revoke("list", &[]);
    assert!(both_ends().await.1.is_ok());
    // The one that connects follows its lists as well.
    replace(both.authority.0.revoke("newer", &[&both.lab]));
    assert_eq!(both_ends().await.0.unwrap_err().to_string(), REVOKED);
}

/// An authority below another, with a list of its own that names nobody.
struct Below {
    issuer: Issuer<'static, KeyPair>,
    own: Certificate,
    list: PathBuf,
}

impl Below {
    fn new(root: &testing::Authority) -> Self {
        let mut kept = None;
        let own = root.certify_with("below", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.extended_key_usages.clear();
            params.distinguished_name.push(DnType::CommonName, "Below");
            kept = Some(params.clone());
        });
        let key = KeyPair::from_pem(&std::fs::read_to_string(&own.key_file).unwrap()).unwrap();
        let issuer = Issuer::new(kept.unwrap(), key);
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = root.path("below.crl");
        std::fs::write(&file, list.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
        Self { issuer, own, list: file }
    }

    /// Puts a certificate of this authority, with that of the authority itself, in the place of another.
    fn certify_anew(&self, certificate: &Certificate, name: &str) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let own = std::fs::read_to_string(&self.own.cert_file).unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem() + &own;
        std::fs::write(&certificate.cert_file, chain).unwrap();
        std::fs::write(&certificate.key_file, key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn an_authority_on_the_way_to_the_root_can_be_revoked_too() {
    let both = Both::new();
    let below = Below::new(&both.authority.0);
    below.certify_anew(&both.lab, "lab.example");
    below.certify_anew(&both.ehr, "ehr.example");
    let root = both.authority.0.revoke("root", &[]);
    assert_eq!(both.meet(&[root, below.list.clone()]).await, (None, None));
    let revoked = both.authority.0.revoke("revoked", &[&below.own]);
    for (lists, told) in [(vec![revoked, below.list.clone()], REVOKED), (vec![below.list], NOT_LISTED)] {
        let ((connect, listen), (trusts, lets_in)) = (both.settings(&lists), both.settings(&[]));
        assert_eq!(meet(&connect, &lets_in).await.0.unwrap_err(), told);
        assert_eq!(meet(&trusts, &listen).await.1.unwrap_err(), told);
    }
}

#[tokio::test]
async fn lists_are_read_as_authorities_publish_them() {
    let both = Both::new();
    let pem = both.authority.0.revoke("pem", &[&both.lab]);
    let list = rustls::pki_types::CertificateRevocationListDer::from_pem_file(&pem).unwrap();
    let der = both.authority.path("der.crl");
    std::fs::write(&der, &list).unwrap();
    assert_eq!(both.meet(&[der]).await.0.unwrap(), REVOKED);
}

#[test]
fn lists_that_mean_nothing_are_faults() {
    let both = Both::new();
    let list = both.authority.0.revoke("list", &[]);
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(both.authority.path(name), bytes).unwrap();
        both.authority.path(name)
    };
    let found = |lists: Value, authorities: Value| {
        let mut connect = told(&both.ehr);
        extend(&mut connect, json!({"crl_files": lists, "ca_files": authorities}));
        let mut listen = told(&both.lab);
        extend(&mut listen, json!({"crl_files": lists, "client_ca_files": authorities}));
        let connect = both.authority.connect(connect).faults("tls", "lab.example:2575");
        let listen = both.authority.listen(listen).faults("listen_tls");
        [connect, listen].map(|faults| faults.into_iter().map(|fault| fault.to_string()).collect::<Vec<_>>())
    };
    let ca = json!([both.authority.path("ca.pem")]);
    assert_eq!(found(json!([list]), ca.clone()), [[""; 0], [""; 0]]);
    for (lists, authorities, what) in [
        (json!([list]), json!([]), "means nothing without"),
        (json!(["/nonexistent"]), ca.clone(), "/nonexistent cannot be read"),
        (json!([file("empty", b"")]), ca.clone(), "holds no revocation list"),
        (json!([both.authority.path("ca.pem")]), ca.clone(), "holds no revocation list"),
        (json!([file("der", b"\x30\x03\x02\x01\x01")]), ca, "hold a list that cannot be used"),
    ] {
        let [connect, listen] = found(lists, authorities);
        for (told, key) in [(connect, "tls.crl_files: "), (listen, "listen_tls.crl_files: ")] {
            assert!(
                told.len() == 1 && told[0].starts_with(key) && told[0].contains(what),
                "{told:?} / {what}"
            );
        }
    }
}
