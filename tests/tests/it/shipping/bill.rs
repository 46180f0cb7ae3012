//! The bill of materials, held against Cargo.lock and against what Cargo says it builds.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use gatepost_tests::source;
use serde_json::Value;

use super::{output, there_is};

const PROGRAMS: [&str; 5] = ["gatepost", "gatepost-audit", "gatepost-fix", "gatepost-hl7", "gatepost-http"];

fn bill() -> Value {
    let output = output(&mut Command::new(source("../scripts/sbom")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn cargo(arguments: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = output(Command::new(program).current_dir(source("..")).args(arguments));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Checksums by name and version; our own crates have none.
fn locked() -> BTreeMap<(String, String), Option<String>> {
    let lock = std::fs::read_to_string(source("../Cargo.lock")).unwrap();
    let of = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")))?;
        line.strip_suffix('"').map(str::to_owned)
    };
    let packages = lock.split("[[package]]").skip(1);
    packages
        .map(|package| {
            ((of(package, "name").unwrap(), of(package, "version").unwrap()), of(package, "checksum"))
        })
        .collect()
}

#[test]
fn the_bill_of_materials_names_all_that_the_programs_are_made_of() {
    if !there_is("python3") {
        return;
    }
    let bill = bill();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let locked = locked();
    let mut listed = BTreeSet::new();
    let text = |component: &Value, key: &str| {
        component[key].as_str().unwrap_or_else(|| panic!("{component}")).to_owned()
    };
    for component in bill["components"].as_array().unwrap() {
        let of_component = (text(component, "name"), text(component, "version"));
        let checksum =
            locked.get(&of_component).unwrap_or_else(|| panic!("{of_component:?} is not in Cargo.lock"));
        assert_eq!(component["hashes"][0]["content"].as_str(), checksum.as_deref(), "{of_component:?}");
        assert_eq!(checksum.is_none(), of_component.0.starts_with("gatepost"), "{of_component:?}");
        assert!(!component["licenses"][0]["expression"].as_str().unwrap().is_empty(), "{of_component:?}");
        assert_eq!(text(component, "purl"), format!("pkg:cargo/{}@{}", of_component.0, of_component.1));
        assert!(listed.insert(of_component), "{component} stands there twice");
    }

    // By Cargo's own account of what it builds.
    let mut arguments =
        vec!["tree", "--locked", "--offline", "-e", "normal", "--prefix", "none", "-f", "{p}"];
    arguments.extend(PROGRAMS.iter().flat_map(|program| ["-p", program]));
    let built: BTreeSet<(String, String)> = cargo(&arguments)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, rest)| {
            (name.to_owned(), rest.split(' ').next().unwrap().trim_start_matches('v').to_owned())
        })
        .collect();
    assert_eq!(listed, built);

    // And whatever the programs' own manifests ask for, on every platform and by every build.
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]))
            .unwrap();
    let names: BTreeSet<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    let mut asked = 0;
    for package in metadata["packages"].as_array().unwrap() {
        if !PROGRAMS.contains(&package["name"].as_str().unwrap()) {
            continue;
        }
        let normal = package["dependencies"].as_array().unwrap().iter();
        for dependency in
            normal.filter(|dependency| dependency["kind"].is_null() && dependency["optional"] == false)
        {
            assert!(names.contains(dependency["name"].as_str().unwrap()), "{dependency} is missing");
            asked += 1;
        }
    }
    assert!(asked > 40, "the manifests are not read any more");
    for outsider in ["insta", "proptest", "gatepost-tests", "cc"] {
        assert!(!names.contains(outsider), "{outsider} is not shipped");
    }

    // Every reference leads somewhere.
    let references: BTreeSet<&str> = bill["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| component["bom-ref"].as_str().unwrap())
        .collect();
    for dependency in bill["dependencies"].as_array().unwrap() {
        for needed in dependency["dependsOn"].as_array().unwrap() {
            assert!(references.contains(needed.as_str().unwrap()), "{needed}");
        }
    }
}
