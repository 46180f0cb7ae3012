//! Operators call adapters.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::bench::{Bench, Who, text};

const CALLS: &str = "/v1/adapters/lab/calls";

/// Nothing here takes this long unless it hangs.
const HANG: std::time::Duration = std::time::Duration::from_secs(20);

fn offers() -> Value {
    json!([
        {"name": "sessions", "changes": false, "about": "The sessions and their sequence numbers"},
        {"name": "reset", "changes": true, "about": "Sets sequence numbers to 1"},
    ])
}

async fn next(bench: &Bench, epoch: u64, wait_ms: u64) -> Value {
    let request = json!({"epoch": epoch, "offers": offers(), "wait_ms": wait_ms});
    bench.post(Who::Lab, "/v1/calls/next").json(&request).send().await.ok(200).json()["call"].clone()
}

async fn answer(bench: &Bench, id: &Value, request: Value) -> super::bench::Answer {
    let path = format!("/v1/calls/{}/answer", text(id));
    bench.post(Who::Lab, &path).json(&request).send().await
}

#[tokio::test]
async fn an_operator_calls_an_adapter_and_the_log_has_who_what_why_and_the_answer() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    assert_eq!(bench.get(Who::Ops, CALLS).send().await.ok(503).code(), "adapter_absent");
    assert_eq!(next(&bench, epoch, 0).await, Value::Null);
    assert_eq!(bench.get(Who::Looker, CALLS).send().await.ok(200).json()["calls"], offers());

    let call = json!({"call": "reset", "arguments": {"session": "BROKER"}, "reason": " agreed by phone "});
    let (asked, ()) = tokio::join!(bench.post(Who::Ops, CALLS).json(&call).send(), async {
        let given = next(&bench, epoch, 10_000).await;
        assert_eq!(
            (&given["call"], &given["arguments"], &given["operator"]),
            (&json!("reset"), &json!({"session": "BROKER"}), &json!("ops"))
        );
        let id = &given["id"];
        assert_eq!(bench.leaves_so_far("adapter_called").await.len(), 1, "before the adapter knows of it");
        assert_eq!(next(&bench, epoch, 0).await, given, "until it is answered");
        let told = answer(&bench, id, json!({"epoch": epoch, "answer": {"next": 1}})).await.ok(200);
        assert_eq!(told.json()["told"], true);
        let again = answer(&bench, id, json!({"epoch": epoch, "answer": {"next": 1}})).await;
        assert_eq!(again.ok(404).code(), "not_found");
    });
    assert_eq!(asked.ok(200).json(), json!({"answer": {"next": 1}}));

    let called = &bench.leaves("adapter_called").await[0];
    assert_eq!(
        (&called["by"], &called["code"], &called["destination"]),
        (&json!({"kind": "operator", "name": "ops"}), &json!("reset"), &json!("lab"))
    );
    let answered = &bench.leaves("adapter_answered").await[0];
    assert_eq!(
        (&answered["by"]["name"], &answered["code"], &answered["subject_of"]),
        (&json!("lab"), &json!("done"), &called["subject_of"])
    );
    let files: Vec<_> =
        std::fs::read_dir(bench.data_dir().join("audit")).unwrap().map(Result::unwrap).collect();
    let file = files.iter().find(|file| file.file_name().to_string_lossy().starts_with("call-")).unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(called["subject_of"], format!("sha256:{digest}"));
    let note: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (&note["reason"], &note["arguments"]["session"]),
        (&json!("agreed by phone"), &json!("BROKER"))
    );
    bench.end().await;
}

#[tokio::test]
async fn what_changes_something_takes_the_right_to_operate_and_a_reason() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    next(&bench, epoch, 0).await;
    let call = |who, call: Value| bench.post(who, CALLS).json(&call).send();
    let reset = json!({"call": "reset", "reason": "because"});
    assert_eq!(call(Who::Looker, reset.clone()).await.ok(403).code(), "forbidden");
    assert_eq!(call(Who::Lab, reset).await.ok(403).code(), "forbidden");
    for (bad, why) in [
        (json!({"call": "reset"}), "reason"),
        (json!({"call": "reset", "reason": "  "}), "reason"),
        (json!({"call": "sessions", "reason": "curious"}), "takes no `reason`"),
        (json!({"call": "rest"}), "GET /v1/adapters/lab/calls"),
        (json!({"call": "reset", "argument": {}}), "unknown field `argument`"),
    ] {
        let refused = call(Who::Ops, bad).await.ok(400);
        assert!(refused.text.contains(why), "{}", refused.text);
    }
    assert_eq!(
        bench
            .post(Who::Ops, "/v1/adapters/x/calls")
            .json(&json!({"call": "reset"}))
            .send()
            .await
            .ok(404)
            .code(),
        "not_found"
    );
    assert_eq!(bench.leaves("adapter_called").await.len(), 0);

    let (looked, ()) = tokio::join!(call(Who::Looker, json!({"call": "sessions"})), async {
        let given = next(&bench, epoch, 10_000).await;
        let refused = json!({"epoch": epoch, "refused": "it is night"});
        answer(&bench, &given["id"], refused).await.ok(200);
    });
    assert_eq!(looked.ok(422).json()["detail"], "it is night");
    assert_eq!(bench.leaves("adapter_called").await.len() + bench.leaves("adapter_answered").await.len(), 0);
    assert_eq!(bench.leaves("searched").await.len(), 1);
    bench.end().await;
}

#[tokio::test]
async fn a_call_that_its_session_leaves_unanswered_is_given_to_no_other() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    next(&bench, epoch, 0).await;
    let call = json!({"call": "reset", "reason": "because"});
    let (asked, ()) = tokio::join!(bench.post(Who::Ops, CALLS).json(&call).send(), async {
        let given = next(&bench, epoch, 10_000).await;
        let newer = bench.session(Who::Lab).await;
        assert_eq!(next(&bench, newer, 0).await, Value::Null);
        for epoch in [epoch, newer] {
            answer(&bench, &given["id"], json!({"epoch": epoch, "answer": {}})).await;
        }
        let old = json!({"epoch": epoch, "offers": []});
        assert_eq!(
            bench.post(Who::Lab, "/v1/calls/next").json(&old).send().await.ok(409).code(),
            "superseded"
        );
    });
    assert_eq!(asked.ok(504).code(), "call_unanswered");
    assert_eq!(bench.leaves("adapter_called").await.len(), 1);
    assert_eq!(bench.leaves("adapter_answered").await.len(), 0);
    bench.end().await;
}

#[tokio::test]
async fn a_gateway_that_stops_keeps_nobody_waiting() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    next(&bench, epoch, 0).await;
    let asking = bench.post(Who::Ops, CALLS).json(&json!({"call": "reset", "reason": "because"})).send();
    let (asked, ()) = tokio::join!(asking, async {
        let called = async { while bench.leaves_so_far("adapter_called").await.is_empty() {} };
        tokio::time::timeout(HANG, called).await.expect("it is not in the log");
        bench.stop.send_replace(true);
    });
    assert_eq!(asked.ok(503).code(), "adapter_absent", "nothing was done");
    bench.end().await;
}

#[tokio::test]
async fn an_adapters_offers_and_answers_have_their_limits() {
    let bench = Bench::new().await;
    let epoch = bench.session(Who::Lab).await;
    let offer = |name: &str| json!({"name": name, "changes": false, "about": "x"});
    let many: Vec<_> = (0..33).map(|number| offer(&format!("c{number}"))).collect();
    let long = json!([{"name": "a", "changes": false, "about": "x".repeat(1001)}]);
    for bad in [json!([offer("A")]), json!([offer("a"), offer("a")]), json!(many), long] {
        let request = json!({"epoch": epoch, "offers": bad});
        assert_eq!(
            bench.post(Who::Lab, "/v1/calls/next").json(&request).send().await.ok(400).code(),
            "invalid_request"
        );
    }
    let id = json!("018f0000-0000-7000-8000-000000000000");
    for bad in [
        json!({}),
        json!({"answer": 1, "refused": "x"}),
        json!({"refused": ""}),
        json!({"refused": "x".repeat(1001)}),
    ] {
        let mut request = bad;
        request["epoch"] = json!(epoch);
        assert_eq!(answer(&bench, &id, request).await.ok(400).code(), "invalid_request");
    }
    assert_eq!(answer(&bench, &id, json!({"epoch": epoch, "answer": 1})).await.ok(404).code(), "not_found");
    assert_eq!(
        answer(&bench, &json!("x"), json!({"epoch": epoch, "answer": 1})).await.ok(404).code(),
        "not_found"
    );
    for path in ["/v1/calls/next", "/v1/calls/x/answer"] {
        assert_eq!(bench.post(Who::Ops, path).json(&json!({})).send().await.ok(403).code(), "forbidden");
    }
    bench.end().await;
}
