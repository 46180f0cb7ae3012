//! What operators can have the sessions do. Who asked for what, and why, is in the gateway's audit log before it comes here.

use std::collections::HashMap;
use std::sync::Arc;

use gatepost_adapter::{Offer, OperatorCall, Session};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::left_behind::LeftBehind;

/// Highest sequence number that can be set.
const SEQ_NUM_MAX: u64 = 999_999_999;

/// What one session is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    State,
    /// `None` leaves a number as it is.
    SetNumbers {
        next_out: Option<u64>,
        next_in: Option<u64>,
    },
    /// A reset within the session.
    BeginAnew,
    Logout,
    Logon,
}

/// A wish, and where the answer goes: an error says why nothing was done.
pub(crate) struct Asked {
    pub(crate) wish: Wish,
    pub(crate) answer: oneshot::Sender<Result<Value, String>>,
}

/// The sessions that can be asked, by name, and what others have left behind.
pub(crate) struct Switchboard {
    sessions: HashMap<String, mpsc::Sender<Asked>>,
    left_behind: LeftBehind,
}

/// What an operator wants, of a session where it is about one.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Of(Wish, Option<String>),
    /// To have deleted what this session has left behind.
    Forget(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    session: Option<String>,
    next_out: Option<u64>,
    next_in: Option<u64>,
}

impl Switchboard {
    pub(crate) fn new(left_behind: LeftBehind) -> Self {
        Self { sessions: HashMap::new(), left_behind }
    }

    pub(crate) fn register(&mut self, name: &str, asked: mpsc::Sender<Asked>) {
        self.sessions.insert(name.to_owned(), asked);
    }

    /// Answers operators until the adapter is asked to stop.
    pub(crate) async fn run(self, gateway: Session) {
        let switchboard = Arc::new(self);
        let session = gateway.clone();
        let answer = move |call| {
            let (switchboard, gateway) = (Arc::clone(&switchboard), session.clone());
            async move { switchboard.answer(call, &gateway).await }
        };
        gateway.answer_calls(offers(), answer).await;
    }

    async fn answer(&self, call: OperatorCall, gateway: &Session) -> Result<Value, String> {
        let (wish, session) = match read(&call.name, call.arguments)? {
            Call::Of(wish, session) => (wish, session),
            Call::Forget(name) if self.sessions.contains_key(&name) => {
                return Err(format!(
                    "`{name}` is a session of this adapter; take it out of the settings first"
                ));
            }
            Call::Forget(name) => return self.left_behind.forget(&name, gateway).await,
        };
        if wish == Wish::State && session.is_none() {
            let mut all = self.left_behind.shown(None).await;
            for (name, sender) in &self.sessions {
                all.insert(name.clone(), ask(sender, wish).await?);
            }
            return Ok(all.into());
        }
        if let (Wish::State, Some(name)) = (wish, &session)
            && let Some(left) = self.left_behind.shown(Some(name)).await.remove(name)
        {
            return Ok(left);
        }
        let sender = match session {
            Some(name) => self.sessions.get(&name).ok_or_else(|| format!("there is no session `{name}`"))?,
            None => {
                let mut all = self.sessions.values();
                let (only, more) = (all.next(), all.next());
                only.filter(|_| more.is_none())
                    .ok_or("there are several sessions: say which (session=NAME)")?
            }
        };
        ask(sender, wish).await
    }
}

async fn ask(session: &mpsc::Sender<Asked>, wish: Wish) -> Result<Value, String> {
    let (answer, answered) = oneshot::channel();
    let ended = "the session has ended";
    session.send(Asked { wish, answer }).await.map_err(|_| ended)?;
    answered.await.map_err(|_| ended)?
}

fn offers() -> Vec<Offer> {
    let offer =
        |name: &str, changes, about: &str| Offer { name: name.to_owned(), changes, about: about.to_owned() };
    vec![
        offer("sessions", false, "How sessions stand: all, or one (session=NAME)."),
        offer(
            "set_numbers",
            true,
            "Sets sequence numbers of a session that is logged out: next_out:=N (MsgSeqNum of our next message), next_in:=N (of the partner's next), either or both. Begins a new epoch.",
        ),
        offer(
            "reset",
            true,
            "Begins both sequence numbers of a session that is logged out at 1, in a new epoch; messages that wait for proof go as `after_reset` says.",
        ),
        offer(
            "reset_in_session",
            true,
            "Begins both sequence numbers of a session that is logged on at 1, in a new epoch, without logging out: a Logon with ResetSeqNumFlag (141), once the partner has confirmed all that it was sent.",
        ),
        offer("logout", true, "Logs a session out; it stays so until `logon` or the adapter's next start."),
        offer(
            "forget",
            true,
            "Deletes what a session that is not in the settings any more has left in the adapter's state (session=NAME): its numbers and its messages. Deliveries of it that wait for proof get none, and are in doubt in time.",
        ),
        offer("logon", true, "Lets a session log on again after `logout`, or after its numbers did not fit."),
    ]
}

fn read(call: &str, arguments: Map<String, Value>) -> Result<Call, String> {
    let Arguments { session, next_out, next_in } =
        serde_json::from_value(arguments.into()).map_err(|error| error.to_string())?;
    let wish = match call {
        "sessions" => Wish::State,
        "set_numbers" if next_out.is_none() && next_in.is_none() => {
            return Err("give next_out or next_in or both".to_owned());
        }
        "set_numbers" => Wish::SetNumbers { next_out, next_in },
        "reset" => Wish::SetNumbers { next_out: Some(1), next_in: Some(1) },
        "reset_in_session" => Wish::BeginAnew,
        "logout" => Wish::Logout,
        "logon" => Wish::Logon,
        "forget" if next_out.is_none() && next_in.is_none() => {
            return session.map(Call::Forget).ok_or_else(|| "say which (session=NAME)".to_owned());
        }
        "forget" => return Err("`forget` takes no numbers".to_owned()),
        _ => return Err("the adapter does not offer that".to_owned()),
    };
    if call != "set_numbers" && (next_out.is_some() || next_in.is_some()) {
        return Err(format!("`{call}` takes no numbers"));
    }
    if [next_out, next_in].into_iter().flatten().any(|number| !(1..=SEQ_NUM_MAX).contains(&number)) {
        return Err(format!("numbers are from 1 to {SEQ_NUM_MAX}"));
    }
    Ok(Call::Of(wish, session))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use gatepost_adapter::testing::Gateway;
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_say_what_is_meant_or_are_refused() {
        let read = |call, arguments: Value| read(call, arguments.as_object().unwrap().clone());
        assert_eq!(read("sessions", json!({})), Ok(Call::Of(Wish::State, None)));
        assert_eq!(
            read("set_numbers", json!({"session": "a", "next_out": 7})),
            Ok(Call::Of(Wish::SetNumbers { next_out: Some(7), next_in: None }, Some("a".to_owned())))
        );
        assert_eq!(
            read("reset", json!({})),
            Ok(Call::Of(Wish::SetNumbers { next_out: Some(1), next_in: Some(1) }, None))
        );
        assert_eq!(read("reset_in_session", json!({})), Ok(Call::Of(Wish::BeginAnew, None)));
        assert_eq!(read("forget", json!({"session": "a"})), Ok(Call::Forget("a".to_owned())));
        for (call, arguments) in [
            ("reset_in_session", json!({"next_in": 1})),
            ("forget", json!({})),
            ("forget", json!({"session": "a", "next_in": 1})),
            ("set_numbers", json!({})),
            ("set_numbers", json!({"next_out": 0})),
            ("set_numbers", json!({"next_in": 1_000_000_000})),
            ("set_numbers", json!({"next_out": "7"})),
            ("set_numbers", json!({"next": 7})),
            ("logout", json!({"next_in": 1})),
            ("delete", json!({})),
        ] {
            assert!(read(call, arguments.clone()).is_err(), "{call} {arguments}");
        }
    }

    #[tokio::test]
    async fn one_that_is_not_in_the_settings_can_be_asked_for_too() {
        let (_gateway, session) = Gateway::open(json!({})).await;
        let state = BTreeMap::from([("n/old".to_owned(), vec![b'x'; 100])]);
        let switchboard = Switchboard::new(LeftBehind::new(&state, &BTreeSet::new(), Arc::default()));
        let ask = |arguments: Value| {
            let arguments = arguments.as_object().unwrap().clone();
            let (name, operator) = ("sessions".to_owned(), "ops".to_owned());
            switchboard.answer(OperatorCall { name, arguments, operator }, &session)
        };
        let old = ask(json!({"session": "old"})).await.unwrap();
        assert_eq!(old["state"], "not_in_settings");
        assert_eq!(ask(json!({})).await, Ok(json!({ "old": old })));
        assert!(ask(json!({"session": "older"})).await.unwrap_err().contains("there is no session"));
    }

    #[test]
    fn offers_can_be_offered() {
        let offers = offers();
        assert!(offers.iter().all(|offer| offer.about.len() <= 1000 && !offer.about.is_empty()));
        let looks: Vec<_> =
            offers.iter().filter(|offer| !offer.changes).map(|offer| offer.name.as_str()).collect();
        assert_eq!(looks, ["sessions"]);
    }
}
