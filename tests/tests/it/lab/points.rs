//! The points of `gatepost-faults` themselves.

use std::process::Command;

use gatepost_tests::{faulty, program};

fn names_the_variable(program: &std::path::Path) -> bool {
    // An unoptimised search through these files would take a minute.
    let grep = Command::new("grep").args(["-q", "-a", "-F", "GATEPOST_FAULTS"]).arg(program).status();
    grep.expect("grep can be started").code() == Some(0)
}

#[test]
fn a_normal_program_has_no_points_and_a_faulty_one_has() {
    for name in ["gatepost", "gatepost-fix", "gatepost-hl7", "gatepost-http"] {
        assert!(!names_the_variable(&program(name)), "{name} would obey GATEPOST_FAULTS");
        assert!(names_the_variable(&faulty(name)), "a faulty {name} has no points");
    }
}
