//! Rules about the work tree itself.

use std::collections::BTreeMap;
use std::process::Command;

use gatepost_tests::source;
use serde_json::Value;

/// Who may import whom, also for tests.
const IMPORTS: [(&str, &[&str]); 13] = [
    ("gatepost-faults", &[]),
    ("gatepost-replay", &[]),
    ("gatepost-api", &["gatepost-replay"]),
    ("gatepost-core", &[]),
    ("gatepost-audit", &["gatepost-faults", "gatepost-replay"]),
    (
        "gatepost-store",
        &["gatepost-core", "gatepost-audit", "gatepost-faults", "gatepost-replay", "gatepost-postgres"],
    ),
    (
        "gatepost",
        &[
            "gatepost-api",
            "gatepost-core",
            "gatepost-audit",
            "gatepost-faults",
            "gatepost-store",
            "gatepost-replay",
        ],
    ),
    ("gatepost-adapter", &["gatepost-api", "gatepost-faults"]),
    ("gatepost-http", &["gatepost-adapter", "gatepost-replay"]),
    ("gatepost-hl7", &["gatepost-adapter", "gatepost-faults", "gatepost-replay"]),
    ("gatepost-tests", &["gatepost-faults", "gatepost-postgres"]),
    ("gatepost-peers", &[]),
    ("gatepost-postgres", &[]),
];
const BACKENDS: [(&str, &[&str]); 2] = [("sqlx", &["gatepost-store"]), ("axum", &["gatepost"])];

fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(source(".."))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            (name(package), package["dependencies"].as_array().unwrap().iter().map(name).collect())
        })
        .collect()
}

#[test]
fn crates_import_in_one_direction() {
    let dependencies = dependencies();
    assert_eq!(dependencies.len(), IMPORTS.len(), "a new crate has to be told apart in this test");
    for (package, allowed) in IMPORTS {
        for import in dependencies[package].iter().filter(|import| import.starts_with("gatepost")) {
            // A crate may import itself, to switch features on for its tests.
            assert!(import == package || allowed.contains(&import.as_str()), "{package} imports {import}");
        }
    }
    for (backend, allowed) in BACKENDS {
        for (package, imports) in &dependencies {
            let imports = imports.iter().any(|import| import == backend);
            assert!(!imports || allowed.contains(&package.as_str()), "{package} imports {backend}");
        }
    }
}

/// Paths in backticks that begin with one of these are files or directories of this work tree.
const ROOTS: [&str; 6] = ["gateway/", "adapters/", "tests/", "migrations/", "scripts/", "deploy/"];

#[test]
fn every_path_that_the_architecture_names_exists() {
    let text = std::fs::read_to_string(source("../ARCHITECTURE.md")).unwrap();
    let named: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|quoted| ROOTS.iter().any(|root| quoted.starts_with(root)))
        .collect();
    assert!(named.len() > 20, "the paths are not found any more");
    let missing: Vec<&&str> = named.iter().filter(|path| !source("..").join(path).exists()).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names what is not there: {missing:?}");
}
