//! The one error type. Every message says what, where, what was found, what was expected, and what to do next.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Result with latch's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, grouped by cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // ---- shapes and element types ------------------------------------------------------------
    /// An operand of an operation has the wrong shape.
    #[error("{what}: found {found}, expected {expected}")]
    Shape {
        /// Operation and operand, e.g. `rmsnorm weight`.
        what: String,
        /// The shape or length found.
        found: String,
        /// The shape or length expected.
        expected: String,
    },
    /// An operand has an element type the operation cannot take.
    #[error("{what}: element type {found}, expected {expected}")]
    Dtype {
        /// Operation and operand.
        what: String,
        /// Element type found.
        found: String,
        /// Element types that work.
        expected: String,
    },

    // ---- devices -------------------------------------------------------------------------------
    /// A device is missing, broken, full, or lacks a kernel.
    #[error("{problem}\n       {advice}")]
    Device {
        /// What happened, with numbers.
        problem: String,
        /// What to do next.
        advice: String,
    },

    // ---- files ---------------------------------------------------------------------------------
    /// The operating system refused an operation on a file.
    #[error("{}: {doing}: {source}{}", path.display(), what_next(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, e.g. `cannot open`.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file's contents are wrong.
    #[error("{}: {problem}\n       {advice}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What to do next.
        advice: String,
    },

    // ---- requests ------------------------------------------------------------------------------
    /// A command-line value, recipe key, prompt or data item cannot be used.
    #[error("{what}: {problem}\n       {advice}")]
    Input {
        /// Which input, e.g. `--prompt`.
        what: String,
        /// What was found and what was expected.
        problem: String,
        /// What to do next.
        advice: String,
    },
    /// A number stopped being finite.
    #[error("{what} is not finite: {found}\n       {advice}")]
    NotFinite {
        /// Tensor or quantity.
        what: String,
        /// Where and which value.
        found: String,
        /// What to do next.
        advice: String,
    },
}

/// What to do about an answer of the system, where there is more to do than to look at the path.
fn what_next(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "\n       make room, or write to another place; files that were complete before still are"
        }
        ErrorKind::FileTooLarge => {
            "\n       raise the limit (`ulimit -f` of the shell, or the file system's), or write to another place"
        }
        _ => "",
    }
}

impl Error {
    /// What a command exits with: 2 where the command, its recipe or a file that it names has to change first, 1 where what
    /// was asked for could be done, but failed. (0: all is well; 130: stopped by Ctrl-C.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input { .. } | Error::File { .. } => 2,
            // Names that are wrong, not disks that are full or broken.
            Error::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound
                | ErrorKind::PermissionDenied
                | ErrorKind::IsADirectory
                | ErrorKind::NotADirectory
                | ErrorKind::AlreadyExists
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::InvalidInput
                | ErrorKind::InvalidData => 2,
                _ => 1,
            },
            Error::Shape { .. } | Error::Dtype { .. } | Error::Device { .. } | Error::NotFinite { .. } => 1,
        }
    }

    /// A wrong shape; `found` and `expected` are printed as given.
    pub fn shape(what: impl Into<String>, found: impl ToString, expected: impl ToString) -> Self {
        Error::Shape { what: what.into(), found: found.to_string(), expected: expected.to_string() }
    }

    /// A wrong element type.
    pub fn dtype(what: impl Into<String>, found: impl ToString, expected: impl ToString) -> Self {
        Error::Dtype { what: what.into(), found: found.to_string(), expected: expected.to_string() }
    }

    /// A device problem.
    pub fn device(problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Error::Device { problem: problem.into(), advice: advice.into() }
    }

    /// Wrong contents of a file.
    pub fn file(path: &Path, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Error::File { path: path.to_path_buf(), problem: problem.into(), advice: advice.into() }
    }

    /// Adapter for `map_err` on file operations.
    pub fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, doing, source }
    }

    /// The same of `place`, where it is of `temporary` or something inside: nobody knows a folder that is gone when they read
    /// its name.
    pub fn in_place_of(mut self, temporary: &Path, place: &Path) -> Error {
        if let Error::Io { path, .. } | Error::File { path, .. } = &mut self
            && let Ok(inside) = path.strip_prefix(temporary)
        {
            *path = if inside.as_os_str().is_empty() { place.to_path_buf() } else { place.join(inside) };
        }
        self
    }

    /// An unusable request.
    pub fn input(what: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Error::Input { what: what.into(), problem: problem.into(), advice: advice.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_by_its_place_with_what_to_do() {
        let hidden = Path::new("run/checkpoints/.hidden/checkpoint");
        let full = || std::io::Error::from(ErrorKind::StorageFull);
        let error = Error::io(&hidden.join("model.safetensors"), "cannot write")(full());
        let error = error.in_place_of(hidden, Path::new("run/checkpoints/step-5"));
        let text = error.to_string();
        assert!(text.starts_with("run/checkpoints/step-5/model.safetensors: cannot write: "), "{text}");
        assert!(text.contains("\n       make room"), "{text}");
        assert_eq!(error.exit_code(), 1);
        let folder = Error::io(hidden, "cannot write")(full()).in_place_of(hidden, Path::new("step-5"));
        assert!(folder.to_string().starts_with("step-5: cannot write"), "{folder}");
        // Others are as they were.
        let other =
            Error::io(Path::new("elsewhere"), "cannot open")(std::io::Error::from(ErrorKind::NotFound));
        let text = other.in_place_of(hidden, Path::new("step-5")).to_string();
        assert!(text.starts_with("elsewhere: cannot open: ") && !text.contains("make room"), "{text}");
    }
}
