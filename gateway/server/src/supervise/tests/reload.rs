//! A changed configuration is in force as a whole or not at all, and whoever asked for it is told.

use super::*;

struct Gateway {
    rig: Rig,
    reloader: Arc<Reloader>,
    hangups: Hangups,
}

const QUIET: &str = "#!/bin/sh\ncase $1 in --*) exit 64;; esac\nexec sleep 3600\n";

impl Gateway {
    async fn start(adapters: &str) -> Self {
        let rig = Rig::new(SHORT).await;
        script(rig.directory.path(), "quiet", QUIET);
        write(&rig, adapters);
        rig.begin(adapters).await;
        let parts = Parts {
            config: Arc::clone(&rig.config),
            store: rig.store.clone(),
            supervisor: rig.supervisor.clone(),
            launcher: shell_exec(),
            tls: Vec::new(),
            gateway: gateway(),
        };
        let (reloader, hangups) = Reloader::start(parts).unwrap();
        Self { rig, reloader: Arc::new(reloader), hangups }
    }

    fn status(&self) -> ConfigStatus {
        ConfigStatus::read(&self.rig.file("data")).unwrap()
    }
}

fn write(rig: &Rig, adapters: &str) {
    std::fs::write(rig.file("gatepost.toml"), config_text(rig.directory.path(), adapters)).unwrap();
}

fn lab(rig: &TempDir, more: &str) -> String {
    format!("[adapters.lab]\nrun = \"{}/quiet\"\nconfirm = \"sent\"\n{more}", rig.path().display())
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_every_fault_is_told() {
    let gateway = Gateway::start("").await;
    let before = gateway.rig.config.load_full();
    let lab = lab(&gateway.rig.directory, "");
    for (adapters, expected) in [
        ("[adapters.lab]\nrun = ", "gatepost.toml:"),
        ("[inboxes.new]\n[adapters.lab]\nrun = \"no-such-program\"\nordre = 1\n", "ordre"),
        (
            "[inboxes.new]\n[adapters.lab]\nrun = \"no-such-program\"\n",
            "adapters.lab.run: there is no program",
        ),
        (&lab.replace("sent", "business"), "adapters.lab.confirm: "),
    ] {
        write(&gateway.rig, adapters);
        let faults = gateway.reloader.reload().await.unwrap_err().faults();
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{adapters}: {faults:?}");
        let status = gateway.status();
        assert_eq!((&status.faults, status.generation), (&faults, 1));
        assert!(Arc::ptr_eq(&gateway.rig.config.load_full(), &before));
        assert!(gateway.rig.supervisor.list().is_empty());
        assert!(gateway.rig.store.read().queue("new").await.unwrap().is_none());
    }
    assert_eq!(gateway.status().attempt, 5);
    gateway.rig.stop().await;
}

#[tokio::test]
async fn a_correct_file_that_needs_a_restart_names_the_keys_and_changes_nothing() {
    let gateway = Gateway::start("").await;
    let before = gateway.rig.config.load_full();
    write(&gateway.rig, "[inboxes.new]\n[[listen]]\nserves = \"apps\"\nunix = \"/run/x/y.sock\"\n");
    let error = gateway.reloader.reload().await.unwrap_err();
    assert!(matches!(&error, ReloadError::NeedsRestart(keys) if keys == &["listen"]), "{error}");
    let status = gateway.status();
    assert_eq!((status.faults.len(), status.needs_restart.as_slice()), (0, &["listen".to_owned()][..]));
    assert!(!status.in_force() && status.generation == 1);
    assert!(Arc::ptr_eq(&gateway.rig.config.load_full(), &before));
    assert!(gateway.rig.store.read().queue("new").await.unwrap().is_none());
    // A file with faults too is told its faults.
    write(
        &gateway.rig,
        "[[listen]]\nserves = \"apps\"\nunix = \"/run/x/y.sock\"\n[adapters.x]\nrun = \"no-such-program\"\n",
    );
    assert!(matches!(gateway.reloader.reload().await, Err(ReloadError::Faults(_))));
    assert!(gateway.status().needs_restart.is_empty());
    // And the next good one is in force.
    write(&gateway.rig, "[inboxes.new]\n");
    assert!(gateway.reloader.reload().await.unwrap().in_force());
    gateway.rig.stop().await;
}

#[tokio::test]
async fn a_good_file_is_in_force_everywhere() {
    let gateway = Gateway::start("").await;
    write(&gateway.rig, &lab(&gateway.rig.directory, "[inboxes.new]\n"));
    let status = gateway.reloader.reload().await.unwrap();
    assert_eq!((status.attempt, status.generation, status.faults.len()), (2, 2, 0));
    assert_eq!(status, gateway.status());
    assert_eq!(status.digest.as_ref(), Some(&gateway.rig.config.load().digest));
    assert!(gateway.rig.config.load().inboxes.contains_key("new"));
    assert!(gateway.rig.store.read().queue("new").await.unwrap().is_some());
    until("its process", async || gateway.rig.item("lab").and_then(|item| item.pid)).await;
    gateway.rig.stop().await;
}

#[tokio::test]
async fn whoever_asks_for_a_reload_is_told_what_became_of_this_file() {
    let Gateway { rig, reloader, hangups } = Gateway::start("").await;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let running = tokio::spawn({
        let reloader = Arc::clone(&reloader);
        async move { reloader.run(hangups, stopping).await }
    });
    let ask = async |adapters: &str| {
        write(&rig, adapters);
        let config = Config::load(Some(&rig.file("gatepost.toml"))).unwrap();
        timeout(HANG, request_reload(&config)).await.unwrap().unwrap()
    };
    let good = ask(&lab(&rig.directory, "")).await;
    assert!(good.faults.is_empty() && good.generation == 2, "{good:?}");
    let bad = ask("[adapters.lab]\nrun = \"no-such-program\"\n").await;
    assert!(bad.faults.len() == 1 && bad.generation == 2, "{bad:?}");
    std::fs::copy(rig.file("gatepost.toml"), rig.file("other.toml")).unwrap();
    let other = Config::load(Some(&rig.file("other.toml"))).unwrap();
    let refused = request_reload(&other).await.unwrap_err().to_string();
    assert!(refused.contains("the gateway runs with") && refused.contains("gatepost.toml"), "{refused}");
    stop.send_replace(true);
    running.await.unwrap();
    drop(reloader);
    let config = Config::load(Some(&rig.file("gatepost.toml"))).unwrap();
    assert!(matches!(request_reload(&config).await, Err(RequestError::NotRunning(_))));
    rig.stop().await;
}
