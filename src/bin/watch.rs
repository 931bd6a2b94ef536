//! `watch RUN`: a run as it goes on, in the terminal, from the files in its folder.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use latch::base::Result;
use latch::base::terminal::{Keys, size};
use latch::run::terminal::plain;
use latch::run::watch::{Watch, draw};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How often the folder is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long keys and Ctrl-C may wait.
const PATIENCE: Duration = Duration::from_millis(200);
/// Columns where stdout is no terminal.
const COLUMNS: usize = 120;
/// Another screen, and its cursor hidden; both as they were.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows a run of train as it goes on: which part it is in, curves, its last step line, samples, checkpoints, what is left.
///
/// It reads the files in the folder and nothing else, so it works over ssh and beside the run, and may begin before it or
/// after. In a terminal it follows the run until the run has ended, or q or Ctrl-C is pressed, and leaves the last view with
/// the closing table behind. Where stdout is no terminal, or one that is to be given lines alone (NO_COLOR, TERM=dumb), and
/// with --json, it shows the run once.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    /// Folder of a run
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Shows the run once, and ends
    #[arg(long)]
    once: bool,
    /// Follows the run also where it would be shown once: again whenever something was written
    #[arg(long, conflicts_with = "once")]
    follow: bool,
    /// Stays when the run has ended, in case it goes on
    #[arg(long, conflicts_with = "once")]
    keep: bool,
    /// One JSON object on stdout, on one line
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    ending::ended(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut watch = Watch::open(&arguments.run)?;
    let on_terminal = std::io::stdout().is_terminal() && !plain(|name| std::env::var_os(name));
    let live = on_terminal && !arguments.once && !arguments.json;
    match live {
        true => follow(arguments, &mut watch),
        false => print(arguments, &mut watch),
    }
}

/// Reads all there is.
fn read(watch: &mut Watch) -> Result<bool> {
    let mut news = false;
    loop {
        let came = watch.poll(SystemTime::now())?;
        news |= came.news;
        if !came.more {
            return Ok(news);
        }
    }
}

/// Without control codes: once, or whenever something is new.
fn print(arguments: &Arguments, watch: &mut Watch) -> Result<ExitCode> {
    read(watch)?;
    loop {
        let facts = watch.facts(SystemTime::now());
        let last = !arguments.follow || watch.ended() && !arguments.keep;
        let text = match arguments.json {
            true => format!("{}\n", facts.json()),
            false => {
                let columns = size(std::io::stdout()).map_or(COLUMNS, |(columns, _)| columns);
                let closing =
                    watch.closing().filter(|_| last).map_or_else(String::new, |text| format!("\n{text}"));
                format!("{}\n{closing}", draw(&facts, columns, None).join("\n"))
            }
        };
        if !output::write(&text)? || last {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(EVERY);
        while !read(watch)? {
            thread::sleep(EVERY);
        }
        if !arguments.json && !output::write("\n")? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The terminal while it is drawn in: as it was when this is dropped.
struct Canvas {
    keys: Option<Keys>,
}

impl Canvas {
    fn new() -> Result<Canvas> {
        output::write(ENTER)?;
        Ok(Canvas { keys: Keys::of_stdin() })
    }

    /// Waits for a while; whether it is time to go.
    fn wait(&self) -> bool {
        match self.keys.as_ref().map(Keys::next) {
            Some(Some(key)) => key == b'q',
            // A terminal that is gone gives nothing at once.
            Some(None) => {
                thread::sleep(PATIENCE / 10);
                false
            }
            None => {
                thread::sleep(PATIENCE);
                false
            }
        }
    }
}

impl Drop for Canvas {
    fn drop(&mut self) {
        let _ = output::write(LEAVE);
    }
}

/// Draws in place until the run has ended, or somebody has seen enough.
fn follow(arguments: &Arguments, watch: &mut Watch) -> Result<ExitCode> {
    let canvas = Canvas::new()?;
    let stop = on_interrupt(&canvas);
    let (mut shown, mut looked, mut drawn) = (String::new(), None::<Instant>, None);
    let ending = loop {
        if stop.load(Ordering::Relaxed) {
            break ExitCode::from(130);
        }
        let (columns, rows) = size(std::io::stdout()).unwrap_or((80, 24));
        let due = looked.is_none_or(|looked| looked.elapsed() >= EVERY);
        if due || drawn != Some((columns, rows)) {
            let more = due && watch.poll(SystemTime::now())?.more;
            looked = if more { None } else { looked.filter(|_| !due).or(Some(Instant::now())) };
            let lines = draw(&watch.facts(SystemTime::now()), columns, Some(rows));
            // Each line is cleared before it is written: what stands in the last column stays.
            let text: Vec<String> = lines.iter().map(|line| format!("\x1b[2K{line}")).collect();
            let below = if text.len() < rows { "\r\n\x1b[J" } else { "" };
            let text = format!("\x1b[H{}{below}", text.join("\r\n"));
            if (text != shown || drawn != Some((columns, rows))) && !output::write(&text)? {
                break ExitCode::SUCCESS;
            }
            (shown, drawn) = (text, Some((columns, rows)));
            if more {
                continue;
            }
            if watch.ended() && !arguments.keep {
                break ExitCode::SUCCESS;
            }
        }
        if canvas.wait() {
            break ExitCode::SUCCESS;
        }
    };
    drop(canvas);
    let columns = size(std::io::stdout()).map_or(80, |(columns, _)| columns);
    let lines = draw(&watch.facts(SystemTime::now()), columns, None);
    let closing = watch.closing().map_or_else(String::new, |text| format!("\n{text}"));
    output::write(&format!("{}\n{closing}", lines.join("\n")))?;
    Ok(ending)
}

/// Ctrl-C: leaves the screen as it was. Twice, where a file system does not answer: at once.
fn on_interrupt(canvas: &Canvas) -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (flag, saved) = (interrupted.clone(), canvas.keys.as_ref().map(Keys::saved));
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            let _ = output::write(LEAVE);
            if let Some(saved) = &saved {
                saved.restore();
            }
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        words::say(&format!("warning: Ctrl-C may leave the terminal as it is: {error}"));
    }
    interrupted
}
