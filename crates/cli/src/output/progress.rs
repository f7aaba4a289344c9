//! Lines that are drawn again while something goes on: on a terminal in place, elsewhere one line a change.

use std::{collections::HashMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::human;
use crate::error::{CliError, Result};

/// How far a line has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fraction {
    pub(crate) current: u64,
    pub(crate) total: u64,
    /// Shows the two numbers as sizes behind the bar.
    pub(crate) counts: bool,
}

/// A set of lines, each under its name, in the order in which they first came.
pub(crate) struct Board {
    terminal: Option<MultiProgress>,
    bars: HashMap<String, ProgressBar>,
    last: HashMap<String, String>,
    quiet: bool,
}

impl Board {
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = (!quiet && super::is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        Self {
            terminal,
            bars: HashMap::new(),
            last: HashMap::new(),
            quiet,
        }
    }

    /// Shows `text` in the line of `name`.
    pub(crate) fn show(&mut self, name: &str, text: &str, fraction: Option<Fraction>) -> Result {
        if self.quiet {
            return Ok(());
        }
        let Some(terminal) = &self.terminal else {
            // A file or a pipe gets what changes in words, not how a bar grows.
            let moves = fraction.is_some_and(|fraction| fraction.counts && fraction.current > 0);
            let text = text.trim();
            if moves || text.is_empty() || self.last.get(name).is_some_and(|last| last == text) {
                return Ok(());
            }
            self.last.insert(name.to_owned(), text.to_owned());
            return super::line(format!("{name}: {text}"));
        };
        let bar = self.bars.entry(name.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{wide_msg}")
                .expect("the template is a constant that indicatif knows");
            let bar = terminal.add(ProgressBar::new_spinner().with_style(style));
            bar.tick();
            bar
        });
        bar.set_message(match fraction {
            Some(fraction) => format!("{name}: {text} {}", render(fraction)),
            None => format!("{name}: {text}"),
        });
        bar.tick();
        Ok(())
    }

    /// A line of its own.
    pub(crate) fn message(&mut self, text: &str) -> Result {
        if self.quiet {
            return Ok(());
        }
        match &self.terminal {
            Some(terminal) => terminal.println(text).map_err(CliError::Output),
            None => super::line(text),
        }
    }

    /// Leaves the lines as they are.
    pub(crate) fn finish(&mut self) {
        let mut bars: Vec<_> = self.bars.drain().collect();
        bars.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, bar) in bars {
            bar.abandon();
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Docker's bar: `[===>    ]`, 50 wide.
fn render(fraction: Fraction) -> String {
    const WIDTH: u64 = 50;
    let Fraction {
        current,
        total,
        counts,
    } = fraction;
    if total == 0 {
        return size(current);
    }
    let done = (current.saturating_mul(WIDTH) / total).min(WIDTH);
    let filled = "=".repeat(usize::try_from(done).unwrap_or(0));
    let empty = " ".repeat(usize::try_from(WIDTH - done).unwrap_or(0));
    let mut text = format!("[{filled}>{empty}] ");
    if counts {
        text.push_str(&format!(" {}/{}", size(current), size(total)));
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn size(bytes: u64) -> String {
    human::size(bytes as f64, 4)
}

/// Shows a stream of progress messages to its end; an error in it is the command's.
pub(crate) async fn stream(lines: &mut crate::api::JsonLines, quiet: bool) -> Result {
    let mut board = Board::new(quiet);
    while let Some(message) = lines.next().await? {
        if let Some(error) = error_of(&message) {
            return Err(CliError::Message(error));
        }
        let text = |key: &str| message[key].as_str().unwrap_or("");
        let (id, status) = (text("id"), text("status"));
        if let Some(words) = message["stream"].as_str() {
            if !quiet {
                board.message(words.trim_end_matches('\n'))?;
            }
        } else if id.is_empty() {
            board.message(status)?;
        } else {
            let detail = &message["progressDetail"];
            let fraction = detail["current"].as_u64().map(|current| Fraction {
                current,
                total: detail["total"].as_u64().unwrap_or(0),
                counts: true,
            });
            board.show(id, status, fraction)?;
        }
    }
    Ok(())
}

/// The error that a message of a stream carries.
pub(crate) fn error_of(message: &Value) -> Option<String> {
    let detail = message["errorDetail"]["message"].as_str();
    detail
        .or_else(|| message["error"].as_str())
        .map(str::to_owned)
}

/// How often a command asks whether something has changed.
pub(crate) const POLL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_from_left_to_right() {
        let bar = |current, counts| {
            render(Fraction {
                current,
                total: 9,
                counts,
            })
        };
        assert_eq!(bar(0, false), format!("[>{}] ", " ".repeat(50)));
        assert_eq!(bar(9, false), format!("[{}>] ", "=".repeat(50)));
        assert_eq!(bar(4, false).matches('=').count(), 22);
        assert!(bar(9, true).ends_with("]  9B/9B"));
        assert_eq!(bar(99, false).len(), bar(0, false).len());
    }
}
