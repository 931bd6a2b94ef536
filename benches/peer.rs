//! PyTorch's process (benches/pytorch.py), which answers one request after another.

use crate::ours::Count;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long imports are waited for.
const IMPORTS: Duration = Duration::from_secs(300);

/// PyTorch's process.
pub struct Theirs {
    child: Child,
    to: ChildStdin,
    answers: Receiver<std::io::Result<String>>,
    python: String,
    threads: usize,
    /// How long an answer is waited for; then the process is ended.
    patience: Duration,
    answered: bool,
}

/// The script where this was built, else where a copy of the binary was carried with it: under the current folder.
fn script() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pytorch.py");
    if built.exists() { built } else { "benches/pytorch.py".into() }
}

impl Theirs {
    /// Starts the process and does not wait for its imports.
    pub fn start(device: &str, threads: usize, patience: Duration) -> Result<Theirs, Failure> {
        let python = std::env::var("LATCH_PYTHON").unwrap_or_else(|_| "python3".into());
        let mut child = Command::new(&python)
            .arg(script())
            .args(["--serve", "--device", device, "--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| missing(&python, &error.to_string()))?;
        let to = child.stdin.take().ok_or("no pipe to Python")?;
        let from = BufReader::new(child.stdout.take().ok_or("no pipe from Python")?);
        let (send, answers) = channel();
        // Ends with the process's output, or when nobody listens any more.
        std::thread::spawn(move || from.lines().try_for_each(|line| send.send(line)));
        Ok(Theirs { child, to, answers, python, threads, patience, answered: false })
    }

    /// Asks for `iterations` runs of `name`.
    pub fn ask(&mut self, name: &str, iterations: usize, count: Count) -> Result<Value, Failure> {
        let request = json!({"name": name, "iterations": iterations, "threads": self.threads,
            "rollouts": count.rollouts, "prompts": count.prompts});
        let sent = writeln!(self.to, "{request}").and_then(|()| self.to.flush());
        // Before the first answer come the imports, which a cold disk makes slow.
        let patience = if self.answered { self.patience } else { self.patience.max(IMPORTS) };
        let answer = match sent {
            Ok(()) => self.answers.recv_timeout(patience),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        let line = match answer {
            Ok(line) => line?,
            Err(RecvTimeoutError::Timeout) => {
                // A late answer would be taken for that of the next request.
                self.child.kill()?;
                return Err(
                    format!("PyTorch, {name}: no answer within {patience:?}; its process was ended").into()
                );
            }
            Err(RecvTimeoutError::Disconnected) if self.answered => {
                return Err(format!("PyTorch, {name}: its process has ended").into());
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(missing(
                    &self.python,
                    "it ended before its first answer (its reason stands above)",
                ));
            }
        };
        self.answered = true;
        let answer: Value = serde_json::from_str(&line)?;
        match answer.get("error") {
            Some(error) => Err(format!("PyTorch, {name}: {error}").into()),
            None => Ok(answer),
        }
    }

    /// Milliseconds of each run.
    pub fn times(&mut self, name: &str, iterations: usize, count: Count) -> Result<Vec<f64>, Failure> {
        let answer = self.ask(name, iterations, count)?;
        let times = answer["times_ms"].as_array().ok_or("no times_ms in the answer")?;
        Ok(times.iter().filter_map(Value::as_f64).collect())
    }
}

fn missing(python: &str, why: &str) -> Failure {
    format!(
        "cannot compare: the Python `{python}`: {why}; install torch and transformers (pip install torch transformers) or \
         set LATCH_PYTHON to a Python that has them"
    )
    .into()
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
