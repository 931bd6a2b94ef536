//! Lines of a file that a run may still be writing, or left torn: read one by one, never held together.

use crate::base::{Error, Result};
use crate::run::metrics::SCHEMA;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Longest line that is read; a longer one is counted as malformed and passed over.
pub const LONGEST: usize = 16 << 20;

/// The most bytes read of a file that is read whole.
pub const WHOLE: u64 = 64 << 20;

/// A JSON object; else why it is none.
///
/// # Errors
/// In words, what the text is.
pub fn object(text: &str) -> std::result::Result<Value, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(value) if value.is_object() => Ok(value),
        Ok(_) => Err("is no JSON object; left out".into()),
        Err(error) => Err(format!("is not JSON ({error}); left out")),
    }
}

/// Why a file of so many bytes is not read whole.
pub fn too_large(bytes: u64) -> String {
    format!("has {bytes} bytes, more than a run writes; left out")
}

/// What reading a file came across besides good lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The last line has no end.
    pub torn: bool,
    /// Lines that could not be read.
    pub malformed: u64,
    /// The number of the first of them, from 1.
    pub first: Option<u64>,
    /// The first line is no header.
    pub headless: bool,
}

/// Gives each line after the header to `take` with its number (the header is line 1), which says whether it could be read.
///
/// # Errors
/// The file cannot be read, or its header names another schema.
pub fn each(path: &Path, mut take: impl FnMut(u64, &[u8]) -> bool) -> Result<Faults> {
    let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut faults, mut line, mut number) = (Faults::default(), Vec::new(), 0);
    loop {
        let (read, ended) = next(&mut reader, &mut line).map_err(Error::io(path, "cannot read"))?;
        if read == 0 {
            break;
        }
        number += 1;
        if !ended {
            faults.torn = true;
            break;
        }
        if number == 1 {
            match header(path, &line)? {
                true => continue,
                false => faults.headless = true,
            }
        }
        if read > LONGEST || !take(number, &line) {
            faults.malformed += 1;
            faults.first.get_or_insert(number);
        }
    }
    Ok(faults)
}

/// Reads a line into `line`, of which it keeps no more than the longest: its bytes, and whether it has its end.
pub fn next(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<(usize, bool)> {
    line.clear();
    let mut read = 0;
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok((read, false));
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        if read <= LONGEST {
            line.extend_from_slice(&buffer[..taken]);
        }
        read += taken;
        reader.consume(taken);
        if end.is_some() {
            return Ok((read, true));
        }
    }
}

/// Whether the first line is a header.
///
/// # Errors
/// It names another schema.
pub fn header(path: &Path, line: &[u8]) -> Result<bool> {
    let value: Value = serde_json::from_slice(line).unwrap_or(Value::Null);
    match value.get("schema").map(|schema| (schema.as_u64(), schema)) {
        None => Ok(false),
        Some((Some(SCHEMA), _)) => Ok(true),
        Some((_, found)) => Err(Error::file(
            path,
            format!("line 1 names schema {found}, expected {SCHEMA}"),
            "use the version of latch that wrote the run (environment.json names it)",
        )),
    }
}
