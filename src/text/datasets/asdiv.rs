//! ASDiv's XML.

use super::{Found, Items, normal_answer};
use crate::base::Result;
use crate::text::Problem;
use roxmltree::{Document, Node};

/// Reads every `Problem` element.
pub(super) fn read(text: &str, items: &mut Items) -> Result<()> {
    let document = Document::parse(text)
        .map_err(|error| items.broken(error.pos().row as usize, &format!("is not valid XML: {error}")))?;
    let problems = document.descendants().filter(|node| node.has_tag_name("Problem"));
    for (index, node) in problems.enumerate() {
        let line = || document.text_pos_at(node.range().start).row as usize;
        items.take(index + 1, line, problem(node))?;
    }
    Ok(())
}

fn problem(node: Node) -> Found {
    let child = |tag: &str| -> std::result::Result<&str, String> {
        let found = node.children().find(|child| child.has_tag_name(tag)).and_then(|child| child.text());
        found.map(str::trim).ok_or_else(|| {
            format!("problem {} has no text in <{tag}>", node.attribute("ID").unwrap_or("without ID"))
        })
    };
    let question = format!("{} {}", child("Body")?, child("Question")?);
    Ok(Problem { question, steps: Vec::new(), answer: answer(child("Answer")?) })
}

/// `9 (apples)` is 9. Several parts, `5 (ft); 6 (ft)`, are `5; 6`: one text, which only the strict extractor compares.
fn answer(text: &str) -> String {
    let parts: Vec<String> = text.split(';').map(|part| normal_answer(without_unit(part.trim()))).collect();
    parts.join("; ")
}

/// A unit is a last group in brackets with white space before it; `-(1/3)` has none.
fn without_unit(part: &str) -> &str {
    match part.rsplit_once('(') {
        Some((value, unit)) if unit.ends_with(')') && value.ends_with(char::is_whitespace) => {
            value.trim_end()
        }
        _ => part,
    }
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[test]
    fn units_are_dropped_and_parts_kept() {
        for (text, expected) in [
            ("9 (apples)", "9"),
            ("14  (seats)", "14"),
            ("8 (ft); 128 (sq. ft)", "8; 128"),
            ("3.50 (dollars); 1,800 (dollars)", "3.5; 1800"),
            ("11; 12; 13", "11; 12; 13"),
            ("-(1/3)", "-(1/3)"),
            ("5/2", "5/2"),
            ("3:30 p.m.", "3:30 p.m."),
            ("383", "383"),
            ("They are equal", "They are equal"),
        ] {
            assert_eq!(answer(text), expected);
        }
    }
}
