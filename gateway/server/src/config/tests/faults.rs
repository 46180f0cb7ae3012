//! Faults: all at once, each at its place, each saying what to do.

use super::*;

/// Ten faults of ten kinds.
const FAULTY: &str = r#"[gateway]
data_dri = "/var/lib/gatepost"
dedup_window = "1 week"

[[listen]]
serves = "aps"
unix = "@gatepost"

[[listen]]
serves = "apps"
tcp = "0.0.0.0:7443"

[apps.ehr]
send = ["org.hl7.v2.*"]
inbox = ["reslts"]

[adapters.lab]
run = "gatepost-hl7"
window = 4
max_in_flight = "many"

[inboxes.results]

[[routes]]
from = "ehr"
when = "type =="
to = ["lab"]
"#;

#[test]
fn check_prints_ten_faults_on_ten_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gatepost.toml");
    std::fs::write(&file, FAULTY).unwrap();
    let text = check(Some(&file)).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "");
    assert_eq!(text.lines().count(), 10, "{text}");
    insta::assert_snapshot!(text);
}

/// Each text has exactly one fault, at the key and with the words given.
#[test]
fn each_fault_is_reported_once_at_its_key() {
    let adapter = |line: &str| with(&format!("[adapters.lab]\nrun = \"gatepost-hl7\"\n{line}\n"));
    let app = |lines: &str| with(&format!("[apps.ehr]\n{lines}\n"));
    let cases: Vec<(String, &str, &str)> = vec![
        // The shape.
        (with("[gatewy]"), "gatewy", "did you mean `gateway`?"),
        (with("gateway = 1"), "listen[1].gateway", "unknown key"),
        (with("[gateway]\nname = 1"), "gateway.name", "expected a string, found an integer"),
        (with("[gateway]\nmax_connections = 0"), "gateway.max_connections", "from 1 to 65536"),
        (with("[gateway]\nmax_connections = 1.5"), "gateway.max_connections", "found a float"),
        (with("[gateway]\nuser = \"root\""), "gateway.user", "is root"),
        (with("[gateway]\nuser = \"no-such-user\""), "gateway.user", "no user `no-such-user`"),
        (with("[gateway]\nname = \"\""), "gateway.name", "must not be empty"),
        (with("[gateway]\nname = \"a b\""), "gateway.name", "not a name"),
        (with("[gateway]\nmax_message = \"65MiB\""), "gateway.max_message", "the most is \"64MiB\""),
        (with("[gateway]\nmax_message = \"1MB\""), "gateway.max_message", "not a size"),
        (with("[gateway]\nretention = 30"), "gateway.retention", "expected a duration such as \"30s\""),
        (with("[gateway]\nretention = \"0s\""), "gateway.retention", "longer than zero"),
        (with("[gateway]\ndata_dir = \"~/gatepost\""), "gateway.data_dir", "not expanded"),
        (with("[store]\npostgres = { url_file = \"x\" }"), "store.postgres.url_file", "there is no file"),
        (
            with("[store]\npostgres = { url_file = \"/dev/null\", experimental = \"yes\" }"),
            "store.postgres.experimental",
            "expected true or false, found a string",
        ),
        (with("[store]\npostgres = {}"), "store.postgres", "`url_file` is missing"),
        (with("[apps.\"Bad Name\"]\nuser = \"root\""), "apps.\"Bad Name\"", "not a name"),
        (with("[inboxes.unrouted]"), "inboxes.unrouted", "built-in"),
        (with("[inboxes.i]\nconfirm = \"sent\""), "inboxes.i.confirm", "unknown key"),
        // Listeners.
        (String::new(), "", "no [[listen]]"),
        (with("[[listen]]\nserves = \"apps\""), "listen[2]", "needs `unix"),
        (with("[[listen]]\nunix = \"/x\""), "listen[2]", "`serves` is missing"),
        (with("mode = \"0666\""), "listen[1].mode", "lets everybody connect"),
        (with("mode = \"rw\""), "listen[1].mode", "octal"),
        (with("mode = \"7777\""), "listen[1].mode", "octal"),
        (with("group = \"no-such-group\""), "listen[1].group", "no group `no-such-group` on this machine"),
        (with("tcp = \"0.0.0.0:1\""), "listen[1]", "both"),
        (
            with("tls = { cert = \"/dev/null\", key = \"/dev/null\", client_ca = \"/dev/null\" }"),
            "listen[1].tls",
            "only for `tcp`",
        ),
        (with("[[listen]]\nserves = \"apps\"\nunix = \"\\u0000x\""), "listen[2].unix", "NUL"),
        (with("[[listen]]\nserves = \"apps\"\nunix = \"@x\""), "listen[2].unix", "abstract"),
        (
            with("[[listen]]\nserves = \"operators\"\nunix = \"/run/gatepost/app.sock\""),
            "listen[2].unix",
            "already used by listen[1]",
        ),
        (
            with(&format!("[[listen]]\nserves = \"apps\"\nunix = \"/{}\"", "x".repeat(107))),
            "listen[2].unix",
            "too long for a socket: 108 bytes",
        ),
        (with("[[listen]]\nserves = \"apps\"\ntcp = \"[::]:1\""), "listen[2].tcp", "TCP needs TLS"),
        (
            with(
                "[[listen]]\nserves = \"apps\"\ntcp = \"host:1\"\ntls = { cert = \"/dev/null\", key = \"/dev/null\", client_ca = \"/dev/null\" }",
            ),
            "listen[2].tcp",
            "not an IP address and port",
        ),
        (
            with(
                "[[listen]]\nserves = \"apps\"\ntcp = \"[::]:1\"\ntls = { cert = \"/none.pem\", key = \"/dev/null\", client_ca = \"/dev/null\" }",
            ),
            "listen[2].tls.cert",
            "there is no file /none.pem",
        ),
        (
            with(
                "[[listen]]\nserves = \"apps\"\ntcp = \"[::]:1\"\ntls = { cert = \"/dev/null\", key = \"/dev/null\" }",
            ),
            "listen[2].tls",
            "`client_ca` is missing",
        ),
        // Sandboxes.
        (adapter("sandbox = \"lax\""), "adapters.lab.sandbox", "must be one of \"strict\""),
        (adapter("sandbox = \"off\""), "adapters.lab.sandbox", "all that the gateway can"),
        (adapter("run_as = \"0\""), "adapters.lab.run_as", "neither root nor the gateway's own user"),
        (adapter("run_as = \"no-such-user\""), "adapters.lab.run_as", "no user `no-such-user`"),
        (adapter("allow = { connect = [\"lab\"] }"), "adapters.lab.allow.connect[1]", "not `host:port`"),
        (adapter("allow = { bind = [\"lab:1\"] }"), "adapters.lab.allow.bind[1]", "not `address:port`"),
        (adapter("allow = { read = [\"/none\"] }"), "adapters.lab.allow.read[1]", "there is no file /none"),
        (
            adapter("allow = { read = [\"/usr\", \"/\"] }"),
            "adapters.lab.allow.read[2]",
            "the gateway's data_dir",
        ),
        (adapter("allow = { memory = \"1MiB\" }"), "adapters.lab.allow.memory", "the least is \"16MiB\""),
        (adapter("allow = { memory = 1 }"), "adapters.lab.allow.memory", "a size such as \"64MiB\""),
        (adapter("allow = { processes = 0 }"), "adapters.lab.allow.processes", "from 1 to 65536"),
        (adapter("allow = { cpus = 0.001 }"), "adapters.lab.allow.cpus", "from 0.01 to 1024"),
        (adapter("allow = { cpus = \"two\" }"), "adapters.lab.allow.cpus", "such as 1.5, found a string"),
        (adapter("allow = { write = [\"/\"] }"), "adapters.lab.allow.write[1]", "the gateway's data_dir"),
        (adapter("allow = { execute = [\"/\"] }"), "adapters.lab.allow.execute", "known here: `connect`"),
        (
            with(
                "[[listen]]\nserves = \"adapters\"\nunix = \"/x\"\n[adapters.a]\nuser = \"root\"\nsandbox = \"strict\"",
            ),
            "adapters.a.sandbox",
            "only for an adapter with `run`",
        ),
        // Principals.
        (app("send = [\"t\"]"), "apps.ehr", "says nothing about who it is"),
        (
            app(&format!("token_sha256 = \"{}\"", "a".repeat(64))),
            "apps.ehr",
            "a token alone identifies nobody",
        ),
        (app("user = \"no-such-user\""), "apps.ehr.user", "no user `no-such-user` on this machine"),
        (app("user = \"root\"\ntoken_sha256 = \"abc\""), "apps.ehr.token_sha256", "64 hex digits"),
        (
            app("user = \"root\"\ntoken = \"canary\""),
            "apps.ehr.token",
            "a secret must not stand in this file",
        ),
        (app("spiffe = \"spiffe://x\""), "apps.ehr.spiffe", "not a SPIFFE id"),
        (app("spiffe = \"spiffe://x/*\""), "apps.ehr.spiffe", "without wildcards"),
        (app("user = \"root\"\nspiffe = \"spiffe://x/y\""), "apps.ehr.spiffe", "no peer has both"),
        (app("unit = \"a.service\"\nspiffe = \"spiffe://x/y\""), "apps.ehr.spiffe", "no peer has both"),
        (
            app(&format!("user = \"root\"\ntoken = true\ntoken_sha256 = \"{}\"", "0".repeat(64))),
            "apps.ehr.token_sha256",
            "one or the other",
        ),
        (app("user = \"root\"\nlimits = { rate = \"100\" }"), "apps.ehr.limits.rate", "not a rate"),
        (app("user = \"root\"\nlimits = { rate = \"0/s\" }"), "apps.ehr.limits.rate", "not a rate"),
        (app("user = \"root\"\nlimits = { rate = \"+5/s\" }"), "apps.ehr.limits.rate", "not a rate"),
        (app("user = \"root\"\nlimits = { rate = \"5/h\" }"), "apps.ehr.limits.rate", "not a rate"),
        (app("user = \"root\"\nlimits = { burst = 5 }"), "apps.ehr.limits.burst", "add rate"),
        (app("user = \"root\"\nlimits = { requests = 2000 }"), "apps.ehr.limits.requests", "from 1 to 1024"),
        (app("user = \"root\"\nlimits = { backlog = {} }"), "apps.ehr.limits.backlog", "limits nothing"),
        (
            app("user = \"root\"\nlimits = { backlog = { messages = 0 } }"),
            "apps.ehr.limits.backlog.messages",
            "from 1 to",
        ),
        (
            adapter("limits = { backlog = { bytes = 5 } }"),
            "adapters.lab.limits.backlog.bytes",
            "expected a size",
        ),
        (app("token = true"), "apps.ehr", "says nothing about who it is"),
        (
            with("[apps.ehr]\nuser = \"root\"\ntoken = true\n[apps.lab]\nuser = \"root\""),
            "apps.lab",
            "the same peer would match apps.ehr too",
        ),
        (app("exe = \"/opt/none/ehr\""), "apps.ehr.exe", "only together with the user"),
        (app("group = \"root\"\nexe = \"/opt/none/ehr\""), "apps.ehr.exe", "only together with the user"),
        (app("user = \"root\"\nexe = \"ehr\""), "apps.ehr.exe", "absolute path of a program"),
        (app("user = \"root\"\nexe = \"/opt/../ehr\""), "apps.ehr.exe", "absolute path of a program"),
        (app("user = \"root\"\nexe = \"/opt/ehr (deleted)\""), "apps.ehr.exe", "absolute path of a program"),
        (app("user = \"root\"\nexe = \"/proc/self/exe\""), "apps.ehr.exe", "leads over a link"),
        (app("unit = \"system.slice\""), "apps.ehr.unit", "not a unit"),
        (app("unit = \"ehr\""), "apps.ehr.unit", "not a unit"),
        (app("unit = \".service\""), "apps.ehr.unit", "not a unit"),
        (app("cgroup = \"/\""), "apps.ehr.cgroup", "not a control group"),
        (app("cgroup = \"/a/\""), "apps.ehr.cgroup", "not a control group"),
        (app("cgroup = \"a\""), "apps.ehr.cgroup", "not a control group"),
        (
            with("[apps.ehr]\nuser = \"root\"\n[apps.lab]\nuser = \"root\"\nexe = \"/opt/none/lab\""),
            "apps.lab",
            "the same peer would match apps.ehr too",
        ),
        (
            with("[apps.ehr]\ncgroup = \"/a/b\"\n[apps.lab]\ncgroup = \"/a\""),
            "apps.lab",
            "the same peer would match apps.ehr too",
        ),
        (
            with("[apps.ehr]\nunit = \"a.service\"\n[apps.lab]\nunit = \"a.service\"\nuser = \"root\""),
            "apps.lab",
            "the same peer would match apps.ehr too",
        ),
        (
            app("user = \"root\"\ninbox = [\"resluts\"]\n[inboxes.results]"),
            "apps.ehr.inbox[1]",
            "did you mean `results`?",
        ),
        (
            app("user = \"root\"\nsend = \"t\""),
            "apps.ehr.send",
            "expected an array of strings, found a string",
        ),
        (app("user = \"root\"\nsend = [\"t\", \"\"]"), "apps.ehr.send[2]", "must not be empty"),
        (
            app("user = \"0\"\n[apps.his]\nuser = \"root\""),
            "apps.his",
            "the same peer would match apps.ehr too",
        ),
        (
            app("user = \"0\"\n[apps.his]\nuser = \"0\"\ngroup = \"0\""),
            "apps.his",
            "the same peer would match apps.ehr too",
        ),
        (
            app(&format!("user = \"0\"\n[apps.his]\nuser = \"0\"\ntoken_sha256 = \"{}\"", "a".repeat(64))),
            "apps.his",
            "give both a token_sha256",
        ),
        (
            app(&format!(
                "user = \"0\"\ntoken_sha256 = \"{0}\"\n[apps.his]\nuser = \"0\"\ntoken_sha256 = \"{0}\"",
                "a".repeat(64)
            )),
            "apps.his.token_sha256",
            "the same token as apps.ehr",
        ),
        (with("[operators.o]\nuser = \"root\""), "operators.o", "`can` is missing"),
        (with("[operators.o]\nuser = \"root\"\ncan = []"), "operators.o.can", "at least one of \"read\""),
        (
            with("[operators.o]\nuser = \"root\"\ncan = [\"write\"]"),
            "operators.o.can[1]",
            "must be one of \"read\", \"operate\"",
        ),
        // Adapters and inboxes.
        (adapter("order = \"keys\""), "adapters.lab.order", "must be one of \"none\", \"key\", \"strict\""),
        (adapter("confirm = 1"), "adapters.lab.confirm", "expected a string"),
        (adapter("nodes = \"two\""), "adapters.lab.nodes", "\"one\", \"each\""),
        (adapter("window = 2"), "adapters.lab.window", "add order = \"key\""),
        (adapter("order = \"key\"\nwindow = 300"), "adapters.lab.window", "more than max_in_flight (256)"),
        (adapter("max_backlog = {}"), "adapters.lab.max_backlog", "limits nothing"),
        (adapter("max_backlog = { bytes = 5 }"), "adapters.lab.max_backlog.bytes", "expected a size"),
        (adapter("retry = { attempts = 0 }"), "adapters.lab.retry.attempts", "from 1 to 1000000"),
        (
            adapter("retry = { initial = \"10s\", max = \"1s\" }"),
            "adapters.lab.retry.max",
            "shorter than the first pause (10s)",
        ),
        (
            adapter("retry = { give_up_after = \"9d\" }"),
            "adapters.lab.retry.give_up_after",
            "dedup_window (8d) is shorter than give_up_after of adapters.lab (9d)",
        ),
        (
            with("[gateway]\ndedup_window = \"6d\"\n[inboxes.i]"),
            "gateway.dedup_window",
            "give_up_after of inboxes.i (7d)",
        ),
        (adapter("user = \"root\""), "adapters.lab.user", "only for an adapter without `run`"),
        (with("[adapters.lab]\nrun = \"gatepost-hl7 -v\""), "adapters.lab.run", "never a shell line"),
        (with("[adapters.lab]\nrun = []"), "adapters.lab.run", "must name a program"),
        (with("[adapters.lab]\nrun = 1"), "adapters.lab.run", "expected a string or an array of strings"),
        (
            with("[adapters.lab]\nrun = \"./none\""),
            "adapters.lab.run",
            "there is no file /etc/gatepost/./none",
        ),
        (
            with("[adapters.lab]\nrun = [\"x\", \"--api-key=canary\"]"),
            "adapters.lab.run[2]",
            "every user can see arguments",
        ),
        (with("[adapters.lab]\nuser = \"root\""), "adapters.lab", "no [[listen]] has serves = \"adapters\""),
        (with("[adapters.lab]"), "adapters.lab", "add run = \"PROGRAM\""),
        (adapter("settings = 1"), "adapters.lab.settings", "expected a table"),
        (
            adapter("settings.db.password = \"canary\""),
            "adapters.lab.settings.db.password",
            "a secret must not stand",
        ),
        (
            adapter("settings.hosts = [\"amqp://u:canary@h\"]"),
            "adapters.lab.settings.hosts[1]",
            "a secret must not stand",
        ),
        (adapter("settings.ratio = nan"), "adapters.lab.settings.ratio", "finite"),
        (adapter("settings.n = 9223372036854775808"), "adapters.lab.settings.n", "64 bits"),
        (adapter("[inboxes.lab]"), "inboxes.lab", "an adapter has this name too"),
        (adapter("[apps.lab]\nuser = \"root\""), "adapters.lab", "an app has this name too"),
        // Routes.
        (adapter("[[routes]]\nfrom = \"lba\"\nto = [\"lab\"]"), "routes[1].from", "did you mean `lab`?"),
        (
            adapter("[[routes]]\nfrom = \"lab\"\nto = [\"results\"]"),
            "routes[1].to[1]",
            "no adapter or inbox `results`: known here: `lab`",
        ),
        (adapter("[[routes]]\nfrom = \"lab\"\nto = [\"unrouted\"]"), "routes[1].to[1]", "no destination"),
        (adapter("[[routes]]\nfrom = \"lab\"\nto = []"), "routes[1].to", "leads nowhere"),
        (adapter("[[routes]]\nfrom = \"lab\""), "routes[1]", "`to` is missing"),
        (
            adapter("[[routes]]\nfrom = \"lab\"\nto = [\"lab\"]\nwhen = \"type ==\""),
            "routes[1].when",
            "not CEL",
        ),
        (adapter("[[routes]]\nfrom = \"lab\"\nto = [\"lab\"]\nname = \"A\""), "routes[1].name", "not a name"),
        (
            adapter(
                "[[routes]]\nfrom = \"lab\"\nto = [\"lab\"]\nname = \"a\"\n[[routes]]\nfrom = \"lab\"\nto = [\"lab\"]\nname = \"a\"",
            ),
            "routes[2].name",
            "another route has this name",
        ),
        (with("[routes]\nfrom = \"x\""), "routes", "write [[routes]]"),
        (with("apps = 1"), "listen[1].apps", "unknown key"),
        (format!("apps = 1\n{}", with("")), "apps", "tables with names: write [apps.NAME]"),
    ];
    for (text, key, words) in cases {
        let found = faults(&text);
        let [fault] = found.as_slice() else { panic!("{text}\nhas {found:#?}") };
        assert!(fault.starts_with(&format!("{key}: ")) && fault.contains(words), "{text}\nhas {fault}");
        assert!(!fault.contains("canary") && !fault.contains('\n'), "{fault}");
    }
}

#[test]
fn faults_of_the_syntax_have_a_place_and_quote_nothing() {
    let text = "[gateway]\nname = \"a\"\nname = \"canary\"\n[[listen]\n";
    let faults = parse(text).unwrap_err();
    let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [3, 4], "{faults}");
    assert!(!faults.to_string().contains("canary"), "{faults}");
}

#[test]
fn a_fault_repeats_no_character_that_steers_a_terminal() {
    let text =
        with("[adapters.\"\\u001b[2J\"]\n[[routes]]\nfrom = \"\te\\u001b\\u202er\"\nto = [\"x\\u0085\"]\n");
    let faults = parse(&text).unwrap_err().to_string();
    assert!(!faults.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{faults:?}");
    assert!(faults.contains(r"no app or adapter `\te\u001b\u202er`"), "{faults}");
}

#[test]
fn a_broken_table_keeps_its_name_known_to_others() {
    let text = with("[adapters.lab]\nrun = 1\n[[routes]]\nfrom = \"lab\"\nto = [\"lab\"]\n");
    assert_eq!(faults(&text).len(), 1);
}

#[test]
fn junk_is_refused_without_a_panic() {
    for junk in [
        "[",
        "=",
        "a",
        "\u{0}",
        "[[routes]]\nwhen = \"\\\"\"",
        "[[routes]]\nfrom=1\nto=1\nwhen=1",
        "apps=[]",
        "listen=[1,[2]]",
        "[apps]\nx=1",
    ] {
        assert!(!faults(junk).is_empty(), "{junk}");
    }
}

#[test]
fn conditions_that_are_no_cel_are_faults_and_never_panics() {
    for when in [
        "(",
        "type.",
        "'",
        "type == 'a",
        "1 +",
        "{",
        "[",
        "a ? b",
        "\\",
        "type.startsWith(",
        "has(",
        "😀",
        "-",
        "x.all(",
        "\"\\u{d800}\"",
    ] {
        let text = format!(
            "{}[[routes]]\nfrom = \"lab\"\nto = [\"lab\"]\nwhen = '''{when}'''\n",
            with("[adapters.lab]\nrun = \"x\"\n")
        );
        let found = faults(&text);
        assert_eq!(found.len(), 1, "{when}: {found:?}");
    }
}

#[test]
fn a_file_cut_anywhere_or_without_a_line_never_panics() {
    let full = include_str!("full.toml");
    for end in (0..full.len()).filter(|end| full.is_char_boundary(*end)) {
        let _ = faults(&full[..end]);
    }
    let lines: Vec<&str> = full.lines().collect();
    for missing in 0..lines.len() {
        let mut rest = lines.clone();
        rest.remove(missing);
        let _ = faults(&rest.join("\n"));
    }
}

#[test]
fn a_mistyped_listener_does_not_make_external_adapters_faulty_too() {
    let text = with("[[listen]]\nserves = \"adapter\"\nunix = \"/b\"\n[adapters.a]\nuser = \"root\"\n");
    let found = faults(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("listen[2].serves: "), "{found:?}");
}

#[test]
fn limits_of_an_adapter_without_a_sandbox_are_faults() {
    let allow = "allow = { memory = \"1GiB\", processes = 9, cpus = 2 }";
    let lines =
        |level: &str| format!("[adapters.lab]\nrun = \"gatepost-hl7\"\nsandbox = {level:?}\n{allow}\n");
    let found = faults(&with(&lines("off")));
    for key in ["memory", "processes", "cpus"] {
        let fault = format!("adapters.lab.allow.{key}: has no effect with sandbox = \"off\"");
        assert!(found.iter().any(|found| found.starts_with(&fault)), "{key}: {found:?}");
    }
    assert_eq!(faults(&with(&lines("minimal"))), Vec::<String>::new());
}
