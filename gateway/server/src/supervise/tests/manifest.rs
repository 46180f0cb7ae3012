//! What programs say of themselves, and what becomes of those that say nothing or nonsense.

use super::*;

/// A shell script that answers `--manifest` and `--check` with these commands.
fn program(directory: &TempDir, manifest: &str, check: &str) -> String {
    let text =
        format!("#!/bin/sh\ncase $1 in --manifest) {manifest};; --check) {check};; *) exit 9;; esac\n");
    script(directory.path(), "adapter", &text)
}

async fn validate(directory: &TempDir, adapters: &str) -> Result<BTreeMap<String, Manifest>, Vec<String>> {
    let config =
        Config::parse(&config_text(directory.path(), adapters), &directory.path().join("gatepost.toml"))
            .unwrap();
    let faults = |faults: Vec<config::Fault>| {
        let file = directory.path().join("gatepost.toml");
        let shown = |fault: &config::Fault| fault.to_string().replace(&file.display().to_string(), "FILE");
        faults.iter().map(shown).collect()
    };
    timeout(HANG, validate_adapters(&config, &shell_exec())).await.unwrap().map_err(faults)
}

async fn faults(manifest: &str, check: &str, settings: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let program = program(&directory, manifest, check);
    validate(&directory, &format!("[adapters.lab]\nrun = \"{program}\"\n{settings}"))
        .await
        .err()
        .unwrap_or_default()
}

const FULL: &str = r#"echo '{"protocol":1,"version":"2.0","levels":["sent","transport"],"query":true,"ordered_pipeline":true,"settings_schema":{}}'"#;
const POOR: &str = r#"echo '{"protocol":1,"version":"2.0","levels":["transport"]}'"#;

#[tokio::test]
async fn r13_10_a_manifest_is_read_and_the_settings_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let check = "grep -q '^{\"port\":7}$' && exit 0; echo port: wrong; exit 2";
    let program = program(&directory, FULL, check);
    let adapter =
        format!("[adapters.lab]\nrun = \"{program}\"\non_doubt = \"query\"\nwindow = 4\norder = \"key\"\n");
    let manifests =
        validate(&directory, &format!("{adapter}[adapters.lab.settings]\nport = 7\n")).await.unwrap();
    assert_eq!(manifests["lab"].version.as_deref(), Some("2.0"));
    let faults =
        validate(&directory, &format!("{adapter}[adapters.lab.settings]\nport = 8\n")).await.unwrap_err();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].ends_with(":1: adapters.lab.settings.port: wrong"), "{faults:?}");
    let line = |fault: &str| fault.split(':').nth(1).unwrap().parse::<usize>().unwrap();
    let text = config_text(directory.path(), &format!("{adapter}[adapters.lab.settings]\nport = 8\n"));
    assert_eq!(text.lines().nth(line(&faults[0]) - 1), Some("port = 8"));
}

#[tokio::test]
async fn what_a_program_cannot_do_is_a_fault_of_the_configuration() {
    let wanting = "confirm = \"business\"\non_doubt = \"query\"\nwindow = 4\norder = \"key\"\n";
    let found = faults(POOR, "exit 0", wanting).await;
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[0].contains("adapters.lab.confirm: \"business\"") && found[0].contains("\"transport\""),
        "{found:?}"
    );
    assert!(found[1].contains("adapters.lab.on_doubt: \"query\""), "{found:?}");
    assert!(found[2].contains("adapters.lab.window: 4"), "{found:?}");
    assert!(faults(POOR, "exit 0", "").await.is_empty());
}

#[tokio::test]
async fn r13_10_a_program_without_a_manifest_proves_that_it_sent() {
    for silent in ["exit 64", "echo usage: lab HOST", "echo 17", "exit 2"] {
        assert!(faults(silent, silent, "confirm = \"sent\"\n").await.is_empty(), "{silent}");
        let found = faults(silent, silent, "").await;
        assert!(found.len() == 1 && found[0].contains("it can prove \"sent\""), "{silent}: {found:?}");
    }
}

#[tokio::test]
async fn a_program_that_goes_to_work_when_asked_is_ended_and_has_no_manifest() {
    let work = "echo $$ >\"$0.pid\"; while :; do sleep 60; done";
    let directory = tempfile::tempdir().unwrap();
    let program = program(&directory, work, "exit 0");
    let adapter = format!("[adapters.lab]\nrun = \"{program}\"\nconfirm = \"sent\"\n");
    assert!(validate(&directory, &adapter).await.is_ok());
    let pid = std::fs::read_to_string(format!("{program}.pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[tokio::test]
async fn a_manifest_that_is_none_of_ours_is_a_fault() {
    for (manifest, expected) in [
        (r#"echo '{"protocol":2,"levels":["sent"],"new":1}'"#, "speaks protocol 2"),
        (r#"echo '{"levels":["sent"]}'"#, "speaks protocol none"),
        (r#"echo '{"protocol":1,"levels":["gesture"]}'"#, "unknown level `gesture`"),
        (r#"echo '{"protocol":1,"levels":["sent"],"extra":1}'"#, "unknown field `extra`"),
        (r#"echo '{"protocol":1}'"#, "missing field `levels`"),
        ("yes", "printed more than 256 KiB"),
        ("exit 126", "cannot be executed"),
    ] {
        let found = faults(manifest, "exit 0", "confirm = \"sent\"\n").await;
        assert!(found.len() == 1 && found[0].contains(expected), "{manifest}: {found:?}");
    }
}

#[tokio::test]
async fn a_check_that_fails_is_not_taken_for_a_yes() {
    for (check, expected) in [
        ("exit 2", "without saying why"),
        ("exit 1", "--check failed (exit status: 1)"),
        ("kill -9 $$", "--check failed (signal: 9"),
        ("printf 'a: \\033[0mb\\n\\nc: d\\n'; exit 2", "adapters.lab.settings: a: \\u{1b}[0mb"),
    ] {
        let found = faults(FULL, check, "").await;
        assert!(!found.is_empty() && found[0].contains(expected), "{check}: {found:?}");
    }
}

#[tokio::test]
async fn every_adapters_faults_are_told_and_external_ones_are_not_asked() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(&directory, POOR, "exit 0");
    let adapters = format!(
        "[adapters.a]\nrun = \"no-such-program-anywhere\"\n[adapters.b]\nrun = \"{program}\"\nconfirm = \"business\"\n\
         [adapters.c]\nuser = \"root\"\n"
    );
    let found = validate(&directory, &adapters).await.unwrap_err();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("adapters.a.run: there is no program `no-such-program-anywhere`"), "{found:?}");
    assert!(found[1].contains("adapters.b.confirm: "), "{found:?}");
}

#[tokio::test]
async fn a_mistyped_setting_gets_the_name_that_it_probably_meant() {
    let said = |line: &str| {
        let check = format!("echo '{line}'; exit 2");
        async move { faults(FULL, &check, "[adapters.lab.settings]\nprot = 1\n").await.pop().unwrap() }
    };
    let mistyped = said("prot: unknown field `prot`, expected one of `host`, `port`, `user`").await;
    assert!(
        mistyped.ends_with("adapters.lab.settings.prot: unknown key: did you mean `port`?"),
        "{mistyped}"
    );
    let of_two = said("prot: unknown field `prot`, expected `a` or `b`").await;
    assert!(of_two.ends_with("settings.prot: unknown key: known here: `a`, `b`"), "{of_two}");
    let of_none = said("prot: unknown field `prot`, there are no fields").await;
    assert!(of_none.ends_with("settings.prot: unknown field `prot`, there are no fields"), "{of_none}");
}

/// A program whose `--access` says this.
async fn with_access(access: &str) -> Result<BTreeMap<String, Manifest>, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("data")).unwrap();
    let manifest = r#"echo '{"protocol":1,"levels":["transport"],"access":true}'"#;
    let access = access.replace("DIR", &directory.path().display().to_string());
    let program = program(&directory, &format!("{manifest};; --access) {access}"), "exit 0");
    validate(&directory, &format!("[adapters.lab]\nrun = \"{program}\"\n")).await
}

#[tokio::test]
async fn r5_what_a_program_says_that_its_settings_imply_is_known() {
    let manifests = with_access(r#"echo '{"connect":["lab:1"],"read":["/usr/share"]}'"#).await.unwrap();
    assert_eq!(manifests["lab"].implied.connect.len(), 1);
    assert_eq!(manifests["lab"].implied.read, [Path::new("/usr/share")]);
    let manifests = with_access("exit 2").await.unwrap();
    assert_eq!(manifests["lab"].implied, Access::default(), "wrong settings are told by --check");
    for wrong in ["echo no", r#"echo '{"connect":["*"]}'"#, r#"echo '{"execute":["/"]}'"#, "exit 1"] {
        let found = with_access(wrong).await.unwrap_err();
        assert!(
            found.len() == 1 && found[0].contains("adapters.lab.run: the program's --access"),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn r5_a_program_may_not_claim_the_gateways_own_files() {
    for claim in ["DIR/data/keys", "DIR/data", "DIR", "/"] {
        for list in ["read", "write"] {
            let found = with_access(&format!("echo '{{\"{list}\":[\"{claim}\"]}}'")).await.unwrap_err();
            assert!(found.len() == 1 && found[0].contains("in the gateway's data_dir"), "{claim}: {found:?}");
        }
    }
}
