//! What a run ran on: enough to tell why two runs differ.

use crate::cpu::parallel;
use crate::device::Device;
use crate::ops;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// The environment of this process, for environment.json. What cannot be found out is null.
pub fn capture(device: &Device) -> Value {
    let mut all = machine();
    all["device"] = device.name().into();
    all
}

/// The same without a device.
pub fn machine() -> Value {
    json!({
        "latch": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "git_commit": git_commit(),
        "os": std::env::consts::OS,
        "kernel": read_line("/proc/sys/kernel/osrelease"),
        "architecture": std::env::consts::ARCH,
        "cpu": field("/proc/cpuinfo", "model name"),
        "vectors": ops::vector_instructions(),
        "cores": std::thread::available_parallelism().ok().map(|cores| cores.get()),
        "threads": parallel::threads(),
        "memory": field("/proc/meminfo", "MemTotal"),
    })
}

fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

/// The first `name : value` of a file of the kernel.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_string())
}

/// The commit of the working folder, when it is in a repository and git is there; `+` marks changed files.
fn git_commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}+") })
}
