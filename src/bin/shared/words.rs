//! Words for people, on stderr; results are output.rs's.

use std::io::Write;

/// Writes a line of words for people, whether or not anybody reads it.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
