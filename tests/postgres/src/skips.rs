//! Saying what was not tested.

use std::fs::File;
use std::io::Write as _;

/// Says that a test could not test here what it is for, lest its passing be believed: past the capture of a passing test's
/// output, and in the file that `scripts/test` names in `GATEPOST_SKIPS`, prints and counts.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: {why}\n");
    // Without a standard error there is nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("GATEPOST_SKIPS") {
        let mut skips =
            File::options().create(true).append(true).open(file).expect("the file of skips is writable");
        // One write, so that tests that run at the same time do not mix their lines.
        skips.write_all(line.as_bytes()).expect("the file of skips is writable");
    }
}
