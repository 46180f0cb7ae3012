//! What the commands write: tables and colours on a terminal, plain columns when piped, JSON when asked.
//!
//! Results go to standard output and nothing else does; progress, notes and errors go to standard error. Text that came
//! from outside is made harmless before it reaches a terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::failure::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Strong,
    Faint,
    Good,
    Warn,
    Bad,
    Accent,
}

#[derive(Clone, Debug)]
pub(crate) struct Ui {
    pub(crate) json: bool,
    out: Sink,
    out_terminal: bool,
    out_colour: bool,
    err_terminal: bool,
    err_colour: bool,
}

/// Where results go.
#[derive(Clone, Debug)]
enum Sink {
    Stdout,
    #[cfg(test)]
    Memory(std::sync::Arc<std::sync::Mutex<Vec<u8>>>),
}

impl Sink {
    /// Writes while nobody else does, and leaves nothing in a buffer.
    fn write(&self, write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<(), Failure> {
        let written = match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                write(&mut out).and_then(|()| out.flush())
            }
            #[cfg(test)]
            Self::Memory(text) => write(&mut *text.lock().unwrap()),
        };
        written.map_err(Failure::Output)
    }
}

impl Ui {
    pub(crate) fn detect(json: bool) -> Self {
        // https://no-color.org: present and not empty.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let (out_terminal, err_terminal) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            json,
            out: Sink::Stdout,
            out_terminal,
            out_colour: out_terminal && wanted,
            err_terminal,
            err_colour: err_terminal && wanted,
        }
    }

    /// A pipe into memory, and what has been written into it.
    #[cfg(test)]
    pub(super) fn in_memory(json: bool) -> (Self, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
        let text = std::sync::Arc::default();
        let out = Sink::Memory(std::sync::Arc::clone(&text));
        (
            Self {
                json,
                out,
                out_terminal: false,
                out_colour: false,
                err_terminal: false,
                err_colour: false,
            },
            text,
        )
    }

    pub(crate) fn on_terminal(&self) -> bool {
        self.out_terminal
    }

    pub(crate) fn line(&self, text: impl Display) -> Result<(), Failure> {
        self.out.write(|out| writeln!(out, "{text}"))
    }

    /// Bytes as they are, for what is piped on.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write(|out| out.write_all(bytes))
    }

    /// One JSON value: on one line when piped, indented on a terminal.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = if self.out_terminal {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.line(text.map_err(|error| Failure::Output(error.into()))?)
    }

    /// One JSON value on one line, for streams of them.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.out.write(|out| {
            serde_json::to_writer(&mut *out, value)?;
            writeln!(out)
        })
    }

    pub(crate) fn paint(&self, style: Style, text: impl Display) -> String {
        if self.out_colour { ansi(style, text) } else { text.to_string() }
    }

    /// A remark beside the result. That nobody can read it is no reason to stop.
    pub(crate) fn note(&self, text: impl Display) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    pub(crate) fn error(&self, failure: &Failure) {
        if failure.is_quiet() {
            return;
        }
        if self.json {
            let document = serde_json::json!({"error": {
                "code": failure.word(),
                "exit_code": failure.exit_code(),
                "detail": failure.to_string(),
                "hint": failure.hint(),
            }});
            self.note(document);
            return;
        }
        let label = if self.err_colour { ansi(Style::Bad, "error:") } else { "error:".to_owned() };
        self.note(format_args!("{label} {}", harmless(&failure.to_string())));
        if let Some(hint) = failure.hint() {
            let label = if self.err_colour { ansi(Style::Accent, "  try:") } else { "  try:".to_owned() };
            self.note(format_args!("{label} {hint}"));
        }
    }

    /// A bar for work of known length; invisible when standard error is no terminal or the output is JSON.
    pub(crate) fn progress(&self, length: u64, what: &'static str) -> ProgressBar {
        if !self.err_terminal || self.json {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let template = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}";
        bar.with_style(style(template)).with_message(what)
    }

    /// A spinner for work of unknown length.
    pub(crate) fn spinner(&self, what: impl Into<Cow<'static, str>>) -> ProgressBar {
        if !self.err_terminal || self.json {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let bar = bar.with_style(style("  {spinner} {msg}")).with_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    pub(crate) fn table(&self, header: &[&str]) -> Grid {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.out_terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.force_no_tty();
        }
        if self.out_colour {
            table.enforce_styling();
        }
        table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Dim)));
        Grid { table }
    }
}

/// A table without lines: columns two spaces apart.
pub(crate) struct Grid {
    table: Table,
}

impl Grid {
    pub(crate) fn row(&mut self, cells: Vec<(Style, String)>) {
        self.table.add_row(cells.into_iter().map(|(style, text)| styled(style, &text)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn print(mut self, ui: &Ui) -> Result<(), Failure> {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in self.table.lines() {
            ui.line(line.trim_end())?;
        }
        Ok(())
    }
}

fn styled(style: Style, text: &str) -> Cell {
    let cell = Cell::new(harmless(text));
    match style {
        Style::Plain => cell,
        Style::Strong => cell.add_attribute(Attribute::Bold),
        Style::Faint => cell.add_attribute(Attribute::Dim),
        Style::Good => cell.fg(Color::Green),
        Style::Warn => cell.fg(Color::Yellow),
        Style::Bad => cell.fg(Color::Red),
        Style::Accent => cell.fg(Color::Cyan),
    }
}

fn ansi(style: Style, text: impl Display) -> String {
    let code = match style {
        Style::Plain => return text.to_string(),
        Style::Strong => 1,
        Style::Faint => 2,
        Style::Good => 32,
        Style::Warn => 33,
        Style::Bad => 31,
        Style::Accent => 36,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

fn style(template: &str) -> ProgressStyle {
    // Unwrap safety: the templates are constants above, and a test renders both.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Replaces control characters, so that foreign text cannot steer the reader's terminal.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect())
}

/// Control characters, and the marks that turn the direction of writing around.
fn is_harmful(c: char) -> bool {
    (c.is_control() && c != '\t' && c != '\n')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The style in which a delivery's state is shown.
pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "delivered" => Style::Good,
        "dead" | "expired" => Style::Bad,
        "in_doubt" => Style::Warn,
        "discarded" => Style::Faint,
        "leased" | "sending" => Style::Accent,
        _ => Style::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(harmless("a\u{202e}b"), "a\u{fffd}b");
        assert!(matches!(harmless("täglich\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn progress_templates_are_valid() {
        for template in ["{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}", "  {spinner} {msg}"] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
