//! The adapter: one endpoint, several requests at a time.

use std::path::Path;
use std::sync::Arc;

use gatepost_adapter::{Access, Adapter, Crew, Failure, Fault, Level, Manifest, Placement, Session};

use crate::endpoint::Endpoint;
use crate::send::Sender;
use crate::settings::Settings;

pub(crate) struct Http;

impl Adapter for Http {
    type Settings = Settings;

    const MANIFEST: Manifest = Manifest {
        version: env!("CARGO_PKG_VERSION"),
        levels: &[Level::Sent, Level::Transport],
        query: false,
        ordered_pipeline: false,
    };

    fn check(settings: &Settings) -> Vec<Fault> {
        settings.faults()
    }

    fn access(settings: &Settings) -> Access {
        Access {
            connect: settings.host_and_port().into_iter().collect(),
            read: settings.files().map(Path::to_owned).collect(),
            ..Access::default()
        }
    }

    async fn run(settings: Settings, session: Session) -> Result<(), Failure> {
        let workers = settings.concurrency;
        let endpoint = Arc::new(Endpoint::new(settings)?);
        // The gateway leases one delivery of a lane at a time, so order needs no help here.
        let crew = Crew { workers, placement: Placement::Anywhere };
        session.work(crew, |_| Sender::new(Arc::clone(&endpoint))).await
    }
}
