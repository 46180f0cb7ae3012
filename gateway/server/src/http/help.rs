//! The help page `/v1/problems`: every code of the catalogue, what it means and what to do.

use std::fmt::Write as _;

use gatepost_api::problem::Code;

/// The page as Markdown; its anchors are the codes.
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# Problems\n\nEvery failure is answered with `application/problem+json` (RFC 9457). Decide by `code`; \
         `retryable` says whether the same request may succeed later.\n",
    );
    for code in Code::ALL {
        let retry = if code.retryable() { "retryable" } else { "not retryable" };
        // Writing into a String does not fail.
        let _ = write!(
            page,
            "\n<a id=\"{name}\"></a>\n\n## `{name}`\n\n{status}, {retry}. {title}.\n\n{advice}\n",
            name = code.as_str(),
            status = code.status(),
            title = code.title(),
            advice = advice(*code),
        );
    }
    page
}

fn advice(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => {
            "Correct the request; `detail` names the position or the field. Unknown fields are refused."
        }
        Code::InvalidEvent => "Correct the event that `detail` names by its position in the request, from 0.",
        Code::IdempotencyKeyWithBatch => {
            "Send the event alone, or leave the header out: source and id then identify each event."
        }
        Code::Unauthenticated => {
            "Connect as a user, group or certificate that the configuration names for this socket, with its token if it has one."
        }
        Code::AmbiguousIdentity => {
            "Make the selectors in the configuration tell the principals apart, for example by tokens."
        }
        Code::Forbidden => {
            "Ask for the right in the configuration, or use the socket that serves this kind of principal."
        }
        Code::TypeNotAllowed => {
            "Add the type to the sender's `send` in the configuration. Nothing of the request was stored."
        }
        Code::NotFound => "Check the address. Somebody else's message or delivery answers the same.",
        Code::MethodNotAllowed => "Use a method that the header `Allow` names.",
        Code::RequestTimeout => "Send the request's body without pauses.",
        Code::NotBegun => "Settle with `begin` before bytes leave; only then report what came of them.",
        Code::Superseded => "Stop: a newer session of this adapter has taken over.",
        Code::SettleRefused => "Drop the stale items that `results` names and settle the rest again.",
        Code::IllegalState => "Look at the delivery's state; another call has changed it.",
        Code::PayloadPurged => "The payload is past its retention; the audit log still proves what was sent.",
        Code::TooLarge => "Send less at a time, or raise `max_message` in the configuration.",
        Code::UnsupportedMediaType => {
            "Use `application/cloudevents+json`, `application/cloudevents-batch+json`, or binary mode with `ce-` headers; `application/json` elsewhere."
        }
        Code::NoRoute => "Add a route for this sender and type to the configuration. Nothing was stored.",
        Code::RouteFailed => "Correct the condition of the route that `detail` names. Nothing was stored.",
        Code::CallRefused => "`detail` is the adapter's reason. Nothing was done.",
        Code::IdempotencyMismatch => {
            "Use another idempotency key (or event id) for other content. Nothing was stored."
        }
        Code::EvidenceTooWeak => {
            "Report `sent` and wait for proof of the level that the destination's `confirm` names."
        }
        Code::QueueFull => {
            "Wait as `Retry-After` says; the destination's partner takes less than is sent. Nothing was stored."
        }
        Code::BacklogFull => {
            "Wait as `Retry-After` says: what was handed in has to be delivered first, or has to end otherwise. `gatepost queue ls` says where it \
             waits; `limits.backlog` of the principal says how much it may be, and a message counts for each of its destinations. A call that is \
             larger than the limit is never taken: send less at a time. Nothing of the request was stored."
        }
        Code::TooManyRequests => {
            "Wait for open requests to end before sending more; `detail` says whether their number or the memory for large bodies is used up."
        }
        Code::RateLimited => {
            "Wait as `Retry-After` says, or raise `limits.rate` (messages) or `limits.request_rate` of the principal. Who asks on without waiting is answered late. Nothing of the request was stored."
        }
        Code::BytesInFlight => {
            "Wait for open requests to be answered, or raise `limits.bytes_in_flight` of the principal. Nothing of the request was stored."
        }
        Code::HeadersTooLarge => "Send fewer or shorter headers.",
        Code::Internal => "Ask again; if it stays, look for the request id in the gateway's log.",
        Code::AdapterAbsent => {
            "Nothing was done. Look at the adapter with `gatepost status`; with several nodes, ask the node that runs it."
        }
        Code::Stopping => "Ask again when the gateway is back.",
        Code::ReceiptPending => "Ask again in a second: the next checkpoint covers it.",
        Code::StoreUnavailable => "Ask again later; `/readyz` says what is wrong.",
        Code::CallUnanswered => {
            "Look at what the adapter shows before you ask again: it may have done it. If it answers yet, the audit log has its answer."
        }
        Code::StorageFull => "Free space on the gateway's disk. Nothing was stored.",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_catalogue_is_pinned() {
        insta::assert_snapshot!(super::page());
    }
}
