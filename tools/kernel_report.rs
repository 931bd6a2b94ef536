//! `kernel_report`: what each shipped kernel would cost a GPU, counted in the simulator at the sizes of real models.

#[path = "kernel_report/counts.rs"]
mod counts;
#[path = "../src/bin/shared/ending.rs"]
mod ending;
#[path = "kernel_report/kernels.rs"]
mod kernels;
#[path = "kernel_report/lines.rs"]
mod lines;
#[path = "../src/bin/shared/output.rs"]
mod output;
#[path = "kernel_report/steps.rs"]
mod steps;
#[path = "kernel_report/verdicts.rs"]
mod verdicts;
#[path = "../src/bin/shared/words.rs"]
mod words;

use clap::{Parser, ValueEnum};
use latch::base::{Dtype, Error, Result};
use latch::model::Precision;
use latch::verify::workloads::bars::{LENGTH, SEQUENCES};
use latch::verify::workloads::{GPT2_SMALL, QWEN, Size, all};
use std::process::ExitCode;
use verdicts::{Extent, Verdicts};

const EXAMPLES: &str = "\
Columns of the kernels:
  sectors   32-byte sectors of device memory requested over the fewest that the requested bytes fill (bar 1.10); a
            number that an id picks from a row of the vocabulary fills one, once
  banks     accesses of shared memory over the fewest that the requests need (bar 1.05)
  tensor    operations on tensor cores over those that the operation's products need (bar: at least 1)
  fma       share of operations beside tensor cores: softmax, scales, epilogues
  local     bytes of local memory (bar 0)
  MB        requested of device memory and its caches; `floor`: each input once, each output once
  A100 ...  microseconds that the operation needs at least by the datasheet: floor over bandwidth, or the products'
            operations over the tensor cores' rate, whichever is longer
A `!` marks what misses its bar, a `~` what misses it by no more than src/verify/workloads/bars.rs lists, with its reason.
A whole report also fails `--check` where a listed miss is none any more, or a shipped kernel is launched by nothing.
Grids of more than 64 blocks run a sample, their corners and 32 others (src/sim/sample.rs), and are scaled; kernels
whose lists lead others about memory run whole.

The cost of masks is judged by the worse of the two: masks drawn, read and applied, forward and backward.
Whole steps are counted block by block on one and on two layers, which gives any number of layers; the head and its draw
come from the table of kernels. `device` counts each sector once a launch: what leaves memory where the level-2 cache
keeps what a launch has read. `requested` counts every request that reaches that cache, most of all a product's few rows
of x, which each block of 32 outputs reads again. The bar (1.15) is on `device` over weights, cache and activations once.

Examples:
  kernel_report --check                                     everything; fails where a bar is missed and not listed
  kernel_report --shape gpt2-small --dtype f32 --only attention
  kernel_report --sequences 2 --length 16 --only rope,swiglu   quick
  kernel_report --dtype bf16 --only 'attention step' --lines 8   where a kernel's surplus comes from";

/// Runs each operation of the shipped kernels in the simulator at a real model's sizes, then whole steps, and prints
/// what they cost beside what they must.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Whose sizes
    #[arg(long, value_enum, default_value = "all")]
    shape: Shape,
    /// f32; bf16 activations and matrices; mixed: bf16 matrices under f32 activations, as models run; hopper: bf16 products on compute capability 9.0
    #[arg(long, value_enum, default_value = "all")]
    dtype: Kind,
    /// Sequences of a training step, and rollouts of one group
    #[arg(long, default_value_t = SEQUENCES)]
    sequences: usize,
    /// Positions of each sequence
    #[arg(long, default_value_t = LENGTH)]
    length: usize,
    /// Only workloads whose names hold one of these; `steps` for whole steps, `masks` for the cost of masks
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print, in place of the tables, so many lines of PTX of each operation: those furthest from the fewest sectors of
    /// device memory and accesses of shared memory
    #[arg(long, value_name = "COUNT", conflicts_with = "check")]
    lines: Option<usize>,
    /// Fail if a bar is missed that the list of known misses does not hold
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    All,
    #[value(name = "gpt2-small")]
    Gpt2Small,
    #[value(name = "qwen2.5-0.5b")]
    Qwen,
}

/// Of activations and matrices.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    All,
    F32,
    Mixed,
    Bf16,
    Hopper,
}

impl Kind {
    /// The activations' dtype, and whether matrices are bf16 beside f32.
    fn dtypes(self) -> (Dtype, bool) {
        match self {
            Kind::Bf16 | Kind::Hopper => (Dtype::Bf16, false),
            Kind::Mixed => (Dtype::F32, true),
            Kind::F32 | Kind::All => (Dtype::F32, false),
        }
    }

    /// How a model of this kind holds numbers.
    fn precision(self) -> Precision {
        match self {
            Kind::Bf16 | Kind::Hopper => Precision::Bf16Activations,
            Kind::Mixed => Precision::Bf16,
            Kind::F32 | Kind::All => Precision::F32,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::All => "all",
            Kind::F32 => "f32",
            Kind::Mixed => "bf16 matrices under f32 activations",
            Kind::Bf16 => "bf16 activations",
            Kind::Hopper => "bf16 activations on compute capability 9.0",
        }
    }

    fn compute_capability(self) -> (u32, u32) {
        if self == Kind::Hopper { (9, 0) } else { (8, 0) }
    }

    /// Whether a workload has a table of its own here: Hopper has kernels of its own for products alone.
    fn differs(self, name: &str) -> bool {
        self != Kind::Hopper || name.starts_with("linear")
    }
}

impl Arguments {
    fn sizes(&self) -> Vec<Size> {
        match self.shape {
            Shape::All => vec![GPT2_SMALL, QWEN],
            Shape::Gpt2Small => vec![GPT2_SMALL],
            Shape::Qwen => vec![QWEN],
        }
    }

    fn kinds(&self) -> Vec<Kind> {
        match self.dtype {
            Kind::All => vec![Kind::F32, Kind::Mixed, Kind::Bf16, Kind::Hopper],
            one => vec![one],
        }
    }

    /// Whether the report leaves nothing out.
    fn extent(&self) -> Extent {
        let all = self.shape == Shape::All && self.dtype == Kind::All && self.only.is_empty();
        match all && (self.sequences, self.length) == (SEQUENCES, LENGTH) {
            true => Extent::Whole,
            false => Extent::Part,
        }
    }

    /// Writes to stdout; false where nobody reads any more and the verdict was not asked for either.
    fn write(&self, text: &str) -> Result<bool> {
        Ok(output::write(text)? || self.check)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

fn main() -> ExitCode {
    ending::ended(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.sequences == 0 || arguments.length < 2 {
        return Err(Error::input(
            "--sequences, --length",
            "too small",
            "give at least 1 sequence of 2 positions",
        ));
    }
    let names: Vec<&str> = all().iter().map(|workload| workload.name).chain(["steps", "masks"]).collect();
    if let Some(part) =
        arguments.only.iter().find(|part| !names.iter().any(|name| name.contains(part.as_str())))
    {
        let advice = format!("names: {}", names.join(", "));
        return Err(Error::input("--only", format!("no workload's name holds `{part}`"), advice));
    }
    let mut verdicts = Verdicts::default();
    for size in arguments.sizes() {
        for kind in arguments.kinds() {
            if let Some(most) = arguments.lines {
                match lines::table(arguments, size, kind, most)? {
                    true => continue,
                    false => return Ok(ExitCode::SUCCESS),
                }
            }
            let table =
                |length, verdicts: &mut Verdicts| kernels::table(arguments, size, kind, length, verdicts);
            let Some(heads) = table(arguments.length, &mut verdicts)? else { return Ok(ExitCode::SUCCESS) };
            let read = match kind {
                // Few positions and many have other tiles.
                Kind::Hopper => table(8 * arguments.length, &mut verdicts)?.is_some(),
                _ => steps::table(arguments, size, kind, &heads, &mut verdicts)?,
            };
            if !read {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    if arguments.lines.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    let extent = arguments.extent();
    output::write(&verdicts.text(extent))?;
    match (arguments.check, verdicts.faults(extent).len()) {
        (true, faults) if faults > 0 => {
            words::say(&format!(
                "error: kernel_report --check: {faults} faults, named above\n       mend the kernel, or list the miss \
                 with its figure and reason in src/verify/workloads/bars.rs"
            ));
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
