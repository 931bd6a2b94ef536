//! Every operation and the small model under criterion: `cargo bench --bench latch`. With `-- --table [rounds [name]]`
//! tables that quote the machine's own peak and bandwidth instead. README.md beside this file says how to read both.

#[macro_use]
mod print;
mod machine;
mod measure;
mod models;
mod reinforcement;
mod tables;
mod workloads;
mod ops {
    pub mod adamw;
    pub mod attention;
    pub mod embedding;
    pub mod gaussian_density;
    pub mod gelu;
    pub mod gemm;
    pub mod latent;
    pub mod layernorm;
    pub mod log_probability;
    pub mod mask;
    pub mod rmsnorm;
    pub mod rope;
    pub mod smooth_l1;
    pub mod soft_action;
    pub mod swiglu;
}

use criterion::Criterion;
use latch::cpu::parallel::with_threads;
use measure::Case;
use std::time::Duration;

/// The cases of one operation.
type Cases = fn() -> Vec<Case>;

/// The operations that memory bounds, and those that are counted by elements.
const BOUND_BY_MEMORY: [(&str, Cases); 12] = [
    ("embedding", ops::embedding::cases),
    ("rmsnorm", ops::rmsnorm::cases),
    ("layernorm", ops::layernorm::cases),
    ("rope", ops::rope::cases),
    ("gelu", ops::gelu::cases),
    ("swiglu", ops::swiglu::cases),
    ("mask", ops::mask::cases),
    ("adamw", ops::adamw::cases),
    ("latent", ops::latent::cases),
    ("gaussian_density", ops::gaussian_density::cases),
    ("smooth_l1", ops::smooth_l1::cases),
    ("soft_action", ops::soft_action::cases),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--table") {
        let rounds = arguments.get(at + 1).and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
        let filter = arguments.get(at + 2).map(String::as_str).unwrap_or_default();
        return tables(rounds, filter);
    }
    // Inside the pool the main thread is one of its workers.
    with_threads(0, || {
        let mut criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(300))
            .configure_from_args();
        models::benches(&mut criterion);
        measure::criterion(&mut criterion, "machine", vec![measure::triad()]);
        // Cases are prepared and checked before criterion sees their names: spare those that a filter cannot mean.
        let filters = arguments.iter().skip(1).filter(|a| !a.starts_with('-') && a.parse::<f64>().is_err());
        let all = filters.clone().next().is_none();
        for (name, cases) in BOUND_BY_MEMORY {
            if all || filters.clone().any(|filter| filter.contains(name)) {
                measure::criterion(&mut criterion, name, cases());
            }
        }
        ops::attention::benches(&mut criterion);
        ops::log_probability::benches(&mut criterion);
        ops::gemm::benches(&mut criterion);
        criterion.final_summary();
    });
}

/// The table of whole rollouts or updates named `filter`, or those whose names contain it: `memory`, one of its
/// operations, or shapes of matrix products.
fn tables(rounds: usize, filter: &str) {
    if let Some((_, table)) = tables::NAMES.iter().find(|(name, _)| *name == filter) {
        return with_threads(0, || table(rounds));
    }
    let chosen: Vec<_> = BOUND_BY_MEMORY
        .iter()
        .filter(|(name, _)| "memory".contains(filter) || name.contains(filter))
        .collect();
    if !chosen.is_empty() {
        with_threads(0, || measure::table(chosen.iter().flat_map(|(_, cases)| cases()).collect(), rounds));
    }
    if filter != "memory" && (chosen.is_empty() || filter.is_empty()) {
        ops::gemm::table(&[1, 2], rounds, filter);
    }
}
