//! Read-only memory maps of model files: the one place that makes them.
#![allow(unsafe_code)]

use crate::base::{Error, Result};
use std::fs::File;
use std::path::Path;

/// The bytes of a file, paged in by the system as they are read.
#[derive(Debug)]
pub struct Mapped {
    map: Option<memmap2::Mmap>,
}

impl Mapped {
    /// Maps the file.
    ///
    /// # Errors
    /// The file cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> Result<Mapped> {
        let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "cannot read the size"))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is no regular file", "expected a file with weights"));
        }
        if metadata.len() == 0 {
            return Ok(Mapped { map: None });
        }
        // SAFETY: the bytes are only ever read as `&[u8]`, for which every value is valid. The promise that nobody
        // shortens or rewrites the file while it is open is the user's, as for every program that maps its model;
        // latch itself replaces files by renaming and never writes into one (save.rs).
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "cannot map"))?;
        Ok(Mapped { map: Some(map) })
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
