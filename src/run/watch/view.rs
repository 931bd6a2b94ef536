//! What is known of a run, in the cells of a terminal. Where there is no room, what matters less is left out, in the order
//! of the numbers that stand beside the blocks below.

use super::facts::{Facts, PartFacts};
use super::measured::{Curve, Step};
use super::sparkline::sparkline;
use super::text::{clean, cut, width};
use crate::run::report::number;
use crate::run::report::samples::Sample;
use crate::run::terminal::{
    Cell, Column, GRPO_COLUMNS, NO_SIGNAL, SUPERVISED_COLUMNS, StepTable, bytes, duration,
};

/// Cells for the names at the left.
const NAME: usize = 12;
/// The most rows of a curve, and those where the height is not bounded.
const ROWS: (usize, usize) = (4, 2);
/// Spaces before the first column of a step line.
const MARGIN: usize = 2;
/// Notes that are shown.
const NOTES: usize = 3;

/// Lines that are shown together, or not at all.
struct Block {
    /// The smaller, the longer it stays.
    rank: usize,
    what: What,
}

enum What {
    Lines(Vec<String>),
    /// A curve, whose rows are set when the room is known.
    Curve(usize),
    Blank,
}

impl What {
    /// The fewest lines that it takes.
    fn least(&self) -> usize {
        match self {
            What::Lines(lines) => lines.len(),
            What::Curve(_) | What::Blank => 1,
        }
    }
}

/// The view, in lines of at most `columns` cells; at most `rows` of them, where that is bounded.
pub fn draw(facts: &Facts, columns: usize, rows: Option<usize>) -> Vec<String> {
    let mut blocks = blocks(facts, columns);
    if let Some(rows) = rows {
        fit(&mut blocks, rows);
    }
    let used: usize = blocks.iter().map(|block| block.what.least()).sum();
    let curves = blocks.iter().filter(|block| matches!(block.what, What::Curve(_))).count();
    let high = match rows {
        None => ROWS.1,
        Some(rows) => (1 + rows.saturating_sub(used) / curves.max(1)).min(ROWS.0),
    };
    let mut lines = Vec::new();
    for block in &blocks {
        match &block.what {
            What::Lines(all) => lines.extend(all.iter().cloned()),
            What::Curve(place) => lines.extend(curve(&facts.curves[*place], columns, high)),
            What::Blank => lines.push(String::new()),
        }
    }
    lines.truncate(rows.unwrap_or(usize::MAX));
    lines.iter().map(|line| cut(&clean(line), columns)).collect()
}

/// Takes away what does not fit, the least important first.
fn fit(blocks: &mut Vec<Block>, rows: usize) {
    let mut by_rank: Vec<usize> = (0..blocks.len()).collect();
    by_rank.sort_by_key(|&place| blocks[place].rank);
    let (mut left, mut kept) = (rows, vec![false; blocks.len()]);
    for place in by_rank {
        let least = blocks[place].what.least();
        if least <= left {
            (left, kept[place]) = (left - least, true);
        }
    }
    let mut kept = kept.into_iter();
    blocks.retain(|_| kept.next().unwrap_or(false));
}

/// Everything there is to show, from above.
fn blocks(facts: &Facts, columns: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut put = |rank: usize, lines: Vec<String>| {
        if !lines.is_empty() {
            blocks.push(Block { rank, what: What::Lines(lines) });
        }
    };
    put(0, vec![title(facts, columns)]);
    put(2, progress(facts, columns).into_iter().collect());
    put(1, vec![facts.sentence.clone()]);
    for (place, _) in facts.curves.iter().enumerate() {
        if place == 0 {
            blocks.push(Block { rank: 20, what: What::Blank });
        }
        blocks.push(Block { rank: if place == 0 { 3 } else { 5 + place }, what: What::Curve(place) });
    }
    let steps = facts.part.as_ref().map_or_else(Vec::new, |part| steps(part, columns));
    for (place, lines) in steps.into_iter().enumerate() {
        if place == 0 {
            blocks.push(Block { rank: 21, what: What::Blank });
        }
        blocks.push(Block { rank: if place == 0 { 4 } else { 10 }, what: What::Lines(lines) });
    }
    let mut named = vec![(12, held_out(facts)), (13, checkpoint(facts))];
    if let Some((_, best, worst)) = &facts.samples {
        // Where all rewards are equal, any rollout is as good as another.
        let differ = best.reward != worst.reward;
        named.insert(0, (11, Some(sample(if differ { "best" } else { "all equal" }, best, columns))));
        named.insert(1, (11, differ.then(|| sample("worst", worst, columns))));
    }
    named.push((14, on(facts)));
    blocks.push(Block { rank: 22, what: What::Blank });
    for (rank, line) in named {
        blocks.extend(line.map(|line| Block { rank, what: What::Lines(vec![line]) }));
    }
    let more = facts.problems.len().saturating_sub(NOTES);
    let notes = facts.problems.iter().take(NOTES).map(|problem| format!("note: {problem}"));
    let rest = (more > 0).then(|| format!("note: {more} more"));
    blocks.extend(notes.chain(rest).map(|line| Block { rank: 15, what: What::Lines(vec![line]) }));
    blocks
}

/// `default-01: temp 41/120, arm, part 5 of 8`.
fn title(facts: &Facts, columns: usize) -> String {
    let Some(part) = &facts.part else { return facts.run.clone() };
    let updates = part.updates.map_or_else(String::new, |updates| format!("/{updates}"));
    let kind = if part.rewarded { "arm" } else { "school" };
    let place = part.place.map_or_else(String::new, |(number, parts)| format!(", part {number} of {parts}"));
    let what = format!("{} {}{updates}, {kind}{place}", part.name, part.update);
    // The name of the run is the first to go: whoever watches has typed it.
    match width(&clean(&facts.run)) + 2 + width(&clean(&what)) <= columns {
        true => format!("{}: {what}", facts.run),
        false => what,
    }
}

/// The bar, and how long it took and will take.
fn progress(facts: &Facts, columns: usize) -> Option<String> {
    if let Some((read, length)) = facts.reading {
        return Some(format!("reading metrics.jsonl: {:.0} %", 100.0 * read as f64 / length.max(1) as f64));
    }
    let part = facts.part.as_ref()?;
    let mut words = Vec::new();
    if let Some(elapsed) = facts.elapsed {
        let since = if facts.resumed { " since it went on" } else { "" };
        words.push(format!("{}{since}", duration(elapsed)));
    }
    words.extend(
        facts.left.part.filter(|left| *left > 0.0).map(|left| format!("about {} left here", duration(left))),
    );
    match (facts.left.all, facts.left.unmeasured.len()) {
        (Some(all), _) if Some(all) != facts.left.part => {
            words.push(format!("{} left in all (tests not counted)", duration(all)))
        }
        (None, 0) | (Some(_), _) => {}
        (None, 1) => words.push(format!("{} not measured yet", facts.left.unmeasured[0])),
        (None, parts) => words.push(format!("{parts} parts not measured yet")),
    }
    let words = words.join(", ");
    let room = columns.saturating_sub(width(&words) + 2).min(30);
    let Some(updates) = part.updates.filter(|_| room >= 6) else { return Some(words) };
    let filled = (part.update.min(updates) * room as u64).checked_div(updates).unwrap_or(0) as usize;
    Some(format!("{}{}  {words}", "━".repeat(filled), "─".repeat(room - filled)))
}

/// A curve: name, dots, range and last value.
fn curve(curve: &Curve, columns: usize, rows: usize) -> Vec<String> {
    let name_cells = if columns < 40 { 8 } else { NAME };
    let whole = curve.series.whole();
    let range = whole.map_or((0.0, 0.0), |whole| (whole.low, whole.high));
    let last = curve.last.map_or("not finite".into(), number);
    let constant = range.0 == range.1 && curve.series.gaps() == 0;
    let (low, high) = (number(range.0), number(range.1));
    let texts = match constant {
        true => [format!("  always {low}"), format!("  {low}"), format!(" {low}"), String::new()],
        false => [
            format!("  {low} to {high}, now {last}"),
            format!("  {low} to {high}"),
            format!(" {last}"),
            String::new(),
        ],
    };
    let room = |text: &String| columns.saturating_sub(name_cells + width(text));
    let fits = texts.iter().find(|text| room(text) >= (columns / 3).max(6));
    let text = fits.unwrap_or(&texts[3]);
    let cells = room(text);
    let values: Vec<Option<f64>> = curve
        .series
        .reduced(2 * cells)
        .iter()
        .map(|bucket| (bucket.count > 0).then_some(bucket.mean))
        .collect();
    let shown = sparkline(&values, range, cells, if constant { 1 } else { rows });
    let line = |(row, dots): (usize, &String)| match row {
        0 => format!("{:<name_cells$}{dots}{text}", cut(curve.name, name_cells - 1)),
        _ => format!("{:<name_cells$}{dots}", ""),
    };
    shown.iter().enumerate().map(line).collect()
}

/// The last step line under its heading as `train` prints them, in as many pairs as the width demands.
fn steps(part: &PartFacts, columns: usize) -> Vec<Vec<String>> {
    let Some(last) = &part.last else { return Vec::new() };
    let names: &[Column] = match last {
        Step::Rewarded(_) => &GRPO_COLUMNS,
        Step::Supervised(_) => &SUPERVISED_COLUMNS,
    };
    let number = |step: &Step| match step {
        Step::Rewarded(step) => step.step,
        Step::Supervised(step) => step.step,
    };
    let before = part.printed.iter().filter(|step| number(step) != number(last));
    let before: Vec<Vec<Cell>> = before.map(Step::cells).collect();
    let cells = last.cells();
    // Each column under its title, once: which of them share a line depends on how wide they are.
    let column = |place: usize| {
        let mut table = StepTable::new(&names[place..=place]);
        let bare = |line: String| line.get(MARGIN..).unwrap_or_default().to_string();
        let heading = bare(table.heading().unwrap_or_default());
        for earlier in &before {
            table.line(&earlier[place..=place]);
        }
        [heading, bare(table.line(&cells[place..=place]))]
    };
    let texts: Vec<[String; 2]> = (0..names.len()).map(column).collect();
    let pair = |from: usize, to: usize| {
        let line = |row: usize| {
            let padded = (from..to).map(|place| format!(" {:<1$}", texts[place][row], names[place].1));
            format!(" {}", padded.collect::<String>()).trim_end().to_string()
        };
        vec![line(0), line(1)]
    };
    let (mut pairs, mut from) = (Vec::new(), 0);
    while from < names.len() {
        let fits = |lines: &[String]| lines.iter().all(|line| width(line) <= columns);
        let to = (from + 2..=names.len()).take_while(|&to| fits(&pair(from, to))).last().unwrap_or(from + 1);
        pairs.push(pair(from, to));
        from = to;
    }
    if let Step::Rewarded(step) = last
        && step.live == 0
        && let Some(first) = pairs.first_mut()
    {
        first.push(NO_SIGNAL.into());
    }
    pairs
}

/// A rollout, in `train`'s words; neither question nor answer may push the other out.
fn sample(what: &str, sample: &Sample, columns: usize) -> String {
    let head = format!("{what:<NAME$}reward {:.0} (gold {})  ", sample.reward, clean(&sample.gold));
    let (question, answer) = (clean(sample.question.trim()), clean(sample.answer.trim()));
    let room = columns.saturating_sub(width(&head) + 6);
    let question = cut(&question, room.saturating_sub(width(&answer).min(room / 2)));
    format!("{head}{question}  ->  {answer}")
}

fn held_out(facts: &Facts) -> Option<String> {
    let shown = |what: &str, accuracy: f64, of: String| {
        format!("{:<NAME$}{:.1} %{of} {what}", "held-out", 100.0 * accuracy)
    };
    match (facts.evaluations.last(), facts.part.as_ref().and_then(|part| part.accuracy)) {
        (Some(last), _) => {
            Some(shown(&format!("({})", last.what), last.accuracy, format!(" of {}", last.problems)))
        }
        (None, Some((update, accuracy))) => {
            Some(shown(&format!("after {update} updates"), accuracy, String::new()))
        }
        (None, None) => None,
    }
}

fn checkpoint(facts: &Facts) -> Option<String> {
    let saved = match &facts.checkpoint {
        None => "none yet".into(),
        Some(last) => {
            let age = last.age.map_or_else(String::new, |age| format!(", {} ago", duration(age)));
            format!("step {}{age}", last.step)
        }
    };
    let free = facts.disk.1.map_or_else(String::new, |free| format!(", {} free", bytes(free)));
    Some(format!("{:<NAME$}{saved}; the folder takes {}{free}", "checkpoint", bytes(facts.disk.0)))
}

fn on(facts: &Facts) -> Option<String> {
    let version = facts.version.as_ref().map_or_else(String::new, |version| format!(", latch {version}"));
    Some(format!("{:<NAME$}{}{version}", "on", facts.device.as_ref()?))
}
