//! The text a person sees: step lines, a progress bar, tables. Nothing here looks at the environment or opens a terminal:
//! the binaries hand over a writer and a [`Style`].

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{Result, Write};
use std::time::{Duration, Instant};

/// Lines between two headings.
const HEADING_EVERY: usize = 20;
/// Values that a mark compares with.
const WINDOW: usize = 128;
/// With fewer values nothing is surprising.
const ENOUGH: usize = 16;
/// Standard deviations from the mean that are marked.
const SURPRISING: f64 = 3.0;

/// One column of a step table: its title and least width in characters.
pub type Column = (&'static str, usize);

/// Columns of reinforcement learning, reward first: its loss says nothing.
pub const GRPO_COLUMNS: [Column; 11] = [
    ("step", 9),
    ("reward", 12),
    ("groups", 15),
    ("entropy", 9),
    ("kl", 6),
    ("len", 4),
    ("latent |h|", 11),
    ("grad", 6),
    ("lr", 7),
    ("time", 7),
    ("", 11),
];

/// Columns of supervised training.
pub const SUPERVISED_COLUMNS: [Column; 6] =
    [("step", 12), ("loss", 9), ("grad", 8), ("lr", 9), ("time", 8), ("", 12)];

/// Updates of a school between two of its step lines, where an arm has a line for each.
pub const SUPERVISED_EVERY: usize = 10;

/// Said below the line of an update without live groups.
pub const NO_SIGNAL: &str = "  all groups had equal rewards, so no gradient came from the reward: try easier or harder prompts, a larger group or more exploration";

/// A value of a step line.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    watched: Option<f64>,
}

impl Cell {
    /// Text.
    pub fn new(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), watched: None }
    }

    /// A number as `text`, marked when it is far from what it used to be.
    pub fn watched(text: impl Into<String>, value: f64) -> Cell {
        Cell { text: text.into(), watched: Some(value) }
    }
}

/// One update of reinforcement learning.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpoStep {
    /// Updates so far.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// Mean reward.
    pub reward: f64,
    /// Its change since the line before.
    pub change: Option<f64>,
    /// Groups whose rewards differ.
    pub live: usize,
    /// Groups all wrong.
    pub all_wrong: usize,
    /// Groups all right.
    pub all_right: usize,
    /// Mean entropy of answer tokens, nats.
    pub entropy: f64,
    /// Divergence from the reference, when there is one.
    pub kl: Option<f64>,
    /// Mean answer tokens.
    pub length: f64,
    /// Mean norm of latents.
    pub latent_norm: f64,
    /// Mean cosine of consecutive latents.
    pub latent_similarity: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Time of the update.
    pub seconds: f64,
    /// Positions computed a second.
    pub tokens_per_second: f64,
}

impl GrpoStep {
    /// The values under [`GRPO_COLUMNS`].
    pub fn cells(&self) -> Vec<Cell> {
        let change = self.change.map(|change| format!(" {change:+.2}")).unwrap_or_default();
        vec![
            Cell::new(format!("{}/{}", self.step, self.steps)),
            Cell::watched(format!("{:.2}{change}", self.reward), self.reward),
            Cell::new(format!("{} live {}↓ {}↑", self.live, self.all_wrong, self.all_right)),
            Cell::watched(format!("{:.2}", self.entropy), self.entropy),
            self.kl.map_or(Cell::new("-"), |kl| Cell::watched(format!("{kl:.3}"), kl)),
            Cell::watched(format!("{:.0}", self.length), self.length),
            Cell::watched(format!("{:.1} {:.2}", self.latent_norm, self.latent_similarity), self.latent_norm),
            Cell::watched(format!("{:.2}", self.gradient_norm), self.gradient_norm),
            Cell::new(format!("{:.1e}", self.learning_rate)),
            Cell::new(duration(self.seconds)),
            Cell::new(format!("{} tok/s", count(self.tokens_per_second))),
        ]
    }
}

/// One supervised update.
#[derive(Clone, Copy, Debug, Default)]
pub struct SupervisedStep {
    /// Updates so far.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// Mean cross-entropy, nats.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Time of the update.
    pub seconds: f64,
    /// Positions computed a second.
    pub tokens_per_second: f64,
}

impl SupervisedStep {
    /// The values under [`SUPERVISED_COLUMNS`].
    pub fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(format!("{}/{}", self.step, self.steps)),
            Cell::watched(format!("{:.4}", self.loss), self.loss),
            Cell::watched(format!("{:.3}", self.gradient_norm), self.gradient_norm),
            Cell::new(format!("{:.1e}", self.learning_rate)),
            Cell::new(duration(self.seconds)),
            Cell::new(format!("{} tok/s", count(self.tokens_per_second))),
        ]
    }
}

/// Step lines under column names that come again every 20 lines.
#[derive(Clone, Debug)]
pub struct StepTable {
    columns: Vec<Column>,
    lines: usize,
    history: Vec<VecDeque<f64>>,
}

impl StepTable {
    /// A table that has not begun.
    pub fn new(columns: &[Column]) -> StepTable {
        StepTable { columns: columns.to_vec(), lines: 0, history: vec![VecDeque::new(); columns.len()] }
    }

    /// The column names, when they are due before the next line.
    pub fn heading(&self) -> Option<String> {
        let titles = self.columns.iter().map(|(title, _)| title.to_string());
        self.lines.is_multiple_of(HEADING_EVERY).then(|| self.pad(titles))
    }

    /// The next line. A watched value more than three standard deviations from the mean of the last 128 is marked.
    pub fn line(&mut self, cells: &[Cell]) -> String {
        let mut texts = Vec::with_capacity(cells.len());
        for (cell, history) in cells.iter().zip(&mut self.history) {
            let mark = cell.watched.and_then(|value| surprise(history, value));
            texts.push(mark.map_or(cell.text.clone(), |sigmas| format!("{} {sigmas:+.1}σ", cell.text)));
            if let Some(value) = cell.watched.filter(|value| value.is_finite()) {
                history.push_back(value);
                if history.len() > WINDOW {
                    history.pop_front();
                }
            }
        }
        self.lines += 1;
        self.pad(texts.into_iter())
    }

    fn pad(&self, texts: impl Iterator<Item = String>) -> String {
        let mut line = String::from(" ");
        for (text, (_, width)) in texts.zip(&self.columns) {
            line.push_str(&format!(" {text:<width$}"));
        }
        line.trim_end().to_string()
    }
}

/// Standard deviations from the mean of `history`, when that is worth a mark.
fn surprise(history: &VecDeque<f64>, value: f64) -> Option<f64> {
    if history.len() < ENOUGH || !value.is_finite() {
        return None;
    }
    let count = history.len() as f64;
    let mean = history.iter().sum::<f64>() / count;
    let variance = history.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
    // A value that never moved has no scale to be surprised on.
    let sigmas = (value - mean) / variance.sqrt();
    (sigmas.is_finite() && sigmas.abs() > SURPRISING).then_some(sigmas)
}

/// What the terminal can take; the binaries find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Bars may be drawn: the writer is a terminal that can do more than lines, and neither --quiet nor --json is given.
    pub bars: bool,
    /// Only errors and the result are shown.
    pub quiet: bool,
}

impl Style {
    /// The style for these facts; `plain` is what [`plain`] says.
    pub fn of(terminal: bool, plain: bool, quiet: bool, json: bool) -> Style {
        Style { bars: terminal && !plain && !quiet && !json, quiet: quiet || json }
    }
}

/// Whether a terminal is to be given lines alone: NO_COLOR is set, or TERM says that it knows no more. `variable` looks up a
/// variable of the environment.
pub fn plain(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_some() || variable("TERM").is_some_and(|kind| kind == "dumb")
}

/// Lines above a progress bar that stays at the bottom.
pub struct Screen<W: Write> {
    out: W,
    style: Style,
    bar: String,
    drawn: Option<Instant>,
}

impl<W: Write> Screen<W> {
    /// A screen that has shown nothing.
    pub fn new(out: W, style: Style) -> Screen<W> {
        Screen { out, style, bar: String::new(), drawn: None }
    }

    /// Shows a line above the bar.
    ///
    /// # Errors
    /// The writer refuses.
    pub fn line(&mut self, text: &str) -> Result<()> {
        if self.style.quiet {
            return Ok(());
        }
        let erase = if self.bar.is_empty() { "" } else { "\r\x1b[K" };
        write!(self.out, "{erase}{text}\n{}", self.bar)?;
        self.out.flush()
    }

    /// Moves the bar, at most ten times a second but always to its end; hidden where [`Style::bars`] says so.
    ///
    /// # Errors
    /// The writer refuses.
    pub fn progress(&mut self, what: &str, done: u64, total: u64, elapsed: Duration) -> Result<()> {
        let recent = self.drawn.is_some_and(|drawn| drawn.elapsed() < Duration::from_millis(100));
        if !self.style.bars || (recent && done < total) {
            return Ok(());
        }
        self.bar = bar(what, done, total, elapsed);
        self.drawn = Some(Instant::now());
        write!(self.out, "\r\x1b[K{}", self.bar)?;
        self.out.flush()
    }

    /// Takes the bar away.
    ///
    /// # Errors
    /// The writer refuses.
    pub fn clear(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.bar).is_empty() {
            write!(self.out, "\r\x1b[K")?;
            self.out.flush()?;
        }
        self.drawn = None;
        Ok(())
    }
}

/// `cot  ━━━━━━───────  41/500  3.2 s, about 36 s left`.
pub fn bar(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    const WIDTH: u64 = 30;
    let filled = (done.min(total) * WIDTH).checked_div(total).unwrap_or(WIDTH) as usize;
    let line = format!("{}{}", "━".repeat(filled), "─".repeat(WIDTH as usize - filled));
    let left = elapsed.as_secs_f64() / done.max(1) as f64 * total.saturating_sub(done) as f64;
    let left =
        if done == 0 || done >= total { String::new() } else { format!(", about {} left", duration(left)) };
    format!("{what}  {line}  {done}/{total}  {}{left}", duration(elapsed.as_secs_f64()))
}

/// `12 ms`, `1.9 s`, `4 min 05 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", 1000.0 * s),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3599.5 => format!("{} min {:02} s", s.round() as u64 / 60, s.round() as u64 % 60),
        s => format!("{} h {:02} min", s.round() as u64 / 3600, s.round() as u64 % 3600 / 60),
    }
}

/// `840`, `8.4k`, `1.2M`.
pub fn count(value: f64) -> String {
    match value {
        v if v < 999.5 => format!("{v:.0}"),
        v if v < 999_950.0 => format!("{:.1}k", v / 1e3),
        v => format!("{:.1}M", v / 1e6),
    }
}

/// A table under its header: columns of numbers stand right, text left; give a column's numbers equal decimals.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let numeric =
        |text: &str| text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit() || "+-±<".contains(c));
    let columns: Vec<(usize, bool)> = (0..header.len())
        .map(|column| {
            let widths = rows.iter().map(|row| cell(row, column).chars().count());
            let width = widths.chain([header[column].chars().count()]).max().unwrap_or(0);
            (width, column > 0 && rows.iter().all(|row| numeric(&cell(row, column))))
        })
        .collect();
    let line = |texts: &dyn Fn(usize) -> String| {
        let cells = columns.iter().enumerate().map(|(column, &(width, right))| match right {
            true => format!("{:>width$}", texts(column)),
            false => format!("{:<width$}", texts(column)),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    let mut out = line(&|column| header[column].to_string());
    out.push_str(&line(&|column| "─".repeat(columns[column].0)));
    for row in rows {
        out.push_str(&line(&|column| cell(row, column)));
    }
    out
}

/// How sure a number of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// What will be reserved.
    Exact,
    /// What it may come to.
    Estimate,
}

/// One line of the memory table.
#[derive(Clone, Debug)]
pub struct MemoryRow {
    /// What the memory is for.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// How sure that is.
    pub certainty: Certainty,
}

/// Bytes as a person reads them.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..0x1_0000_0000 => format!("{:.0} MiB", bytes as f64 / (1u64 << 20) as f64),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// The memory table of `--dry-run`, with its total beside `free` bytes where they are known.
pub fn memory_table(rows: &[MemoryRow], free: Option<u64>) -> String {
    let total: u64 = rows.iter().map(|row| row.bytes).sum();
    // Small rows are to be seen beside large ones.
    let (unit, name) =
        if total < 4 << 30 { ((1u64 << 20) as f64, "MiB") } else { ((1u64 << 30) as f64, "GiB") };
    let width = rows.iter().map(|row| row.name.chars().count()).chain([24]).max().unwrap_or(24);
    let mut out = format!("{:<1$}{name:>12}\n", "memory", width + 2);
    for row in rows {
        let certainty = if row.certainty == Certainty::Exact { "exact" } else { "estimate" };
        let amount = row.bytes as f64 / unit;
        out.push_str(&format!("  {:<width$}{amount:>12.1}     {certainty}\n", row.name));
    }
    let verdict = match free {
        Some(free) if free >= total => format!("     of {:.1} free: fits", free as f64 / unit),
        Some(free) => format!("     of {:.1} free: may not fit", free as f64 / unit),
        None => String::new(),
    };
    out + &format!("  {:<width$}{:>12.1}{verdict}\n", "total", total as f64 / unit)
}

#[cfg(test)]
mod tests;
