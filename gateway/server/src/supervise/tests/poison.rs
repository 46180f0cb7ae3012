//! What becomes of messages whose adapter dies.

use gatepost_core::MessageId;
use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::principal::TypePatterns;
use gatepost_store::Accept;

use super::*;

/// Takes several at a time, as adapters do, and dies of one. What it delivers it writes down.
const MORTAL: &str = "\
epoch = open_session()
while True:
    leased = gateway.call('/v1/queues/lab/lease', {'max': 10, 'wait_ms': 10000, 'epoch': epoch})['deliveries']
    for delivery in leased:
        if delivery['event']['data'] == 'poison':
            os.kill(os.getpid(), signal.SIGKILL)
        with open(here + '/delivered', 'a') as log:
            log.write(delivery['event']['data'] + '\\n')
        result = {'delivery': delivery['id'], 'token': delivery['token'], 'outcome': 'delivered', 'evidence': {'level': 'sent'}}
        gateway.call('/v1/settle', {'results': [result], 'epoch': epoch})
";

fn message(text: &str) -> NewMessage {
    let attributes = format!(
        r#"{{"specversion":"1.0","id":"{text}","type":"t","source":"/test","datacontenttype":"text/plain"}}"#
    );
    NewMessage {
        kind: "t".into(),
        source: "/test".into(),
        subject: None,
        partition_key: None,
        barrier_key: None,
        datacontenttype: Some("text/plain".into()),
        correlation_id: None,
        expires_at: None,
        attributes: attributes.into_bytes(),
        form: DataForm::Text,
        data: text.as_bytes().to_vec(),
        idempotency_key: text.into(),
        destinations: vec!["lab".into()],
    }
}

async fn accept(rig: &Rig, texts: &[&str]) -> Vec<MessageId> {
    let app = Actor::new(ActorKind::App, "ehr");
    let permit = TypePatterns::new(["t"]).permit(&app, "t").unwrap();
    let messages = texts.iter().map(|text| message(text)).collect();
    let accepted = rig.store.message_accept(Accept { permit, session: None, messages }).await.unwrap();
    accepted.into_iter().map(|accepted| accepted.id).collect()
}

#[tokio::test]
async fn r13_2_a_poison_message_is_dead_after_three_crashes_and_no_neighbour_pays() {
    let rig = Rig::new(SHORT).await;
    let program = rig.script("lab", MORTAL);
    let texts = ["before 1", "before 2", "poison", "after 1", "after 2"];
    let adapter = format!("[adapters.lab]\nrun = \"{program}\"\nconfirm = \"sent\"\n");
    rig.put_in_force(&adapter).await;
    let messages = accept(&rig, &texts).await;
    rig.begin(&adapter).await;
    for (text, id) in texts.iter().zip(messages) {
        let row = until(&format!("the end of {text}"), async || {
            let (row, _) = rig.store.read().deliveries_of(id).await.unwrap().pop().unwrap();
            ["delivered", "dead"].contains(&row.state).then_some(row)
        })
        .await;
        if *text == "poison" {
            assert_eq!((row.state, row.reason), ("dead", Some("poison")));
        } else {
            assert_eq!((row.state, row.attempts), ("delivered", 0), "{text} pays for its neighbour");
        }
    }
    let item = rig.item("lab").unwrap();
    assert!(
        (3..=4).contains(&item.restarts),
        "three crashes alone, and one with the others at most: {item:?}"
    );
    assert_eq!(rig.tripped("lab").await, None);
    let mut delivered: Vec<_> =
        std::fs::read_to_string(rig.file("delivered")).unwrap().lines().map(str::to_owned).collect();
    delivered.sort();
    assert_eq!(delivered, ["after 1", "after 2", "before 1", "before 2"]);
    rig.stop().await;
}

#[tokio::test]
async fn r13_2_a_stop_by_the_gateway_costs_a_message_nothing() {
    let rig = Rig::new(SHORT).await;
    let body = "\
epoch = open_session()
gateway.call('/v1/queues/lab/lease', {'max': 10, 'wait_ms': 10000, 'epoch': epoch})
open(here + '/leased', 'a').write('x')
signal.pause()
";
    let adapter = format!(
        "[adapters.lab]\nrun = \"{}\"\nconfirm = \"sent\"\non_doubt = \"hold\"\n",
        rig.script("lab", body)
    );
    rig.begin(&adapter).await;
    let id = accept(&rig, &["one"]).await[0];
    let leases = || std::fs::read(rig.file("leased")).map_or(0, |leased| leased.len());
    for restarts in 1..=5 {
        until("its lease", async || (leases() == restarts).then_some(())).await;
        rig.supervisor.restart("lab").unwrap();
    }
    until("its lease", async || (leases() == 6).then_some(())).await;
    rig.supervisor.stop().await;
    let (row, _) = rig.store.read().deliveries_of(id).await.unwrap().pop().unwrap();
    assert_eq!((row.state, row.attempts), ("waiting", 0));
    rig.stop().await;
}
