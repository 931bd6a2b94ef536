//! Figures as SVG: lines, bands, stacked areas and dots over two axes. Colours and dashes are classes of the page's style
//! sheet (`s0` ... strokes, `f0` ... fills, `d1` ... dashes), so that they follow light and dark.

use super::markup::{escape, number};
use super::scale::Scale;
use std::fmt::Write;

/// Size of a figure and the room of its axes, in pixels.
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// A place in values; none = nothing is known there, so that a line breaks.
pub type Points = Vec<Option<(f64, f64)>>;

/// Something drawn.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A line, or a dot where a value stands alone.
    Line {
        /// Its places.
        points: Points,
        /// Whether it stands back behind others.
        faint: bool,
        /// Which dashes; 0 = none.
        dash: usize,
    },
    /// The area between two lines: lowest and highest of each place.
    Band {
        /// Place, lower and upper value.
        points: Vec<Option<(f64, f64, f64)>>,
    },
    /// The same, as a layer of a stack.
    Area {
        /// Place, lower and upper value.
        points: Vec<Option<(f64, f64, f64)>>,
    },
    /// Dots.
    Dots {
        /// Their places.
        points: Vec<(f64, f64)>,
    },
    /// Crosses on the lower axis where a value is not finite.
    Gaps {
        /// Their places.
        places: Vec<f64>,
    },
}

/// A mark with its name and its colour.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// What a pointer over it says.
    pub name: String,
    /// Number of its colour.
    pub colour: usize,
    /// The mark.
    pub mark: Mark,
}

/// One figure.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    /// Its title, for readers that do not see.
    pub title: String,
    /// What it shows, in words, for the same.
    pub description: String,
    /// What stands along the lower axis.
    pub x_label: String,
    /// Whether the upright axis begins at 0.
    pub from_zero: bool,
    /// Values above it are drawn at the upper edge.
    pub ceiling: Option<f64>,
    /// What is drawn, the first at the back.
    pub drawn: Vec<Drawn>,
}

impl Figure {
    /// The range of each axis; none where there is nothing to draw.
    fn ranges(&self) -> Option<[(f64, f64); 2]> {
        let mut ranges: Option<[(f64, f64); 2]> = None;
        let mut hold = |x: f64, y: f64| {
            let [(x0, x1), (y0, y1)] = ranges.unwrap_or([(x, x), (y, y)]);
            ranges = Some([(x0.min(x), x1.max(x)), (y0.min(y), y1.max(y))]);
        };
        let mut gaps: Vec<f64> = Vec::new();
        for drawn in &self.drawn {
            match &drawn.mark {
                Mark::Line { points, .. } => points.iter().flatten().for_each(|&(x, y)| hold(x, y)),
                Mark::Band { points } | Mark::Area { points } => {
                    for &(x, low, high) in points.iter().flatten() {
                        hold(x, low);
                        hold(x, high);
                    }
                }
                Mark::Dots { points } => points.iter().for_each(|&(x, y)| hold(x, y)),
                Mark::Gaps { places } => gaps.extend(places),
            }
        }
        let [(mut x0, mut x1), (mut y0, mut y1)] = ranges?;
        for x in gaps {
            (x0, x1) = (x0.min(x), x1.max(x));
        }
        y1 = self.ceiling.map_or(y1, |ceiling| y1.min(ceiling));
        if self.from_zero {
            (y0, y1) = (y0.min(0.0), y1.max(0.0));
        }
        // What is never below 0 and always 0 lies on the axis.
        if self.from_zero && y0 == y1 {
            y1 = 1.0;
        }
        Some([(x0, x1), (y0, y1)])
    }

    /// The figure; empty where there is nothing to draw. `id` is unlike that of any other figure of the page.
    pub fn draw(&self, id: &str) -> String {
        let Some([(x0, x1), (y0, y1)]) = self.ranges() else { return String::new() };
        // A place alone stands in the middle, between its neighbours that would be.
        let (x0, x1) = if x1 > x0 { (x0, x1) } else { (x0 - 1.0, x1 + 1.0) };
        let x = Scale::new(x0, x1, LEFT, WIDTH - RIGHT);
        let y = Scale::new(y0, y1, HEIGHT - BOTTOM, TOP + 4.0).below(self.ceiling);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\n",
            escape(&self.title),
            escape(&self.description)
        );
        self.axes(&mut out, &x, &y);
        for drawn in &self.drawn {
            // Writing into a String cannot fail, here and below.
            let _ = write!(out, "<g><title>{}</title>", escape(&drawn.name));
            draw(&mut out, drawn, &x, &y);
            out.push_str("</g>\n");
        }
        out.push_str("</svg>\n");
        out
    }

    fn axes(&self, out: &mut String, x: &Scale, y: &Scale) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, label) in y.ticks(5, false) {
            let at = y.place(value);
            let class = if value == 0.0 { "zero" } else { "grid" };
            let _ = writeln!(
                out,
                "<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{right}\"/>\
                 <text class=\"y\" x=\"{:.1}\" y=\"{at:.1}\" dy=\"0.35em\">{label}</text>",
                LEFT - 7.0
            );
        }
        let _ = writeln!(out, "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>");
        for (value, label) in x.ticks(6, true) {
            let at = x.place(value);
            let _ = writeln!(
                out,
                "<path class=\"axis\" d=\"M{at:.1} {bottom}v4\"/>\
                 <text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>",
                bottom + 17.0
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 5.0,
            escape(&self.x_label)
        );
    }
}

fn draw(out: &mut String, drawn: &Drawn, x: &Scale, y: &Scale) {
    let colour = drawn.colour;
    match &drawn.mark {
        Mark::Line { points, faint, dash } => {
            let faint = if *faint { " faint" } else { "" };
            for stretch in points.split(Option::is_none).filter(|stretch| !stretch.is_empty()) {
                let places: Vec<(f64, f64)> = stretch.iter().flatten().copied().collect();
                if let [(px, py)] = places[..] {
                    let (px, py) = (x.place(px), y.place(py));
                    let _ = write!(
                        out,
                        "<circle class=\"f{colour}{faint}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.5\"/>"
                    );
                    continue;
                }
                let _ = write!(out, "<polyline class=\"line s{colour} d{dash}{faint}\" points=\"");
                listed(out, places.into_iter(), x, y);
                out.push_str("\"/>");
            }
        }
        Mark::Band { points } => area(out, points, &format!("band f{colour}"), x, y),
        Mark::Area { points } => area(out, points, &format!("area f{colour}"), x, y),
        Mark::Dots { points } => {
            for &(px, py) in points {
                let name = format!("{}: {} at {}", drawn.name, number(py), number(px));
                let (px, py) = (x.place(px), y.place(py));
                let _ = write!(
                    out,
                    "<circle class=\"dot f{colour}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\"><title>{}</title></circle>",
                    escape(&name)
                );
            }
        }
        Mark::Gaps { places } => {
            for &place in places {
                let (px, py) = (x.place(place), HEIGHT - BOTTOM);
                let _ = write!(
                    out,
                    "<path class=\"gap s{colour}\" d=\"M{:.1} {:.1}l7 7m0 -7l-7 7\"/>",
                    px - 3.5,
                    py - 3.5
                );
            }
        }
    }
}

fn listed(out: &mut String, places: impl Iterator<Item = (f64, f64)>, x: &Scale, y: &Scale) {
    for (n, (px, py)) in places.enumerate() {
        let space = if n == 0 { "" } else { " " };
        let _ = write!(out, "{space}{:.1},{:.1}", x.place(px), y.place(py));
    }
}

fn area(out: &mut String, points: &[Option<(f64, f64, f64)>], class: &str, x: &Scale, y: &Scale) {
    for stretch in points.split(Option::is_none).filter(|stretch| !stretch.is_empty()) {
        let mut places: Vec<(f64, f64, f64)> = stretch.iter().flatten().copied().collect();
        if let [(px, low, high)] = places[..] {
            // A place alone gets a width, or nothing would be seen of it.
            places = vec![(px - 0.4, low, high), (px + 0.4, low, high)];
        }
        let _ = write!(out, "<polygon class=\"{class}\" points=\"");
        listed(out, places.iter().map(|&(px, _, high)| (px, high)), x, y);
        out.push(' ');
        listed(out, places.iter().rev().map(|&(px, low, _)| (px, low)), x, y);
        out.push_str("\"/>");
    }
}

/// A row of [`intervals`].
#[derive(Clone, Debug)]
pub struct Interval {
    /// What it is of.
    pub name: String,
    /// Number of its colour.
    pub colour: usize,
    /// The value, and the ends of its interval.
    pub value: [f64; 3],
}

/// Values with their intervals, one below the other, over an axis in per cent.
pub fn intervals(rows: &[Interval], title: &str, id: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let (left, step) = (190.0, 26.0);
    let (width, bottom) = (720.0, TOP + step * rows.len() as f64);
    let all = || rows.iter().flat_map(|row| row.value);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let x = Scale::new(100.0 * low, 100.0 * high, left + 12.0, width - 24.0);
    let description: Vec<String> = rows
        .iter()
        .map(|row| {
            let [value, low, high] = row.value.map(|value| 100.0 * value);
            format!("{}: {value:.1} % [{low:.1}, {high:.1}]", row.name)
        })
        .collect();
    let mut out = format!(
        "<svg class=\"broad\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {:.0}\" role=\"img\" \
         aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\n",
        bottom + BOTTOM,
        escape(title),
        escape(&description.join("; "))
    );
    for (value, label) in x.ticks(6, false) {
        let at = x.place(value);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/><text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>",
            bottom + 17.0
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">right answers, %</text>",
        (left + width) / 2.0,
        bottom + 34.0
    );
    for (n, row) in rows.iter().enumerate() {
        let at = TOP + step * (n as f64 + 0.5);
        let [value, low, high] = row.value.map(|value| x.place(100.0 * value));
        let colour = row.colour;
        let _ = writeln!(
            out,
            "<g><title>{}</title><text class=\"y\" x=\"{left}\" y=\"{at:.1}\" dy=\"0.35em\">{}</text>\
             <path class=\"line s{colour}\" d=\"M{low:.1} {at:.1}H{high:.1}\"/>\
             <circle class=\"dot f{colour}\" cx=\"{value:.1}\" cy=\"{at:.1}\" r=\"4.5\"/></g>",
            escape(&description[n]),
            escape(&short(&row.name))
        );
    }
    out.push_str("</svg>\n");
    out
}

/// A name that fits beside the rows.
fn short(name: &str) -> String {
    match name.char_indices().nth(28) {
        None => name.to_string(),
        Some((at, _)) => format!("{}…", &name[..at]),
    }
}
