//! Peak memory of both sides: on the CPU resident memory of a process that does nothing but the work, on a GPU that of
//! the device's tensors.

use crate::ours::{Count, Ours};
use crate::peer::{Failure, Theirs};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

/// Runs both sides' processes for `name` and gives their line.
pub fn compare(theirs: &mut Theirs, name: &str, threads: usize, count: Count) -> Result<String, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--rss-child", name, "--threads", &threads.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("our measured process ended with {}", output.status).into());
    }
    let line = String::from_utf8(output.stdout)?;
    let ours: Value = serde_json::from_str(&line)?;
    let answer = theirs.ask(&format!("rss/{name}"), 1, count)?;
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
    let (us, them) = (number(&ours, "mib"), number(&answer, "mib"));
    Ok(format!(
        "  peak RSS: ours {us:.1} MiB ({:.1} of tensors), theirs {them:.1} MiB ({:.1} after its imports); ours / theirs {:.3}",
        number(&ours, "tensor_mib"),
        number(&answer, "import_mib"),
        us / them
    ))
}

/// The line of tensors' memory on a GPU: ours as asked for, without the pool's rounding; theirs as the allocator gave it.
pub fn on_gpu(ours: &Ours, theirs: &mut Theirs, name: &str, count: Count) -> Result<String, Failure> {
    let us = ours.bytes(name, count)? as f64 / f64::from(1 << 20);
    let answer = theirs.ask(&format!("peak/{name}"), 1, count)?;
    let them = answer["mib"].as_f64().ok_or("no mib in the answer")?;
    Ok(format!("  peak of tensors: ours {us:.1} MiB, theirs {them:.1} MiB; ours / theirs {:.3}", us / them))
}

/// What the measured process prints of itself, having run work that held `tensor_bytes` of tensors at most.
pub fn report(tensor_bytes: usize) -> Result<String, Failure> {
    let mebibytes = f64::from(1 << 20);
    Ok(json!({"mib": peak_mib()?, "tensor_mib": tensor_bytes as f64 / mebibytes}).to_string())
}

/// VmHWM: the kernel's own mark of this process; exec starts it anew.
fn peak_mib() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| format!("peak memory is read from /proc/self/status: {error}"))?;
    let line =
        status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kibibytes: f64 = line.split_whitespace().nth(1).ok_or("VmHWM has no value")?.parse()?;
    Ok(kibibytes / 1024.0)
}
