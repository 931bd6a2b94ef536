//! From the numbers of runs to figures: which curves share one, how many points they may have, what is said below.

use super::markup::{element, escape, number};
use super::panels::{self, Form, Panel, REWARDED, SUPERVISED, Section, UNKNOWN};
use super::read::Run;
use super::series::{Bucket, running_mean};
use super::svg::{Drawn, Figure, Mark};
use super::tracks::{COLOURS, Constant, Curve, Track, constant, constant_of, described, peaks, shared};
use std::fmt::Write;

/// Points of all curves together up to which every update is drawn, and those that are left where there are more.
const ALL_POINTS: usize = 50_000;
const MERGED_POINTS: usize = 20_000;
/// Updates from which on a running mean is drawn.
const SMOOTHED_FROM: usize = 40;
/// Figures of keys that no panel names.
const UNKNOWN_FIGURES: usize = 24;

/// Draws figures, and numbers them.
pub struct Painter {
    most: usize,
    figures: usize,
}

impl Painter {
    /// A painter for all figures of `runs`.
    pub fn new(runs: &[Run]) -> Painter {
        let series = || runs.iter().flat_map(|run| &run.parts).flat_map(|part| &part.series);
        let most = match series().map(|(_, series)| series.held()).sum::<usize>() <= ALL_POINTS {
            true => usize::MAX,
            false => (MERGED_POINTS / series().count().max(1)).clamp(24, 400),
        };
        Painter { most, figures: 0 }
    }

    /// A name that no other figure has.
    pub fn next_id(&mut self) -> String {
        self.figures += 1;
        format!("f{}", self.figures)
    }

    /// The sections of reinforcement learning or of supervised training; empty where no run has any.
    pub fn sections(&mut self, runs: &[Run], rewarded: bool) -> String {
        let groups = shared(runs, rewarded);
        let sections = if rewarded { REWARDED } else { SUPERVISED };
        let mut out = String::new();
        let mut constants = Vec::new();
        for section in sections {
            let figures = self.panels(section.panels, &groups, rewarded, &mut constants);
            headed(&mut out, section.title, &figures);
        }
        out + &self.unknown(sections, &groups, rewarded, constants)
    }

    fn panels(
        &mut self,
        panels: &[Panel],
        groups: &[Vec<Track>],
        rewarded: bool,
        constants: &mut Vec<Constant>,
    ) -> String {
        let mut out = String::new();
        for panel in panels {
            match constant(panel, groups) {
                Some(constant) if !panel.always => constants.push(constant),
                _ => {
                    for tracks in groups {
                        out += &match panel.form {
                            Form::Stacked => {
                                // What holds for all of them is said once.
                                let read = |n: usize| if n == 0 { panel.reading } else { "" };
                                let tracks = tracks.iter().enumerate();
                                tracks.map(|(n, track)| self.stack(panel, track, read(n))).collect()
                            }
                            _ => self.lines(panel, panel.title, tracks, rewarded),
                        };
                    }
                }
            }
        }
        out
    }

    /// Keys that no panel names, and what never changes.
    fn unknown(
        &mut self,
        sections: &[Section],
        groups: &[Vec<Track>],
        rewarded: bool,
        mut constants: Vec<Constant>,
    ) -> String {
        let mut keys: Vec<&str> = Vec::new();
        for (key, _) in groups.iter().flatten().flat_map(|track| &track.part.series) {
            if !panels::names(sections, key) && !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        let mut figures = String::new();
        let mut left_out = Vec::new();
        let mut drawn = 0;
        for key in keys {
            let named = [(key, key)];
            let one = |track: &Track| track.part.series(key).is_some_and(|series| series.whole().is_some());
            if !groups.iter().flatten().any(one) {
                continue;
            }
            match constant_of(&named, key, "", groups) {
                Some(constant) => constants.push(constant),
                None if drawn == UNKNOWN_FIGURES => left_out.push(key),
                None => {
                    drawn += 1;
                    for tracks in groups {
                        figures += &self.keyed(&UNKNOWN, &named, key, tracks, rewarded);
                    }
                }
            }
        }
        let mut out = String::new();
        headed(
            &mut out,
            if rewarded { "Other series" } else { "Other series of supervised training" },
            &figures,
        );
        if !left_out.is_empty() {
            let (count, named) = (left_out.len(), left_out.join(", "));
            let words = format!("{count} more series are in metrics.jsonl and not drawn: {named}");
            out += &element("p", &super::markup::clipped(&words, 2000));
        }
        if !constants.is_empty() {
            out += &element("h3", "Series that never change");
            let rows = constants.into_iter().map(|c| vec![c.title, c.values, c.reading.to_string()]);
            out += &super::markup::table(&["series", "value", "how to read it"], &rows.collect::<Vec<_>>());
        }
        out
    }

    fn lines(&mut self, panel: &Panel, title: &str, tracks: &[Track], rewarded: bool) -> String {
        self.keyed(panel, panel.keys, title, tracks, rewarded)
    }

    /// A figure of lines: a colour a part, dashes a key.
    fn keyed(
        &mut self,
        panel: &Panel,
        keys: &[(&str, &str)],
        title: &str,
        tracks: &[Track],
        rewarded: bool,
    ) -> String {
        let mut curves = Vec::new();
        let there = |key: &str| {
            let of = |track: &Track| track.part.series(key).is_some_and(|series| series.whole().is_some());
            tracks.iter().any(of)
        };
        let keys: Vec<&(&str, &str)> = keys.iter().filter(|(key, _)| there(key)).collect();
        for (dash, (key, name)) in keys.iter().enumerate() {
            for track in tracks {
                let Some(series) = track.part.series(key).filter(|series| series.whole().is_some()) else {
                    continue;
                };
                let buckets = moved(&series.reduced(self.most), track.offset);
                let name =
                    if keys.len() > 1 { format!("{}, {name}", track.label) } else { track.label.clone() };
                curves.push(Curve { track, name, dash: (dash + track.place / COLOURS) % 4, buckets });
            }
        }
        if curves.is_empty() {
            return String::new();
        }
        let longest = curves.iter().map(|curve| curve.buckets.len()).max().unwrap_or(0);
        let smooth = panel.form == Form::Smoothed && longest >= SMOOTHED_FROM;
        let window = (longest / 25).max(5);
        let stride =
            curves.iter().flat_map(|curve| &curve.buckets).map(|b| b.count + b.gaps).max().unwrap_or(1);
        let mut figure = Figure {
            title: title.into(),
            x_label: if rewarded { "update of the arm" } else { "update, one phase after another" }.into(),
            from_zero: panel.from_zero,
            ..Figure::default()
        };
        let mut notes = Vec::new();
        let mut strong = Vec::new();
        let peaks = if panel.cut { peaks(&curves) } else { None };
        figure.ceiling = peaks.as_ref().map(|(ceiling, _)| *ceiling);
        for curve in &curves {
            let drawn = |mark: Mark| Drawn { name: curve.name.clone(), colour: curve.track.colour(), mark };
            let plain: Vec<Option<f64>> =
                curve.buckets.iter().map(|bucket| (bucket.count > 0).then_some(bucket.mean)).collect();
            let line = |values: &[Option<f64>], faint: bool| {
                let points = curve.buckets.iter().zip(values).map(|(b, y)| y.map(|y| (b.x(), y)));
                drawn(Mark::Line { points: points.collect(), faint, dash: curve.dash })
            };
            match (stride > 1, smooth) {
                (true, _) => {
                    let points =
                        curve.buckets.iter().map(|b| (b.count > 0).then_some((b.x(), b.low, b.high)));
                    figure.drawn.push(drawn(Mark::Band { points: points.collect() }));
                }
                (false, true) => figure.drawn.push(line(&plain, true)),
                (false, false) => {}
            }
            strong.push(match smooth {
                true => line(&running_mean(&curve.buckets, window), false),
                false => line(&plain, false),
            });
            let places: Vec<f64> = curve.buckets.iter().filter(|b| b.gaps > 0).map(Bucket::x).collect();
            if !places.is_empty() {
                strong.push(drawn(Mark::Gaps { places }));
            }
        }
        let gaps = strong.iter().any(|drawn| matches!(drawn.mark, Mark::Gaps { .. }));
        figure.drawn.append(&mut strong);
        notes.extend(match (stride > 1, smooth) {
            (true, true) => Some(format!(
                "Band: lowest to highest of each {stride} updates; line: mean of the last {} updates.",
                window as u64 * stride
            )),
            (true, false) => {
                Some(format!("Band: lowest to highest of each {stride} updates; line: their mean."))
            }
            (false, true) => Some(format!("Faint: every update; strong: mean of the last {window} updates.")),
            (false, false) => None,
        });
        if let Some((key, name)) = panel.dots
            && self.dots(&mut figure, key, tracks)
        {
            notes.push(format!("Dots: {name}."));
        }
        notes.extend(peaks.map(|(_, words)| words));
        if gaps {
            notes.push("Crosses on the lower axis: values that are not finite.".into());
        }
        figure.description = described(&curves);
        let legend = curves.iter().map(|curve| Key {
            name: &curve.name,
            colour: curve.track.colour(),
            dash: Some(curve.dash),
        });
        self.card(&figure, title, &legend.collect::<Vec<_>>(), panel.reading, &notes)
    }

    fn dots(&self, figure: &mut Figure, key: &str, tracks: &[Track]) -> bool {
        let before = figure.drawn.len();
        for track in tracks {
            let Some(series) = track.part.series(key) else { continue };
            let buckets = moved(&series.reduced(self.most.min(200)), track.offset);
            let points: Vec<(f64, f64)> =
                buckets.iter().filter(|b| b.count > 0).map(|b| (b.x(), b.mean)).collect();
            if !points.is_empty() {
                let name = format!("{}, {key}", track.label);
                figure.drawn.push(Drawn { name, colour: track.colour(), mark: Mark::Dots { points } });
            }
        }
        figure.drawn.len() > before
    }

    /// The keys of a part on each other. Where they are not all there at every update, lines.
    fn stack(&mut self, panel: &Panel, track: &Track, reading: &str) -> String {
        let layers: Vec<(&str, Vec<Bucket>)> = panel
            .keys
            .iter()
            .filter_map(|(key, name)| Some((*name, track.part.series(key)?.reduced(self.most))))
            .collect();
        let Some((_, first)) = layers.first() else { return String::new() };
        let title = format!("{}: {}", panel.title, track.label);
        let places =
            |buckets: &[Bucket]| buckets.iter().map(|b| (b.first, b.last, b.count)).collect::<Vec<_>>();
        if layers.iter().any(|(_, layer)| places(layer) != places(first)) {
            let panel = Panel { form: Form::Plain, ..*panel };
            return self.lines(&panel, &title, &[track.alone()], true);
        }
        let mut figure = Figure {
            title: title.clone(),
            x_label: "update of the arm".into(),
            from_zero: true,
            ..Figure::default()
        };
        let mut below = vec![0.0; first.len()];
        let mut said = Vec::new();
        let colour = |layer: usize| panel.colours.get(layer).copied().unwrap_or(layer);
        for (n, (name, layer)) in layers.iter().enumerate() {
            let mut points = Vec::new();
            for (bucket, below) in layer.iter().zip(&mut below) {
                let above = *below + bucket.mean;
                points.push((bucket.count > 0).then_some((bucket.x(), *below, above)));
                *below = above;
            }
            let total: f64 = layer.iter().map(|b| b.mean * b.count as f64).sum();
            let count: u64 = layer.iter().map(|b| b.count).sum();
            said.push(format!("{name} {} an update on average", number(total / count.max(1) as f64)));
            figure.drawn.push(Drawn {
                name: name.to_string(),
                colour: colour(n),
                mark: Mark::Area { points },
            });
        }
        let mut notes = Vec::new();
        let mut legend: Vec<Key> = layers
            .iter()
            .enumerate()
            .map(|(n, (name, _))| Key { name, colour: colour(n), dash: None })
            .collect();
        if let Some((key, name)) = panel.dots
            && let Some(series) = track.part.series(key)
        {
            let buckets = series.reduced(self.most);
            let points = buckets.iter().map(|b| (b.count > 0).then_some((b.x(), b.mean))).collect();
            let mark = Mark::Line { points, faint: false, dash: 0 };
            let colour = COLOURS - 1;
            figure.drawn.push(Drawn { name: name.into(), colour, mark });
            legend.push(Key { name, colour, dash: Some(0) });
        }
        let stride = first.iter().map(|b| b.count + b.gaps).max().unwrap_or(1);
        if stride > 1 {
            notes.push(format!("Each place is the mean of {stride} updates."));
        }
        figure.description = said.join("; ");
        self.card(&figure, &title, &legend, reading, &notes)
    }

    fn card(
        &mut self,
        figure: &Figure,
        title: &str,
        legend: &[Key],
        reading: &str,
        notes: &[String],
    ) -> String {
        let svg = figure.draw(&self.next_id());
        if svg.is_empty() {
            return String::new();
        }
        let mut out = String::from("<figure><figcaption>");
        out += &element("h3", title);
        out.push_str("</figcaption>\n<p class=\"legend\">");
        for Key { name, colour, dash } in legend {
            let swatch = match dash {
                Some(dash) => format!("<path class=\"line s{colour} d{dash}\" d=\"M1 6H27\"/>"),
                None => format!("<path class=\"area f{colour}\" d=\"M4 1H24V11H4Z\"/>"),
            };
            // Writing into a String cannot fail, here and below.
            let _ = write!(
                out,
                "<span><svg xmlns=\"http://www.w3.org/2000/svg\" class=\"key\" viewBox=\"0 0 28 12\" \
                 aria-hidden=\"true\">{swatch}</svg>{}</span> ",
                escape(name)
            );
        }
        out.push_str("</p>\n");
        out.push_str(&svg);
        if !reading.is_empty() {
            out += &format!("<p class=\"reading\">{}</p>\n", escape(reading));
        }
        if !notes.is_empty() {
            out += &format!("<p class=\"note\">{}</p>\n", escape(&notes.join(" ")));
        }
        out.push_str("</figure>\n");
        out
    }
}

/// An entry of a legend; an area has no dash.
struct Key<'a> {
    name: &'a str,
    colour: usize,
    dash: Option<usize>,
}

fn headed(out: &mut String, title: &str, figures: &str) {
    if !figures.is_empty() {
        out.push_str(&element("h2", title));
        out.push_str("\n<div class=\"figures\">\n");
        out.push_str(figures);
        out.push_str("</div>\n");
    }
}

fn moved(buckets: &[Bucket], by: f64) -> Vec<Bucket> {
    buckets.iter().map(|b| Bucket { first: b.first + by, last: b.last + by, ..*b }).collect()
}
