//! Throughput of the GPU's kernels: `cargo bench --bench kernels`. Times on a card; counters in the simulator with
//! `-- --device sim`. README.md beside this file says how to read both.

#[macro_use]
mod print;
mod gpu {
    pub mod count;
    pub mod time;
}

use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::verify::workloads::{GPT2_SMALL, QWEN, Setting, Size, Workload, all};

/// What the command line asks for.
struct Wanted {
    device: String,
    /// Parts of workloads' names; none = all.
    names: Vec<String>,
}

impl Wanted {
    fn read() -> Wanted {
        let mut wanted = Wanted { device: "cuda".into(), names: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--device" => wanted.device = arguments.next().unwrap_or_default(),
                // Cargo's own.
                other if other.starts_with('-') => {}
                name => wanted.names.push(name.to_string()),
            }
        }
        wanted
    }

    fn workloads(&self) -> Vec<Workload> {
        let named =
            |w: &Workload| self.names.is_empty() || self.names.iter().any(|name| w.name.contains(name));
        all().into_iter().filter(named).collect()
    }
}

/// Models' sizes, and dtypes with their names: of activations, and whether matrices are bf16 beside f32.
const SIZES: [Size; 2] = [GPT2_SMALL, QWEN];
const KINDS: [(&str, Dtype, bool); 3] =
    [("f32", Dtype::F32, false), ("bf16 under f32", Dtype::F32, true), ("bf16", Dtype::Bf16, false)];

/// Calls `each` for every size and dtype, with sequences of `length` positions.
fn settings(
    device: &Device,
    length: usize,
    mut each: impl FnMut(&str, &Setting) -> Result<()>,
) -> Result<()> {
    for size in SIZES {
        for (name, dtype, rounded) in KINDS {
            let setting = Setting { device, size, dtype, rounded, sequences: 8, length };
            each(&format!("{} in {name}, 8 sequences of {length} positions", size.name), &setting)?;
        }
    }
    Ok(())
}

fn run(wanted: &Wanted) -> Result<()> {
    if wanted.device == "sim" {
        return gpu::count::table(&wanted.workloads());
    }
    let device = match Device::open(&wanted.device) {
        Ok(device) => device,
        Err(error) => {
            line!("SKIPPED: the kernels' bench needs a CUDA device. {error}");
            line!("`cargo bench --bench kernels -- --device sim` counts in the simulator instead.");
            return Ok(());
        }
    };
    gpu::time::table(&device, &wanted.workloads())
}

fn main() {
    if let Err(error) = run(&Wanted::read()) {
        print::say(&format!("error: {error}"));
        std::process::exit(1);
    }
}
