//! The report of kernels' costs: a subset at real widths keeps its bars, and a kernel that misses one is named.

use crate::binaries::{refuses, run};
use latch::base::Dtype;
use latch::device::{Device, SimulatorOptions};
use latch::sim::check::Checker;
use latch::verify::workloads::bars::Bar;
use latch::verify::workloads::coverage::gaps;
use latch::verify::workloads::{GPT2_SMALL, Setting, Size, all};
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

/// Small, and yet large enough in the right places for every width of heads and most tiles of products.
const SMALL: Size = Size {
    name: "small",
    width: 256,
    heads: [4, 2],
    head_dim: 64,
    hidden: 6144,
    vocabulary: 2001,
    layers: 2,
};

#[test]
fn every_shipped_kernel_is_launched_by_some_workload() {
    let mut launched = BTreeSet::new();
    let ampere = [(Dtype::F32, false), (Dtype::F32, true), (Dtype::Bf16, false)].map(|of| (of, (8, 0), 35));
    // Hopper has kernels of its own for bf16 products, some of them for many rows.
    for ((dtype, rounded), compute_capability, length) in
        ampere.into_iter().chain([((Dtype::Bf16, false), (9, 0), 128)])
    {
        let hopper = compute_capability == (9, 0);
        for workload in all().into_iter().filter(|workload| !hopper || workload.name.starts_with("linear")) {
            let device = Device::simulated_with(SimulatorOptions {
                observer: Some(Arc::new(Checker::only_counters())),
                sample: true,
                compute_capability,
                ..SimulatorOptions::default()
            });
            // Few rows of a wide head have a tile of their own.
            let vocabulary = if workload.name == "linear forward head" { 16_000 } else { SMALL.vocabulary };
            let size = Size { vocabulary, ..SMALL };
            let setting = Setting { device: &device, size, dtype, rounded, sequences: 8, length };
            let mut work = (workload.make)(&setting).unwrap();
            (work.run)().unwrap();
            let Device::Gpu(launcher) = &device else { unreachable!("a simulated device is a GPU") };
            launcher.synchronise().unwrap();
            launched.extend(launcher.statistics().kernels.iter().map(|kernel| kernel.kernel.entry));
        }
    }
    assert_eq!(gaps(&launched), (vec![], vec![]), "launched by no workload; excused without need");
}

#[test]
fn a_subset_of_the_report_keeps_its_bars() {
    let output = Command::new(env!("CARGO_BIN_EXE_kernel_report"))
        .args(["--check", "--shape", "gpt2-small", "--dtype", "mixed"])
        .args([
            "--only",
            "norm,attention,swiglu,gated,gather,embedding backward,soft_action backward,linear forward step",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in ["attention_decode_d64_f32", "linear_nt_rounded_narrow", "sectors    1.10", "RTX 4090"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// A name that nothing has would check nothing, and pass.
#[test]
fn a_report_of_nothing_is_refused() {
    let output = run(env!("CARGO_BIN_EXE_kernel_report"), &["--check", "--only", "attention step,atention"]);
    refuses(&output, 2, &["--only", "`atention`", "attention step", "masks"]);
}

/// A kernel whose lanes leave out every second piece of 16 bytes asks for twice the sectors that it needs.
#[test]
fn a_kernel_that_strides_misses_its_bar() {
    let text = include_str!("../ptx/elementwise.ptx");
    let begin = text.find(".entry elementwise_scale_f32(").unwrap();
    let strided = text[begin..].replacen("shl.b32 \t%r27, %r26, 2;", "shl.b32 \t%r27, %r26, 3;", 1);
    assert_ne!(strided, text[begin..], "the number of a thread's first element is its own times 4");
    let strided = text[..begin].to_string() + &strided;
    let found = sectors_of("elementwise scale", Vec::new());
    assert!(found <= Bar::Sectors.limit(), "{found}");
    let found = sectors_of("elementwise scale", vec![("elementwise_scale_f32", strided)]);
    assert!((1.9..2.1).contains(&found), "{found}");
}

/// The worst ratio of sectors among a workload's kernels.
fn sectors_of(name: &str, replaced: Vec<(&'static str, String)>) -> f64 {
    let observer = Arc::new(Checker::only_counters());
    let device = Device::simulated_with(SimulatorOptions {
        observer: Some(observer),
        replaced,
        ..SimulatorOptions::default()
    });
    let setting = Setting {
        device: &device,
        size: GPT2_SMALL,
        dtype: Dtype::F32,
        rounded: false,
        sequences: 2,
        length: 8,
    };
    let workload = all().into_iter().find(|workload| workload.name == name).unwrap();
    let mut work = (workload.make)(&setting).unwrap();
    (work.run)().unwrap();
    let Device::Gpu(launcher) = &device else { unreachable!("a simulated device is a GPU") };
    launcher.synchronise().unwrap();
    let kernels = launcher.statistics().kernels;
    kernels.iter().map(|kernel| kernel.counters.traffic.global().ratio()).fold(0.0, f64::max)
}
