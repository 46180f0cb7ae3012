//! `gatepost demo`: the promise, kept before the reader's eyes. A real gateway, a real partner behind a real adapter, real
//! HL7 messages through real sockets, and `kill -9` in the middle.
//!
//! Every figure it prints has been measured, and every claim compared with the partner's own log; where one does not hold,
//! the demo fails.

mod audit;
mod messages;
mod partner;
mod reckoning;
mod sender;

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gatepost_api::lists::QueueItem;
use gatepost_api::messages::MessageView;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Context;
use super::failure::Failure;
use super::scratch::{App, Directory, Ends, Gateway, Site};
use super::show::print_steps;
use super::text;
use super::ui::{Style, Ui};
use partner::{Arrivals, Partner};
use sender::{Accepted, Sender, Tally};

/// Patients of the storm: lanes, each with its own sender.
const PATIENTS: usize = 20;
const MESSAGES_PER_PATIENT: usize = 20;
/// Patients before these are in the first few messages.
const FIRST_PATIENT: usize = 10;
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// While the moment for the kill is awaited.
const LOOK: Duration = Duration::from_millis(2);
/// At the laboratory before the kill, the few messages of the beginning included: so that some are on their way.
const ARRIVED_BEFORE_KILL: usize = 30;

#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// Leave the gateway and the partner running afterwards, and say how to use and end them
    #[arg(long)]
    keep: bool,
}

pub(super) async fn demo(context: &Context, args: &Demo) -> Result<(), Failure> {
    let started = Instant::now();
    let mut directory = Directory::create(None, "demo")?;
    let ends = if args.keep { Ends::Later } else { Ends::WithUs };
    let story = Story { ui: context.ui.clone(), dir: directory.path().to_path_buf(), ends };
    let ending = tokio::select! {
        ending = story.tell() => ending?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
    };
    if args.keep {
        directory.keep();
        return story.leave_running(&ending);
    }
    ending.gateway.stop().await?;
    drop(directory);
    if context.ui.json {
        return context.ui.json(&ending.facts);
    }
    story.farewell(started.elapsed())
}

/// What is left at the end.
struct Ending {
    site: Site,
    gateway: Gateway,
    partner: Partner,
    facts: Facts,
}

/// The demo in figures, for `--json`.
#[derive(Debug, Default, Serialize)]
struct Facts {
    /// Messages that the gateway confirmed, the first few included.
    accepted: usize,
    lost: usize,
    /// Arrived more than once, with two attempts in the log.
    twice: usize,
    patients: usize,
    patients_in_order: usize,
    /// Of those handed in again for want of an answer: accepted before already, and not.
    repeated_known: u64,
    repeated_new: u64,
    audit_entries: u64,
    audit_root: String,
}

struct Story {
    ui: Ui,
    dir: std::path::PathBuf,
    ends: Ends,
}

/// What became of the storm.
struct Storm {
    accepted: Vec<Vec<Accepted>>,
    arrivals: Arrivals,
    repeated_known: u64,
    repeated_new: u64,
}

impl Story {
    async fn tell(&self) -> Result<Ending, Failure> {
        self.line(
            self.ui.paint(Style::Strong, "A clinic, a laboratory, and a gateway that is killed in between"),
        )?;

        self.step(1, "A gateway and a laboratory, each a process of its own")?;
        let partner = Partner::start(&self.dir, self.ends).await?;
        let site = configure(&self.dir, &partner.address)?;
        let gateway = Gateway::start(&site, self.ends).await?;
        self.say(
            "laboratory",
            format_args!("gatepost-hl7 listen, pid {}, MLLP on {}", partner.pid, partner.address),
        )?;
        let ready = text::span(gateway.ready_after);
        self.say("gateway", format_args!("gatepost serve, pid {}, ready after {ready}", gateway.pid))?;
        self.say("data", site.data_dir.display())?;

        self.few_messages(&site).await?;
        let (gateway, storm) = self.storm(&site, gateway, &partner).await?;
        let mut facts = self.reckoning(&site, &storm).await?;
        (facts.audit_entries, facts.audit_root) = self.audit(&site, facts.accepted).await?;
        Ok(Ending { site, gateway, partner, facts })
    }

    async fn few_messages(&self, site: &Site) -> Result<(), Failure> {
        let ui = &self.ui;
        self.step(2, "Six HL7 messages, each stored on disk before it is answered")?;
        let mut sender = Sender::new(site.app_socket.clone(), Arc::default());
        let mut accepted = Vec::new();
        for message in messages::few() {
            accepted.push(sender.send(message).await?);
        }
        let mut operator = site.operator();
        for sent in &accepted {
            let view = self.settled(&mut operator, sent).await?;
            let message = &sent.message;
            self.line(format_args!(
                "   {} {} for {}: accepted in {}",
                ui.paint(Style::Strong, message.kind.replace('_', "^")),
                message.about,
                message.patient,
                text::span(sent.after)
            ))?;
            self.timeline(&view)?;
        }
        Ok(())
    }

    /// Waits until the message is delivered.
    async fn settled(
        &self,
        operator: &mut super::client::Client,
        sent: &Accepted,
    ) -> Result<MessageView, Failure> {
        let path = format!("/v1/messages/{}", sent.id);
        let delivered = async {
            loop {
                let view: MessageView = operator.get(path.as_str()).await?;
                if view.deliveries.iter().all(|delivery| delivery.delivery.state == "delivered") {
                    return Ok(view);
                }
                sleep(POLL).await;
            }
        };
        match timeout(SETTLE_DEADLINE, delivered).await {
            Ok(view) => view,
            Err(_) => Err(Failure::unsuccessful(format!("message {} was not delivered in time", sent.id))),
        }
    }

    /// Sends, kills the gateway half way, starts it again, and waits until everybody is done.
    async fn storm(
        &self,
        site: &Site,
        gateway: Gateway,
        partner: &Partner,
    ) -> Result<(Gateway, Storm), Failure> {
        let total = PATIENTS * MESSAGES_PER_PATIENT;
        self.step(3, &format!("{total} messages for {PATIENTS} patients, and kill -9 half way"))?;
        let tally = Arc::new(Tally::default());
        let mut senders = JoinSet::new();
        for patient in 0..PATIENTS {
            let sender = Sender::new(site.app_socket.clone(), Arc::clone(&tally));
            senders.spawn(sender.send_all(messages::series(FIRST_PATIENT + patient, MESSAGES_PER_PATIENT)));
        }
        self.half_way(&tally, partner, total as u64).await?;
        let pid = gateway.pid;
        gateway.kill().await?;
        let before = tally.accepted.load(Ordering::Relaxed);
        let arrived = partner.arrivals()?.len() - messages::few().len();
        self.say(
            "kill -9",
            format_args!("gateway {pid}: {before} messages accepted, {arrived} at the laboratory"),
        )?;
        let gateway = Gateway::start(site, self.ends).await?;
        let ready = text::span(gateway.ready_after);
        self.say("restart", format_args!("gateway {}, ready after {ready}", gateway.pid))?;

        let mut accepted = Vec::new();
        while let Some(sender) = senders.join_next().await {
            let sender =
                sender.map_err(|error| Failure::unsuccessful(format!("a sender failed: {error}")))?;
            accepted.push(sender?);
        }
        let known = tally.duplicates.load(Ordering::Relaxed);
        let repeated = tally.repeated.load(Ordering::Relaxed);
        let new = repeated.saturating_sub(known);
        let unanswered = text::plural(repeated, "message", "messages");
        let what =
            format!("got no answer for {unanswered}, asked again: {known} had been accepted, {new} had not");
        self.say("the app", what)?;
        self.drained(site).await?;
        let arrivals = partner.arrivals()?;
        Ok((gateway, Storm { accepted, arrivals, repeated_known: known, repeated_new: new }))
    }

    /// Waits until half of the messages are accepted and some have arrived.
    async fn half_way(&self, tally: &Tally, partner: &Partner, total: u64) -> Result<(), Failure> {
        let half = async {
            loop {
                let accepted = tally.accepted.load(Ordering::Relaxed);
                let arrived = partner.arrivals()?.len();
                if accepted == total || (accepted >= total / 2 && arrived >= ARRIVED_BEFORE_KILL) {
                    return Ok(());
                }
                sleep(LOOK).await;
            }
        };
        let late = || Failure::unsuccessful("the gateway did not accept half of the messages in time");
        timeout(SETTLE_DEADLINE, half).await.unwrap_or_else(|_| Err(late()))
    }

    async fn drained(&self, site: &Site) -> Result<(), Failure> {
        let started = Instant::now();
        let mut operator = site.operator();
        let drained = async {
            loop {
                let queue: QueueItem = operator.get("/v1/queues/lab").await?;
                let depth = queue.depth;
                if depth.waiting + depth.leased + depth.sending + depth.in_doubt == 0 {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        };
        match timeout(SETTLE_DEADLINE, drained).await {
            Ok(drained) => drained?,
            Err(_) => return Err(Failure::unsuccessful("the queue was not empty in time")),
        }
        self.say("queue", format_args!("empty {} later", text::span(started.elapsed())))
    }

    fn leave_running(&self, ending: &Ending) -> Result<(), Failure> {
        let ui = &self.ui;
        if ui.json {
            let mut facts = serde_json::to_value(&ending.facts).unwrap_or_default();
            facts["kept"] = serde_json::json!({
                "config": ending.site.config,
                "app_socket": ending.site.app_socket,
                "admin_socket": ending.site.admin_socket,
                "pids": [ending.gateway.pid, ending.partner.pid],
            });
            return ui.json(&facts);
        }
        let config = ending.site.config.display();
        ui.line("")?;
        ui.line(ui.paint(Style::Strong, "Both go on running. Try:"))?;
        for command in ["status", "list", "show ID", "queue ls"] {
            ui.line(format_args!("   gatepost -c {config} {command}"))?;
        }
        ui.line(format_args!(
            "   sockets: {} and {}",
            ending.site.app_socket.display(),
            ending.site.admin_socket.display()
        ))?;
        ui.line("End them with:")?;
        ui.line(format_args!(
            "   kill {} {} && rm -r {}",
            ending.gateway.pid,
            ending.partner.pid,
            self.dir.display()
        ))
    }

    fn farewell(&self, elapsed: Duration) -> Result<(), Failure> {
        let ui = &self.ui;
        ui.line("")?;
        ui.line(format_args!("Done in {}; everything has been cleaned up. Next:", text::span(elapsed)))?;
        for (command, about) in [
            ("gatepost demo --keep", "leave it running and look around"),
            ("gatepost init ./gateway", "a configuration of your own"),
            ("gatepost doctor", "what your machine can do"),
            ("gatepost bench", "and how fast"),
        ] {
            ui.line(format_args!("   {command:<26}{}", ui.paint(Style::Faint, about)))?;
        }
        Ok(())
    }

    /// A line for whoever watches; programs get the figures at the end.
    fn line(&self, text: impl Display) -> Result<(), Failure> {
        if self.ui.json { Ok(()) } else { self.ui.line(text) }
    }

    fn step(&self, number: u32, title: &str) -> Result<(), Failure> {
        let ui = &self.ui;
        self.line("")?;
        self.line(format_args!("{}  {}", ui.paint(Style::Accent, number), ui.paint(Style::Strong, title)))
    }

    fn say(&self, what: &str, text: impl Display) -> Result<(), Failure> {
        self.line(format_args!("   {} {text}", self.ui.paint(Style::Faint, format_args!("{what:<12}"))))
    }

    fn timeline(&self, view: &MessageView) -> Result<(), Failure> {
        if self.ui.json {
            return Ok(());
        }
        view.deliveries.iter().try_for_each(|delivery| print_steps(&self.ui, delivery, "     "))
    }
}

fn configure(dir: &Path, partner: &str) -> Result<Site, Failure> {
    let rest = format!(
        r#"[adapters.lab]
run = "gatepost-hl7"
order = "key"
on_doubt = "resend"
retry = {{ initial = "200ms", max = "2s" }}
[adapters.lab.settings]
connect = "{partner}"

[[routes]]
from = "ehr"
to = ["lab"]
"#
    );
    Site::write(dir, "demo", &App { name: "ehr", send: "org.hl7.v2.*", inbox: &[], token: None }, &rest)
}
