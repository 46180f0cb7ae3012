//! The endpoint: its address, its secrets and the HTTP client for it. Secrets, header values and authorities stand in files;
//! files that change are read again at the next attempt, so that a secret is rotated without a restart. A file that cannot be
//! used keeps what was there before.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::files::Live;
use gatepost_adapter::{Failure, Fault};
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::connect::Connector;
use crate::content::Content;
use crate::settings::{Settings, Target};

const OWN_NAME: &str = concat!("gatepost-http/", env!("CARGO_PKG_VERSION"));
/// How long a connection is kept for the next request.
const IDLE_MAX: Duration = Duration::from_secs(90);

/// Shared by all workers.
pub(crate) struct Endpoint {
    pub(crate) settings: Settings,
    live: Live<Access>,
}

/// What an attempt needs. One attempt keeps to one.
pub(crate) struct Access {
    /// Follows no redirect, knows no proxy and unpacks nothing: an attempt is one request.
    pub(crate) client: Client<Connector, Content>,
    pub(crate) target: Target,
}

#[derive(Debug, thiserror::Error)]
enum AccessError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Files(Vec<Fault>),
    #[error("{}", .0.source().map_or_else(|| .0.to_string(), ToString::to_string))]
    Tls(#[from] Failure),
}

impl Endpoint {
    pub(crate) fn new(settings: Settings) -> Result<Self, Failure> {
        let live = Live::new(settings.files(), || Access::read(&settings))
            .map_err(|error| Failure::new("what the settings point to cannot be used", error))?;
        Ok(Self { settings, live })
    }

    /// The secrets as they are now.
    pub(crate) fn access(&self) -> Arc<Access> {
        self.live.current(self.settings.files(), || Access::read(&self.settings))
    }
}

impl Access {
    fn read(settings: &Settings) -> Result<Self, AccessError> {
        let target = settings.target().map_err(AccessError::Files)?;
        let connector = Connector::new(&target.address, settings.tls_spoken(), settings.connect_timeout())?;
        let client = Client::builder(TokioExecutor::new())
            // A kept connection that has ended before any of a request was written is no attempt: the request goes out by another.
            // Whatever else fails is for the gateway to try again.
            .retry_canceled_requests(true)
            .pool_idle_timeout(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client, target })
    }

    /// One attempt's. What the settings say of a header holds against what is usual, and what the attempt says against both.
    pub(crate) fn request(&self, headers: HeaderMap, content: Content) -> Request<Content> {
        let mut request = Request::new(content);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.uri.clone();
        *request.headers_mut() = headers;
        for (name, value) in &self.target.headers {
            request.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
        for (name, usual) in [(ACCEPT, "*/*"), (USER_AGENT, OWN_NAME)] {
            request.headers_mut().entry(name).or_insert(HeaderValue::from_static(usual));
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_rotated_secret_is_used_at_once_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, token) = (dir.path().join("secret"), dir.path().join("token"));
        let write = |file: &Path, text: &str| {
            // As careful people do it: beside, then over.
            let new = dir.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, file).unwrap();
        };
        write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        write(&token, "Bearer one");
        let settings = serde_json::json!({
            "url": "https://p/", "secret_files": [secret], "header_files": {"authorization": token},
        });
        let endpoint = Endpoint::new(serde_json::from_value(settings).unwrap()).unwrap();
        let signature = || {
            let access = endpoint.access();
            crate::signature::signatures(&access.target.secrets, "id", 1, b"x").unwrap()
        };
        let header = || endpoint.access().target.headers["authorization"].to_str().unwrap().to_owned();
        let (first, same) = (endpoint.access(), endpoint.access());
        assert!(Arc::ptr_eq(&first, &same), "nothing has changed");
        let before = signature();

        write(&token, "Bearer two");
        assert_eq!((header().as_str(), signature()), ("Bearer two", before.clone()));
        write(&secret, "not a secret");
        assert_eq!((header().as_str(), signature()), ("Bearer two", before.clone()));
        std::fs::remove_file(&secret).unwrap();
        assert_eq!(signature(), before);
        write(&secret, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_ne!(signature(), before);
    }
}
