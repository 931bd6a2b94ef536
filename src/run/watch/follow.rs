//! A file of lines that grows: what was appended is read, once. A last line without its end is left until it has one; a file
//! that was cut, or replaced by another (a resumed run cuts its files back), is read anew.

use crate::base::{Error, Result};
use crate::run::report::lines;
use std::fs::{File, Metadata};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes before the place that was reached, by which a file that was cut and has grown past it again is recognised: more
/// than a short line, so that there is a time among them, which no second try repeats.
const MARK: usize = 512;

/// What a reader is given.
#[derive(Debug)]
pub enum Piece<'a> {
    /// All lines so far are void: the file begins anew.
    Anew,
    /// A line with its end; its number from 1, where it is known.
    Line(Option<u64>, &'a [u8]),
}

/// A file that is followed.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// Bytes from the end at which reading begins, where the beginning is of no interest.
    window: Option<u64>,
    file: Option<(u64, u64)>,
    seen: Option<(u64, SystemTime)>,
    offset: u64,
    lines: Option<u64>,
    mark: Vec<u8>,
    torn: bool,
}

/// How far a call came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// Whether anything was given to the reader.
    pub news: bool,
    /// Whether there is more to read at once.
    pub more: bool,
}

impl Follower {
    /// Follows `path`, which need not be there yet.
    pub fn new(path: &Path) -> Follower {
        Follower {
            path: path.into(),
            window: None,
            file: None,
            seen: None,
            offset: 0,
            lines: Some(0),
            mark: Vec::new(),
            torn: false,
        }
    }

    /// Reads no more than the last `bytes` of what it has not seen.
    pub fn in_window(self, bytes: u64) -> Follower {
        Follower { window: Some(bytes), ..self }
    }

    /// When the file was written to last, where it is there.
    pub fn modified(&self) -> Option<SystemTime> {
        self.seen.map(|(_, modified)| modified)
    }

    /// Whether the last line has no end (yet).
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// Bytes that were read, and that there are.
    pub fn reached(&self) -> (u64, u64) {
        (self.offset, self.seen.map_or(0, |(length, _)| length))
    }

    /// Gives what was appended to `take`, a line at a time, until about `budget` bytes are read.
    ///
    /// # Errors
    /// The file is there and cannot be read; or those of `take`.
    pub fn poll(&mut self, budget: u64, take: &mut dyn FnMut(Piece) -> Result<()>) -> Result<Came> {
        let path = self.path.clone();
        let cannot = |doing| Error::io(&path, doing);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let news = self.seen.is_some();
                if news {
                    self.begin(take)?;
                    (self.file, self.seen) = (None, None);
                }
                return Ok(Came { news, more: false });
            }
            file => file.map_err(cannot("cannot open"))?,
        };
        let found = file.metadata().map_err(cannot("cannot look at"))?;
        let now = (found.len(), found.modified().map_err(cannot("cannot look at"))?);
        let same = self.file == Some(identity(&found));
        if same && self.seen == Some(now) && (self.offset == now.0 || self.torn) {
            return Ok(Came::default());
        }
        let kept = same && now.0 >= self.offset && self.marked(&mut file).map_err(cannot("cannot read"))?;
        let mut news = false;
        if !kept && self.file.is_some() {
            self.begin(take)?;
            news = true;
        }
        (self.file, self.seen) = (Some(identity(&found)), Some(now));
        let skipped = self.window.map_or(0, |window| now.0.saturating_sub(window));
        let mut partial = false;
        if skipped > self.offset {
            (self.offset, self.lines, partial) = (skipped, None, true);
        }
        file.seek(SeekFrom::Start(self.offset)).map_err(cannot("cannot read"))?;
        // What is appended meanwhile is left for the next call, so that this one ends.
        let mut reader = BufReader::with_capacity(1 << 18, file.take(now.0 - self.offset));
        let mut line = Vec::new();
        let mut spent = 0;
        self.torn = false;
        while spent < budget {
            let (read, ended) = lines::next(&mut reader, &mut line).map_err(cannot("cannot read"))?;
            if !ended {
                self.torn = read > 0;
                return Ok(Came { news, more: false });
            }
            spent += read as u64;
            self.pass(read as u64, &line);
            // The first line after a leap is the end of one.
            if !std::mem::take(&mut partial) {
                take(Piece::Line(self.lines, if read > lines::LONGEST { b"" } else { &line }))?;
                news = true;
            }
        }
        Ok(Came { news, more: self.offset < now.0 })
    }

    /// Notes that a line of `read` bytes, of which `line` holds the beginning, lies behind.
    fn pass(&mut self, read: u64, line: &[u8]) {
        self.offset += read;
        self.lines = self.lines.map(|lines| lines + 1);
        if read > line.len() as u64 {
            // Longer than any line of ours: by its end alone nothing is recognised.
            self.mark.clear();
            return;
        }
        self.mark.extend_from_slice(&line[line.len().saturating_sub(MARK)..]);
        let surplus = self.mark.len().saturating_sub(MARK);
        self.mark.drain(..surplus);
    }

    /// Whether the file holds before the place that was reached what it held then.
    fn marked(&self, file: &mut File) -> std::io::Result<bool> {
        let mut found = vec![0; self.mark.len()];
        file.seek(SeekFrom::Start(self.offset - self.mark.len() as u64))?;
        match file.read_exact(&mut found) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| found == self.mark),
        }
    }

    fn begin(&mut self, take: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        (self.offset, self.lines, self.torn) = (0, Some(0), false);
        self.mark.clear();
        take(Piece::Anew)
    }
}

/// What tells a file from another that took its name.
#[cfg(unix)]
pub fn identity(found: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

/// What tells a file from another that took its name.
#[cfg(not(unix))]
pub fn identity(_: &Metadata) -> (u64, u64) {
    (0, 0)
}
