use std::fs;

use super::ground::{Hierarchies, Seat, divide_in};
use super::*;
use crate::config::{Cpus, Limit};

const PID: u32 = 4242;

/// Directories and files that stand in for what the kernel shows.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (file, text) in files {
            tree.put(file, text);
        }
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, file: &str, text: &str) {
        let file = self.path(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    /// One whose own group is `/app` of the newer kind.
    fn newer(own: &str) -> Hierarchies {
        Hierarchies::of("0::/app\n", &format!("30 29 0:26 / {own} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"))
    }
}

fn resources(memory: u64, processes: u64, cpus: Option<Cpus>) -> Resources {
    Resources { memory: Limit::Asked(memory), processes: Limit::Usual(processes), cpus }
}

fn control(cpus: bool) -> Control {
    let cpus = cpus.then(|| Cpus::parse("1.5").unwrap());
    Control::new("lab", "fe01-2a", resources(64 << 20, 99, cpus)).unwrap()
}

#[test]
fn a_group_has_the_name_of_an_adapter_and_a_mark_and_leads_nowhere_else() {
    let name =
        |adapter: &str, mark: &str| Control::new(adapter, mark, Resources::default()).map(|it| it.name.0);
    assert_eq!(name("lab-1_x", "fe01-2a").as_deref(), Some("adapter-lab-1_x.fe01-2a"));
    for (adapter, mark) in
        [("", "1"), ("..", "1"), ("a/b", "1"), ("a.b", "1"), ("a", ""), ("a", "../x"), ("A", "1")]
    {
        assert_eq!(name(adapter, mark), None, "{adapter} {mark}");
    }
    let read = |name: &str| serde_json::from_value::<Name>(name.into());
    assert!(read("adapter-lab.1").is_ok());
    for wrong in ["lab.1", "adapter-../../x.1", "adapter-lab", "/adapter-lab.1", "adapter-lab.1/x"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_older_kind_is_found_below_the_process_own_groups() {
    // As in a container, whose mount shows its own group only, and with a space in a mount's name.
    let tree = Tree::new(&[("the memory/x", ""), ("both/app/x", "")]);
    let at = |name: &str| tree.path(name).display().to_string().replace(' ', "\\040");
    let mounts = format!(
        "31 23 0:29 /docker/7 {} rw - cgroup cgroup rw,memory\n32 23 0:30 / {} rw - cgroup cgroup rw,cpu,cpuacct\n\
         33 23 0:31 /other {} rw - cgroup cgroup rw,pids\nnonsense\n",
        at("the memory"),
        at("both"),
        at("both"),
    );
    let memberships =
        "9:name=systemd:/x\n4:memory:/docker/7\n3:cpuacct,cpu:/app\n2:pids:/app\nnonsense\n0::/\n";
    let ground = Ground::in_these(&Hierarchies::of(memberships, &mounts));
    let seat = |base: &str| Ok(Seat { version: Version::One, base: tree.path(base) });
    assert_eq!(ground.seat(Kind::Memory).cloned(), seat("the memory").map_err(|(): ()| ""));
    assert_eq!(ground.seat(Kind::Cpus).cloned(), seat("both/app").map_err(|(): ()| ""));
    assert!(ground.seat(Kind::Processes).unwrap_err().contains("no control group with `pids`"));
    // Another namespace's group, and one that climbs.
    for group in ["/elsewhere", "/docker/7/.."] {
        let ground = Ground::in_these(&Hierarchies::of(&format!("4:memory:{group}\n"), &mounts));
        assert!(ground.seat(Kind::Memory).is_err(), "{group}");
    }
}

/// A delegated group of the newer kind; the kernel makes the files in each new group.
const DELEGATED: [(&str, &str); 5] = [
    ("app/cgroup.controllers", "cpuset cpu io memory pids\n"),
    ("app/cgroup.subtree_control", ""),
    ("app/cgroup.type", "domain\n"),
    ("app/cgroup.procs", "4242\n"),
    ("app/gatepost-gateway/cgroup.procs", ""),
];

#[test]
fn a_gateway_alone_in_its_group_moves_to_the_side_and_hands_the_limits_on() {
    let tree = Tree::new(&DELEGATED);
    let before = Ground::in_these(&Tree::newer(&tree.path("").display().to_string()));
    assert!(before.seat(Kind::Memory).unwrap_err().contains("is not handed on"), "{before:?}");
    divide_in(&tree.path("app"), PID).unwrap();
    assert_eq!(tree.text("app/gatepost-gateway/cgroup.procs"), "0");
    assert_eq!(tree.text("app/cgroup.subtree_control"), "+memory +pids +cpu");
    // What the kernel makes of it; a child of the gateway starts at the side, too.
    tree.put("app/cgroup.subtree_control", "cpu memory pids\n");
    tree.put("app/cgroup.procs", "");
    for own in ["app", "app/gatepost-gateway"] {
        let mounts = format!("30 29 0:26 / {} rw - cgroup2 cgroup2 rw\n", tree.path("").display());
        let ground = Ground::in_these(&Hierarchies::of(&format!("0::/{own}\n"), &mounts));
        let seat = Seat { version: Version::Two, base: tree.path("app") };
        assert!(Kind::ALL.into_iter().all(|kind| ground.seat(kind) == Ok(&seat)), "{own}: {ground:?}");
    }
    // Once is enough.
    divide_in(&tree.path("app/gatepost-gateway"), PID).unwrap();
    assert_eq!(tree.text("app/cgroup.subtree_control"), "cpu memory pids\n");
}

#[test]
fn a_group_that_others_are_in_stays_as_it_is() {
    let tree = Tree::new(&DELEGATED);
    tree.put("app/cgroup.procs", "4242\n4243\n");
    assert!(divide_in(&tree.path("app"), PID).unwrap_err().to_string().contains("other processes"));
    assert_eq!(tree.text("app/gatepost-gateway/cgroup.procs"), "");
    assert_eq!(tree.text("app/cgroup.subtree_control"), "");
    // One without these controllers is nobody's to hand on.
    tree.put("app/cgroup.controllers", "io\n");
    divide_in(&tree.path("app"), PID).unwrap();
    assert_eq!(tree.text("app/gatepost-gateway/cgroup.procs"), "");
}

#[test]
fn the_newer_kind_gets_each_limit_before_its_process() {
    let tree = Tree::new(&DELEGATED);
    tree.put("app/cgroup.subtree_control", "cpu memory pids");
    let group = "app/adapter-lab.fe01-2a";
    let files = ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cgroup.procs"];
    for file in files {
        tree.put(&format!("{group}/{file}"), "what an earlier one was given, and longer");
    }
    let ground = Ground::in_these(&Tree::newer(&tree.path("").display().to_string()));
    let joined = join(&control(true), &ground);
    assert_eq!((joined.kinds, joined.missing, joined.notes), (Kind::ALL.into(), vec![], vec![]));
    let found = files.map(|file| tree.text(&format!("{group}/{file}")));
    assert_eq!(found, ["67108864", "0", "1", "99", "150000 100000", "0"]);
}

#[test]
fn the_older_kind_gets_each_limit_and_what_is_missing_is_told() {
    let tree = Tree::new(&[("cpu/app/x", "")]);
    let group = "memory/app/adapter-lab.fe01-2a";
    let files = ["memory.limit_in_bytes", "cgroup.procs"];
    for file in files {
        tree.put(&format!("{group}/{file}"), "");
    }
    let mounts = ["memory", "cpu"].map(|controller| {
        format!("31 23 0:29 / {} rw - cgroup cgroup rw,{controller}\n", tree.path(controller).display())
    });
    let ground = Ground::in_these(&Hierarchies::of("4:memory:/app\n3:cpu:/app\n", &mounts.concat()));
    let joined = join(&control(true), &ground);
    assert_eq!(joined.kinds, BTreeSet::from([Kind::Memory]));
    assert_eq!(joined.notes, ["its memory limit does not count what is swapped out"]);
    let missing: Vec<_> = joined.missing.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(missing, [Kind::Processes, Kind::Cpus], "no kernel makes files in a directory of the test's");
    assert_eq!(files.map(|file| tree.text(&format!("{group}/{file}"))), ["67108864", "0"]);
    // Nobody asks for processors.
    assert_eq!(join(&control(false), &ground).missing.len(), 1);
}

#[test]
fn only_a_count_that_grows_while_it_lives_is_a_death_for_memory() {
    let tree = Tree::new(&DELEGATED);
    tree.put("app/cgroup.subtree_control", "memory");
    let events = "app/adapter-lab.fe01-2a/memory.events";
    tree.put(events, "low 0\noom 3\noom_kill 3\noom_group_kill 1\n");
    let ground = Ground::in_these(&Tree::newer(&tree.path("").display().to_string()));
    let mut group = Group::of(&control(false), &ground);
    group.joined(join(&control(false), &ground).killed_before);
    assert!(!group.ran_out_of_memory(), "what its predecessor died of");
    tree.put(events, "low 0\noom 4\noom_kill 4\noom_group_kill 2\n");
    assert!(group.ran_out_of_memory());
    fs::remove_file(tree.path(events)).unwrap();
    assert!(!group.ran_out_of_memory());
}

#[test]
fn only_groups_with_the_gateways_mark_are_removed() {
    let tree = Tree::new(&DELEGATED);
    tree.put("app/cgroup.subtree_control", "memory");
    let groups =
        ["adapter-lab.fe01-2a", "adapter-lab.fe01-2", "adapter-lab", "lab.fe01-2a", "gatepost-gateway"];
    for group in groups {
        fs::create_dir_all(tree.path("app").join(group)).unwrap();
    }
    let ground = Ground::in_these(&Tree::newer(&tree.path("").display().to_string()));
    remove_leftovers(&ground, "fe01-2a");
    let left = groups.map(|group| tree.path("app").join(group).exists());
    assert_eq!(left, [false, true, true, true, true]);
    // One that is not there is no failure.
    Group::of(&control(false), &ground).remove();
}
