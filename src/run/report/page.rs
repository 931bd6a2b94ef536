//! The page: its parts in their order, in one file that needs nothing else.

use super::curves::Painter;
use super::markup::{element, escape};
use super::read::Run;
use super::{recipes, tables};
use crate::base::Result;

/// The style sheet; it holds neither `<` nor `&`, which would mean another thing in HTML than in XML.
const STYLE: &str = include_str!("page.css");
/// What tells a report from any other file: overwriting it is no loss.
pub const MARK: &str = "<meta name=\"generator\" content=\"latch report\"/>";

/// The whole page. A recipe that cannot be read is added to its run's problems.
///
/// # Errors
/// A built-in recipe that cannot be read.
pub fn page(runs: &mut [Run]) -> Result<String> {
    let recipes = recipes::table_of(runs)?;
    let runs = &*runs;
    let mut painter = Painter::new(runs);
    let names: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let title = names.join(", ");
    let mut out = format!(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         {MARK}\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(&format!("{title} - latch report"))
    );
    out += &element("h1", &title);
    for run in runs {
        let sentence = tables::sentence(run);
        let words = if runs.len() > 1 { format!("{}: {sentence}", run.label) } else { capital(&sentence) };
        out += &element("p", &words);
        out.push('\n');
    }
    out += &problems(runs);

    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            out += &element("h2", title);
            out.push('\n');
            out += &body;
        }
    };
    section("What ran", tables::ran(runs) + &element("h3", "Recipe") + &recipes);
    let id = painter.next_id();
    let results =
        [tables::models(runs, &id), tables::evaluations(runs), tables::stages(runs), tables::arms(runs)];
    section("Accuracy", results.concat());
    out += &painter.sections(runs, true);
    out += &painter.sections(runs, false);
    out += &tables::samples(runs);
    let costs = tables::costs(runs);
    if !costs.is_empty() {
        out += &element("h2", "Costs");
        out += &costs;
    }
    out += &element("h2", "Files");
    out += "<p class=\"reading\">All of this is drawn from the files in the run's folder alone: metrics.jsonl has every number, \
            samples.jsonl every rollout. Latents themselves are not logged: `inspect` reads them from a model of the run.</p>\n";
    for run in runs {
        let summary = format!("{}: recipe.toml", run.label);
        out += &format!(
            "<details>{}<pre>{}</pre></details>\n",
            element("summary", &summary),
            escape(&run.recipe)
        );
    }
    out += "</main>\n</body>\n</html>\n";
    Ok(out)
}

fn capital(sentence: &str) -> String {
    let mut characters = sentence.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

fn problems(runs: &[Run]) -> String {
    let mut items = String::new();
    for run in runs {
        for problem in &run.problems {
            let words = if runs.len() > 1 { format!("{}: {problem}", run.label) } else { problem.clone() };
            items += &element("li", &words);
        }
    }
    match items.is_empty() {
        true => String::new(),
        false => format!(
            "<div class=\"problems\" role=\"note\"><strong>Missing, not readable or not finite</strong><ul>{items}</ul></div>\n"
        ),
    }
}
