//! Rules about the work tree itself.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use gatepost_tests::source;
use serde_json::Value;

/// Who may import whom, also for tests.
const IMPORTS: [(&str, &[&str]); 14] = [
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
    ("gatepost-fix", &["gatepost-adapter", "gatepost-faults", "gatepost-replay"]),
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

/// The rows of a table in SECURITY.md, below the one that names its columns.
fn rows<'t>(text: &'t str, columns: &str) -> Vec<&'t str> {
    text.lines()
        .skip_while(|line| *line != columns)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect()
}

/// What is wrong with a row of a document in `directory`: it names no test, or one that is not where it says.
fn unproved(row: &str, directory: &Path) -> Vec<String> {
    let tests = row.split("[`").skip(1).filter_map(|rest| rest.split_once("`](")).collect::<Vec<_>>();
    let mut wrong = Vec::new();
    for (name, rest) in &tests {
        let file = rest.split(')').next().unwrap_or_default();
        let code = std::fs::read_to_string(directory.join(file)).unwrap_or_default();
        // As a test is written: with the attribute above it, and perhaps others in between.
        let code = code.replace("tokio::test(", "test]");
        let is_test = code.split("test]").skip(1).any(|after| {
            let declared = after.lines().skip(1).find(|line| !line.trim_start().starts_with(['#', '/']));
            declared.is_some_and(|line| {
                line.trim_start().trim_start_matches("async ").starts_with(&format!("fn {name}("))
            })
        });
        if !is_test {
            wrong.push(format!("{file} has no test {name}"));
        }
    }
    if tests.is_empty() {
        wrong.push(format!("no test proves: {row}"));
    }
    wrong
}

#[test]
fn every_test_that_security_names_exists_and_every_threat_has_one() {
    let text = std::fs::read_to_string(source("../SECURITY.md")).unwrap();
    let rows = rows(&text, "| threat | defence | test |");
    assert!(rows.len() > 25, "the table is not found any more");
    let root = source("..");
    let wrong: Vec<String> = rows.iter().flat_map(|row| unproved(row, &root)).collect();
    assert!(wrong.is_empty(), "SECURITY.md: {wrong:#?}");

    let this = "tests/tests/it/rules.rs";
    let good = format!("| a | b | [`crates_import_in_one_direction`]({this}) |");
    assert_eq!(unproved(&good, &root), Vec::<String>::new());
    for bad in [
        format!("| a | b | [`no_such_test`]({this}) |"),
        "| a | b | [`crates_import_in_one_direction`](tests/nowhere.rs) |".to_owned(),
        format!("| a | b | [`unproved`]({this}) |"),
        "| a | b | none yet |".to_owned(),
    ] {
        assert_eq!(unproved(&bad, &root).len(), 1, "{bad}");
    }
}

/// The documents that people read, and the directory of each.
fn documents() -> Vec<(PathBuf, PathBuf)> {
    ["..", "../docs", "../docs/adapters"]
        .iter()
        .flat_map(|directory| {
            let directory = source(directory);
            let entries = std::fs::read_dir(&directory).unwrap();
            let paths = entries.map(|entry| entry.unwrap().path());
            let pages = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
            pages.map(|page| (page, directory.clone())).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let mut found = 0;
    let mut wrong = Vec::new();
    for (page, directory) in documents() {
        let text = std::fs::read_to_string(&page).unwrap();
        for line in text.lines().filter(|line| line.contains("[`") && line.contains(".rs)")) {
            found += 1;
            wrong.extend(unproved(line, &directory).into_iter().map(|what| (page.clone(), what)));
        }
    }
    assert!(found > 60, "the proofs are not found any more");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The targets of a page's links, but not of those in its examples.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let after = prose.flat_map(|prose| prose.split("](").skip(1));
    after.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// What a page's headings are called in links to them, by GitHub's rule.
fn anchors(text: &str) -> HashSet<String> {
    let prose = text.split("```").step_by(2).flat_map(str::lines);
    let headings = prose.filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// What is wrong with the links of a page in `directory`.
fn broken(text: &str, directory: &Path) -> Vec<String> {
    let leads_nowhere = |target: &&str| {
        if target.starts_with("https://") {
            return false;
        }
        let (path, anchor) = target.split_once('#').map_or((*target, None), |(path, to)| (path, Some(to)));
        let to = directory.join(path);
        let there = match path {
            "" => Some(text.to_owned()),
            _ if to.is_dir() => Some(String::new()),
            _ => std::fs::read_to_string(to).ok(),
        };
        there.is_none_or(|there| anchor.is_some_and(|anchor| !anchors(&there).contains(anchor)))
    };
    links(text).into_iter().filter(leads_nowhere).map(str::to_owned).collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let pages = documents();
    let texts = pages.iter().map(|(page, _)| std::fs::read_to_string(page).unwrap());
    assert!(texts.map(|text| links(&text).len()).sum::<usize>() > 150, "the links are not found any more");
    for (page, directory) in pages {
        let wrong = broken(&std::fs::read_to_string(&page).unwrap(), &directory);
        assert!(wrong.is_empty(), "{}: {wrong:?}", page.display());
    }

    let page = "# One, and *two*\n[a](#one-and-two) [b](docs/limits.md#limits) [c](docs) [d](https://example.org)\n```\n[e](nowhere)\n```\n";
    assert_eq!(broken(page, &source("..")), Vec::<String>::new());
    for bad in ["#two", "docs/limits.md#nowhere", "docs/nowhere.md"] {
        assert_eq!(broken(&format!("# One\n[a]({bad})"), &source("..")), [bad]);
    }
}

#[test]
fn the_adapter_that_the_page_shows_is_the_one_that_is_tested() {
    let page = std::fs::read_to_string(source("../docs/adapters/protocol.md")).unwrap();
    let program = std::fs::read_to_string(source("adapter.py")).unwrap();
    assert!(
        page.contains(&format!("```python\n{program}```\n")),
        "docs/adapters/protocol.md shows another program"
    );
}

/// The names of all functions in Rust files below a directory.
fn functions(directory: &Path, found: &mut HashSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = std::fs::read_to_string(&path).unwrap();
            let named = code.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            found.extend(named.map(str::to_owned));
        }
    }
}

/// Whether one of `functions` is called so; `…` stands for any text.
fn is_there(name: &str, functions: &HashSet<String>) -> bool {
    functions.iter().any(|function| {
        let mut left = function.as_str();
        let mut parts = name.split('…').peekable();
        let begins = parts.next().is_some_and(|first| {
            let rest = left.strip_prefix(first);
            left = rest.unwrap_or(left);
            rest.is_some()
        });
        begins
            && parts.all(|part| match left.split_once(part) {
                Some((_, rest)) => {
                    left = rest;
                    true
                }
                None => false,
            })
            && (left.is_empty() || name.ends_with('…'))
    })
}

/// What a page's tables name as tests: in backticks, perhaps several in braces behind a path, long or shortened by `…`.
fn tests_named(page: &str) -> Vec<&str> {
    let quoted =
        page.lines().filter(|line| line.starts_with('|')).flat_map(|row| row.split('`').skip(1).step_by(2));
    let names = quoted
        .flat_map(|quoted| quoted.split(['{', '}', ',', ' ']))
        .filter_map(|name| name.rsplit("::").next());
    names
        .filter(|name| name.contains('…') && name.len() > "…".len() || name.matches('_').count() > 2)
        .collect()
}

#[test]
fn every_test_that_the_pages_of_the_adapters_name_exists() {
    let mut known = HashSet::new();
    for directory in ["../adapters", "tests"] {
        functions(&source(directory), &mut known);
    }
    for (page, least) in [("hl7-tests.md", 70), ("fix-tests.md", 60)] {
        let text = std::fs::read_to_string(source("../docs/adapters").join(page)).unwrap();
        let named = tests_named(&text);
        assert!(named.len() > least, "{page} names {} tests only", named.len());
        let missing: Vec<_> = named.into_iter().filter(|name| !is_there(name, &known)).collect();
        assert!(missing.is_empty(), "{page}: {missing:?}");
    }

    let known = HashSet::from(["a_b_c_d".to_owned()]);
    for (name, there) in
        [("a_b_c_d", true), ("a_b…", true), ("…c_d", true), ("a…c…", true), ("a_b", false), ("b…", false)]
    {
        assert_eq!(is_there(name, &known), there, "{name}");
    }
    assert_eq!(tests_named("| x | `p::{a_b_c_d, e_f…}`, `q`, `r_s` |\n`no_row_at_all`"), ["a_b_c_d", "e_f…"]);
}
