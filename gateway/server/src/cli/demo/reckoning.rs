//! The demo's reckoning: what the gateway confirmed, held against what the laboratory logged.

use gatepost_api::lists::MessageItem;
use gatepost_api::messages::MessageView;

use super::super::failure::Failure;
use super::super::list;
use super::super::scratch::Site;
use super::super::ui::Style;
use super::sender::Accepted;
use super::{Facts, Storm, Story, messages};

/// Messages that arrived twice whose story is told.
const TWICE_SHOWN: usize = 1;

impl Story {
    /// Compares what was accepted with the laboratory's own log.
    pub(super) async fn reckoning(&self, site: &Site, storm: &Storm) -> Result<Facts, Failure> {
        let ui = &self.ui;
        self.step(4, "What the laboratory's own log says")?;
        let counts = storm.arrivals.counts();
        let all: Vec<&Accepted> = storm.accepted.iter().flatten().collect();
        let lost = all.iter().filter(|sent| !counts.contains_key(sent.message.control_id.as_str())).count();
        let twice: Vec<&&Accepted> = all
            .iter()
            .filter(|sent| counts.get(sent.message.control_id.as_str()).is_some_and(|&n| n > 1))
            .collect();
        let disordered = storm.accepted.iter().filter(|series| {
            !storm.arrivals.in_order(series.iter().map(|sent| sent.message.control_id.as_str()))
        });
        let disordered = disordered.count();
        let verdict = |bad: usize| if bad == 0 { Style::Good } else { Style::Bad };
        self.say("accepted", all.len())?;
        self.say("lost", ui.paint(verdict(lost), lost))?;
        let order =
            format!("{} of {} patients in order", storm.accepted.len() - disordered, storm.accepted.len());
        self.say("order", ui.paint(verdict(disordered), order))?;
        self.say("twice", twice.len())?;
        self.explain(site, &twice).await?;
        let undelivered = undelivered(site).await?;
        if lost + disordered + undelivered > 0 {
            return Err(Failure::Unsuccessful {
                what: format!(
                    "{lost} lost, {disordered} lanes out of order, {undelivered} not delivered: the promise is broken"
                ),
                hint: Some("please report it; `gatepost demo --keep` keeps the evidence".to_owned()),
            });
        }
        Ok(Facts {
            accepted: all.len() + messages::few().len(),
            lost,
            twice: twice.len(),
            patients: storm.accepted.len(),
            patients_in_order: storm.accepted.len() - disordered,
            repeated_known: storm.repeated_known,
            repeated_new: storm.repeated_new,
            ..Facts::default()
        })
    }

    /// Why some arrived twice: their attempt had begun, and its end was not known any more.
    async fn explain(&self, site: &Site, twice: &[&&Accepted]) -> Result<(), Failure> {
        let mut operator = site.operator();
        let mut unexplained = 0;
        for (index, sent) in twice.iter().enumerate() {
            let view: MessageView = operator.get(format!("/v1/messages/{}", sent.id)).await?;
            let steps = || view.deliveries.iter().flat_map(|delivery| &delivery.history);
            let attempts = steps().filter(|step| step.event == "attempt").count();
            let in_doubt = steps().any(|step| step.event == "in_doubt" && step.by.starts_with("gateway:"));
            unexplained += usize::from(attempts < 2 || !in_doubt);
            if index >= TWICE_SHOWN {
                continue;
            }
            self.line(format_args!("   for example {}:", sent.message.control_id))?;
            self.timeline(&view)?;
        }
        if twice.is_empty() {
            return Ok(());
        }
        if unexplained > 0 {
            return Err(Failure::unsuccessful(format!(
                "{unexplained} arrived twice, and the log does not say why"
            )));
        }
        self.line(self.ui.paint(
            Style::Faint,
            "   Their first attempt had begun when the gateway died, and its answer was never heard. Both copies\n   \
             carry the same control id, by which a partner knows that it has them already.",
        ))
    }
}

/// Deliveries that the gateway itself does not call delivered.
async fn undelivered(site: &Site) -> Result<usize, Failure> {
    let list = list::pages(&mut site.operator(), "/v1/messages", "messages", usize::MAX).await?;
    let mut undelivered = 0;
    for item in list.items {
        let item: MessageItem = list::read(item)?;
        undelivered += item.deliveries.iter().filter(|delivery| delivery.state != "delivered").count();
    }
    Ok(undelivered)
}
