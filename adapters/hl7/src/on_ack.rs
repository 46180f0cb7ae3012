//! What a negative acknowledgement means: systems disagree, so it is the configuration that says.

use std::collections::BTreeMap;

use gatepost_adapter::{Fault, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::header::AckCode;

/// Errors that sending the same again will not cure: structure, fields, tables, and what the partner does not support or
/// know (table 0357, 100 to 103 and 200 to 205).
const LASTING_ERRORS: [&str; 10] = ["100", "101", "102", "103", "200", "201", "202", "203", "204", "205"];

/// What to do about each negative acknowledgement: by its ERR segment's code where `errors` names that, else by its MSA-1
/// where a code is set, else as the preset says.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OnAck {
    /// Where nothing else is said.
    pub(crate) preset: Preset,
    #[serde(rename = "AE")]
    pub(crate) ae: Option<Action>,
    #[serde(rename = "AR")]
    pub(crate) ar: Option<Action>,
    #[serde(rename = "CE")]
    pub(crate) ce: Option<Action>,
    #[serde(rename = "CR")]
    pub(crate) cr: Option<Action>,
    /// By the code of table 0357 in the answer's ERR segment, like `"206" = "retry"` for a locked record.
    pub(crate) errors: BTreeMap<String, Action>,
}

/// Common agreements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// CE says "not stored now" and brings the same message again; all others are final.
    #[default]
    Standard,
    /// Every refusal is final.
    Strict,
    /// Every refusal brings the same message again, and its lane waits for it; whatever the ERR segment says.
    OrderedHold,
    /// Every refusal brings the same message again, unless its ERR segment says that this is in vain.
    LenientRetry,
}

/// What to do about a negative acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// The message is dead.
    Reject,
    /// The message is tried again, and the attempt counts.
    Retry,
    /// The partner is in trouble: all its messages wait, and no attempt counts.
    RetryDestination,
}

impl Action {
    /// `None`: not at all.
    pub(crate) fn retry_scope(self) -> Option<Scope> {
        match self {
            Self::Reject => None,
            Self::Retry => Some(Scope::Message),
            Self::RetryDestination => Some(Scope::Destination),
        }
    }
}

impl OnAck {
    /// `None` for the codes that say yes. `error`: the code in the answer's ERR segment.
    pub(crate) fn action(&self, code: AckCode, error: Option<&str>) -> Option<Action> {
        let set = match code {
            AckCode::Aa | AckCode::Ca => return None,
            AckCode::Ae => self.ae,
            AckCode::Ar => self.ar,
            AckCode::Ce => self.ce,
            AckCode::Cr => self.cr,
        };
        let named = error.and_then(|error| self.errors.get(error).copied());
        Some(named.or(set).unwrap_or_else(|| self.preset.action(code, error)))
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        let is_code = |code: &String| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
        let strange = self.errors.keys().filter(|code| !is_code(code));
        strange
            .map(|code| {
                let what = format!("`{code}` is not a code of table 0357: write three digits, like \"206\"");
                Fault::new("on_ack.errors", what)
            })
            .collect()
    }
}

impl Preset {
    fn action(self, code: AckCode, error: Option<&str>) -> Action {
        let in_vain = error.is_some_and(|error| LASTING_ERRORS.contains(&error));
        match self {
            Self::Standard if code == AckCode::Ce => Action::Retry,
            Self::Standard | Self::Strict => Action::Reject,
            Self::OrderedHold => Action::Retry,
            Self::LenientRetry if in_vain => Action::Reject,
            Self::LenientRetry => Action::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEGATIVE: [AckCode; 4] = [AckCode::Ae, AckCode::Ar, AckCode::Ce, AckCode::Cr];

    fn read(text: &str) -> OnAck {
        serde_json::from_str(text).unwrap()
    }

    fn actions(table: &OnAck, error: Option<&str>) -> [Action; 4] {
        NEGATIVE.map(|code| table.action(code, error).unwrap())
    }

    #[test]
    fn each_preset_is_a_table() {
        use Action::{Reject, Retry};
        // Preset, then AE, AR, CE, CR without an ERR segment, with a lasting error, with a passing one.
        for (preset, plain, lasting, passing) in [
            (
                "standard",
                [Reject, Reject, Retry, Reject],
                [Reject, Reject, Retry, Reject],
                [Reject, Reject, Retry, Reject],
            ),
            ("strict", [Reject; 4], [Reject; 4], [Reject; 4]),
            ("ordered-hold", [Retry; 4], [Retry; 4], [Retry; 4]),
            ("lenient-retry", [Retry; 4], [Reject; 4], [Retry; 4]),
        ] {
            let table = read(&format!(r#"{{"preset":"{preset}"}}"#));
            assert_eq!(actions(&table, None), plain, "{preset}");
            for error in LASTING_ERRORS {
                assert_eq!(actions(&table, Some(error)), lasting, "{preset} {error}");
            }
            for error in ["206", "207", "999", ""] {
                assert_eq!(actions(&table, Some(error)), passing, "{preset} {error}");
            }
        }
    }

    #[test]
    fn a_set_code_goes_before_the_preset_and_a_named_error_before_both() {
        let table = read(
            r#"{"preset":"lenient-retry","AE":"retry_destination","errors":{"206":"retry","101":"retry"}}"#,
        );
        assert_eq!(table.action(AckCode::Ae, None), Some(Action::RetryDestination));
        assert_eq!(table.action(AckCode::Ae, Some("206")), Some(Action::Retry));
        assert_eq!(table.action(AckCode::Ar, Some("101")), Some(Action::Retry));
        assert_eq!(table.action(AckCode::Ar, Some("102")), Some(Action::Reject));
        assert_eq!(table.action(AckCode::Aa, Some("206")), None);
        assert_eq!(table.action(AckCode::Ca, None), None);
    }

    #[test]
    fn what_is_no_error_code_is_told() {
        assert_eq!(read(r#"{"errors":{"20":"retry","abc":"retry","206":"retry"}}"#).faults().len(), 2);
    }
}
