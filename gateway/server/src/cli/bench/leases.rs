//! What a consumer must know of a lease answer, and the settle that follows from it, without a look at the events.

use std::io;

use memchr::memmem;

const ID: &[u8] = br#"{"id":""#;
const TOKEN: &[u8] = br#"","token":""#;
const ID_BYTES: usize = 36;
const NOTHING: &[u8] = br#"{"deliveries":[]"#;

/// Items of a settle request, as text, and how many they are.
#[derive(Debug, Default)]
pub(super) struct Items {
    text: Vec<u8>,
    pub(super) count: usize,
}

impl Items {
    /// Reports everything in the answer as delivered. The events are those of this program, and none of them contains
    /// what is searched for.
    pub(super) fn delivered(answer: &[u8]) -> io::Result<Self> {
        let mut items = Self::default();
        for at in memmem::find_iter(answer, TOKEN) {
            let (before, after) = (&answer[..at], &answer[at + TOKEN.len()..]);
            let Some((head, id)) = before.split_at_checked(before.len().wrapping_sub(ID_BYTES)) else {
                continue;
            };
            let Some(end) = head.ends_with(ID).then(|| memchr::memchr(b'"', after)).flatten() else {
                continue;
            };
            items.push(id, &after[..end]);
        }
        if items.count == 0 && !answer.starts_with(NOTHING) {
            return Err(io::Error::other("the lease answer is not understood"));
        }
        Ok(items)
    }

    fn push(&mut self, id: &[u8], token: &[u8]) {
        for part in [
            br#"{"delivery":""#,
            id,
            br#"","token":""#,
            token,
            br#"","outcome":"delivered","evidence":{"level":"transport"}},"#,
        ] {
            self.text.extend_from_slice(part);
        }
        self.count += 1;
    }

    pub(super) fn append(&mut self, mut more: Self) {
        self.text.append(&mut more.text);
        self.count += more.count;
    }

    /// The body of the settle. There must be items.
    pub(super) fn settle(mut self, epoch: Option<u64>) -> Vec<u8> {
        let mut body = br#"{"results":["#.to_vec();
        self.text.pop();
        body.append(&mut self.text);
        body.push(b']');
        if let Some(epoch) = epoch {
            body.extend_from_slice(format!(r#","epoch":{epoch}"#).as_bytes());
        }
        body.push(b'}');
        body
    }
}

/// How many deliveries a settle's answer says are settled.
pub(super) fn settled(answer: &[u8]) -> u64 {
    memmem::find_iter(answer, br#""status":"ok""#).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost_api::settle::{Outcome, SettleRequest};

    fn lease(number: u32) -> String {
        format!(
            r#"{{"id":"0193b3f0-0000-7000-8000-{number:012}","token":"00ff{number}","attempt":1,"in_doubt":false,"lease_ms":30000,"event":{{"id":"x","data":{{"text":"y"}}}}}}"#
        )
    }

    #[test]
    fn settles_what_was_leased_in_the_apis_own_words() {
        let answer = format!(r#"{{"deliveries":[{},{}]}}"#, lease(1), lease(2));
        let mut items = Items::delivered(answer.as_bytes()).unwrap();
        items.append(Items::delivered(format!(r#"{{"deliveries":[{}]}}"#, lease(3)).as_bytes()).unwrap());
        assert_eq!(items.count, 3);
        let request: SettleRequest = serde_json::from_slice(&items.settle(Some(7))).unwrap();
        assert_eq!(request.epoch, Some(7));
        assert_eq!(request.results.len(), 3);
        assert_eq!(request.results[2].delivery.to_string(), "0193b3f0-0000-7000-8000-000000000003");
        assert_eq!(request.results[1].token, "00ff2");
        assert_eq!(request.results[0].outcome, Outcome::Delivered);
        assert!(request.results[0].evidence.is_some());
    }

    #[test]
    fn an_empty_answer_has_no_items_and_another_answer_is_an_error() {
        assert_eq!(Items::delivered(br#"{"deliveries":[],"paused":true}"#).unwrap().count, 0);
        assert!(Items::delivered(br#"{"deliveries":[{"token":"a","id":"b"}]}"#).is_err());
        assert!(Items::delivered(br#"","token":"a""#).is_err());
    }

    #[test]
    fn only_what_is_ok_counts_as_settled() {
        let answer = br#"{"results":[{"delivery":"a","status":"ok","state":"delivered"},{"delivery":"b","status":"stale","state":"waiting"}]}"#;
        assert_eq!(settled(answer), 1);
    }
}
