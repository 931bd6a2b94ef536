//! The one bench binary. `cargo bench --bench latch -- --table [rounds [name]]` prints the tables that quote the machine's
//! own peak and bandwidth; without it criterion runs.

mod machine;
mod ops {
    pub mod gemm;
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--table") {
        let rounds = arguments.get(at + 1).and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
        let filter = arguments.get(at + 2).map(String::as_str).unwrap_or_default();
        return ops::gemm::table(&[1, 2], rounds, filter);
    }
    let mut criterion = criterion::Criterion::default().configure_from_args();
    ops::gemm::benches(&mut criterion);
    criterion.final_summary();
}
