//! The table of kernels: every operation at one model's sizes in one dtype.

use super::counts::{Seen, Spent, device, total};
use super::verdicts::Verdicts;
use super::{Arguments, Kind};
use latch::base::Result;
use latch::sim::counters::Class;
use latch::verify::workloads::bars::{Subject, sectors, tensor, verdicts};
use latch::verify::workloads::{Setting, Size, Work, all};

/// A card's datasheet: GB/s, and TFLOP/s of dense bf16 on tensor cores with f32 sums.
const CARDS: [(&str, f64, f64); 3] =
    [("A100", 2039.0, 312.0), ("H100", 3350.0, 989.0), ("RTX 4090", 1008.0, 165.0)];

/// What a whole step adds to its layers: bytes requested, bytes moved, and the floor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    pub requested: u64,
    pub device: u64,
    pub floor: u64,
}

/// What the head and the draw of a token cost.
#[derive(Default)]
pub struct Heads {
    pub head: Extra,
    pub draw: Extra,
}

/// Prints the table for sequences of `length` positions, and returns what whole steps need of it; nothing where nobody
/// reads any more.
pub fn table(
    arguments: &Arguments,
    size: Size,
    kind: Kind,
    length: usize,
    verdicts: &mut Verdicts,
) -> Result<Option<Heads>> {
    let (dtype, rounded) = kind.dtypes();
    let mut heads = Heads::default();
    let needed = |name: &str| arguments.wants("steps") && matches!(name, HEAD | DRAW);
    let wanted = |name: &str| (arguments.wants(name) || needed(name)) && kind.differs(name);
    let chosen: Vec<_> = all().into_iter().filter(|w| wanted(w.name)).collect();
    if chosen.is_empty() {
        return Ok(Some(heads));
    }
    let mut heading = format!(
        "\n{} in {}: {} sequences of {length} positions\n",
        size.name,
        kind.name(),
        arguments.sequences
    );
    heading += &format!(
        "{:36} {:>8} {:>8} {:>6} {:>8} {:>5} {:>6} {:>9} {:>9} {:>6}",
        "operation, kernel", "launches", "sectors", "banks", "tensor", "fma", "local", "MB", "floor", "ratio"
    );
    heading.extend(CARDS.iter().map(|(card, ..)| format!(" {card:>9}")));
    if !arguments.write(&(heading + "\n"))? {
        return Ok(None);
    }
    for workload in chosen {
        // A device for each, so that memory of one does not stand beside the next.
        let device = device(true, kind.compute_capability());
        let sequences = arguments.sequences;
        let setting = Setting { device: &device, size, dtype, rounded, sequences, length };
        let mut work = (workload.make)(&setting)?;
        let mut seen = Seen::of(&device)?;
        (work.run)()?;
        let spent = seen.advance(&device)?;
        // An operation that has nothing to do in this dtype.
        if spent.is_empty() {
            continue;
        }
        let at = Subject { size: size.name, work: workload.name, kernel: "" };
        if !arguments.write(&rows(at, kind.name(), &work, &spent, verdicts))? {
            return Ok(None);
        }
        let traffic = total(&spent).traffic;
        let extra = Extra {
            requested: traffic.global().bytes(),
            device: traffic.moved_once(),
            floor: work.bytes as u64,
        };
        match workload.name {
            HEAD => heads.head = extra,
            DRAW => heads.draw = extra,
            _ => {}
        }
    }
    Ok(Some(heads))
}

/// The workloads that whole steps take from this table.
const HEAD: &str = "linear forward head";
const DRAW: &str = "sampler categorical";

/// The row of an operation, and one of each of its kernels.
fn rows(at: Subject, kind: &str, work: &Work, spent: &[Spent], all_verdicts: &mut Verdicts) -> String {
    let counters = total(spent);
    let moved = counters.traffic.global().bytes();
    let share = tensor(counters.matrix_flops(), work.flops);
    let shown = match &share {
        None => "-".to_string(),
        Some(verdict) => format!("{:.2}{}", verdict.found, all_verdicts.note(&at, kind, verdict)),
    };
    let mut text = format!(
        "{:36} {:>8} {:>8} {:>6} {shown:>8} {:>5} {:>6} {:>9.3} {:>9.3} {:>6.2}",
        at.work,
        "",
        "",
        "",
        "",
        "",
        moved as f64 / 1e6,
        work.bytes as f64 / 1e6,
        moved as f64 / work.bytes as f64
    );
    for (_, bandwidth, tflops) in CARDS {
        let seconds = (work.bytes as f64 / (bandwidth * 1e9)).max(work.flops as f64 / (tflops * 1e12));
        text += &format!(" {:>9.2}", seconds * 1e6);
    }
    text.push('\n');
    for Spent { entry, launches, counters } in spent {
        let traffic = &counters.traffic;
        let (global, shared) = (traffic.global(), traffic.shared().ratio());
        let scattered = if spent.len() == 1 { work.scattered } else { 0 };
        let global = sectors(global.sectors, global.ideal, scattered);
        let [sectors, banks, local] = verdicts(global, shared, counters.local_bytes).map(|verdict| {
            (verdict.found, all_verdicts.note(&Subject { kernel: entry, ..at }, kind, &verdict))
        });
        all_verdicts.launched(entry);
        let matrix = counters.matrix_flops();
        let other = 2 * counters.thread_instructions[Class::Float as usize];
        let fma = match matrix {
            0 => "-".to_string(),
            _ => format!("{:.0}%", 100.0 * other as f64 / (matrix + other) as f64),
        };
        text += &format!(
            "  {entry:34} {launches:>8} {:>7.2}{} {:>5.2}{} {:>8} {fma:>5} {:>5}{} {:>9.3}\n",
            sectors.0,
            sectors.1,
            banks.0,
            banks.1,
            "",
            local.0,
            local.1,
            counters.traffic.global().bytes() as f64 / 1e6
        );
    }
    text
}
