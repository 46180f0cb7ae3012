//! An adapter whose protocol numbers its messages, as FIX does: `<number> once|again <delivery>`, one a line, and the partner confirms
//! by `ok <number>` that it has all up to that one. Numbers have no gap, and what may arrive twice says so, whoever is killed when.
//!
//! A number, what was sent under it, and the begin of its delivery are one settlement, which is durable before the line leaves. Whatever
//! is not confirmed when a connection begins is sent on it again. State remembers the lease with it, so that the confirmation settles
//! the delivery also where another session had sent it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use gatepost_adapter::{
    Access, Adapter, Args, Delivery, Evidence, Failure, Fault, Lease, Level, Manifest, Outcome, Pipeline,
    Session, SettleError, SettleStatus, Settlement, egress,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use uuid::Uuid;

/// Most that goes out in one settlement.
const BATCH_MAX: usize = 64;
const CONFIRMED_WITHIN: Duration = Duration::from_secs(600);
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
const NEXT: &str = "next";
const SENT_PREFIX: &str = "sent/";

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    gatepost_adapter::main::<Numbered>(&Command::parse().args)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The partner, `host:port`.
    connect: String,
}

struct Numbered;

impl Adapter for Numbered {
    type Settings = Settings;

    const MANIFEST: Manifest = Manifest {
        version: "1",
        levels: &[Level::Sent, Level::Transport],
        // It does not ask, but sends what is in doubt under its old number again, which the partner has or has not.
        query: true,
        ordered_pipeline: true,
    };

    fn check(_: &Settings) -> Vec<Fault> {
        Vec::new()
    }

    fn access(settings: &Settings) -> Access {
        Access { connect: vec![settings.connect.clone()], ..Access::default() }
    }

    async fn run(settings: Settings, session: Session) -> Result<(), Failure> {
        let mut pipeline = session.pipeline(session.window() as usize * 2);
        let mut line = Line::remembered(session.clone())?;
        // The process before may have ended between telling that they are sent and that they are confirmed.
        line.settle_confirmed(&line.numbers_confirmed()).await?;
        let stop = session.stop();
        while !stop.is_requested() {
            if let Ok(stream) = egress::connect(&settings.connect).await {
                line.serve(stream, &mut pipeline).await?;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
        pipeline.finish().await;
        Ok(())
    }
}

/// What stands under a number.
#[derive(Clone, Serialize, Deserialize)]
struct Sent {
    lease: Lease,
    /// The partner has it, but the gateway had given up on that lease: the next one is settled at once.
    confirmed: bool,
}

/// Numbers and what was sent under them, as the gateway has them.
struct Line {
    session: Session,
    next: u64,
    sent: BTreeMap<u64, Sent>,
}

type Partner = (Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf);

impl Line {
    fn remembered(session: Session) -> Result<Self, Failure> {
        let mut line = Self { next: 1, sent: BTreeMap::new(), session };
        for (key, value) in line.session.clone().state() {
            let read = match key.strip_prefix(SENT_PREFIX) {
                Some(number) => number.parse().ok().zip(serde_json::from_slice(value).ok()),
                None => {
                    line.next = serde_json::from_slice(value).unwrap_or(1);
                    continue;
                }
            };
            let (number, sent) = read.ok_or_else(|| Failure::new("state cannot be read", key.as_str()))?;
            line.sent.insert(number, sent);
        }
        Ok(line)
    }

    /// Until the connection breaks or the adapter is to stop.
    async fn serve(&mut self, stream: TcpStream, pipeline: &mut Pipeline) -> Result<(), Failure> {
        let (read, write) = stream.into_split();
        let mut partner: Partner = (BufReader::new(read).lines(), write);
        for (number, sent) in self.sent.iter().filter(|(_, sent)| !sent.confirmed) {
            let text = format!("{number} again {}\n", sent.lease.delivery);
            if partner.1.write_all(text.as_bytes()).await.is_err() {
                return Ok(());
            }
        }
        loop {
            tokio::select! {
                said = partner.0.next_line() => match said {
                    Ok(Some(said)) => match said.strip_prefix("ok ").map(str::parse) {
                        Some(Ok(number)) => self.confirmed(number).await?,
                        _ => return Ok(()),
                    },
                    Ok(None) | Err(_) => return Ok(()),
                },
                delivery = pipeline.next() => {
                    let Some(first) = delivery else { return Ok(()) };
                    let mut batch = vec![first];
                    while let Some(more) = (batch.len() < BATCH_MAX).then(|| pipeline.ready()).flatten() {
                        batch.push(more);
                    }
                    if !self.send(batch, &mut partner.1).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Gives each a number, or finds the one that it has; `false` when the connection has broken.
    async fn send(
        &mut self,
        mut batch: Vec<Delivery>,
        partner: &mut OwnedWriteHalf,
    ) -> Result<bool, Failure> {
        loop {
            batch.retain(|delivery| !delivery.is_lost());
            let (mut next, mut numbered, mut text) = (self.next, BTreeMap::new(), String::new());
            let mut settlement = Settlement::default();
            for delivery in &batch {
                let id = delivery.id();
                let before = self.number_of(id);
                let number = before.unwrap_or(next);
                if before.is_none() {
                    next += 1;
                    text.push_str(&format!("{number} once {id}\n"));
                }
                let confirmed = before.is_some_and(|number| self.sent[&number].confirmed);
                let sent = Sent { lease: delivery.lease(), confirmed };
                settlement.begin(delivery);
                settlement.state.set(key(number), json(&sent)?);
                numbered.insert(number, sent);
            }
            settlement.state.set(NEXT, json(&next)?);
            match self.session.settle(settlement).await {
                // Without those that were lost meanwhile, whose numbers the others get.
                Err(SettleError::Refused(_)) => continue,
                settled => settled.map_err(|error| Failure::new("cannot begin", error))?,
            };
            self.next = next;
            self.sent.extend(numbered);
            let written = partner.write_all(text.as_bytes()).await.is_ok();
            let mut settlement = Settlement::default();
            for delivery in &batch {
                let evidence = Evidence::new(Level::Sent);
                settlement.outcome(delivery, Outcome::Sent { evidence, within: CONFIRMED_WITHIN });
            }
            // Also where the connection has broken: the next one begins with them.
            self.session.settle(settlement).await.map_err(|error| Failure::new("cannot settle", error))?;
            let had: Vec<u64> = batch.iter().filter_map(|delivery| self.number_of(delivery.id())).collect();
            for number in had.into_iter().filter(|number| self.sent[number].confirmed).collect::<Vec<_>>() {
                self.settle_confirmed(&[number]).await?;
            }
            return Ok(written);
        }
    }

    fn number_of(&self, delivery: Uuid) -> Option<u64> {
        self.sent.iter().find(|(_, sent)| sent.lease.delivery == delivery).map(|(number, _)| *number)
    }

    fn numbers_confirmed(&self) -> Vec<u64> {
        self.sent.iter().filter(|(_, sent)| sent.confirmed).map(|(number, _)| *number).collect()
    }

    /// The partner has everything up to `number`.
    async fn confirmed(&mut self, number: u64) -> Result<(), Failure> {
        let numbers: Vec<u64> = self
            .sent
            .range(..=number)
            .filter(|(_, sent)| !sent.confirmed)
            .map(|(number, _)| *number)
            .collect();
        self.settle_confirmed(&numbers).await
    }

    async fn settle_confirmed(&mut self, numbers: &[u64]) -> Result<(), Failure> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut settlement = Settlement::default();
        for number in numbers {
            let evidence = Evidence::new(Level::Transport).with("number", *number);
            settlement.late(&self.sent[number].lease, Outcome::Delivered { evidence, reply: None });
        }
        let cannot = |error| Failure::new("cannot settle", error);
        let settled = self.session.settle(settlement).await.map_err(cannot)?;
        let mut forgetting = Settlement::default();
        for (number, settled) in numbers.iter().zip(&settled.results) {
            match settled.status {
                SettleStatus::Ok => {
                    self.sent.remove(number);
                    forgetting.state.delete(key(*number));
                }
                // The gateway will lease it again, and then it is known what became of it.
                SettleStatus::Stale => {
                    if let Some(sent) = self.sent.get_mut(number) {
                        sent.confirmed = true;
                        forgetting.state.set(key(*number), json(sent)?);
                    }
                }
            }
        }
        self.session.settle(forgetting).await.map(drop).map_err(cannot)
    }
}

fn key(number: u64) -> String {
    format!("{SENT_PREFIX}{number:020}")
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| Failure::new("state cannot be written", error))
}

#[cfg(test)]
mod tests {
    use gatepost_adapter::testing::{Gateway, Partner, leased, lines};
    use serde_json::json;

    use super::*;

    /// The adapter at work for `gateway`, connected to `partner`.
    fn at_work(partner: &Partner, session: Session) -> tokio::task::JoinHandle<Result<(), Failure>> {
        tokio::spawn(Numbered::run(Settings { connect: partner.address() }, session))
    }

    /// The next settlement: token and outcome of each result, and the names of what is set and taken from the state.
    async fn settled(gateway: &mut Gateway, status: &str) -> (Vec<(String, String)>, Vec<String>) {
        let call = gateway.next("/v1/settle").await;
        let outcomes = call.outcomes().into_iter().map(|(token, outcome)| (token.into(), outcome.into()));
        let outcomes: Vec<(String, String)> = outcomes.collect();
        let state = call.body["state"].as_object().cloned().unwrap_or_default();
        call.settled(status);
        (outcomes, state.keys().cloned().collect())
    }

    fn pair(token: &str, outcome: &str) -> (String, String) {
        (token.to_owned(), outcome.to_owned())
    }

    #[tokio::test]
    async fn a_number_is_durable_before_its_line_leaves_and_its_confirmation_delivers() {
        let partner = Partner::listen().await.framed(lines);
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "query", "window": 8})).await;
        let running = at_work(&partner, session);
        let mut connection = partner.accept().await;
        gateway.lease(&[leased(1, Some("k")), leased(2, Some("k"))]).await;
        let begin = gateway.next("/v1/settle").await;
        assert_eq!(begin.outcomes(), [("t1", "begin"), ("t2", "begin")]);
        connection.nothing_for(Duration::from_millis(50)).await;
        begin.settled("ok");
        assert_eq!(connection.frame().await, format!("1 once {}", Uuid::from_u128(1)));
        assert_eq!(connection.frame().await, format!("2 once {}", Uuid::from_u128(2)));
        let (outcomes, _) = settled(&mut gateway, "ok").await;
        assert_eq!(outcomes, [pair("t1", "sent"), pair("t2", "sent")]);
        // One confirmation for both, in two pieces.
        connection.send_in_pieces("ok 2\n", 3).await;
        let (outcomes, _) = settled(&mut gateway, "ok").await;
        assert_eq!(outcomes, [pair("t1", "delivered"), pair("t2", "delivered")]);
        let (_, forgotten) = settled(&mut gateway, "ok").await;
        assert_eq!(forgotten, [key(1), key(2)]);
        gateway.drain();
        running.await.unwrap().unwrap();
        connection.closed().await;
    }

    #[tokio::test]
    async fn what_is_not_confirmed_when_a_connection_breaks_is_sent_again_and_says_so() {
        let partner = Partner::listen().await.framed(lines);
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "query", "window": 8})).await;
        let _running = at_work(&partner, session);
        let mut connection = partner.accept().await;
        gateway.lease(&[leased(1, None)]).await;
        settled(&mut gateway, "ok").await;
        connection.frame().await;
        settled(&mut gateway, "ok").await;
        connection.reset();
        let mut connection = partner.accept().await;
        assert_eq!(connection.frame().await, format!("1 again {}", Uuid::from_u128(1)));
        connection.send("ok 1\n").await;
        let (outcomes, _) = settled(&mut gateway, "ok").await;
        assert_eq!(outcomes, [pair("t1", "delivered")]);
    }

    #[tokio::test]
    async fn a_later_session_knows_the_numbers_of_the_one_before() {
        let partner = Partner::listen().await.framed(lines);
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "query"})).await;
        let running = at_work(&partner, session);
        let mut connection = partner.accept().await;
        gateway.lease(&[leased(1, None)]).await;
        let begin = gateway.next("/v1/settle").await;
        let state = begin.body["state"].clone();
        begin.settled("ok");
        connection.frame().await;
        // Killed before it could say that the line was sent.
        running.abort();
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "query", "state": state})).await;
        let _running = at_work(&partner, session);
        let mut connection = partner.accept().await;
        assert_eq!(connection.frame().await, format!("1 again {}", Uuid::from_u128(1)));
        gateway.lease(&[leased(2, None)]).await;
        settled(&mut gateway, "ok").await;
        assert_eq!(connection.frame().await, format!("2 once {}", Uuid::from_u128(2)));
    }

    #[test]
    fn the_page_that_explains_it_shows_this_code() {
        let page = include_str!("../../../docs/adapters/writing.md");
        let shown: Vec<&str> =
            page.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(shown.len() > 5, "the page shows no code");
        for code in shown {
            assert!(include_str!("numbered.rs").contains(code), "this is not the code:\n{code}");
        }
    }
}
