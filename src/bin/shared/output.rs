//! What a command writes: results on stdout (words for people are words.rs's). A reader that has gone away (`| head`) is
//! no failure, and no reason to stop what a command does beside writing; a full disk is one.

use latch::base::{Error, Result};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Writes to stdout at once; false where nobody reads any more.
///
/// # Errors
/// Stdout is a file, and the disk refuses.
pub fn write(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io(Path::new("stdout"), "cannot write")(error)),
    }
}
