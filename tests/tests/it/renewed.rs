//! Certificates and secrets that are replaced while a sandboxed adapter works: it goes by the new ones, without a restart and without being
//! allowed more than the files that its settings name. What it is not given so, the probe of `sandbox.rs` asks for.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use gatepost_tests::{Gateway, Port, until};
use serde_json::json;

use crate::order_event;

/// A certificate for `name` and its key; the certificate's base64, by which it is known again.
fn certificate(dir: &Path, name: &str) -> ([PathBuf; 2], String) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let files = [dir.join(format!("{name}.pem")), dir.join(format!("{name}.key"))];
    std::fs::write(&files[0], certified.cert.pem()).unwrap();
    std::fs::write(&files[1], certified.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files[1], Permissions::from_mode(0o600)).unwrap();
    (files, base64(&certified.cert.pem()))
}

fn base64(pem: &str) -> String {
    let body = pem.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap_or_default();
    body.split("-----END").next().unwrap_or_default().split_ascii_whitespace().collect()
}

/// What whoever listens on `port` presents, once it listens.
fn presented(port: &Port) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]);
    let said = command.stdin(Stdio::null()).stderr(Stdio::null()).output().expect("openssl can be started");
    let certificate = base64(&String::from_utf8_lossy(&said.stdout));
    (!certificate.is_empty()).then_some(certificate)
}

/// Puts a certificate and its key in the place of those before.
type Renew = fn(&Path, &[PathBuf; 2]);

/// Beside it, and then over it.
fn rename(live: &Path, new: &[PathBuf; 2]) {
    for (from, to) in new.iter().zip(["cert.pem", "key.pem"]) {
        std::fs::rename(from, live.join(to)).unwrap();
    }
}

/// Files have numbers, and links lead to the newest.
fn certbot(live: &Path, new: &[PathBuf; 2]) {
    for (from, to) in new.iter().zip(["cert.pem", "key.pem"]) {
        let _ = std::fs::remove_file(live.join(to));
        symlink(from, live.join(to)).unwrap();
    }
}

/// A directory for each version, and one link that leads to the newest.
fn kubernetes(live: &Path, new: &[PathBuf; 2]) {
    let version = live.join(new[0].file_stem().unwrap());
    std::fs::create_dir(&version).unwrap();
    for (from, to) in new.iter().zip(["cert.pem", "key.pem"]) {
        std::fs::rename(from, version.join(to)).unwrap();
        if !live.join(to).is_symlink() {
            symlink(Path::new("..data").join(to), live.join(to)).unwrap();
        }
    }
    symlink(&version, live.join("..new")).unwrap();
    std::fs::rename(live.join("..new"), live.join("..data")).unwrap();
}

/// What an adapter of this kind presents follows the files, with the process that it has had from the beginning.
fn follows(adapter: &str, renew: Renew, settings: impl Fn(&Port, &str) -> String) {
    let (builder, port) = (Gateway::builder(), Port::reserve());
    let (live, archive) = (builder.dir().join("live"), builder.dir().join("archive"));
    std::fs::create_dir(&live).unwrap();
    std::fs::create_dir(&archive).unwrap();
    let (files, mut expected) = certificate(&archive, "first");
    renew(&live, &files);
    let (cert, key) = (live.join("cert.pem"), live.join("key.pem"));
    let settings = settings(&port, &format!("{{ cert_file = {cert:?}, key_file = {key:?} }}"));
    let mut gateway = builder.adapter("lab", &format!("run = {adapter:?}"), &settings).start();
    until("it presents its certificate", || (presented(&port)? == expected).then_some(()));
    for name in ["second", "third"] {
        let (files, new) = certificate(&archive, name);
        renew(&live, &files);
        expected = new;
        until("it presents the new one", || (presented(&port)? == expected).then_some(()));
    }
    assert_eq!(gateway.adapter("lab")["restarts"], 0);
    assert!(gateway.stop().success());
}

fn mllp(port: &Port, tls: &str) -> String {
    format!("listen = \"127.0.0.1:{port}\"\nlisten_tls = {tls}")
}

#[test]
fn r5_an_hl7_listener_presents_what_has_been_renewed_by_renaming() {
    follows("gatepost-hl7", rename, mllp);
}

#[test]
fn r5_an_hl7_listener_presents_what_has_been_renewed_as_certbot_does_it() {
    follows("gatepost-hl7", certbot, mllp);
}

#[test]
fn r5_an_hl7_listener_presents_what_has_been_renewed_as_kubernetes_does_it() {
    follows("gatepost-hl7", kubernetes, mllp);
}

#[test]
fn r5_a_fix_acceptor_presents_what_has_been_renewed_by_renaming() {
    follows("gatepost-fix", rename, |port, tls| {
        format!(
            "sessions = [{{ name = \"venue\", listen = \"127.0.0.1:{port}\", listen_tls = {tls}, begin_string = \"FIX.4.4\", \
             sender_comp_id = \"US\", target_comp_id = \"THEM\" }}]"
        )
    });
}

/// An endpoint that tells what `Authorization` each request has.
fn endpoint() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut seen, mut more) = (Vec::new(), [0; 4096]);
            while !seen.ends_with(b"}") {
                let Ok(read @ 1..) = stream.read(&mut more) else { break };
                seen.extend_from_slice(&more[..read]);
            }
            let text = String::from_utf8_lossy(&seen).to_lowercase();
            let header = text.lines().find_map(|line| line.strip_prefix("authorization: "));
            let _ = tell.send(header.unwrap_or_default().to_owned());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (port, told)
}

#[test]
fn r5_a_webhook_is_sent_with_the_secret_that_has_been_put_in_the_others_place() {
    let builder = Gateway::builder();
    let (port, told) = endpoint();
    let token = builder.dir().join("token");
    let write = |text: &str| {
        let new = token.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &token).unwrap();
    };
    write("one");
    let settings =
        format!("url = \"http://127.0.0.1:{port}/\"\nheader_files = {{ authorization = {token:?} }}");
    let mut gateway = builder
        .app("shop", &["*"], &[])
        .adapter("hook", "run = \"gatepost-http\"", &settings)
        .route("shop", &["hook"])
        .start();
    for text in ["one", "two", "three"] {
        write(text);
        gateway.app().event(&order_event(text, "k", &json!({ "n": text }))).expect(202);
        assert_eq!(told.recv().unwrap(), text);
    }
    assert_eq!(gateway.adapter("hook")["restarts"], 0);
    assert!(gateway.stop().success());
}
