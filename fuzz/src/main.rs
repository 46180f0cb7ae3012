//! One program for all targets: libFuzzer drives the one that `GATEPOST_FUZZ_TARGET` names. The targets stand beside the
//! parsers that they drive, in the module `fuzz` of each crate.

#![no_main]

use std::sync::OnceLock;

const TARGETS: [&[(&str, fn(&[u8]))]; 7] = [
    gatepost_api::fuzz::TARGETS,
    gatepost_audit::fuzz::TARGETS,
    gatepost_store::fuzz::TARGETS,
    gatepost::fuzz::TARGETS,
    gatepost_fix::fuzz::TARGETS,
    gatepost_hl7::fuzz::TARGETS,
    gatepost_http::fuzz::TARGETS,
];

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let chosen = std::env::var("GATEPOST_FUZZ_TARGET").unwrap_or_default();
        let names = || TARGETS.iter().copied().flatten();
        if chosen == "list" {
            names().for_each(|(name, _)| println!("{name}"));
            std::process::exit(0);
        }
        match names().find(|(name, _)| *name == chosen) {
            Some((_, run)) => TARGET.get_or_init(|| *run),
            None => {
                eprintln!("GATEPOST_FUZZ_TARGET must name a target; `list` names them");
                std::process::exit(2);
            }
        };
    },
    |data: &[u8]| {
        if let Some(run) = TARGET.get() {
            run(data);
        }
    }
);
