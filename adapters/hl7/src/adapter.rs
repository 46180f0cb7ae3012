//! The adapter: both directions side by side, until the gateway asks to stop.

use std::sync::Arc;

use gatepost_adapter::{Access, Adapter, Crew, Failure, Fault, Level, Manifest, Placement, Session};

use crate::receive::Receiver;
use crate::send::Link;
use crate::settings::Settings;

pub(crate) struct Hl7;

impl Adapter for Hl7 {
    type Settings = Settings;

    const MANIFEST: Manifest = Manifest {
        version: env!("CARGO_PKG_VERSION"),
        // `sent` is for messages that ask for no acknowledgement. An application acknowledgement that follows an accept acknowledgement is not waited for.
        levels: &[Level::Sent, Level::Transport],
        query: false,
        ordered_pipeline: false,
    };

    fn check(settings: &Settings) -> Vec<Fault> {
        settings.faults()
    }

    fn access(settings: &Settings) -> Access {
        Access {
            connect: settings.connect.iter().cloned().collect(),
            bind: settings.listen.iter().cloned().collect(),
            ..Access::default()
        }
    }

    async fn run(settings: Settings, session: Session) -> Result<(), Failure> {
        let settings = Arc::new(settings);
        let sending = send(Arc::clone(&settings), session.clone());
        let receiving = receive(settings, session);
        tokio::try_join!(sending, receiving).map(|_| ())
    }
}

async fn send(settings: Arc<Settings>, session: Session) -> Result<(), Failure> {
    let Some(address) = settings.connect.clone() else { return Ok(()) };
    let crew = Crew { workers: settings.connections, placement: Placement::ByKey };
    let link = |_| Link::new(address.clone(), Arc::clone(&settings), session.confirm());
    session.work(crew, link).await
}

async fn receive(settings: Arc<Settings>, session: Session) -> Result<(), Failure> {
    let Some(address) = settings.listen.clone() else { return Ok(()) };
    Receiver::new(settings, session).run(&address).await
}
