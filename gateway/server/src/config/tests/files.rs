//! Files that are valid, and the texts that `schema` and `init` write.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use gatepost_core::routing::{Attribute, EventView};
use gatepost_core::{OnDoubt, Order};
use serde_json::Value;

use super::*;

const FULL: &str = include_str!("full.toml");

#[test]
fn every_key_reaches_its_field() {
    insta::assert_debug_snapshot!(parse(FULL).unwrap());
}

#[test]
fn the_full_sample_uses_every_key_of_the_schema_and_no_other() {
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let mut known = BTreeSet::new();
    schema_keys(&schema, "", &mut known);
    let mut used = BTreeSet::new();
    let document = toml::from_str::<Value>(FULL).unwrap();
    document_keys(&document, &schema, "", &mut used);
    // Inboxes share their table of keys with adapters, which use all of them; so do the four kinds of selectors.
    let shared = |key: &String| {
        ["inboxes.*.", "operators.*.", "adapters.*.", "apps.*."].iter().any(|kind| key.starts_with(kind))
    };
    assert_eq!(
        known.iter().filter(|key| !shared(key)).collect::<Vec<_>>(),
        used.iter().filter(|key| !shared(key)).collect::<Vec<_>>()
    );
    let last = |keys: &BTreeSet<String>| {
        keys.iter()
            .filter(|key| shared(key))
            .map(|key| key.split_once(".*.").unwrap().1.to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(last(&known), last(&used));
}

/// Paths of all properties; the names of apps and the like are `*`, elements of arrays `[]`.
fn schema_keys(schema: &Value, path: &str, keys: &mut BTreeSet<String>) {
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        keys.insert(path.clone());
        schema_keys(value, &path, keys);
        schema_keys(&value["items"], &format!("{path}[]"), keys);
        schema_keys(&value["additionalProperties"], &format!("{path}.*"), keys);
    }
}

/// The same paths for a document, each checked to be in the schema.
fn document_keys(document: &Value, schema: &Value, path: &str, keys: &mut BTreeSet<String>) {
    let names = schema["additionalProperties"].is_object();
    for (name, value) in document.as_object().into_iter().flatten() {
        let schema = if names { &schema["additionalProperties"] } else { &schema["properties"][name] };
        assert!(schema.is_object(), "{path}.{name} is not in the schema");
        let name = if names { "*" } else { name };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if !names {
            keys.insert(path.clone());
        }
        if schema["properties"].is_object() || schema["additionalProperties"].is_object() {
            document_keys(value, schema, &path, keys);
        }
        for element in value.as_array().into_iter().flatten() {
            document_keys(element, &schema["items"], &format!("{path}[]"), keys);
        }
    }
}

#[test]
fn the_schema_is_what_editors_were_given() {
    insta::assert_snapshot!(schema());
}

#[test]
fn r13_9_a_small_file_for_one_user_needs_nothing_else() {
    let config = parse(
        r#"
        [gateway]
        data_dir = "/var/lib/small"
        [[listen]]
        serves = "apps"
        unix = "/run/small.sock"
        [apps.one]
        user = "root"
        send = ["*"]
        inbox = ["in"]
        [inboxes.in]
        [[routes]]
        from = "one"
        to = ["in"]
        "#,
    )
    .unwrap();
    assert!(!config.gateway.name.is_empty());
    assert_eq!(config.gateway.max_message, 64 << 20);
    assert_eq!(config.gateway.dedup_window, Duration::from_secs(8 * 86_400));
    assert_eq!(config.gateway.retention, Duration::from_secs(30 * 86_400));
    let ListenAt::Unix(unix) = &config.listens[0].at else { panic!("{:?}", config.listens) };
    assert_eq!((unix.mode, unix.group), (0o600, None));
    assert_eq!(config.routes.destinations("one", &Bare).unwrap(), ["in"]);
}

/// An event without attributes.
struct Bare;

impl EventView for Bare {
    fn attribute(&self, _: &str) -> Option<Attribute<'_>> {
        None
    }

    fn json(&self) -> Option<&[u8]> {
        None
    }
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = parse(&with("[adapters.a]\nrun = \"x\"\n[inboxes.i]\n")).unwrap();
    assert_eq!(config.gateway.data_dir, Path::new("/var/lib/gatepost"));
    let policy = |wanted: &str| config.queues().find(|(name, _)| *name == wanted).map(|(_, policy)| policy);
    assert_eq!(policy("a"), Some(QueuePolicy::default()));
    let inbox = policy("i").unwrap();
    assert_eq!((inbox.order, inbox.on_doubt, inbox.confirm), (Order::None, OnDoubt::Resend, None));
    assert_eq!(policy(UNROUTED).unwrap().confirm, None);
    assert_eq!(config.queues().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "i", UNROUTED]);
}

#[test]
fn relative_paths_begin_at_the_files_directory() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.gateway.data_dir, Path::new("/etc/gatepost/data"));
    let ListenAt::Unix(unix) = &config.listens[0].at else { panic!("{:?}", config.listens) };
    assert_eq!(unix.path, Path::new("/etc/gatepost/run/app.sock"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tool"), "").unwrap();
    let program = |run: &str| {
        let text = with(&format!("[adapters.a]\nrun = {run}"));
        let config = Config::parse(&text, &dir.path().join("gatepost.toml")).unwrap();
        match &config.adapters["a"].process {
            AdapterProcess::Supervised(run) => run.program.clone(),
            AdapterProcess::External(_) => panic!("external"),
        }
    };
    assert_eq!(program("\"gatepost-hl7\""), Program::Name("gatepost-hl7".into()));
    assert_eq!(program("[\"./tool\"]"), Program::File(dir.path().join("./tool")));
    assert_eq!(program("\"/dev/null\""), Program::File("/dev/null".into()));
}

#[test]
fn the_digest_is_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gatepost.toml");
    std::fs::write(&file, FULL).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    assert_eq!(config.file, file);
    assert_eq!(config.digest, parse(FULL).unwrap().digest);
    assert_eq!(config.digest.len(), 64);
    assert_ne!(config.digest, parse(&format!("{FULL}\n")).unwrap().digest);
}

#[test]
fn init_writes_a_file_that_works_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("new");
    let file = init(&home).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&home)), (0o600, 0o700));
    let config = Config::load(Some(&file)).unwrap();
    assert_eq!(config.gateway.data_dir, home.join("data"));
    let me = PeerFacts { uid: Some(nix::unistd::Uid::effective().as_raw()), ..PeerFacts::default() };
    assert_eq!(config.match_principal(Serves::Apps, &me, None, &()).unwrap().name(), "my-app");
    assert_eq!(config.match_principal(Serves::Operators, &me, None, &()).unwrap().name(), "me");
    assert!(
        check(Some(&file)).unwrap().ends_with("valid: 2 listeners, 1 app, 1 operator, 0 adapters, 1 inbox")
    );
    std::fs::write(&file, "mine").unwrap();
    assert!(matches!(init(&home), Err(InitError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn init_refuses_a_directory_whose_sockets_nobody_could_open() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    assert!(matches!(init(&deep), Err(InitError::Unfit(_))));
    assert!(!deep.exists());
}

#[test]
fn the_template_is_commented_and_its_adapter_works_too() {
    let template = init_template("root");
    insta::assert_snapshot!(template);
    let (working, example) = template.split_once("# [adapters.lab]").unwrap();
    let uncommented = format!("[adapters.lab]{example}").replace("\n# ", "\n").replace("\n#\n", "\n\n");
    let config = parse(&format!("{working}{uncommented}")).unwrap();
    assert_eq!(config.adapters["lab"].settings["connect"], "lab.example.org:2575");
}

#[test]
fn a_reload_names_what_only_a_restart_can_change() {
    let old = parse(FULL).unwrap();
    let changed = |from: &str, to: &str| {
        let text = FULL.replacen(from, to, 1);
        assert_ne!(text, FULL);
        old.needs_restart(&parse(&text).unwrap())
    };
    assert_eq!(changed("max_message = ", "max_message = \"2MiB\" #"), [""; 0]);
    assert_eq!(changed("retention = \"90d\"", "retention = \"80d\""), ["gateway.retention"]);
    assert_eq!(changed("dedup_window = ", "dedup_window = \"900d\" #"), ["gateway.dedup_window"]);
    assert_eq!(changed("max_connections = ", "max_connections = 7 #"), ["gateway.max_connections"]);
    assert_eq!(changed("Clinic-1", "Clinic-2"), ["gateway.name"]);
    assert_eq!(changed("user = \"4244\"", "user = \"4245\""), ["gateway.user"]);
    assert_eq!(changed("data_dir = \"data\"", "data_dir = \"other\""), ["gateway.data_dir"]);
    assert_eq!(changed("mode = \"0640\"", "mode = \"0600\""), ["listen"]);
}

#[test]
fn of_a_line_that_is_not_toml_one_fault_is_told() {
    let faults = parse("a = [1,\nb = \"x\n[gateway").unwrap_err();
    let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [2, 3]);
}

/// What the package installs, with groups that there are on every machine.
fn installed(more: &str) -> Config {
    let text = include_str!("../../../../../deploy/gatepost.toml");
    let text = ["apps", "operators", "adapters"]
        .iter()
        .fold(format!("{text}{more}"), |text, group| text.replace(&format!("\"gatepost-{group}\""), "\"0\""));
    Config::parse(&text, Path::new("/etc/gatepost/gatepost.toml")).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn the_installed_configuration_is_valid_lets_nobody_send_and_fits_the_socket_units() {
    let config = installed("");
    assert_eq!(config.warnings, []);
    assert!(config.apps.is_empty() && config.adapters.is_empty());
    let read_payload = gatepost_core::principal::OperatorRight::ReadPayload;
    assert!(
        Principal::Operator(Arc::clone(&config.operators["root"])).operator_permit(read_payload).is_none()
    );
    let commented = include_str!("../../../../../deploy/gatepost.toml");
    for (unit, group) in [
        (include_str!("../../../../../deploy/systemd/gatepost-app.socket"), "gatepost-apps"),
        (include_str!("../../../../../deploy/systemd/gatepost-operator.socket"), "gatepost-operators"),
        (include_str!("../../../../../deploy/systemd/gatepost-adapter.socket"), "gatepost-adapters"),
    ] {
        let of = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let (path, mode) = (of("ListenStream="), of("SocketMode="));
        assert_eq!(of("SocketGroup="), group);
        // Also where the listener is commented out.
        let listener = format!("unix = {path:?}\nmode = {mode:?}\ngroup = {group:?}\n");
        assert!(commented.replace("# ", "").contains(&listener), "no [[listen]] with\n{listener}");
    }
}
