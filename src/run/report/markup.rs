//! Text as markup that reads the same as HTML and as XML: every tag is closed, every text escaped.

use std::fmt::Write;

/// `text` for an element's content or an attribute in double quotes. Control characters, which neither form may hold, and
/// those that turn the direction of writing are shown by visible stand-ins.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c => match stand_in(c) {
                Some(shown) => out.push_str(&shown),
                None => out.push(c),
            },
        }
    }
    out
}

/// What is shown for a character that must not be: control characters, and those that turn the direction of writing.
pub fn stand_in(c: char) -> Option<String> {
    match c {
        // The Unicode pictures of the control characters.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).map(String::from),
        '\u{7f}' => Some('\u{2421}'.into()),
        '\u{80}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => Some('\u{fffd}'.into()),
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            Some(format!("[U+{:04X}]", c as u32))
        }
        _ => None,
    }
}

/// The first `most` characters of `text`, and how many more there are.
pub fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_string(),
        Some((at, _)) => format!("{} … ({} characters more)", &text[..at], text[at..].chars().count()),
    }
}

/// `<tag>text</tag>`, escaped.
pub fn element(tag: &str, text: &str) -> String {
    format!("<{tag}>{}</{tag}>", escape(text))
}

/// A table. Cells that begin like a number stand right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
    for name in header {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(name));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let number = cell.starts_with(|c: char| c.is_ascii_digit() || "+-−<".contains(c));
            let (tag, class) = match (column, number) {
                (0, _) => ("th", " scope=\"row\""),
                (_, true) => ("td", " class=\"number\""),
                (_, false) => ("td", ""),
            };
            let _ = write!(out, "<{tag}{class}>{}</{tag}>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// A number for reading: about four digits, without an exponent where it can be.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if value == 0.0 => return "0".into(),
        s if !(1e-4..1e7).contains(&s) => return format!("{value:.2e}"),
        s if s >= 1000.0 => format!("{value:.0}"),
        s if s >= 100.0 => format!("{value:.1}"),
        s if s >= 10.0 => format!("{value:.2}"),
        s if s >= 1.0 => format!("{value:.3}"),
        s if s >= 0.01 => format!("{value:.4}"),
        _ => format!("{value:.6}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// A share in per cent.
pub fn percent(value: f64) -> String {
    format!("{:.1}", 100.0 * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_markup_or_control_stays() {
        assert_eq!(escape("a<b>&\"c'"), "a&lt;b&gt;&amp;&quot;c&#39;");
        assert_eq!(escape("\0\u{1b}[1m\r\n\t\u{7f}\u{85}"), "␀␛[1m␍\n\t␡\u{fffd}");
        assert_eq!(escape("\u{202e}abc"), "[U+202E]abc");
    }

    #[test]
    fn clipping_counts_characters_not_bytes() {
        assert_eq!(clipped("äöü", 3), "äöü");
        assert_eq!(clipped("äöüß?", 3), "äöü … (2 characters more)");
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (0.5, "0.5"), (1.0, "1"), (12.345, "12.35"), (1234.5, "1234"), (2e-6, "2.00e-6")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
