//! What commands print: data to standard output, everything else to standard error.

pub(crate) mod human;
pub(crate) mod indent;
pub(crate) mod progress;
pub(crate) mod table;
mod tabs;

use std::io::{self, IsTerminal, Write};

use crate::error::{CliError, Result};

pub(crate) use table::{Columns, Row};

/// Writes to standard output.
pub(crate) fn write(bytes: impl AsRef<[u8]>) -> Result {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref())
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl AsRef<str>) -> Result {
    write(format!("{}\n", text.as_ref()))
}

/// Writes to standard error; nobody can be told when that fails.
pub(crate) fn write_error(bytes: impl AsRef<[u8]>) {
    let _ = io::stderr().lock().write_all(bytes.as_ref());
}

/// Writes a line to standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    write_error(format!("{}\n", text.as_ref()));
}

/// Writes every warning of an answer to standard error.
pub(crate) fn warnings(answer: &serde_json::Value) {
    for warning in answer["Warnings"].as_array().into_iter().flatten() {
        note(warning.as_str().unwrap_or_default());
    }
}

/// How much disk a `prune` gave back.
pub(crate) fn reclaimed(report: &serde_json::Value) -> Result {
    let bytes = report["SpaceReclaimed"].as_f64().unwrap_or(0.0);
    line(format!("Total reclaimed space: {}", human::size(bytes, 4)))
}

/// Whether standard output is a terminal, on which lines can be drawn again.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Asks before something is lost; anything but `y` means no.
pub(crate) fn confirm(question: &str) -> Result<bool> {
    write(format!("{question} [y/N] "))?;
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(CliError::file("standard input"))?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
