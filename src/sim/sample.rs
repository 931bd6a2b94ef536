//! A sample of the blocks of a large grid, for runs that ask what a kernel costs and not what it computes.
//!
//! Costs of a block depend on where it lies only at the grid's edges: the sample holds the grid's corners (the first
//! block, the last, and the ragged ones at the end of each axis) and [`RANDOM`] others. Counts are scaled by blocks over
//! blocks that ran ([`super::Counters::scaled`]). Bytes that several blocks read then count once a block at most, so
//! scaled bytes are bounded by what is requested, from above by nothing else.

/// Blocks of a sample beside the corners.
pub const RANDOM: usize = 32;

/// Grids of at most so many blocks run whole: most kernels that plan what others do are that small.
pub const WHOLE: u64 = 64;

/// Kernels that run whole whatever their grid, by how their names begin: they leave lists of places that others read
/// and write, and where a part of a list is missing, what an earlier launch left there leads out of memory.
const PLANS: [&str; 3] = ["scatter_order_", "scatter_tiles_", "scatter_ranks"];

/// The sample of the grid of the kernel `entry` by linear indices, ascending; `None` where the grid runs whole.
pub fn sample(entry: &str, grid: [u32; 3]) -> Option<Vec<u64>> {
    let [x, y, z] = grid.map(u64::from);
    let total = x * y * z;
    if total <= WHOLE || PLANS.iter().any(|plan| entry.starts_with(plan)) {
        return None;
    }
    let mut chosen: Vec<u64> = (0..8)
        .map(|corner| {
            let at = |axis: u32, length: u64| if corner >> axis & 1 == 1 { length - 1 } else { 0 };
            at(0, x) + x * (at(1, y) + y * at(2, z))
        })
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    let wanted = chosen.len() + RANDOM;
    let mut state = total;
    while chosen.len() < wanted {
        // A step of splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let block = (word ^ word >> 31) % total;
        if let Err(place) = chosen.binary_search(&block) {
            chosen.insert(place, block);
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_corners_and_others_once() {
        assert_eq!(sample("kernel", [64, 1, 1]), None, "small grids run whole");
        let line = sample("kernel", [1000, 1, 1]).unwrap();
        assert_eq!((line.len(), line[0], line[33]), (34, 0, 999));
        let [x, y] = [30, 20];
        let plane = sample("kernel", [x as u32, y as u32, 1]).unwrap();
        assert_eq!(plane.len(), 4 + RANDOM);
        for corner in [0, x - 1, x * (y - 1), x * y - 1] {
            assert!(plane.contains(&corner), "{corner}");
        }
        assert!(plane.windows(2).all(|pair| pair[0] < pair[1]) && plane[35] < x * y);
        assert_eq!(sample("kernel", [x as u32, y as u32, 1]), Some(plane), "always the same");
    }

    #[test]
    fn kernels_that_plan_run_whole_and_exist() {
        assert_eq!(sample("scatter_order_rows", [128, 1, 1]), None);
        assert!(sample("scatter_add_rows_f32", [128, 1, 1]).is_some());
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/scatter.ptx"));
        assert!(PLANS.iter().all(|plan| text.contains(&format!(".entry {plan}"))));
    }
}
