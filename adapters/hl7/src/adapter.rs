//! The adapter: both directions side by side, until the gateway asks to stop.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use gatepost_adapter::tls::Connector;
use gatepost_adapter::{
    Access, Adapter, Crew, Failure, Fault, Level, Manifest, PartnersWork, Placement, Session,
};

use crate::answer::{self, Answer};
use crate::awaited::Awaited;
use crate::fleet::Fleet;
use crate::numbers::Numbers;
use crate::receive::Receiver;
use crate::send::Link;
use crate::settings::Settings;

pub(crate) struct Hl7;

impl Adapter for Hl7 {
    type Settings = Settings;

    const MANIFEST: Manifest = Manifest {
        version: env!("CARGO_PKG_VERSION"),
        // `sent` is for messages that ask for no acknowledgement, `business` for the application's.
        levels: &[Level::Sent, Level::Transport, Level::Business],
        query: false,
        ordered_pipeline: false,
    };

    fn check(settings: &Settings) -> Vec<Fault> {
        settings.faults()
    }

    fn access(settings: &Settings) -> Access {
        Access {
            connect: settings.addresses(),
            bind: settings.listen.iter().cloned().collect(),
            strict_order: settings.sequence_numbers.send,
            read: settings.files().map(Path::to_owned).collect::<BTreeSet<_>>().into_iter().collect(),
            ..Access::default()
        }
    }

    async fn run(settings: Settings, session: Session) -> Result<(), Failure> {
        let settings = Arc::new(settings);
        let (on_ack, confirm) = (settings.on_ack.clone(), session.confirm());
        let fleet = (!settings.partners.is_empty()).then(|| Fleet::new(&settings)).transpose()?;
        let judging = fleet.as_ref().map(|(fleet, _)| fleet.clone());
        let judge = move |partner: Option<&str>, answer: &Answer| {
            let of_many = judging.as_ref().zip(partner);
            let judged = of_many.and_then(|(fleet, partner)| fleet.judge(partner, confirm, answer));
            // Of a partner that has left the settings too.
            judged.unwrap_or_else(|| answer::outcome(&on_ack, confirm, answer))
        };
        let (awaited, late) = Awaited::open(session.clone(), &settings, Box::new(judge));
        let both = async {
            let sending = async {
                match fleet {
                    Some((fleet, work)) => send_to_many(&settings, &session, &awaited, fleet, work).await,
                    None => send(Arc::clone(&settings), session.clone(), Arc::clone(&awaited)).await,
                }
            };
            let receiving = receive(Arc::clone(&settings), session.clone(), Arc::clone(&awaited));
            let ended = tokio::try_join!(sending, receiving).map(|_| ());
            // Nobody reads what partners send any more.
            drop(awaited);
            ended
        };
        tokio::join!(both, late.run()).0
    }
}

async fn send(settings: Arc<Settings>, session: Session, awaited: Arc<Awaited>) -> Result<(), Failure> {
    let Some(address) = settings.connect.clone() else { return Ok(()) };
    let crew = Crew { workers: settings.connections(), placement: Placement::ByKey };
    let connector = Arc::new(Connector::new(&address, settings.tls.as_ref())?);
    let sequence = settings.sequence_numbers;
    let numbers = sequence.send.then(|| Numbers::open(&session, sequence.on_mismatch)).transpose()?;
    let link = |_| {
        let (connector, settings) = (Arc::clone(&connector), Arc::clone(&settings));
        Link::new(connector, settings, Arc::clone(&awaited), session.confirm(), numbers.clone())
    };
    match &numbers {
        None => session.work(crew, link).await,
        Some(numbers) => tokio::join!(session.work(crew, link), Arc::clone(numbers).answer_calls()).0,
    }
}

async fn send_to_many(
    settings: &Settings,
    session: &Session,
    awaited: &Arc<Awaited>,
    fleet: Fleet,
    work: PartnersWork,
) -> Result<(), Failure> {
    if (session.max_in_flight() as usize) < settings.partners.len() * 2 {
        tracing::warn!(
            max_in_flight = session.max_in_flight(),
            partners = settings.partners.len(),
            "`max_in_flight` is less than twice the number of partners: when many of them are silent at a time, others may have to wait"
        );
    }
    let dispatcher = fleet.dispatcher(settings, Arc::clone(awaited), session.confirm());
    let working = session.work_for(work, dispatcher);
    tokio::join!(working, fleet.answer_calls(session)).0
}

async fn receive(settings: Arc<Settings>, session: Session, awaited: Arc<Awaited>) -> Result<(), Failure> {
    let Some(address) = settings.listen.clone() else { return Ok(()) };
    Receiver::new(settings, session, awaited)?.run(&address).await
}
