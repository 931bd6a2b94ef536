//! Which shipped kernels some workload launches: all but those that stand here with their reason.

use std::collections::BTreeSet;

/// Entries that no workload launches, and why.
pub const WITHOUT_WORKLOAD: &[(&str, &str)] = &[
    ("sampler_noise_f32", "no operation launches it: tests ask it for the bits of the samplers' noise"),
    (
        "scatter_order_latents",
        "more than 1024 positions: the report has 512, parity::latent more; it differs from its twins by what it reads",
    ),
    ("scatter_tiles_rows", "more than 8192 rows that are picked: the report has 512, parity::gather more"),
    (
        "scatter_tiles_latents",
        "more than 8192 positions: the report has 512; it differs from its twins by what it reads",
    ),
];

/// The entries of the shipped PTX, as the committed table of registers lists them.
pub fn shipped() -> impl Iterator<Item = &'static str> {
    let report = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/REPORT.md"));
    // | file | kernel | registers ... |, behind a header and a rule.
    let rows = report.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.filter_map(|row| row.split('|').nth(2).map(str::trim))
}

/// The shipped entries that are neither among those that were launched nor in [`WITHOUT_WORKLOAD`], and what that list
/// holds without need.
pub fn gaps(launched: &BTreeSet<&str>) -> (Vec<&'static str>, Vec<&'static str>) {
    let excused = |entry: &str| WITHOUT_WORKLOAD.iter().any(|(kernel, _)| *kernel == entry);
    let missing = shipped().filter(|entry| !launched.contains(entry) && !excused(entry)).collect();
    let idle = WITHOUT_WORKLOAD.iter().map(|(kernel, _)| *kernel);
    (
        missing,
        idle.filter(|entry| launched.contains(entry) || !shipped().any(|kernel| kernel == *entry)).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_and_gaps_are_named() {
        let all: BTreeSet<&str> = shipped().collect();
        assert!(all.len() > 150 && all.contains("append_rows") && !all.contains("kernel"), "{}", all.len());
        let listed: Vec<&str> = WITHOUT_WORKLOAD.iter().map(|(kernel, _)| *kernel).collect();
        assert_eq!(gaps(&all).1, listed, "listed, and yet launched");
        let mut fewer = all;
        listed.iter().for_each(|kernel| assert!(fewer.remove(kernel), "{kernel} is shipped"));
        assert_eq!(gaps(&fewer), (vec![], vec![]));
        fewer.remove("rope_fwd_bf16");
        assert_eq!(gaps(&fewer).0, ["rope_fwd_bf16"]);
    }
}
