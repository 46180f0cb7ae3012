//! The adapter: every session a task of its own, deliveries handed out among them, until the gateway asks to stop.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gatepost_adapter::{Access, Adapter, Failure, Fault, Level, Manifest, Session};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::calls::Switchboard;
use crate::intake::{IN_HAND_MAX, Intake};
use crate::left_behind::LeftBehind;
use crate::listener::Listener;
use crate::session::{Driver, Inputs, places};
use crate::settings::{Settings, Way, plans};

/// Deliveries on their way to one session.
const ORDERS_QUEUED_MAX: usize = 1024;
/// Deliveries of all sessions together that have gone back and are remembered, to be woken; and of one at the least.
const AWAY_MAX: usize = 65_536;
const AWAY_EACH_MIN: usize = 64;

pub(crate) struct Fix;

impl Adapter for Fix {
    type Settings = Settings;

    const MANIFEST: Manifest = Manifest {
        version: env!("CARGO_PKG_VERSION"),
        levels: &[Level::Sent, Level::Transport, Level::Business],
        query: true,
        ordered_pipeline: true,
    };

    fn check(settings: &Settings) -> Vec<Fault> {
        plans(settings, "", Level::Transport).err().unwrap_or_default()
    }

    fn access(settings: &Settings) -> Access {
        let mut access = Access::default();
        for session in &settings.sessions {
            access.connect.extend(session.connect.clone());
            access.bind.extend(session.listen.clone());
            access.read.extend(session.files().map(Path::to_owned));
        }
        access.bind.sort();
        access.bind.dedup();
        access
    }

    async fn run(settings: Settings, session: Session) -> Result<(), Failure> {
        let plans = plans(&settings, session.name(), session.confirm()).map_err(unfit)?;
        let mut intake = Intake::new(session.clone());
        let mut listeners: BTreeMap<String, Listener> = BTreeMap::new();
        let here = plans.iter().map(|plan| plan.config.name.as_str()).collect();
        let room = plans.first().map(|plan| Arc::clone(&plan.config.room)).unwrap_or_default();
        let mut switchboard = Switchboard::new(LeftBehind::new(session.state(), &here, room));
        let (up, is_up) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let in_hand_max = IN_HAND_MAX.min(session.max_in_flight() as usize);
        let places = places(in_hand_max, plans.len());
        let away_max = (AWAY_MAX / plans.len().max(1)).max(AWAY_EACH_MIN);
        for plan in plans {
            let (orders, to_send) = mpsc::channel(ORDERS_QUEUED_MAX);
            let (arrivals, arriving) = mpsc::channel(1);
            intake.register(&plan, orders);
            if let Way::Listen(entrance) = &plan.way {
                let fresh = || Listener::new(entrance.clone());
                listeners.entry(entrance.address.clone()).or_insert_with(fresh).register(&plan, arrivals);
            }
            let (ask, asked) = mpsc::channel(1);
            switchboard.register(&plan.config.name, ask);
            let inputs =
                Inputs { orders: to_send, arrivals: arriving, asked, up: up.clone(), away_max, places };
            tasks.spawn(Driver::new(session.clone(), plan, inputs)?.run());
        }
        for listener in listeners.into_values() {
            tasks.spawn(listener.run(session.clone()));
        }
        drop(up);
        tasks.spawn(intake.run(is_up));
        let calls = session.clone();
        tasks.spawn(async move {
            switchboard.run(calls).await;
            Ok(())
        });
        while let Some(ended) = tasks.join_next().await {
            // One that cannot go on ends all: the gateway starts the adapter anew, and it takes up where it was.
            ended.map_err(|_| Failure::WorkerPanicked)??;
        }
        Ok(())
    }
}

/// Files may have changed since the settings were checked.
fn unfit(faults: Vec<Fault>) -> Failure {
    let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Failure::new("the settings are wrong", std::io::Error::other(all.join("; ")))
}
