//! The answers that the listeners give by themselves, as fixed bytes: there is no request to look at, or no handler left to ask.

use std::sync::LazyLock;

use axum::body::Body;
use gatepost_api::problem::{Code, Problem};
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use super::RefusalCode;

const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
/// Requests that were never read have no id.
const NO_REQUEST: &str = "-";

static UNAUTHENTICATED: LazyLock<String> = LazyLock::new(|| {
    written(
        "401 Unauthorized",
        "",
        Code::Unauthenticated,
        "the gateway read nothing of the request: who connects decides, by user, group or certificate",
    )
});
static TOO_MANY: LazyLock<String> = LazyLock::new(|| {
    written(
        "429 Too Many Requests",
        "retry-after: 1\r\n",
        Code::TooManyRequests,
        "too many connections are open; close some or wait",
    )
});

/// What a refused peer is sent. The same bytes for all reasons of identity: which rule failed is for the audit log, not for strangers.
pub(super) fn refusal(code: RefusalCode) -> &'static [u8] {
    match code {
        RefusalCode::PeerLimit
        | RefusalCode::PrincipalLimit
        | RefusalCode::ListenerLimit
        | RefusalCode::GatewayLimit
        | RefusalCode::Exhausted => TOO_MANY.as_bytes(),
        RefusalCode::UnknownPeer
        | RefusalCode::UnmappedUser
        | RefusalCode::UnseenProcess
        | RefusalCode::PeerGone
        | RefusalCode::NoCredentials
        | RefusalCode::NotTheAdapter
        | RefusalCode::HostNotAllowed
        | RefusalCode::FileNotAllowed
        | RefusalCode::RequestMalformed
        | RefusalCode::RequestLimit
        | RefusalCode::TlsFailed
        | RefusalCode::TlsTimeout
        | RefusalCode::TlsVersion
        | RefusalCode::CertificateMissing
        | RefusalCode::CertificateExpired
        | RefusalCode::CertificateNotYetValid
        | RefusalCode::CertificateIssuer
        | RefusalCode::CertificatePurpose
        | RefusalCode::CertificateInvalid
        | RefusalCode::CertificateRevoked
        | RefusalCode::RevocationUnknown
        | RefusalCode::RevocationExpired
        | RefusalCode::CertificateName
        | RefusalCode::CertificateSpiffe => UNAUTHENTICATED.as_bytes(),
    }
}

/// The answer in place of a handler that panicked.
pub(super) fn panicked() -> Response<Body> {
    let mut response = Response::new(Body::from(problem(Code::Internal, "the request's handler failed")));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
    response
}

fn problem(code: Code, detail: &str) -> String {
    // A problem without results is strings, a number and a bool: it always serialises.
    serde_json::to_string(&Problem::new(code, detail, NO_REQUEST)).unwrap_or_default()
}

fn written(status: &str, header: &str, code: Code, detail: &str) -> String {
    let body = problem(code, detail);
    let bytes = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {bytes}\r\n{header}connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_a_complete_problem() {
        for code in RefusalCode::ALL {
            let text = std::str::from_utf8(refusal(*code)).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let problem: Problem = serde_json::from_str(body).unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", problem.status)), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
            assert!(head.ends_with("connection: close"), "{head}");
            assert_eq!(head.contains("retry-after: 1"), problem.status == 429, "{head}");
        }
    }
}
