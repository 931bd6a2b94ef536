//! A small file that is replaced as a whole: read again when it is another one.

use super::follow::identity;
use crate::base::{Error, Result};
use crate::run::report::lines;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A small file, as what it says.
#[derive(Debug)]
pub struct Small<T> {
    path: PathBuf,
    seen: Option<((u64, u64), u64, SystemTime)>,
    /// What it says; nothing where it is not there or says nothing that can be read.
    pub value: Option<T>,
    /// Why it cannot be read.
    pub problem: Option<String>,
}

impl<T> Small<T> {
    /// The file at `path`, not looked at yet.
    pub fn new(path: &Path) -> Small<T> {
        Small { path: path.into(), seen: None, value: None, problem: None }
    }

    /// When it was written.
    pub fn modified(&self) -> Option<SystemTime> {
        self.seen.map(|(.., modified)| modified)
    }

    /// Reads the file where it is another one than before; whether it was.
    ///
    /// # Errors
    /// It is there and the system does not give it.
    pub fn look(&mut self, read: impl FnOnce(&str) -> std::result::Result<T, String>) -> Result<bool> {
        let path = &self.path;
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let news = self.seen.is_some();
                (self.seen, self.value, self.problem) = (None, None, None);
                return Ok(news);
            }
            found => found.map_err(Error::io(path, "cannot look at"))?,
        };
        let modified = found.modified().map_err(Error::io(path, "cannot look at"))?;
        let now = Some((identity(&found), found.len(), modified));
        if self.seen == now {
            return Ok(false);
        }
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let said = match found.len() > lines::WHOLE {
            true => Err(lines::too_large(found.len())),
            false => match fs::read(path) {
                // Replaced just now.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                bytes => read(&String::from_utf8_lossy(&bytes.map_err(Error::io(path, "cannot read"))?)),
            },
        };
        self.seen = now;
        (self.value, self.problem) = match said {
            Ok(value) => (Some(value), None),
            Err(problem) => (None, Some(format!("{name}: {problem}"))),
        };
        Ok(true)
    }
}
