//! The adapter's settings, `[adapters.<name>.settings]` in the gateway's configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use gatepost_adapter::Fault;
use gatepost_adapter::tls::ConnectTls;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::signature::{Secret, text};

const TIMEOUT_MS_MAX: u64 = 600_000;
const CONCURRENCY_MAX: usize = 256;
/// Headers that this program writes, or that the connection needs.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
];
const OWN_PREFIXES: [&str; 2] = ["webhook-", "ce-"];
/// Headers whose values are secrets by nature.
const SECRET_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The endpoint and how to call it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where to deliver to, `https://…`. Plain `http://` is taken for this host only, unless `allow_plaintext` says otherwise.
    pub(crate) url: String,
    /// Deliver over plain HTTP to other hosts too.
    #[serde(default)]
    pub(crate) allow_plaintext: bool,
    /// Files with the endpoint's secrets, each `whsec_` and base64. Every request is signed with all of them.
    #[serde(default)]
    pub(crate) secret_files: Vec<PathBuf>,
    /// Constant headers. Secret ones belong into `header_files`.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    /// Headers whose values stand in files, like `Authorization`.
    #[serde(default)]
    pub(crate) header_files: BTreeMap<String, PathBuf>,
    /// Whom to trust, and who to be, over `https`.
    #[serde(default)]
    pub(crate) tls: Option<ConnectTls>,
    /// How long to wait for a connection.
    #[serde(default = "connect_timeout_ms")]
    pub(crate) connect_timeout_ms: u64,
    /// How long to wait for the answer once connected; then the delivery is in doubt.
    #[serde(default = "timeout_ms")]
    pub(crate) timeout_ms: u64,
    /// Requests at a time.
    #[serde(default = "concurrency")]
    pub(crate) concurrency: usize,
}

fn connect_timeout_ms() -> u64 {
    10_000
}

fn timeout_ms() -> u64 {
    30_000
}

fn concurrency() -> usize {
    16
}

/// Settings with everything read that they point to.
pub(crate) struct Target {
    pub(crate) uri: Uri,
    /// `host:port`
    pub(crate) address: String,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) headers: HeaderMap,
}

impl Settings {
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = self.target().err().unwrap_or_default();
        let mut range = |key: &str, value: u64, highest: u64| {
            if !(1..=highest).contains(&value) {
                faults.push(Fault::new(key, format!("must be from 1 to {highest}")));
            }
        };
        range("connect_timeout_ms", self.connect_timeout_ms, TIMEOUT_MS_MAX);
        range("timeout_ms", self.timeout_ms, TIMEOUT_MS_MAX);
        range("concurrency", self.concurrency as u64, CONCURRENCY_MAX as u64);
        faults
    }

    /// Reads the files; gives everything that is wrong at once.
    pub(crate) fn target(&self) -> Result<Target, Vec<Fault>> {
        let mut faults = Vec::new();
        let uri = self.uri(&mut faults);
        let secrets = self.secrets(&mut faults);
        let headers = self.header_map(&mut faults);
        let address = self.host_and_port();
        match (&self.tls, &address) {
            (Some(_), _) if !self.is_https() => {
                faults.push(Fault::new("tls", "means nothing: `url` is not https"));
            }
            (Some(tls), Some(address)) => faults.extend(tls.faults("tls", address)),
            _ => {}
        }
        match uri.zip(address) {
            Some((uri, address)) if faults.is_empty() => Ok(Target { uri, address, secrets, headers }),
            _ => Err(faults),
        }
    }

    fn is_https(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| url.scheme() == "https")
    }

    /// What is spoken over `https`; nothing for plain HTTP.
    pub(crate) fn tls_spoken(&self) -> Option<&ConnectTls> {
        static USUAL: LazyLock<ConnectTls> = LazyLock::new(ConnectTls::default);
        self.is_https().then(|| self.tls.as_ref().unwrap_or(&USUAL))
    }

    /// The files that [`Settings::target`] reads.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let secrets = self.secret_files.iter().chain(self.header_files.values()).map(PathBuf::as_path);
        secrets.chain(self.tls.iter().flat_map(ConnectTls::files))
    }

    /// Where the endpoint is; nothing if the URL is none.
    pub(crate) fn host_and_port(&self) -> Option<String> {
        let url = Url::parse(&self.url).ok()?;
        Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn uri(&self, faults: &mut Vec<Fault>) -> Option<Uri> {
        let mut fault = |message: &str| faults.push(Fault::new("url", message));
        let Ok(url) = Url::parse(&self.url) else {
            fault("is not a URL");
            return None;
        };
        if !url.username().is_empty() || url.password().is_some() {
            fault("must hold no credentials; put them into a file under `header_files`");
        }
        match url.scheme() {
            "https" => {}
            "http" if self.allow_plaintext || is_loopback(&url) => {}
            "http" => fault("is plain HTTP to another host; use https, or set `allow_plaintext`"),
            _ => fault("must begin with https:// or http://"),
        }
        let uri = url.as_str().parse().ok();
        if uri.is_none() {
            fault("cannot stand in a request: it is too long, or has characters that HTTP does not know");
        }
        uri
    }

    fn secrets(&self, faults: &mut Vec<Fault>) -> Vec<Secret> {
        let mut secrets = Vec::new();
        for path in &self.secret_files {
            match Secret::from_file(path) {
                Ok(secret) => secrets.push(secret),
                Err(error) => faults.push(Fault::new("secret_files", format!("{} {error}", path.display()))),
            }
        }
        secrets
    }

    fn header_map(&self, faults: &mut Vec<Fault>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let key = format!("headers.{name}");
            if SECRET_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                faults.push(Fault::new(key, "is a secret; put its value into a file under `header_files`"));
                continue;
            }
            add_header(&mut headers, name, value, key, faults);
        }
        for (name, path) in &self.header_files {
            let key = format!("header_files.{name}");
            match text(path) {
                Ok(value) => add_header(&mut headers, name, value.trim(), key, faults),
                Err(error) => {
                    faults.push(Fault::new(key, format!("{} cannot be read: {error}", path.display())))
                }
            }
        }
        headers
    }
}

fn add_header(headers: &mut HeaderMap, name: &str, value: &str, key: String, faults: &mut Vec<Fault>) {
    let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
        faults.push(Fault::new(key, "is not a header's name and value"));
        return;
    };
    let own = OWN_HEADERS.contains(&name.as_str())
        || OWN_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
    if own {
        faults.push(Fault::new(key, "is written by gatepost-http itself"));
        return;
    }
    value.set_sensitive(true);
    if headers.insert(name, value).is_some() {
        faults.push(Fault::new(key, "is set twice"));
    }
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let settings: Settings = serde_json::from_str(text).unwrap();
        settings.faults().into_iter().map(|fault| fault.to_string()).collect()
    }

    #[test]
    fn plain_http_stays_on_this_host_unless_allowed() {
        for url in
            ["https://partner.example/hook", "http://localhost:1/", "http://127.0.0.9/", "http://[::1]:8/x"]
        {
            assert_eq!(faults(&format!(r#"{{"url":"{url}"}}"#)), [""; 0], "{url}");
        }
        let plain = faults(r#"{"url":"http://10.0.0.1/hook"}"#);
        assert!(plain[0].contains("allow_plaintext"), "{plain:?}");
        assert_eq!(faults(r#"{"url":"http://10.0.0.1/hook","allow_plaintext":true}"#), [""; 0]);
        assert!(!faults(r#"{"url":"http://localhost.evil.example/"}"#).is_empty());
    }

    #[test]
    fn the_endpoints_host_and_port_are_what_the_url_says() {
        let settings =
            |url: &str| serde_json::from_str::<Settings>(&format!(r#"{{"url":"{url}"}}"#)).unwrap();
        for (url, at) in [
            ("https://partner.example/hook", Some("partner.example:443")),
            ("http://[::1]:8080/", Some("[::1]:8080")),
            ("http://10.0.0.1", Some("10.0.0.1:80")),
            ("nonsense", None),
        ] {
            assert_eq!(settings(url).host_and_port().as_deref(), at, "{url}");
        }
    }

    #[test]
    fn a_url_that_no_request_can_have_is_a_fault() {
        let long = faults(&format!(r#"{{"url":"https://p/{}"}}"#, "x".repeat(70_000)));
        assert!(long.len() == 1 && long[0].starts_with("url: cannot stand in a request"), "{long:?}");
    }

    #[test]
    fn settings_of_tls_are_for_https_and_their_files_are_looked_at() {
        let tls = |url: &str| faults(&format!(r#"{{"url":"{url}","tls":{{"ca_files":["/nonexistent"]}}}}"#));
        assert_eq!(tls("http://localhost/"), ["tls: means nothing: `url` is not https"]);
        let https = tls("https://p/");
        assert!(
            https.len() == 1 && https[0].starts_with("tls.ca_files: /nonexistent cannot be read"),
            "{https:?}"
        );
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let found = faults(
            r#"{"url":"ftp://u:p@h/","secret_files":["/nonexistent/s"],"headers":{"Authorization":"x","webhook-id":"x","a b":"x","X-A":"1"},
                "header_files":{"x-a":"/nonexistent/h"},"tls":{"ca_files":["/nonexistent/ca"]},"timeout_ms":0,"concurrency":0}"#,
        );
        let keys: Vec<&str> = found.iter().map(|fault| fault.split(':').next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "url",
                "url",
                "secret_files",
                "headers.Authorization",
                "headers.a b",
                "headers.webhook-id",
                "header_files.x-a",
                "tls",
                "timeout_ms",
                "concurrency",
            ]
        );
    }

    #[test]
    fn a_secret_header_comes_from_a_file_and_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "Bearer abc\n").unwrap();
        let text =
            format!(r#"{{"url":"https://p/","header_files":{{"Authorization":"{}"}}}}"#, path.display());
        let settings: Settings = serde_json::from_str(&text).unwrap();
        let Ok(target) = settings.target() else { panic!("faults") };
        assert_eq!(target.headers["authorization"], "Bearer abc");
        assert!(target.headers["authorization"].is_sensitive());
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<Settings>(r#"{"url":"https://p/","secret":"x"}"#).is_err());
    }
}
