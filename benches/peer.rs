//! PyTorch's process (benches/pytorch.py), which answers one request after another.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// PyTorch's process.
pub struct Theirs {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    threads: usize,
}

impl Theirs {
    pub fn start(threads: usize) -> Result<Theirs, Failure> {
        let python = std::env::var("LATCH_PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch.py");
        let check = "import torch, transformers";
        let found = Command::new(&python).args(["-c", check]).stderr(Stdio::null()).status();
        if !found.as_ref().is_ok_and(|status| status.success()) {
            let why = match found {
                Ok(_) => "it cannot import torch and transformers".to_string(),
                Err(error) => error.to_string(),
            };
            return Err(format!(
                "cannot compare: the Python `{python}`: {why}; install them (pip install torch transformers) or set \
                 LATCH_PYTHON to a Python that has them"
            )
            .into());
        }
        let mut child = Command::new(&python)
            .args([script, "--serve", "--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("no pipe to Python")?;
        let from = BufReader::new(child.stdout.take().ok_or("no pipe from Python")?);
        Ok(Theirs { child, to, from, threads })
    }

    /// Asks for `iterations` runs of `name`.
    pub fn ask(&mut self, name: &str, iterations: usize) -> Result<Value, Failure> {
        let request = json!({"name": name, "iterations": iterations, "threads": self.threads});
        writeln!(self.to, "{request}")?;
        self.to.flush()?;
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(format!("the Python process ended while it ran {name}").into());
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer.get("error") {
            Some(error) => Err(format!("PyTorch, {name}: {error}").into()),
            None => Ok(answer),
        }
    }

    /// Milliseconds of each run.
    pub fn times(&mut self, name: &str, iterations: usize) -> Result<Vec<f64>, Failure> {
        let answer = self.ask(name, iterations)?;
        let times = answer["times_ms"].as_array().ok_or("no times_ms in the answer")?;
        Ok(times.iter().filter_map(Value::as_f64).collect())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
