//! What a file may say, what it may not, and what people read about it.

mod faults;
mod files;
mod peers;
mod rules;

use std::path::Path;

use super::fault::Faults;
use super::init::{InitError, init_template};
use super::*;

/// Parses `text` as the file `gatepost.toml` of a directory that need not exist.
fn parse(text: &str) -> Result<Config, Faults> {
    Config::parse(text, Path::new("/etc/gatepost/gatepost.toml"))
}

fn faults(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(|fault| format!("{}: {}", fault.key, fault.text)).collect(),
    }
}

/// A file with a listener and `more`.
fn with(more: &str) -> String {
    format!("[[listen]]\nserves = \"apps\"\nunix = \"/run/gatepost/app.sock\"\n{more}")
}
