//! Which parts of which runs share a figure, their colours, and what is no figure since it never changes.

use super::markup::number;
use super::panels::{Form, Panel};
use super::read::{Part, Run};
use super::series::Bucket;

/// Colours of the style sheet.
pub const COLOURS: usize = 8;
/// Values among which none is called a peak.
const FEW: usize = 40;

/// A part of a run, as it is drawn.
pub struct Track<'a> {
    run: &'a Run,
    /// The part.
    pub part: &'a Part,
    /// What it is called.
    pub label: String,
    /// What is added to its updates.
    pub offset: f64,
    /// Its place among those that share a figure.
    pub place: usize,
}

impl Track<'_> {
    /// Number of its colour.
    pub fn colour(&self) -> usize {
        self.place % COLOURS
    }

    /// The same, without its neighbours.
    pub fn alone(&self) -> Track<'_> {
        Track { label: self.label.clone(), offset: 0.0, place: 0, ..*self }
    }
}

/// A series that never changes: it is told, not drawn.
pub struct Constant {
    /// What it is.
    pub title: String,
    /// Its value, or values by part.
    pub values: String,
    /// How to read it.
    pub reading: &'static str,
}

/// The parts that share figures: all, or where these are more than there are colours, those of one name in all runs.
pub fn shared(runs: &[Run], rewarded: bool) -> Vec<Vec<Track<'_>>> {
    let mut names: Vec<&str> = Vec::new();
    let mut tracks: Vec<Track> = Vec::new();
    for run in runs {
        for (n, part) in run.parts.iter().enumerate().filter(|(_, part)| part.rewarded() == rewarded) {
            if !names.contains(&part.name.as_str()) {
                names.push(&part.name);
            }
            let label =
                if runs.len() > 1 { format!("{} / {}", run.label, part.name) } else { part.name.clone() };
            let offset = if rewarded { 0.0 } else { run.supervised_before(n) as f64 };
            tracks.push(Track { run, part, label, offset, place: tracks.len() });
        }
    }
    if tracks.len() <= COLOURS || runs.len() == 1 {
        return if tracks.is_empty() { Vec::new() } else { vec![tracks] };
    }
    let mut groups: Vec<Vec<Track>> = names.iter().map(|_| Vec::new()).collect();
    for mut track in tracks {
        if let Some(group) = names.iter().position(|name| *name == track.part.name) {
            track.place = groups[group].len();
            groups[group].push(track);
        }
    }
    groups
}

/// Where the panel's series never change: their values.
pub fn constant(panel: &Panel, groups: &[Vec<Track>]) -> Option<Constant> {
    if panel.form == Form::Stacked {
        return None;
    }
    constant_of(panel.keys, panel.title, panel.reading, groups)
}

/// Where every series of these keys has one value throughout, and more than one of them: their values.
pub fn constant_of(
    keys: &[(&str, &str)],
    title: &str,
    reading: &'static str,
    groups: &[Vec<Track>],
) -> Option<Constant> {
    let mut values: Vec<(String, f64)> = Vec::new();
    let mut longest = 0;
    for track in groups.iter().flatten() {
        for (key, name) in keys {
            let Some(series) = track.part.series(key) else { continue };
            let Some(whole) = series.whole() else { continue };
            if whole.low != whole.high || series.gaps() > 0 {
                return None;
            }
            longest = longest.max(series.values());
            let label = if keys.len() > 1 { format!("{}, {name}", track.label) } else { track.label.clone() };
            values.push((label, whole.low));
        }
    }
    let (_, first) = values.first()?;
    if longest < 2 {
        return None;
    }
    let values = match values.iter().all(|(_, value)| value == first) {
        true => number(*first),
        false => values
            .iter()
            .map(|(label, value)| format!("{} ({label})", number(*value)))
            .collect::<Vec<_>>()
            .join(", "),
    };
    Some(Constant { title: title.into(), values, reading })
}

/// The colour of an arm in the figures; that of no arm is the last one.
pub fn colour_of(runs: &[Run], run: &Run, name: &str) -> usize {
    let groups = shared(runs, true);
    let found = groups.iter().flatten().find(|track| std::ptr::eq(track.run, run) && track.part.name == name);
    found.map_or(COLOURS - 1, Track::colour)
}

/// A line of a figure.
pub struct Curve<'a> {
    /// Whose it is.
    pub track: &'a Track<'a>,
    /// What the legend calls it.
    pub name: String,
    /// Its dashes.
    pub dash: usize,
    /// Its values.
    pub buckets: Vec<Bucket>,
}

/// Where a few values tower above all others: how high the figure is to be, and a sentence about them.
pub fn peaks(curves: &[Curve]) -> Option<(f64, String)> {
    let all = || {
        curves.iter().flat_map(|curve| curve.buckets.iter().filter(|b| b.count > 0).map(move |b| (curve, b)))
    };
    let mut highs: Vec<f64> = all().map(|(_, bucket)| bucket.high).collect();
    highs.sort_by(f64::total_cmp);
    let usual = *highs.get(highs.len() * 98 / 100)?;
    let (curve, highest) = all().max_by(|a, b| a.1.high.total_cmp(&b.1.high))?;
    if highs.len() < FEW || usual <= 0.0 || highest.high < 4.0 * usual {
        return None;
    }
    let ceiling = 2.0 * usual;
    let above = highs.iter().filter(|high| **high > ceiling).count();
    let words = format!(
        "Cut off at {}: {above} peaks rise above it, the highest to {} at {} ({}).",
        number(ceiling),
        number(highest.high),
        number(highest.x()),
        curve.name
    );
    Some((ceiling, words))
}

/// A figure in words: where each curve begins and ends.
pub fn described(curves: &[Curve]) -> String {
    let one = |curve: &Curve| {
        let last = curve.buckets.iter().rfind(|bucket| bucket.count > 0)?;
        let first = curve.buckets.iter().find(|bucket| bucket.count > 0)?;
        Some(format!("{}: from {} to {}", curve.name, number(first.mean), number(last.mean)))
    };
    curves.iter().filter_map(one).collect::<Vec<_>>().join("; ")
}
