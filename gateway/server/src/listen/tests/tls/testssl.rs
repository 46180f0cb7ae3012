//! What a program that knows every weakness of TLS servers says about ours.

use serde_json::Value;

use super::*;

/// What it must find, for the certificate is a test's: nobody trusts its authority, and it names no place that tells of revocation.
const OF_THE_TESTS_OWN_AUTHORITY: [&str; 2] = ["cert_chain_of_trust", "cert_revocation"];
/// What it says about itself.
const OF_ITSELF: &str = "engine_problem";
const HARMLESS: [&str; 4] = ["OK", "INFO", "LOW", "DEBUG"];

fn text<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding[key].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "takes minutes; `make test-long` runs it"]
async fn long_testssl_finds_tls_1_3_and_no_weakness() {
    let Some(program) = ["testssl", "testssl.sh"].into_iter().find(|name| have(name)) else {
        return skipped("needs testssl.sh");
    };
    let mut tls = TlsRig::start(Limits::default()).await;
    let found = tls.rig.directory.path().join("found.json");
    let output = tokio::process::Command::new(program)
        .args(["--quiet", "--warnings", "off", "--color", "0", "--ip", "127.0.0.1", "--jsonfile"])
        .arg(&found)
        .arg(format!("localhost:{}", tls.address.port()))
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let report = fs::read_to_string(&found)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)));
    let findings: Vec<Value> = serde_json::from_str(&report).unwrap();
    let of =
        |id: &str| findings.iter().find(|finding| text(finding, "id") == id).map(|one| text(one, "finding"));

    for old in ["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2"] {
        assert!(of(old).is_some_and(|found| found.starts_with("not offered")), "{old}: {:?}", of(old));
    }
    assert!(of("TLS1_3").is_some_and(|found| found.starts_with("offered")), "{:?}", of("TLS1_3"));
    assert!(findings.len() > 50, "it looked at next to nothing: {report}");
    let (listed, grave): (Vec<_>, Vec<_>) = findings
        .iter()
        .filter(|finding| !HARMLESS.contains(&text(finding, "severity")) && text(finding, "id") != OF_ITSELF)
        .partition(|finding| OF_THE_TESTS_OWN_AUTHORITY.iter().any(|id| text(finding, "id").starts_with(id)));
    for finding in &listed {
        eprintln!("of the test's own authority: {finding}");
    }
    eprintln!(
        "testssl.sh: {} findings, {} of them about the test's own authority",
        findings.len(),
        listed.len()
    );
    assert!(grave.is_empty(), "{grave:#?}");
    tls.rig.stop().await;
}
