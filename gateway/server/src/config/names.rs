//! The names that tables refer to each other by, taken before anything else is read so that a fault in one table never
//! makes its name unknown to another.

use super::UNROUTED;
use super::fault::Report;
use super::section::Section;

pub(super) struct Names<'a> {
    pub(super) apps: Vec<&'a str>,
    pub(super) adapters: Vec<&'a str>,
    pub(super) inboxes: Vec<&'a str>,
}

impl<'a> Names<'a> {
    /// Adapters and inboxes share the namespace of destinations, apps and adapters that of senders.
    pub(super) fn read(root: &Section<'a>, report: &mut Report<'_>) -> Self {
        let names = |kind| root.named(kind).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let (apps, adapters, inboxes) = (names("apps"), names("adapters"), names("inboxes"));
        for (name, section) in root.named("adapters") {
            if apps.contains(&name) {
                report.add(
                    &section.spot,
                    "an app has this name too, and routes could not tell them apart: rename one",
                );
            }
        }
        for (name, section) in root.named("inboxes") {
            if adapters.contains(&name) {
                report.add(
                    &section.spot,
                    "an adapter has this name too, and both are destinations: rename one",
                );
            }
        }
        for (name, section) in root.named("adapters").into_iter().chain(root.named("inboxes")) {
            if name == UNROUTED {
                report.add(
                    &section.spot,
                    "the built-in queue for unroutable messages has this name: take another one",
                );
            }
        }
        Self { apps, adapters, inboxes }
    }

    /// What a route may come from.
    pub(super) fn senders(&self) -> impl Iterator<Item = &'a str> + Clone {
        self.apps.iter().chain(&self.adapters).copied()
    }

    /// What a route may lead to.
    pub(super) fn destinations(&self) -> impl Iterator<Item = &'a str> + Clone {
        self.adapters.iter().chain(&self.inboxes).copied()
    }
}
