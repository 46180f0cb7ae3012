//! Certificates that must not let anybody in, each for its own reason.

use rcgen::{
    CertificateRevocationListParams, CustomExtension, GeneralSubtree, KeyIdMethod, NameConstraints,
    PKCS_RSA_SHA256, RevokedCertParams, SerialNumber,
};

use super::*;
use RefusalCode::*;

const REVOKED: u64 = 4711;
const EXTENSION_OF_NAMES: &[u64] = &[2, 5, 29, 17];

/// A revocation list of `authority`, in PEM form.
pub(super) fn revocation_list(authority: &Authority, revoked: &[u64], ends: time::OffsetDateTime) -> String {
    let now = time::OffsetDateTime::now_utc();
    let entry = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: now - DAY,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now - DAY * 10,
        next_update: ends,
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&authority.issuer).unwrap().pem().unwrap()
}

/// An authority under another, and what leads from it up to the root's own.
struct Under {
    authority: Authority,
    intermediates: Vec<CertificateDer<'static>>,
}

impl Under {
    fn new(root: &Authority, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::chained(root, &[], name, change)
    }

    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::chained(&self.authority, &self.intermediates, name, change)
    }

    fn chained(
        above: &Authority,
        chain: &[CertificateDer<'static>],
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &above.issuer).unwrap();
        let intermediates = [vec![certificate.der().clone()], chain.to_vec()].concat();
        Self { authority: Authority { issuer: Issuer::new(params, key), certificate }, intermediates }
    }

    fn issue(&self, params: &CertificateParams) -> Identity {
        Identity { intermediates: self.intermediates.clone(), ..self.authority.issue(params) }
    }
}

/// `identity` with its certificate's bytes changed.
fn tampered(identity: &Identity, change: impl Fn(&mut Vec<u8>)) -> Forged {
    let mut der = identity.certificate().to_vec();
    change(&mut der);
    Forged { chain: vec![CertificateDer::from(der)], key: identity.private_key() }
}

/// What a client presents.
struct Forged {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl From<Identity> for Forged {
    fn from(identity: Identity) -> Self {
        let chain = [vec![identity.certificate()], identity.intermediates.clone()].concat();
        Self { chain, key: identity.private_key() }
    }
}

/// The names of a certificate as raw bytes, for what rcgen would not write.
fn raw_uri(bytes: &[u8]) -> CustomExtension {
    let name = [&[0x86, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let names = [&[0x30, u8::try_from(name.len()).unwrap()], &*name].concat();
    CustomExtension::from_oid_content(EXTENSION_OF_NAMES, names)
}

fn replace_all(der: &mut [u8], old: &[u8], new: &[u8]) {
    let places: Vec<usize> = (0..=der.len() - old.len()).filter(|at| der[*at..].starts_with(old)).collect();
    assert_eq!(places.len(), 2, "the algorithm stands inside and outside of what is signed");
    for at in places {
        der[at..at + old.len()].copy_from_slice(new);
    }
}

#[tokio::test]
async fn each_bad_certificate_is_refused_for_its_own_reason() {
    let now = time::OffsetDateTime::now_utc();
    let good = params(&[uri(EHR)]);
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let named = |name: &str| params(&[uri(name)]);
    let raw = |bytes: &[u8]| {
        let mut params = params(&[]);
        params.custom_extensions = vec![raw_uri(bytes)];
        params
    };

    let mut made = None;
    let mut tls = TlsRig::start_with(Limits::default(), |directory, clients, files| {
        let under = |name: &str| Under::new(clients, name, |_| {});
        let (sound, silent, stale) = (under("sound"), under("silent"), under("stale"));
        let gone = Under::new(clients, "gone", |params| params.serial_number = Some(REVOKED.into()));
        let narrow = Under::new(clients, "narrow", |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("clinic.example".to_owned())],
                excluded_subtrees: Vec::new(),
            });
        });
        let shallow = Under::new(clients, "shallow", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        });
        let rsa_key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let mut rsa_params = CertificateParams::default();
        rsa_params.distinguished_name.push(DnType::CommonName, "old");
        rsa_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = rsa_params.signed_by(&rsa_key, &clients.issuer).unwrap();
        let old = Under {
            intermediates: vec![certificate.der().clone()],
            authority: Authority { issuer: Issuer::new(rsa_params, rsa_key), certificate },
        };
        let next = now + DAY;
        let lists = [
            revocation_list(clients, &[REVOKED], next),
            revocation_list(&sound.authority, &[REVOKED], next),
            revocation_list(&gone.authority, &[], next),
            revocation_list(&narrow.authority, &[], next),
            revocation_list(&old.authority, &[], next),
            revocation_list(&stale.authority, &[], now - DAY),
        ];
        let path = directory.join("clients.crl");
        fs::write(&path, lists.concat()).unwrap();
        files.crl = vec![path];
        made = Some((sound, silent, stale, gone, narrow, shallow, old));
    })
    .await;
    let (sound, silent, stale, gone, narrow, shallow, old) = made.unwrap();
    let root = &tls.clients;
    let issue = |params: &CertificateParams| Forged::from(root.issue(params));

    let deep =
        (0..8).fold(sound.below("sound 0", |_| {}), |above, n| above.below(&format!("sound {n}"), |_| {}));
    let not_an_authority = {
        let key = KeyPair::generate().unwrap();
        let certificate = good.signed_by(&key, &root.issuer).unwrap();
        let intermediates = vec![certificate.der().clone()];
        Under { authority: Authority { issuer: Issuer::new(good.clone(), key), certificate }, intermediates }
    };
    let own_key = KeyPair::generate().unwrap();
    let certificate = good.self_signed(&own_key).unwrap();
    let self_signed = Identity { certificate, key: own_key, intermediates: Vec::new() };
    let rsa_sha256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    let signed_by_old = |last: u8| {
        let mut forged = tampered(&old.issue(&good), |der| {
            let weaker = [&rsa_sha256[..8], &[last]].concat();
            replace_all(der, rsa_sha256, &weaker);
        });
        forged.chain.extend(old.intermediates.clone());
        forged
    };
    let critical = || {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(true);
        extension
    };

    let cases: Vec<(&str, Forged, RefusalCode, &str)> = vec![
        (
            "expired",
            issue(&with(&|p| (p.not_before, p.not_after) = (now - DAY * 2, now - DAY))),
            CertificateExpired,
            "expired",
        ),
        (
            "not yet valid",
            issue(&with(&|p| (p.not_before, p.not_after) = (now + DAY, now + DAY * 2))),
            CertificateNotYetValid,
            "not valid yet",
        ),
        ("another authority's", tls.servers.issue(&good).into(), CertificateIssuer, "UnknownIssuer"),
        (
            "a same-named authority's",
            Authority::new("clients").issue(&good).into(),
            CertificateInvalid,
            "BadSignature",
        ),
        ("self-signed", self_signed.into(), CertificateIssuer, "UnknownIssuer"),
        ("only a common name", issue(&params(&[])), CertificateName, "no URI name"),
        ("only a DNS name", issue(&params(&[dns("ehr.clinic.example")])), CertificateName, "no URI name"),
        (
            "only a mail address",
            issue(&params(&[SanType::Rfc822Name("ehr@clinic.example".try_into().unwrap())])),
            CertificateName,
            "no URI name",
        ),
        ("two URI names", issue(&params(&[uri(EHR), uri(LAB)])), CertificateName, "more than one"),
        ("the same URI name twice", issue(&params(&[uri(EHR), uri(EHR)])), CertificateName, "more than one"),
        (
            "names that are not UTF-8",
            issue(&raw(b"spiffe://clinic.example/\xe9hr")),
            CertificateName,
            "cannot be read",
        ),
        (
            "two extensions of names",
            issue(&with(&|p| p.custom_extensions = vec![raw_uri(LAB.as_bytes())])),
            CertificateInvalid,
            "ExtensionValueInvalid",
        ),
        ("a wildcard for a host", issue(&named("spiffe://*.example/ehr")), CertificateSpiffe, "trust domain"),
        (
            "a wildcard for a path",
            issue(&named("spiffe://clinic.example/*")),
            CertificateSpiffe,
            "path is not",
        ),
        ("no SPIFFE id", issue(&named("https://clinic.example/ehr")), CertificateSpiffe, "not a SPIFFE id"),
        ("an empty URI name", issue(&named("")), CertificateSpiffe, "not a SPIFFE id"),
        ("a query", issue(&named("spiffe://clinic.example/ehr?admin")), CertificateSpiffe, "query"),
        ("a fragment", issue(&named("spiffe://clinic.example/ehr#admin")), CertificateSpiffe, "fragment"),
        (
            "user information",
            issue(&named("spiffe://root@clinic.example/ehr")),
            CertificateSpiffe,
            "user information",
        ),
        ("a port", issue(&named("spiffe://clinic.example:443/ehr")), CertificateSpiffe, "port"),
        ("no path", issue(&named("spiffe://clinic.example")), CertificateSpiffe, "no path"),
        ("an empty path", issue(&named("spiffe://clinic.example/")), CertificateSpiffe, "no path"),
        (
            "capital letters",
            issue(&named("spiffe://Clinic.example/ehr")),
            CertificateSpiffe,
            "capital letters",
        ),
        ("an escape", issue(&named("spiffe://clinic.example/e%68r")), CertificateSpiffe, "path is not"),
        ("another trust domain", issue(&named("spiffe://hospital.example/ehr")), UnknownPeer, ""),
        ("another workload", issue(&named(LAB)), UnknownPeer, ""),
        (
            "for servers only",
            issue(&with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
            CertificatePurpose,
            "extended key usage",
        ),
        (
            "for signing code only",
            issue(&with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning])),
            CertificatePurpose,
            "extended key usage",
        ),
        (
            "an authority's own",
            issue(&with(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
            CertificateInvalid,
            "CaUsedAsEndEntity",
        ),
        ("signed by a client", not_an_authority.issue(&good).into(), CertificateInvalid, "EndEntityUsedAsCa"),
        ("revoked", issue(&with(&|p| p.serial_number = Some(REVOKED.into()))), CertificateRevoked, "Revoked"),
        (
            "revoked by an intermediate",
            sound.issue(&with(&|p| p.serial_number = Some(REVOKED.into()))).into(),
            CertificateRevoked,
            "Revoked",
        ),
        ("its issuer was revoked", gone.issue(&good).into(), CertificateRevoked, "Revoked"),
        ("its issuer has no list", silent.issue(&good).into(), RevocationUnknown, "UnknownRevocationStatus"),
        ("its issuer's list has expired", stale.issue(&good).into(), RevocationExpired, "evocation"),
        (
            "an unknown critical extension",
            issue(&with(&|p| p.custom_extensions = vec![critical()])),
            CertificateInvalid,
            "UnsupportedCriticalExtension",
        ),
        ("signed with SHA-1", signed_by_old(0x05), CertificateInvalid, "ignature"),
        ("signed with MD5", signed_by_old(0x04), CertificateInvalid, "ignature"),
        (
            "a broken signature",
            tampered(&root.issue(&good), |der| *der.last_mut().unwrap() ^= 1),
            CertificateInvalid,
            "BadSignature",
        ),
        (
            "outside of what its issuer may name",
            narrow.issue(&params(&[uri(EHR), dns("ehr.other.example")])).into(),
            CertificateInvalid,
            "NameConstraintViolation",
        ),
        (
            "below an issuer that may have none below",
            shallow.below("sub", |_| {}).issue(&good).into(),
            CertificateInvalid,
            "PathLenConstraintViolated",
        ),
        ("too deep a chain", deep.issue(&good).into(), CertificateInvalid, "MaximumPathDepthExceeded"),
    ];
    assert!(cases.len() >= 40);
    let mut seen = 0;
    for (what, forged, code, why) in cases {
        let answer = tls.present(Some(forged), &TLS13).await;
        let shut_out = matches!(code, UnknownPeer | CertificateName | CertificateSpiffe);
        match answer {
            Some(answer) => assert!(shut_out && answer.status == 401, "{what}: {answer:?}"),
            None => assert!(!shut_out, "{what}"),
        }
        seen += 1;
        until(what, || tls.rig.refusals().len() == seen).await;
        let refusal = tls.rig.refusals().pop().unwrap();
        let said = refusal.why.as_deref().unwrap_or_default();
        assert_eq!(refusal.code, code, "{what}: {said}");
        assert!(said.contains(why), "{what}: {said}");
    }
    for (what, forged, version, code) in [
        ("TLS 1.2", Some(Forged::from(tls.clients.issue(&good))), &TLS12, TlsVersion),
        ("no certificate", None, &TLS13, CertificateMissing),
    ] {
        assert!(tls.present(forged, version).await.is_none(), "{what}");
        seen += 1;
        until(what, || tls.rig.refusals().len() == seen).await;
        assert_eq!(tls.rig.refusals().pop().unwrap().code, code, "{what}");
    }

    for (what, client) in
        [("of the root", tls.clients.issue(&good)), ("of an intermediate", sound.issue(&good))]
    {
        assert_eq!(tls.get(&client).await.status, 200, "{what}: the rig was not at fault");
    }
    tls.rig.stop().await;
}

#[tokio::test]
async fn a_refused_certificate_is_remembered_by_the_name_it_claims() {
    let mut tls = TlsRig::start(Limits::default()).await;
    let stranger = Authority::new("strangers").issue(&params(&[uri(EHR)]));
    assert!(tls.is_shut_out(Some(&stranger), &TLS13).await);
    until("the refusal", || tls.rig.refusals().len() == 1).await;
    let refusal = tls.rig.refusals().pop().unwrap();
    assert_eq!(refusal.claimed.as_deref(), Some(EHR));
    assert_eq!(refusal.facts, None, "what it claims is no fact");
    assert!(tls.is_shut_out(None, &TLS13).await);
    until("the refusal", || tls.rig.refusals().len() == 2).await;
    assert_eq!(tls.rig.refusals().pop().unwrap().claimed, None);
    tls.rig.stop().await;
}

impl TlsRig {
    /// The answer to a client that presents this; `None` if the handshake, or what is told after it, failed.
    async fn present(
        &self,
        forged: Option<Forged>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Option<Answer> {
        let mut stream = match forged {
            None => self.connect_with(None, version).await.ok()?,
            Some(Forged { chain, key }) => self.connect_chain(chain, key, version).await.ok()?,
        };
        let _ = stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let read = timeout(HANG, stream.read_to_end(&mut answer)).await.expect("it was not closed");
        match answer.is_empty() {
            true => read.is_err().then_some(()).map_or_else(|| panic!("closed without a word"), |()| None),
            false => Some(parse(&answer)),
        }
    }
}
