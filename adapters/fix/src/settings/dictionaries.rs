//! The dictionaries of a session, and what is checked with them.

use std::path::Path;
use std::sync::Arc;

use super::read::Reader;
use super::{SessionSettings, Validation};
use crate::dictionary::{Dictionaries, Dictionary};
use crate::validate::{self, Validator};
use crate::version::{ApplVerId, BeginString};

impl Reader {
    pub(super) fn validator(
        &mut self,
        session: &SessionSettings,
        version: Option<BeginString>,
        appl_ver_id: Option<ApplVerId>,
    ) -> Option<Validator> {
        let before = self.faults.len();
        let dictionaries = match version? {
            BeginString::Fixt11 => self.fixt_dictionaries(session, appl_ver_id),
            version => self.one_dictionary(session, version),
        };
        let level = match session.validation {
            Validation::None => validate::Level::None,
            Validation::Structure => validate::Level::Structure,
            Validation::Full => validate::Level::Full,
        };
        if self.faults.len() > before {
            return None;
        }
        let validator = Validator::new(level, dictionaries);
        if validator.is_err() {
            self.fault(
                "validation",
                "full validation needs a dictionary: set `dictionary`, or choose \"structure\"",
            );
        }
        validator.ok()
    }

    fn load(&mut self, key: &str, file: &Path) -> Option<Arc<Dictionary>> {
        match Dictionary::load(file) {
            Ok(dictionary) => Some(Arc::new(dictionary)),
            Err(error) => {
                self.fault(key, &error.to_string());
                None
            }
        }
    }

    fn one_dictionary(&mut self, session: &SessionSettings, version: BeginString) -> Option<Dictionaries> {
        if session.transport_dictionary.is_some() || !session.application_dictionaries.is_empty() {
            self.fault("transport_dictionary", "goes with FIXT.1.1; before, there is one `dictionary`");
        }
        let dictionary = self.load("dictionary", session.dictionary.as_deref()?)?;
        match Dictionaries::one(version, dictionary) {
            Ok(dictionaries) => Some(dictionaries),
            Err(error) => {
                self.fault("dictionary", &error.to_string());
                None
            }
        }
    }

    fn fixt_dictionaries(
        &mut self,
        session: &SessionSettings,
        appl_ver_id: Option<ApplVerId>,
    ) -> Option<Dictionaries> {
        if session.dictionary.is_some() {
            let message = "FIXT.1.1 has a `transport_dictionary` and `application_dictionaries`";
            self.fault("dictionary", message);
        }
        let Some(transport) = &session.transport_dictionary else {
            if !session.application_dictionaries.is_empty() {
                self.fault("transport_dictionary", "goes with `application_dictionaries`");
            }
            return None;
        };
        let transport = self.load("transport_dictionary", transport)?;
        let loaded: Option<Vec<_>> = session
            .application_dictionaries
            .iter()
            .map(|file| self.load("application_dictionaries", file))
            .collect();
        match Dictionaries::fixt(transport, loaded?, appl_ver_id?) {
            Ok(dictionaries) => Some(dictionaries),
            Err(error) => {
                self.fault("application_dictionaries", &error.to_string());
                None
            }
        }
    }
}
