//! How a command ends: one rule of exit codes for all commands.

use latch::base::Result;
use std::process::ExitCode;

/// The exit code of a command that came to `result`; an error is said. See [`latch::base::Error::exit_code`].
pub fn ended(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        crate::words::say(&format!("error: {error}"));
        ExitCode::from(error.exit_code())
    })
}
