//! Tokens that `gatepost token` makes, against a running API.

use std::time::Duration;

use gatepost_core::principal::{Actor, ActorKind};

use super::bench::{Bench, Who};
use crate::http::follow_tokens;
use crate::tokens::{Ledger, create};

const OWNER: Who = Who::User(1004);
/// Nothing here takes this long unless it hangs.
const HANG: Duration = Duration::from_secs(20);

async fn status(bench: &Bench, who: Who, token: &str) -> u16 {
    let call = bench.get(who, "/v1/queues").header("authorization", &format!("Bearer {token}"));
    call.send().await.status.as_u16()
}

/// Waits until the token is answered as it should be: 403 by one that counts (it is no operator's), 401 by any other.
async fn until(bench: &Bench, token: &str, expected: u16) {
    let answered = async {
        while status(bench, OWNER, token).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG, answered).await.expect("it never counted, or never stopped");
}

#[tokio::test]
async fn a_token_counts_and_is_revoked_while_the_gateway_runs_and_both_are_leaves() {
    let bench = Bench::new().await;
    let gateway = Actor::new(ActorKind::Gateway, "test");
    let following = tokio::spawn(follow_tokens(bench.state.clone(), gateway, bench.stop.subscribe()));
    let selector = bench.state.config.load().apps["issued"].selector.clone();
    let created = create("issued", &selector, Duration::from_secs(3600)).unwrap();
    assert_eq!(bench.get(OWNER, "/v1/queues").send().await.ok(401).code(), "unauthenticated");
    assert_eq!(status(&bench, OWNER, &created.text).await, 401, "it is not in the file yet");

    Ledger::open(&bench.data_dir()).unwrap().add(&created).unwrap();
    until(&bench, &created.text, 403).await;
    assert_eq!(status(&bench, Who::User(1099), &created.text).await, 401, "a token alone is nobody");
    assert_eq!(status(&bench, Who::User(1003), &created.text).await, 401, "nor does it make another app");
    assert_eq!(status(&bench, OWNER, &created.text[1..]).await, 401);

    Ledger::open(&bench.data_dir()).unwrap().revoke(&created.entry.id).unwrap();
    until(&bench, &created.text, 401).await;
    bench.stop.send_replace(true);
    following.await.unwrap();

    let leaves = bench.leaves("config_changed").await;
    let told: Vec<_> =
        leaves.iter().map(|leaf| (&leaf["code"], &leaf["subject_of"], &leaf["by"]["kind"])).collect();
    let target = format!("app issued token {}", created.entry.id);
    assert_eq!(
        told,
        [
            (&"token_created".into(), &target.clone().into(), &"gateway".into()),
            (&"token_revoked".into(), &target.into(), &"gateway".into()),
        ]
    );
    let refused = bench.leaves("refused").await;
    let failed = refused.iter().filter(|leaf| leaf["code"] == "unauthenticated").count();
    assert_eq!(failed, 1, "failures are coalesced: {refused:?}");
    let whole = format!("{leaves:?}{refused:?}");
    assert!(!whole.contains(&created.text[17..60]), "the secret is in the log");
    bench.end().await;
}
