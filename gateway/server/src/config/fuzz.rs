//! What must hold for any text that calls itself `gatepost.toml`.

use std::path::Path;

use super::Config;

/// The same text has the same faults each time, every one at a place in it; and what is a configuration is the same each
/// time.
pub(crate) fn file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let file = Path::new("/etc/gatepost/gatepost.toml");
    match (Config::parse(text, file), Config::parse(text, file)) {
        (Ok(one), Ok(other)) => {
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
            assert!(one.needs_restart(&other).is_empty());
            let mut names: Vec<_> = one.queues().map(|(name, _)| name).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two queues of one name");
        }
        (Err(one), Err(other)) => {
            assert_eq!(one, other);
            assert!(one.iter().next().is_some(), "refused without a fault");
            let mut before = (1, 1);
            for fault in one.iter() {
                let place = (fault.line, fault.column);
                assert!(place >= before, "faults in the order of their places");
                before = place;
                let line = text.split('\n').nth(fault.line - 1).expect("a line of the file");
                assert!(fault.column <= line.chars().count() + 1, "a column of its line");
                assert!(!fault.text.is_empty() && !fault.text.contains('\n'));
                assert!(!fault.text.chars().any(char::is_control), "a fault that drives the terminal");
            }
        }
        _ => panic!("a configuration at one time and none at another"),
    }
}
