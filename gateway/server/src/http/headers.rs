//! Request headers of the API: idempotency key, preference, epoch, bearer token, trace context. Pure functions.

use std::time::Duration;

use axum::http::{HeaderMap, header};
use gatepost_api::problem::Code;
use gatepost_api::{EPOCH_HEADER, IDEMPOTENCY_HEADER};
use gatepost_core::message::IDEMPOTENCY_KEY_BYTES_MAX;

use super::problem::Refusal;

/// Longest `Prefer: wait`, seconds; longer ones are cut to it.
pub(crate) const WAIT_S_MAX: u64 = 300;

/// The sender's own idempotency key: a structured-field string (RFC 8941 §3.3.3) or the bare text.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let fault = || {
        let detail = format!(
            "`Idempotency-Key` must stand there once, as 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters, bare or in quotes"
        );
        Refusal::invalid(detail)
    };
    let mut values = headers.get_all(IDEMPOTENCY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(fault());
    }
    let text = value.to_str().map_err(|_| fault())?.trim();
    let key = match text.strip_prefix('"') {
        Some(rest) => unquote(rest).ok_or_else(fault)?,
        None => text.to_owned(),
    };
    let legal = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
        && key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if legal { Ok(Some(key)) } else { Err(fault()) }
}

/// The content of a structured-field string after its opening quote.
fn unquote(rest: &str) -> Option<String> {
    let mut content = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.as_str().is_empty().then_some(content),
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\') => content.push(escaped),
                _ => return None,
            },
            plain => content.push(plain),
        }
    }
}

/// `Prefer: wait=N` (RFC 7240 §4.3). What is not understood is ignored, as the RFC asks; the first `wait` counts.
pub(crate) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(wait_seconds)
        .map(|seconds| Duration::from_secs(seconds.min(WAIT_S_MAX)))
}

fn wait_seconds(preference: &str) -> Option<u64> {
    let (name, value) = preference.split(';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    let value = value.trim().trim_matches('"');
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    // A number too large for the type is a long wait all the same.
    digits.then(|| value.parse().unwrap_or(WAIT_S_MAX))
}

/// An adapter's session.
pub(crate) fn epoch(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut values = headers.get_all(EPOCH_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // The number as it was given, once: of two sessions neither is meant.
    let given = |text: &str| text.parse().ok().filter(|epoch: &u64| epoch.to_string() == text);
    let epoch = value.to_str().ok().and_then(given).filter(|_| values.next().is_none());
    epoch
        .map(Some)
        .ok_or_else(|| Refusal::invalid("`Gatepost-Epoch` must be the number that `POST /v1/session` gave"))
}

/// The bearer token, if there is one. Of several none is taken: which one counts would be a guess.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// W3C trace context of a request (Trace Context §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceParent(String);

impl TraceParent {
    /// `None` unless the header is there once and well-formed; a broken one is ignored, as the standard asks.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let text = values.next()?.to_str().ok()?.trim();
        (values.next().is_none() && is_traceparent(text)).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn trace_id(&self) -> &str {
        &self.0[3..35]
    }

    pub(crate) fn parent_id(&self) -> &str {
        &self.0[36..52]
    }
}

fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |part: &str| part.bytes().any(|byte| byte != b'0');
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags, rest @ ..] = parts.as_slice() else { return false };
    // Later versions may append fields; version 00 may not, and ff is forbidden.
    let version_holds = hex(version, 2) && *version != "ff" && (*version != "00" || rest.is_empty());
    version_holds
        && hex(trace, 32)
        && nonzero(trace)
        && hex(parent, 16)
        && nonzero(parent)
        && hex(flags, 2)
        && text.len() <= 128
}

/// The media type without its parameters, lower case.
pub(crate) fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body that does not say that it is JSON.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(essence);
    match content_type.as_deref() {
        None | Some("application/json") => Ok(()),
        Some(_) => Err(Refusal::new(Code::UnsupportedMediaType, "this call takes `application/json`")),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect()
    }

    #[test]
    fn idempotency_keys_come_quoted_or_bare() {
        let key = |text: &str| idempotency_key(&headers(&[("idempotency-key", text)])).ok().flatten();
        assert_eq!(key("\"a b\""), Some("a b".into()));
        assert_eq!(key(r#""a\"\\b""#), Some(r#"a"\b"#.into()));
        assert_eq!(key("order-7"), Some("order-7".into()));
        assert_eq!(key(&"k".repeat(255)), Some("k".repeat(255)));
        for bad in ["\"\"", "\"open", "\"a\";p=1", r#""a\n""#, &"k".repeat(256), "é"] {
            assert_eq!(key(bad), None, "{bad}");
        }
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
        assert!(idempotency_key(&headers(&[("idempotency-key", "a"), ("idempotency-key", "b")])).is_err());
    }

    #[test]
    fn wait_is_found_among_preferences_and_cut_to_its_limit() {
        let wait = |text: &str| preferred_wait(&headers(&[("prefer", text)])).map(|wait| wait.as_secs());
        assert_eq!(wait("wait=10"), Some(10));
        assert_eq!(wait("respond-async, Wait = \"7\"; x=1"), Some(7));
        assert_eq!(wait("wait=9999999999999999999999"), Some(WAIT_S_MAX));
        for ignored in ["wait", "wait=", "wait=-1", "wait=1.5", "return=minimal"] {
            assert_eq!(wait(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn only_a_well_formed_trace_context_is_continued() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = |text: &str| TraceParent::from_headers(&headers(&[("traceparent", text)]));
        let parsed = trace(good).unwrap();
        assert_eq!((parsed.trace_id(), parsed.parent_id()), (&good[3..35], &good[36..52]));
        assert!(trace(&format!("01{}-more", &good[2..])).is_some());
        for bad in [
            &format!("{good}-more"),
            &good.to_uppercase(),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &format!("ff{}", &good[2..]),
            "",
        ] {
            assert!(trace(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn bearer_tokens_are_read_whatever_the_schemes_case() {
        let token = |text: &str| bearer(&headers(&[("authorization", text)])).map(str::to_owned);
        assert_eq!(token("bearer abc"), Some("abc".into()));
        assert_eq!(token("Basic abc"), None);
    }

    #[test]
    fn of_two_tokens_or_sessions_none_is_taken() {
        let two = headers_twice("authorization", ["Bearer abc", "Bearer def"]);
        assert_eq!(bearer(&two), None);
        assert!(epoch(&headers_twice("gatepost-epoch", ["7", "7"])).is_err());
    }

    #[test]
    fn a_session_is_the_number_that_was_given() {
        let number = |text: &str| epoch(&headers(&[("gatepost-epoch", text)])).ok().flatten();
        assert_eq!(number("7"), Some(7));
        for other in ["+7", "07", "7 7", "-7", "7.0", "0x7", "", "18446744073709551616"] {
            assert_eq!(number(other), None, "{other}");
        }
        assert_eq!(epoch(&HeaderMap::new()).unwrap(), None);
    }

    fn headers_twice(name: &'static str, values: [&'static str; 2]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }
}
