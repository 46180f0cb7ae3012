//! What the endpoint's answer means for the delivery.

use std::time::{Duration, SystemTime};

use gatepost_adapter::{Evidence, Level, Outcome, Reply, Scope, binary_reply, digest, reply};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};

/// What is kept of a response body; the rest is not read.
pub(crate) const BODY_BYTES_MAX: usize = 20_000;
const MEDIA_TYPE_BYTES_MAX: usize = 255;
const UNKNOWN_MEDIA_TYPE: &str = "application/octet-stream";

/// An answer as far as it is kept.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The first bytes of the body.
    pub(crate) body: Vec<u8>,
    /// There was more, or it broke off.
    pub(crate) cut: bool,
}

impl Answer {
    pub(crate) fn outcome(self, now: SystemTime) -> Outcome {
        let reason = format!("the endpoint answered {}", self.status.as_u16());
        match fate(self.status) {
            Fate::Delivered => Outcome::Delivered { evidence: self.evidence(), reply: self.reply() },
            Fate::Reject => Outcome::Reject { reason, evidence: Some(self.evidence()), reply: self.reply() },
            Fate::Retry(scope) => {
                let after = retry_after(&self.headers, now);
                let reply = if scope == Scope::Message { self.reply() } else { None };
                Outcome::Retry { scope, after, reason, reply }
            }
        }
    }

    fn evidence(&self) -> Evidence {
        Evidence::new(Level::Transport)
            .with("status", self.status.as_u16())
            .with("body_sha256", digest(&self.body))
            .with("body_bytes", self.body.len())
            .with("body_cut", self.cut)
    }

    fn reply(self) -> Option<Reply> {
        if self.body.is_empty() {
            return None;
        }
        let media_type = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .filter(|value| !value.is_empty() && value.len() <= MEDIA_TYPE_BYTES_MAX)
            // A tab may stand in a header, and in no attribute of an event.
            .filter(|value| !value.contains(char::is_control))
            .unwrap_or(UNKNOWN_MEDIA_TYPE);
        // Half a JSON value is no JSON, and half a text may end inside a character.
        Some(if self.cut { binary_reply(media_type, &self.body) } else { reply(media_type, self.body) })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Delivered,
    Reject,
    Retry(Scope),
}

fn fate(status: StatusCode) -> Fate {
    match status {
        status if status.is_success() => Fate::Delivered,
        // The endpoint as a whole takes nothing now.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Fate::Retry(Scope::Destination),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Fate::Retry(Scope::Message),
        status if status.is_client_error() => Fate::Reject,
        // Redirects among them: following one would hand the payload to an address that nobody configured. It may be
        // a passing fault of a proxy, so it is tried again until attempts are spent.
        _ => Fate::Retry(Scope::Message),
    }
}

/// Seconds or an HTTP date. The gateway keeps it within its own bounds.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than the type holds is for ever, which the gateway cuts to its own longest.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    // A date in the past: at once.
    Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_fate() {
        let table = [
            (200, Fate::Delivered),
            (202, Fate::Delivered),
            (204, Fate::Delivered),
            (301, Fate::Retry(Scope::Message)),
            (307, Fate::Retry(Scope::Message)),
            (400, Fate::Reject),
            (401, Fate::Reject),
            (404, Fate::Reject),
            (408, Fate::Retry(Scope::Message)),
            (410, Fate::Reject),
            (413, Fate::Reject),
            (422, Fate::Reject),
            (425, Fate::Retry(Scope::Message)),
            (429, Fate::Retry(Scope::Destination)),
            (500, Fate::Retry(Scope::Message)),
            (502, Fate::Retry(Scope::Message)),
            (503, Fate::Retry(Scope::Destination)),
            (504, Fate::Retry(Scope::Message)),
            (599, Fate::Retry(Scope::Message)),
        ];
        for (status, expected) in table {
            assert_eq!(fate(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }

    #[test]
    fn a_media_type_that_no_attribute_can_hold_is_unknown() {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "text/plain;\tx=1".parse().unwrap())]);
        let answer = Answer { status: StatusCode::OK, headers, body: b"ok".to_vec(), cut: false };
        let reply = answer.reply().unwrap();
        assert_eq!(reply.datacontenttype.as_deref(), Some(UNKNOWN_MEDIA_TYPE));
        assert_eq!(reply.data_base64.as_deref(), Some("b2s="));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 02 Jan 2026 03:04:05 GMT").unwrap();
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("99999999999999999999"), Some(Duration::from_secs(u64::MAX)), "not at once");
        assert_eq!(after("+120"), None);
        assert_eq!(after("Fri, 02 Jan 2026 03:05:05 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(after("Fri, 02 Jan 2026 03:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
