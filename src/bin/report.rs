//! `report RUN`: what happened in a run, as one HTML file.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use latch::base::Result;
use latch::run::report;
use std::path::PathBuf;
use std::process::ExitCode;

/// Draws runs of train as one HTML file that needs neither network nor script.
///
/// It shows what ran, accuracy at each stage, reward, groups, policy, latents and time update by update, and the best and
/// worst samples of the last updates, with how to read each of them. Everything is drawn from the files in the folders; a
/// run may be unfinished, or still under way. Several runs share their figures.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    /// Folder of a run (may be given several times)
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File to write (default: report.html in the folder of the run; several runs need it)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// One JSON object on stdout: the file, and what was missing or could not be read, in numbers and in words
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    ending::ended(run(&Arguments::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<()> {
    let written = report::write(&arguments.runs, arguments.out.as_deref())?;
    if arguments.json {
        return output::write(&format!("{}\n", written.json())).map(drop);
    }
    for problem in &written.problems {
        words::say(&format!("note: {problem}"));
    }
    output::write(&format!("{}\n", written.path.display())).map(drop)
}
