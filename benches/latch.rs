//! Every operation and the small model under criterion. `cargo bench --bench latch -- --table [rounds [name]]` prints
//! the tables that quote the machine's own peak and bandwidth.

mod machine;
mod models;
mod workloads;
mod ops {
    pub mod attention;
    pub mod gemm;
}

use criterion::Criterion;
use latch::cpu::parallel::with_threads;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--table") {
        let rounds = arguments.get(at + 1).and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
        let filter = arguments.get(at + 2).map(String::as_str).unwrap_or_default();
        return ops::gemm::table(&[1, 2], rounds, filter);
    }
    // Inside the pool the main thread is one of its workers.
    with_threads(0, || {
        let mut criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(300))
            .configure_from_args();
        models::benches(&mut criterion);
        ops::attention::benches(&mut criterion);
        ops::gemm::benches(&mut criterion);
        criterion.final_summary();
    });
}
