//! Parameters in a request's address: pages, filters, ids. Unknown ones are refused, values never repeated in errors.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use gatepost_core::{DeliveryId, MessageId, State, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use uuid::Uuid;

use super::problem::Refusal;

/// Entries of a page when the request does not say.
const LIMIT_DEFAULT: u32 = 50;
/// Most entries of a page; more are cut to it.
const LIMIT_MAX: u32 = 500;
/// Longest name of a parameter that an error repeats, characters.
const NAME_CHARS_MAX: usize = 64;

/// The query of a request, with our faults instead of axum's.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(params)| Self(params)).map_err(|rejection| {
            let text = std::error::Error::source(&rejection).map(ToString::to_string).unwrap_or_default();
            Refusal::invalid(fault(&text))
        })
    }
}

pub(super) fn fault(text: &str) -> String {
    match text.find("unknown field `").and_then(|at| text[at..].split('`').nth(1)) {
        Some(name) => {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            format!("there is no parameter `{name}` here")
        }
        None => "a parameter in the address is malformed".to_owned(),
    }
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageParams {
    /// Most entries, 1 to 500; 50 unless given.
    pub(crate) limit: Option<u32>,
    /// The `next` of the page before.
    pub(crate) cursor: Option<String>,
}

pub(crate) fn page_limit(limit: Option<u32>) -> Result<u32, Refusal> {
    match limit {
        Some(0) => Err(Refusal::invalid("`limit` must be at least 1")),
        limit => Ok(limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX)),
    }
}

impl PageParams {
    /// The page of a list that is whole in memory; the cursor is the name of the last entry of the page before.
    pub(crate) fn cut<T>(
        self,
        items: Vec<T>,
        name: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, Option<String>), Refusal> {
        let limit = usize::try_from(page_limit(self.limit)?).unwrap_or(usize::MAX);
        let mut items = items;
        items.sort_by(|one, other| name(one).cmp(name(other)));
        if let Some(cursor) = &self.cursor {
            items.retain(|item| name(item) > cursor.as_str());
        }
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(|last| name(last).to_owned()) } else { None };
        Ok((items, next))
    }
}

pub(crate) fn message_id(text: &str) -> Result<MessageId, Refusal> {
    Uuid::try_parse(text).map(MessageId).map_err(|_| Refusal::not_found("there is no such message"))
}

pub(crate) fn delivery_id(text: &str) -> Result<DeliveryId, Refusal> {
    Uuid::try_parse(text).map(DeliveryId).map_err(|_| Refusal::not_found("there is no such delivery"))
}

/// A moment in a filter.
pub(crate) fn moment(name: &'static str, text: Option<&str>) -> Result<Option<Timestamp>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let parsed = Timestamp::parse_rfc3339(text);
    parsed.map(Some).ok_or_else(|| Refusal::invalid(format!("`{name}` must be an RFC 3339 time")))
}

/// A delivery's state in a filter.
pub(crate) fn state(text: Option<String>) -> Result<Option<String>, Refusal> {
    match text {
        Some(state) if !State::NAMES.contains(&state.as_str()) => {
            Err(Refusal::invalid(format!("`state` must be one of {}", State::NAMES.join(", "))))
        }
        state => Ok(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: u32, cursor: Option<&str>) -> (Vec<String>, Option<String>) {
        let params = PageParams { limit: Some(limit), cursor: cursor.map(str::to_owned) };
        params.cut(["d", "a", "c", "b"].map(str::to_owned).into(), |name| name).unwrap()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let names = |items: &[&str]| items.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(page(3, None), (names(&["a", "b", "c"]), Some("c".into())));
        assert_eq!(page(3, Some("c")), (names(&["d"]), None));
        assert_eq!(page(4, None).1, None);
        assert_eq!(page(2, Some("bb")).0, names(&["c", "d"]));
    }

    #[test]
    fn limits_are_held() {
        assert_eq!(page_limit(None).unwrap(), 50);
        assert_eq!(page_limit(Some(9999)).unwrap(), 500);
        assert!(page_limit(Some(0)).is_err());
    }

    #[test]
    fn faults_name_parameters_and_never_values() {
        assert_eq!(
            fault("Failed: unknown field `satte`, expected one of `x`"),
            "there is no parameter `satte` here"
        );
        assert!(!fault("invalid digit: `canary`").contains("canary"));
    }

    #[test]
    fn filters_are_checked() {
        assert!(state(Some("dead".into())).is_ok() && state(Some("gone".into())).is_err());
        assert!(
            moment("since", Some("2026-01-01T00:00:00Z")).is_ok() && moment("since", Some("now")).is_err()
        );
        assert!(message_id("018f0000-0000-7000-8000-000000000000").is_ok() && message_id("x").is_err());
    }
}
