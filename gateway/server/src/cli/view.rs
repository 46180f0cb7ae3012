//! A payload for people, as the adapter that speaks its protocol shows it: the gateway itself knows none.

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::failure::Failure;
use crate::config::{Program, Run};
use crate::supervise::SearchPath;

/// What events' types begin with, and the program that shows their payloads: `PROGRAM view` reads one on standard input and
/// writes lines of text.
const VIEWERS: [(&str, &str); 1] = [("org.hl7.v2.", "gatepost-hl7")];

/// The payload's fields by name.
pub(super) async fn fields(kind: &str, payload: Vec<u8>) -> Result<String, Failure> {
    let viewer = VIEWERS.iter().find(|(prefix, _)| kind.starts_with(prefix));
    let Some((_, program)) = viewer else {
        return Err(Failure::Usage {
            what: format!("no adapter of gatepost can show the fields of a {kind}"),
            hint: Some("leave --fields away to see the payload as it is"),
        });
    };
    let run = Run { program: Program::Name((*program).into()), args: Vec::new() };
    let file = SearchPath::of_this_process()
        .resolve(&run)
        .map_err(|error| Failure::Unsuccessful { what: error.to_string(), hint: None })?
        .file;
    let failed = || Failure::io(format!("cannot run {}", file.display()));
    let mut child = Command::new(&file)
        .arg("view")
        .env_clear()
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A program that stops reading says why on its standard error.
            let _ = stdin.write_all(&payload).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.map_err(failed())?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::Unsuccessful { what: why, hint: Some("leave --fields away".to_owned()) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_can_show_is_said() {
        let error = fields("com.example.order", Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("com.example.order"), "{error}");
    }
}
