//! The fuzzer as a scenario of the long form: every parser that sees foreign bytes, one after another.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Longest that one target is fuzzed.
const TARGET_MAX: Duration = Duration::from_secs(60);

/// Fuzzes every target for its share of `budget`, 60 s at most, after building the fuzzer. What the fuzzer says, for the
/// report; as an error if it found something, or if it could not be built.
pub fn fuzz(budget: Duration) -> Result<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let corpora = root.join("fuzz/corpus").read_dir().map_err(|error| error.to_string())?.count();
    let targets = u32::try_from(corpora).unwrap_or(u32::MAX).max(1);
    let seconds = (budget / targets).min(TARGET_MAX).as_secs().max(1);
    let run = Command::new(root.join("scripts/fuzz")).args(["all", &seconds.to_string()]).output();
    let run = run.map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&run.stdout).into_owned();
    if run.status.success() {
        Ok(told)
    } else {
        Err(format!("{told}{}", String::from_utf8_lossy(&run.stderr)))
    }
}
