//! Text in cells of a terminal: what may be shown, how wide it is at most, and how it is cut.

use crate::run::report::stand_in;

/// `text` on one line, with visible stand-ins for what would move the cursor, change colours or turn the direction.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => out.push(' '),
            c => match stand_in(c) {
                Some(shown) => out.push_str(&shown),
                None => out.push(c),
            },
        }
    }
    out
}

/// The most cells that a terminal gives to `c`. Where terminals differ (emoji, symbols), the larger number; characters that
/// add to the one before count as one.
fn cells(c: char) -> usize {
    let wide = matches!(c as u32,
        0x1100..=0x115f | 0x231a..=0x231b | 0x2329..=0x232a | 0x23e9..=0x23fa | 0x25fd..=0x25fe
        | 0x2600..=0x27bf | 0x2b05..=0x2b55 | 0x2e80..=0x303f | 0x3041..=0xa4cf | 0xa960..=0xa97c
        | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe10..=0xfe1f | 0xfe30..=0xfe6f | 0xff00..=0xff60
        | 0xffe0..=0xffe6 | 0x1_6fe0..=0x1_b2ff | 0x1_f000..=0x1_faff | 0x2_0000..=0x3_fffd);
    if wide { 2 } else { 1 }
}

/// The most cells that `text`, which is clean, takes.
pub fn width(text: &str) -> usize {
    text.chars().map(cells).sum()
}

/// `text`, which is clean, in at most `most` cells; an ellipsis stands for what is cut off.
pub fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_string();
    }
    let Some(room) = most.checked_sub(1) else { return String::new() };
    let (mut out, mut taken) = (String::new(), 0);
    for c in text.chars() {
        taken += cells(c);
        if taken > room {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_stays() {
        let text = clean("a\u{1b}[31m\r\n\tb\u{7}\u{9b}2J\u{202e}\u{2028}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert_eq!(text, "a␛[31m   b␇\u{fffd}2J[U+202E] ");
    }

    #[test]
    fn cuts_fit_and_keep_what_fits() {
        for text in ["", "a", "abc", "äöüß", "漢字かな", "a漢b字", "😀😀", "↓↑σ…─⣿"]
        {
            for most in 0..10 {
                let cut = cut(text, most);
                assert!(width(&cut) <= most, "{text} {most}: {cut}");
                assert_eq!(cut == text, width(text) <= most, "{text} {most}");
            }
        }
        assert_eq!(cut("a漢b字", 4), "a漢…");
        assert_eq!(width("⣿⡀ 3↓ 5↑ σ ━─ ·"), 15);
    }
}
