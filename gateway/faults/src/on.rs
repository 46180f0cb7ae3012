//! What the points do in the fault laboratory's builds.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

use crate::{
    ADAPTER_POINTS, COMMAND_POINTS, COPY_POINTS, FIX_POINTS, FIX_REFUSAL_POINTS, GATEWAY_POINTS,
    SEAL_KEY_POINTS,
};

const VARIABLE: &str = "GATEPOST_FAULTS";
/// Into its work a fault of [`during`] comes after less than this, by the process id, so that rounds differ.
const WITHIN_MICROS: u64 = 3000;

/// The process comes by the point `name`.
pub fn point(name: &str) {
    if let Some(action) = plan().due(name) {
        act(action);
    }
}

/// Does `work`, in the middle of which the point `name` lies: what happens there comes from another thread.
pub fn during<T>(name: &str, work: impl FnOnce() -> T) -> T {
    if let Some(action) = plan().due(name) {
        let pause = Duration::from_micros(u64::from(std::process::id()) * 7919 % WITHIN_MICROS);
        std::thread::spawn(move || {
            std::thread::sleep(pause);
            act(action);
        });
    }
    work()
}

/// The variable that a child with a cleared environment needs too.
pub fn handed_on() -> Option<(&'static str, OsString)> {
    std::env::var_os(VARIABLE).map(|value| (VARIABLE, value))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Pause(Duration),
}

#[derive(Debug)]
struct Fault {
    action: Action,
    /// Which time it happens; every time without.
    nth: Option<u64>,
    came_by: AtomicU64,
}

/// What is to happen in this process.
#[derive(Debug, Default)]
struct Plan {
    faults: HashMap<String, Fault>,
    once: Option<PathBuf>,
}

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        // A laboratory that misspells a fault would prove that nothing breaks.
        Plan::parse(&text).unwrap_or_else(|wrong| panic!("{VARIABLE}: `{wrong}` is not a fault"))
    })
}

impl Plan {
    fn parse(text: &str) -> Result<Self, String> {
        let mut plan = Self::default();
        for item in text.split(';').filter(|item| !item.is_empty()) {
            let (name, what) = item.split_once('=').ok_or(item)?;
            if name == "once" {
                plan.once = Some(what.into());
                continue;
            }
            let all: [&[&str]; 7] = [
                &GATEWAY_POINTS,
                &SEAL_KEY_POINTS,
                &COPY_POINTS,
                &ADAPTER_POINTS,
                &FIX_POINTS,
                &FIX_REFUSAL_POINTS,
                &COMMAND_POINTS,
            ];
            if !all.concat().contains(&name) {
                return Err(item.to_owned());
            }
            plan.faults.insert(name.to_owned(), Fault::parse(what).ok_or(item)?);
        }
        Ok(plan)
    }

    /// What happens now at the point.
    fn due(&self, name: &str) -> Option<Action> {
        let fault = self.faults.get(name)?;
        let time = fault.came_by.fetch_add(1, Ordering::Relaxed) + 1;
        let due = fault.nth.is_none_or(|nth| nth == time);
        (due && self.is_first(name)).then_some(fault.action)
    }

    /// Whether it has not happened before, which is noted.
    fn is_first(&self, name: &str) -> bool {
        let Some(file) = &self.once else { return true };
        let happened = std::fs::read_to_string(file).unwrap_or_default();
        if happened.lines().any(|line| line == name) {
            return false;
        }
        let noted = File::options().create(true).append(true).open(file);
        let noted = noted.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
        noted.unwrap_or_else(|error| panic!("{VARIABLE}: cannot note what happened: {error}"));
        true
    }
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let (what, nth) = match text.split_once('@') {
            Some((what, nth)) => (what, Some(nth.parse().ok().filter(|nth| *nth > 0)?)),
            None => (text, None),
        };
        let action = match what {
            "kill" => Action::Kill,
            "stop" => Action::Stop,
            _ => Action::Pause(Duration::from_millis(what.strip_prefix("pause:")?.parse().ok()?)),
        };
        Some(Self { action, nth, came_by: AtomicU64::new(0) })
    }
}

fn act(action: Action) {
    let sent = match action {
        Action::Kill => raise(Signal::SIGKILL),
        Action::Stop => raise(Signal::SIGSTOP),
        Action::Pause(span) => return std::thread::sleep(span),
    };
    sent.unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_at_its_time_and_the_others_do_not() {
        let plan = Plan::parse("store.before_commit=kill@2;sdk.after_begin=pause:5").unwrap();
        let due: Vec<_> = (0..4).map(|_| plan.due("store.before_commit")).collect();
        assert_eq!(due, [None, Some(Action::Kill), None, None]);
        for _ in 0..3 {
            assert_eq!(plan.due("sdk.after_begin"), Some(Action::Pause(Duration::from_millis(5))));
        }
        assert_eq!(plan.due("store.after_commit"), None);
    }

    #[test]
    fn once_is_once_for_every_process_that_shares_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("sdk.after_begin=stop;once={}", dir.path().join("fired").display());
        let lives: Vec<_> = (0..3).map(|_| Plan::parse(&text).unwrap().due("sdk.after_begin")).collect();
        assert_eq!(lives, [Some(Action::Stop), None, None]);
    }

    #[test]
    fn a_misspelt_fault_is_refused() {
        for wrong in ["store.befor_commit=kill", "store.before_commit", "store.before_commit=die"] {
            assert_eq!(Plan::parse(wrong).unwrap_err(), wrong);
        }
        for wrong in ["sdk.after_begin=kill@0", "sdk.after_begin=kill@x", "sdk.after_begin=pause:soon"] {
            assert_eq!(Plan::parse(wrong).unwrap_err(), wrong);
        }
    }
}
