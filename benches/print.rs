//! What a bench prints. Where nobody reads any more (`| head`) there is nothing left to measure for: it ends.

#[path = "../src/bin/shared/output.rs"]
mod output;
#[path = "../src/bin/shared/words.rs"]
mod words;

pub use words::say;

/// `println!`, for readers that may go away.
macro_rules! line {
    ($($part:tt)*) => { $crate::print::line(&format!($($part)*)) };
}

/// Writes a line to stdout, or ends the program where that is not possible.
pub fn line(text: &str) {
    match output::write(&format!("{text}\n")) {
        Ok(true) => {}
        Ok(false) => std::process::exit(0),
        Err(error) => {
            say(&format!("error: {error}"));
            std::process::exit(1)
        }
    }
}
