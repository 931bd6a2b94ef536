//! `doctor`: what latch finds on this machine, and whether it works there.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::Result;
use latch::cpu::parallel;
use latch::run::doctor::{self, Examined, Options};
use latch::run::environment;
use latch::run::terminal::bytes;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Looks at this machine as latch sees it: processor, memory, CUDA driver and cards, and runs a self-test on each device.
///
/// A self-test takes the gradients of two small models through latent steps, with masks and a shared prompt, on the device
/// in f32, and compares them with f64 on the CPU and that with central differences. `sim` runs the kernels of a GPU in
/// software. `verify_grad --device cuda` checks everything, and GPU.md says what else to run on a card.
///
/// Exits with 1 where something that is here does not work, or a device that was asked for is not here.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    /// Device to look at: cpu, sim, cuda or cuda:N (may be given several times; default: all)
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Run no self-tests
    #[arg(long)]
    no_test: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=parallel::MOST))]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let well = parallel::with_threads(arguments.threads, || run(&arguments));
    ending::ended(well.map(|well| if well { ExitCode::SUCCESS } else { ExitCode::from(1) }))
}

/// Whether all is well.
fn run(arguments: &Arguments) -> Result<bool> {
    let machine = environment::machine();
    if !arguments.json {
        output::write(&heading(&machine))?;
    }
    let options =
        Options { devices: arguments.device.clone(), no_test: arguments.no_test, ..Options::default() };
    let (mut well, mut wrong, mut devices, mut written) = (true, false, Vec::new(), Ok(true));
    doctor::examine(&options, &mut |examined: &Examined| {
        well &= examined.is_well();
        wrong |= examined.is_wrong();
        devices.push(examined.json());
        if !arguments.json && written.is_ok() {
            written = output::write(&block(&examined.name, &examined.lines()));
        }
    })?;
    written?;
    if arguments.json {
        let all = json!({"machine": machine, "devices": devices, "well": well});
        output::write(&format!("{all}\n"))?;
    } else if wrong {
        words::say("a self-test failed: latch computes wrong numbers there; please report it with this text");
    }
    Ok(well)
}

fn heading(machine: &Value) -> String {
    let field = |name: &str| match &machine[name] {
        Value::Null => "unknown".to_string(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let lines = [
        format!("{} ({})", field("latch"), field("build")),
        format!("{} on {} {}", field("architecture"), field("os"), field("kernel")),
        format!("{}, {} cores, {} of memory", field("cpu"), field("cores"), memory(&field("memory"))),
    ];
    block("latch", &lines)
}

/// The kernel's number of kibibytes (`24683656 kB`) in larger units.
fn memory(kibibytes: &str) -> String {
    let number = kibibytes.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    number.map_or_else(|| kibibytes.into(), |number| bytes(number << 10))
}

/// Lines beside a name.
fn block(name: &str, lines: &[String]) -> String {
    let name = |index| if index == 0 { name } else { "" };
    lines.iter().enumerate().map(|(index, line)| format!("{:8}{line}\n", name(index))).collect()
}
