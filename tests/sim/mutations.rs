//! Mutations of the PTX that ships: each breaks one line of one kernel in the way a programmer would, and the checker
//! must report it, in that kernel, as what it is. The unbroken twin of each runs clean.
//!
//! `mutations.txt` lists them, a line each:
//!
//! ```text
//! stem / entry / what is wrong / line / which / from / to / kind
//! ```
//!
//! Of the entry's lines that contain `line`, that number `which` has `from` replaced by `to` (tabs left out of all).
//! A line that is not there any more fails the test. `kind` is that of the checker's report; `Numbers` marks what no
//! checker can see, an access that is right of a number that is wrong: there the comparison of results must fail.

use crate::parity::{self, gpu};
use latch::base::Dtype;
use latch::device::{Device, SimulatorOptions};
use latch::ops::Tensor;
use latch::ops::linear::{self, Layout, Projection};
use latch::verify::tolerance::Tolerance;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Results of an operation, part by part.
type Values = Vec<Vec<f64>>;

struct Mutation {
    stem: String,
    entry: &'static str,
    what: String,
    line: String,
    which: usize,
    from: String,
    to: String,
    kind: String,
}

/// A file of the repository.
fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn mutations() -> Vec<Mutation> {
    let rows = read("tests/sim/mutations.txt");
    let rows = rows.lines().filter(|row| !row.is_empty() && !row.starts_with('#'));
    rows.map(|row| {
        let fields: Vec<&str> = row.split(" / ").map(str::trim).collect();
        let [stem, entry, what, line, which, from, to, kind] = fields[..] else {
            panic!("eight fields: {row}")
        };
        let [stem, what, line, from, kind] = [stem, what, line, from, kind].map(String::from);
        let to = if to == "nothing" { String::new() } else { to.to_string() };
        let which = which.parse().unwrap_or_else(|_| panic!("a number: {row}"));
        Mutation { stem, entry: entry.to_string().leak(), what, line, which, from, to, kind }
    })
    .collect()
}

impl Mutation {
    fn dtype(&self) -> Dtype {
        if self.entry.contains("bf16") { Dtype::Bf16 } else { Dtype::F32 }
    }

    /// The entry alone, broken, on the lines it has in its file.
    fn broken(&self) -> String {
        let text = read(&format!("ptx/{}.ptx", self.stem));
        let lines: Vec<&str> = text.lines().collect();
        let is_entry = |line: &&str| line.contains(".entry ");
        let head = lines.iter().position(is_entry).expect("a file has entries");
        let own = lines.iter().position(|line| line.contains(&format!(".entry {}(", self.entry)));
        let own = own.unwrap_or_else(|| panic!("ptx/{}.ptx has no {} any more", self.stem, self.entry));
        let end = own + lines[own..].iter().position(|line| *line == "}").expect("an entry ends");
        let mut kept: Vec<String> = lines[..head].iter().map(|line| line.to_string()).collect();
        kept.resize(own, String::new());
        kept.extend(lines[own..=end].iter().map(|line| line.replace('\t', "")));
        let at = (own..=end).filter(|&at| kept[at].contains(&self.line)).nth(self.which - 1);
        let at = at.filter(|&at| kept[at].contains(&self.from)).unwrap_or_else(|| {
            panic!("{} has no `{}` number {} with `{}`", self.entry, self.line, self.which, self.from)
        });
        kept[at] = kept[at].replace(&self.from, &self.to);
        kept.join("\n")
    }

    /// What is wrong with how the mutation was noticed, if anything.
    fn judge(&self, clean: &Values) -> Result<(), String> {
        let replaced = vec![(self.entry, self.broken())];
        let device = Device::simulated_with(SimulatorOptions { replaced, ..Default::default() });
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&self.stem, &device, self.dtype())));
        match outcome {
            Err(payload) => {
                let said = message(&*payload);
                let site = format!("ptx/{}.ptx:", self.stem);
                let here = said.contains(&site) && said.contains(&format!("kernel {},", self.entry));
                if here && kind(&said) == Some(&self.kind) { Ok(()) } else { Err(said) }
            }
            Ok(values) if self.kind == "Numbers" => {
                let differs = |(found, clean): (&Vec<f64>, &Vec<f64>)| {
                    Tolerance::new(self.dtype(), 100, clean).compare("a part", found, clean).is_err()
                };
                if values.iter().zip(clean).any(differs) { Ok(()) } else { Err("the results agree".into()) }
            }
            Ok(_) => Err("not found".into()),
        }
    }
}

/// The message of a panic.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

/// Which kind of fault a report's words are.
fn kind(said: &str) -> Option<&'static str> {
    let kinds = [
        ("without an order to another thread's access", "SharedRace"),
        ("without an order to a thread of another block", "GlobalRace"),
        ("without an order to a thread of its block", "GlobalRace"),
        ("before the cp.async that writes them was waited for", "CopyNotVisible"),
        ("to which a cp.async is under way", "CopyDisturbed"),
        ("of which nobody wrote all", "Uninitialised"),
        ("outside every live allocation", "OutOfBounds"),
        ("outside the block's", "OutOfBounds"),
        ("that is no multiple of", "Misaligned"),
        ("does not name lane", "SyncMask"),
        ("names lane", "SyncMask"),
        ("a barrier", "Barrier"),
    ];
    kinds.iter().find(|(words, _)| said.contains(words)).map(|(_, kind)| *kind)
}

/// A small run of the operation of a stem.
fn run(stem: &str, device: &Device, dtype: Dtype) -> Values {
    match stem {
        "gelu" => parity::gelu::run(device, dtype, 33, 0).to_vec(),
        "swiglu" => parity::swiglu::run(device, dtype, 33, 0).to_vec(),
        "elementwise" => parity::elementwise::run(device, dtype, 33, 0).to_vec(),
        "rmsnorm" => parity::rmsnorm::run(device, dtype, (5, 124), 0..5).to_vec(),
        "layernorm" => parity::layernorm::run(device, dtype, (5, 124), 0..5).to_vec(),
        "masked_residual" => parity::masked_residual::run(device, dtype, (7, 36), true).to_vec(),
        "rope" => parity::rope::run(device, dtype, (5, 3, 10), 0..5).to_vec(),
        "gradient_norm" => {
            let gradient = |n| gpu::exact("gradient", n, Dtype::F32).iter().map(|&x| x as f32).collect();
            let (norm, scale) = parity::gradient_norm::run_on(device, &[17, 4097].map(gradient), 1.0);
            vec![vec![norm.into(), scale.into()]]
        }
        "adamw" => parity::adamw::kernels::run(device, dtype, Dtype::F32, 33, 1),
        "latent" | "scatter" => parity::latent::kernels::small(device, dtype),
        "embedding" => parity::embedding::kernels::small(device, dtype),
        "policy_loss" => parity::policy_loss::small(device),
        "linear" => linear(device, dtype),
        "attention" | "attention_backward" | "attention_decode" => {
            parity::attention::kernels::small(device, dtype)
        }
        other => panic!("no run of {other}"),
    }
}

/// y = x w^T, a ragged tile and more than one.
fn linear(device: &Device, dtype: Dtype) -> Values {
    let tensor =
        |name: &str, rows: usize| gpu::tensor(device, [rows, 72], &gpu::exact(name, rows * 72, dtype), dtype);
    let (x, w) = (tensor("x", 70), tensor("w", 40));
    let mut y = Tensor::zeros(device, [70, 40], dtype).unwrap();
    let projection = Projection { layout: Layout::OutIn, inputs: 72, outputs: 0..40 };
    linear::forward(x.view(), &projection, &w, None, y.view_mut()).unwrap();
    vec![gpu::values(y.view())]
}

#[test]
fn each_mutation_of_a_shipped_kernel_is_reported_and_its_twin_is_clean() {
    let mutations = mutations();
    let mut clean: BTreeMap<(&str, bool), Values> = BTreeMap::new();
    let mut wrong = Vec::new();
    for mutation in &mutations {
        let (stem, dtype) = (mutation.stem.as_str(), mutation.dtype());
        let twin = clean
            .entry((stem, dtype == Dtype::Bf16))
            .or_insert_with(|| run(stem, &Device::open("sim").expect("the simulator needs nothing"), dtype));
        match mutation.judge(twin) {
            Ok(()) => println!("{:<15} {:<30} {}", mutation.kind, mutation.entry, mutation.what),
            Err(said) => wrong.push(format!(
                "{}, {}: expected {}\n    {said}",
                mutation.entry, mutation.what, mutation.kind
            )),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let distinct: BTreeSet<String> =
        mutations.iter().map(|m| format!("{} {} {} {} {}", m.entry, m.line, m.which, m.from, m.to)).collect();
    assert_eq!(distinct.len(), mutations.len(), "a mutation is listed twice");
    let checked: Vec<&Mutation> = mutations.iter().filter(|mutation| mutation.kind != "Numbers").collect();
    let stems: BTreeSet<&str> = checked.iter().map(|mutation| mutation.stem.as_str()).collect();
    println!(
        "{} found by the checker in {} files, {} by their numbers",
        checked.len(),
        stems.len(),
        mutations.len() - checked.len()
    );
    assert!(checked.len() >= 30 && stems.len() >= 10, "{} mutations of {} files", checked.len(), stems.len());
}
