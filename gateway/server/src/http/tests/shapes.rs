//! Addresses, methods, the description and the help page.

use axum::http::Method;
use serde_json::Value;

use super::bench::{Bench, Who};

/// The contract: every call of the API and who may make it.
const CALLS: [&str; 34] = [
    "get /livez",
    "get /metrics",
    "get /readyz",
    "get /v1/adapters",
    "get /v1/adapters/{name}/calls",
    "get /v1/audit/checkpoint",
    "get /v1/audit/receipt/{delivery}",
    "get /v1/audit/tile/entries/{*index}",
    "get /v1/audit/tile/{level}/{*index}",
    "get /v1/deliveries",
    "get /v1/deliveries/{id}",
    "get /v1/messages",
    "get /v1/messages/{id}",
    "get /v1/messages/{id}/data",
    "get /v1/nodes",
    "get /v1/queues",
    "get /v1/queues/{name}",
    "get /v1/senders",
    "post /v1/adapters/{name}/calls",
    "post /v1/adapters/{name}/restart",
    "post /v1/calls/next",
    "post /v1/calls/{id}/answer",
    "post /v1/deliveries/{id}/discard",
    "post /v1/deliveries/{id}/replay",
    "post /v1/deliveries/{id}/resolve",
    "post /v1/erase",
    "post /v1/messages",
    "post /v1/queues/{name}/lease",
    "post /v1/queues/{name}/move",
    "post /v1/queues/{name}/pause",
    "post /v1/queues/{name}/resume",
    "post /v1/seal-key/rotate",
    "post /v1/session",
    "post /v1/settle",
];

fn documented(description: &Value) -> Vec<String> {
    let paths = description["paths"].as_object().unwrap();
    let calls = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
    });
    let mut calls: Vec<_> = calls.collect();
    calls.sort();
    calls
}

#[tokio::test]
async fn the_description_lists_every_call_and_the_router_knows_each() {
    let bench = Bench::new().await;
    let description = bench.get(Who::Ehr, "/v1/openapi.json").send().await.ok(200).json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(documented(&description), CALLS);
    for call in CALLS {
        let (method, path) = call.split_once(' ').unwrap();
        let method: Method = method.to_uppercase().parse().unwrap();
        let path = path.replace("{*index}", "000.p/1").replace("{level}", "0").replace(['{', '}'], "");
        let wrong = bench.call(Who::Ops, Method::DELETE, &path).send().await.ok(405);
        assert_eq!(wrong.code(), "method_not_allowed", "{call}");
        assert!(wrong.headers["allow"].to_str().unwrap().contains(method.as_str()), "{call}");
        let answer = bench.call(Who::Ehr, method, &path).send().await;
        assert!(!answer.text.contains("nothing at this address"), "{call}");
    }
    bench.end().await;
}

#[tokio::test]
async fn unknown_addresses_are_problems_and_the_help_page_explains_them() {
    let bench = Bench::new().await;
    for path in ["/", "/v1", "/v1/message", "/v1/queues/a/b", "/v2/messages"] {
        assert_eq!(bench.get(Who::Ehr, path).send().await.ok(404).code(), "not_found", "{path}");
    }
    let page = bench.get(Who::Ehr, "/v1/problems").send().await.ok(200);
    assert_eq!(page.headers["content-type"], "text/markdown; charset=utf-8");
    assert_eq!(page.headers["cache-control"], "no-store");
    assert!(page.text.contains("id=\"queue_full\""));
    bench.end().await;
}
