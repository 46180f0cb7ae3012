//! Every rule with a configuration that breaks it; the page that lists them.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use super::*;

/// A directory with files of all kinds that a configuration may name.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, mode) in [
            ("cert.pem", 0o644),
            ("ca.pem", 0o644),
            ("key.pem", 0o600),
            ("open.pem", 0o640),
            ("writable.pem", 0o664),
            ("safe", 0o755),
            ("program", 0o775),
        ] {
            files.write(name, mode, "x");
        }
        files.write("local-url", 0o600, "postgres:///gp");
        files.write("remote-url", 0o600, "postgres://gp:canary@db.example/gp");
        files.write("open-url", 0o644, "postgres:///gp");
        symlink(files.path("key.pem"), files.path("link.pem")).unwrap();
        for (name, mode) in [("shared", 0o770), ("closed", 0o750), ("data", 0o700), ("data/keys", 0o700)] {
            std::fs::create_dir(files.path(name)).unwrap();
            std::fs::set_permissions(files.path(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        files.write("data/keys/audit.key", 0o600, "x");
        std::fs::hard_link(files.path("data/keys/audit.key"), files.path("audit-by-another-name")).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, mode: u32, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    /// As the file `gatepost.toml` beside them.
    fn parse(&self, text: &str) -> Result<Config, Faults> {
        Config::parse(text, &self.path("gatepost.toml"))
    }
}

fn tls(address: &str, key: &str) -> String {
    with(&format!(
        "[[listen]]\nserves = \"apps\"\ntcp = \"{address}\"\ntls = {{ cert = \"cert.pem\", key = \"{key}\", client_ca = \"ca.pem\" }}"
    ))
}

fn tls_key(line: &str) -> String {
    with(&format!(
        "[[listen]]\nserves = \"apps\"\ntcp = \"127.0.0.1:1\"\ntls = {{ cert = \"cert.pem\", key = \"key.pem\", client_ca = \"ca.pem\", {line} }}"
    ))
}

fn socket(path: &str) -> String {
    with(&format!("[[listen]]\nserves = \"apps\"\nunix = \"{path}\""))
}

fn postgres(file: &str) -> String {
    with(&format!("[store]\npostgres = {{ url_file = \"{file}\" }}"))
}

fn adapter(run: &str) -> String {
    with(&format!("[adapters.lab]\nrun = \"{run}\"\nmax_backlog = {{ messages = 1 }}"))
}

/// Each of them breaks one rule once, at the key given.
fn refused() -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("A01", with("[[listen]]\nserves = \"apps\"\ntcp = \"127.0.0.1:1\""), "listen[2].tcp"),
        (
            "A01",
            with(
                "[[listen]]\nserves = \"apps\"\ntcp = \"127.0.0.1:1\"\ntls = { cert = \"cert.pem\", key = \"key.pem\" }",
            ),
            "listen[2].tls",
        ),
        ("A03", socket("@gatepost"), "listen[2].unix"),
        ("A03", socket("\\u0000gatepost"), "listen[2].unix"),
        ("A04", socket("shared/app.sock"), "listen[2].unix"),
        ("A05", tls("127.0.0.1:1", "open.pem"), "listen[2].tls.key"),
        ("A05", tls("127.0.0.1:1", "link.pem"), "listen[2].tls.key"),
        ("A05", tls("127.0.0.1:1", "key.pem").replace("cert.pem", "writable.pem"), "listen[2].tls.cert"),
        ("A05", tls("127.0.0.1:1", "key.pem").replace("ca.pem", "writable.pem"), "listen[2].tls.client_ca"),
        ("A05", tls_key("crl = \"writable.pem\""), "listen[2].tls.crl"),
        ("A05", tls_key("crl = [\"cert.pem\", \"writable.pem\"]"), "listen[2].tls.crl[2]"),
        ("A05", postgres("open-url"), "store.postgres.url_file"),
        ("A06", with("[apps.a]\nuser = \"1\"\n[apps.b]\nuser = \"1\"\ngroup = \"2\""), "apps.b"),
        (
            "A06",
            with(&format!(
                "[apps.a]\nuser = \"1\"\ntoken_sha256 = \"{0}\"\n[apps.b]\nuser = \"1\"\ntoken_sha256 = \"{0}\"",
                "a".repeat(64)
            )),
            "apps.b.token_sha256",
        ),
        ("A07", with("[apps.a]\nsend = [\"t\"]"), "apps.a"),
        ("A07", with("[operators.o]\ncan = [\"read\"]"), "operators.o"),
        ("A07", with("[adapters.a]\nmax_backlog = { messages = 1 }"), "adapters.a"),
        ("A09", tls_key("min_version = \"1.2\""), "listen[2].tls.min_version"),
        ("A09", tls_key("protocols = [\"1.2\"]"), "listen[2].tls.protocols"),
        ("A09", tls_key("ciphers = \"ALL\""), "listen[2].tls.ciphers"),
        ("A10", tls_key("unknown_revocation = \"allow\""), "listen[2].tls.unknown_revocation"),
        ("A12", postgres("remote-url"), "store.postgres.url_file"),
        ("A09", with("[gateway]\ntls_min = \"1.2\""), "gateway.tls_min"),
        ("A15", adapter("./safe\"\nsandbox = \"off"), "adapters.lab.sandbox"),
        ("A17", adapter("./safe\"\nrun_as = \"0"), "adapters.lab.run_as"),
        (
            "A17",
            format!("{}\n[gateway]\nuser = \"4244\"", adapter("./safe\"\nrun_as = \"4244")),
            "adapters.lab.run_as",
        ),
        ("A22", with("[metrics]\ntcp = \"0.0.0.0:9090\""), "metrics"),
        ("A22", with("health = \"0.0.0.0:80\""), "listen[1].health"),
        ("A22", with("[gateway]\nmetrics_listen = \"0.0.0.0:80\""), "gateway.metrics_listen"),
        ("A24", adapter("gatepost-hl7\"\nprotocol = \"mllp"), "adapters.lab.protocol"),
        ("A24", with("[gateway]\nsecure = true"), "gateway.secure"),
        (
            "A25",
            format!("{}\n[gateway]\ndata_dir = \"data\"", tls("127.0.0.1:1", "data/keys/audit.key")),
            "listen[2].tls.key",
        ),
        (
            "A25",
            format!("{}\n[gateway]\ndata_dir = \"data\"", tls("127.0.0.1:1", "audit-by-another-name")),
            "listen[2].tls.key",
        ),
        (
            "A25",
            format!(
                "{}\n[store]\npostgres = {{ url_file = \"local-url\" }}",
                tls("127.0.0.1:1", "local-url")
            ),
            "listen[2].tls.key",
        ),
    ]
}

fn warned() -> Vec<(&'static str, String, &'static str)> {
    let limit = |limit: &str| with(&format!("[inboxes.i]\n{limit}"));
    vec![
        ("A02", tls("0.0.0.0:1", "key.pem"), "listen[2].tcp"),
        ("A02", tls("[::]:1", "key.pem"), "listen[2].tcp"),
        ("A08", with("[apps.a]\nuser = \"0\""), "apps.a.user"),
        (
            "A08",
            with(
                "[[listen]]\nserves = \"adapters\"\nunix = \"b.sock\"\n[adapters.a]\nuser = \"root\"\nmax_backlog = { messages = 1 }",
            ),
            "adapters.a.user",
        ),
        ("A16", adapter("./program"), "adapters.lab.run"),
        (
            "A11",
            with(&format!("[apps.a]\nuser = \"1\"\ntoken_sha256 = \"{}\"", "a".repeat(64))),
            "apps.a.token_sha256",
        ),
        (
            "A18",
            adapter("./safe\"\nallow = { connect = [\"*\"] }\norder = \"none"),
            "adapters.lab.allow.connect[1]",
        ),
        (
            "A20",
            with("[gateway]\ndata_dir = \"data\"\n[encryption]\nkeys = \"data/keys\""),
            "encryption.keys",
        ),
        ("A19", limit(""), "inboxes.i"),
        ("A19", limit("max_backlog = { messages = 1000000000000 }"), "inboxes.i.max_backlog"),
        ("A19", limit("max_backlog = { bytes = \"1000000GiB\" }"), "inboxes.i.max_backlog"),
    ]
}

#[test]
fn each_refused_configuration_names_its_rule_and_its_line() {
    let files = Files::new();
    for (rule, text, key) in refused() {
        let faults = files.parse(&text).expect_err(&text);
        let found: Vec<_> = faults.iter().collect();
        let [fault] = found.as_slice() else { panic!("{text}\nhas {found:#?}") };
        assert_eq!((fault.rule.map(Rule::id), fault.key.as_str()), (Some(rule), key), "{text}\nhas {fault}");
        let shown = fault.to_string();
        assert!(shown.ends_with(&format!(" [{rule}]")) && !shown.contains("canary"), "{shown}");
        let line = text.lines().nth(fault.line - 1).unwrap();
        let last = key.rsplit('.').next().unwrap().split('[').next().unwrap();
        assert!(line.contains(last), "{rule} {key} is said to stand in {line}");
    }
}

#[test]
fn each_warned_configuration_is_valid_and_names_its_rule() {
    let files = Files::new();
    for (rule, text, key) in warned() {
        let config = files.parse(&text).unwrap_or_else(|faults| panic!("{text}\nhas {faults}"));
        let [warning] = config.warnings.as_slice() else { panic!("{text}\nhas {:#?}", config.warnings) };
        assert_eq!((warning.rule.map(Rule::id), warning.key.as_str()), (Some(rule), key), "{text}");
    }
}

#[test]
fn every_rule_that_is_not_reserved_has_a_configuration_that_breaks_it() {
    let ids = |cases: Vec<(&'static str, String, &str)>| {
        let mut ids: Vec<&str> = cases.iter().map(|(rule, ..)| *rule).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let of =
        |verdict| Rule::ALL.iter().filter(move |rule| rule.facts().verdict == verdict).map(|rule| rule.id());
    assert_eq!(ids(refused()), of(Verdict::Refused).collect::<Vec<_>>());
    assert_eq!(ids(warned()), of(Verdict::Warned).collect::<Vec<_>>());
    assert!(Rule::ALL.is_sorted_by(|one, other| one.id() < other.id()), "each id once, in order");
}

/// What cannot be switched off has no key: those that sound like it are refused, and none of those that there are sounds like it.
#[test]
fn no_key_weakens_tls_revocation_or_the_way_to_metrics() {
    fn walk(groups: keys::Groups, path: &str) -> usize {
        let of_key = |key: &keys::Key| {
            let path = format!("{path}{}", key.name);
            assert_eq!(
                crate::config::rules::of_unknown_key(&path, key.name),
                Rule::UnknownKey,
                "{path} sounds like it weakens something"
            );
            match key.shape {
                keys::Shape::Table(groups) | keys::Shape::Named(groups) => {
                    1 + walk(groups, &format!("{path}."))
                }
                keys::Shape::Tables(groups) => 1 + walk(groups, &format!("{path}[1].")),
                _ => 1,
            }
        };
        keys::all(groups).map(of_key).sum()
    }
    assert!(walk(keys::ROOT, "") > 50, "the keys are not found any more");
}

#[test]
fn all_rules_that_a_file_breaks_are_reported_at_once() {
    let text = "[metrics]\n[[listen]]\nserves = \"apps\"\ntcp = \"0.0.0.0:1\"\n[[listen]]\nserves = \"apps\"\nunix = \"@x\"\n\
                [[listen]]\nserves = \"apps\"\nunix = \"shared/x\"\n[apps.a]\nsend = []\nsecure = 1\n";
    let faults = Files::new().parse(text).unwrap_err();
    let rules: Vec<_> = faults.iter().filter_map(|fault| fault.rule).map(Rule::id).collect();
    assert_eq!(rules, ["A22", "A01", "A03", "A04", "A07", "A24"], "{faults}");
}

#[test]
fn files_that_are_as_they_should_be_are_neither_refused_nor_warned_of() {
    let files = Files::new();
    for text in [
        tls("127.0.0.1:1", "key.pem"),
        // Two listeners may have one certificate.
        format!("{}\n{}", tls("127.0.0.1:1", "key.pem"), &tls("127.0.0.1:2", "key.pem")[with("").len()..]),
        postgres("local-url"),
        adapter("./safe"),
        socket("closed/app.sock"),
        socket("not-there-yet/app.sock"),
    ] {
        let config = files.parse(&text).unwrap_or_else(|faults| panic!("{text}\nhas {faults}"));
        assert_eq!(config.warnings, [], "{text}");
    }
}

#[test]
fn root_may_check_the_file_of_a_gateway_that_runs_as_the_owner_of_its_data_and_of_nobody_else() {
    if !nix::unistd::geteuid().is_root() {
        return crate::listen::tests::skipped("needs root");
    }
    let (gateway, stranger) = (4321, 4322);
    let files = Files::new();
    for name in ["key.pem", "closed", "data", "safe"] {
        chown(files.path(name), Some(gateway), Some(gateway)).unwrap();
    }
    let text = format!(
        "{}\n[[listen]]\nserves = \"apps\"\nunix = \"closed/app.sock\"\n[gateway]\ndata_dir = \"data\"\n\
         [adapters.lab]\nrun = \"./safe\"\nmax_backlog = {{ messages = 1 }}\n",
        tls("127.0.0.1:1", "key.pem")
    );
    let found = files.parse(&text).unwrap_or_else(|faults| panic!("{faults}")).warnings;
    let found: Vec<_> =
        found.iter().map(|warning| (warning.rule.map(Rule::id), warning.key.as_str())).collect();
    assert_eq!(found, [(Some("A20"), "gateway.data_dir")], "the keys that it makes lie beside the data");
    let rules =
        |faults: &[Fault]| faults.iter().filter_map(|fault| fault.rule).map(Rule::id).collect::<Vec<_>>();
    let refused = |text: &str| rules(&files.parse(text).unwrap_err().iter().cloned().collect::<Vec<_>>());
    assert_eq!(refused(&text.replace("\"data\"", "\"elsewhere\"")), ["A05", "A04"]);
    for name in ["cert.pem", "ca.pem", "key.pem", "closed"] {
        chown(files.path(name), Some(stranger), None).unwrap();
    }
    assert_eq!(refused(&text), ["A05", "A05", "A05", "A04"]);
    for name in ["cert.pem", "ca.pem", "key.pem", "closed"] {
        chown(files.path(name), Some(0), None).unwrap();
    }
    chown(files.path("safe"), Some(stranger), None).unwrap();
    assert_eq!(rules(&files.parse(&text).unwrap().warnings), ["A20", "A16"]);
}

#[test]
fn what_systemd_hands_over_as_a_credential_is_there_only_while_the_unit_runs() {
    let key = "/run/credentials/gatepost-that-does-not-run.service/secret_tls.key";
    let config = Files::new().parse(&tls("127.0.0.1:1", key)).unwrap();
    assert_eq!(config.warnings, []);
    let faults = Files::new().parse(&tls("127.0.0.1:1", "/run/elsewhere/secret_tls.key")).unwrap_err();
    assert!(faults.to_string().contains("there is no file /run/elsewhere/secret_tls.key"), "{faults}");
}

#[test]
fn the_configuration_of_one_user_breaks_no_rule() {
    let file = Path::new("/nowhere/gatepost.toml");
    let config = Config::parse(&init_template("nobody"), file).unwrap();
    assert_eq!(config.warnings, []);
    let config = Config::parse(&init_template("root"), file).unwrap();
    let rules: Vec<_> = config.warnings.iter().filter_map(|warning| warning.rule).map(Rule::id).collect();
    assert_eq!(rules, ["A08"], "root is warned, and starts");
}

#[test]
fn the_page_of_rules_is_the_table_of_rules() {
    let verdict = |verdict| match verdict {
        Verdict::Refused => "refused",
        Verdict::Warned => "warned of",
    };
    let row = |rule: &Rule| {
        let Facts { id, verdict: is, what, advice } = rule.facts();
        format!("| {id} | {} | {what} | {advice} |", verdict(is))
    };
    let expected: Vec<String> = Rule::ALL.iter().map(row).collect();
    let page = include_str!("../../../../../docs/rules.md");
    let found: Vec<&str> = page.lines().filter(|line| line.starts_with("| A")).collect();
    assert_eq!(found, expected, "docs/rules.md should hold\n{}", expected.join("\n"));
}
