//! Rows and their slots: which cache slots a sequence owns, and whose prefix it reads. Host side.
//!
//! Slots are laid out once, when the rows are planned, so the cache never moves. A row's own span starts at a
//! slot that equals its first own position modulo the attention's key block, so that blocks of keys are anchored
//! at absolute position 0 whether they straddle a shared prefix or not.

use crate::base::{Error, Result};
use crate::ops::kv_cache::CacheSpan;

/// One sequence to make room for.
#[derive(Clone, Copy, Debug)]
pub struct RowPlan {
    /// Positions it may hold, those of the prefix included.
    pub capacity: usize,
    /// Row whose first positions this row shares, and how many. One level deep: that row owns all its positions.
    pub prefix: Option<(u32, usize)>,
}

impl RowPlan {
    /// A row that shares nothing.
    pub fn own(capacity: usize) -> RowPlan {
        RowPlan { capacity, prefix: None }
    }

    /// A row that continues after the first `length` positions of row `of`.
    pub fn sharing(of: u32, length: usize, capacity: usize) -> RowPlan {
        RowPlan { capacity, prefix: Some((of, length)) }
    }
}

/// A row's state on the host.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub capacity: usize,
    pub prefix: Option<(u32, usize)>,
    /// Positions held now, the prefix included.
    pub length: usize,
    /// Index on the tape of its latest position, when recording.
    pub latest: Option<usize>,
    /// Latent inputs so far.
    pub latents: usize,
    pub span: CacheSpan,
}

impl Row {
    pub fn prefix_length(&self) -> usize {
        self.prefix.map_or(0, |(_, length)| length)
    }
}

/// Lays out the rows; returns them and the number of slots.
pub(super) fn plan(plans: &[RowPlan]) -> Result<(Vec<Row>, usize)> {
    let mut slots = 0;
    let mut rows: Vec<Row> = Vec::with_capacity(plans.len());
    for (index, plan) in plans.iter().enumerate() {
        let shared = match plan.prefix {
            None => 0,
            Some((of, length)) => {
                let owner =
                    rows.get(of as usize).filter(|row| row.prefix.is_none() && length <= row.capacity);
                if owner.is_none() {
                    return Err(Error::input(
                        "shared prefix",
                        format!(
                            "row {index} shares {length} positions of row {of}, which is no earlier row that owns as many"
                        ),
                        "plan the prompt's row first, with room for the whole prefix",
                    ));
                }
                length
            }
        };
        if plan.capacity < shared {
            return Err(Error::input(
                "rows",
                format!("row {index} has capacity {} but shares {shared} positions", plan.capacity),
                "capacity counts the shared positions too",
            ));
        }
        let prefix_slot = plan.prefix.map_or(0, |(of, _)| rows[of as usize].span.own_slot);
        let (span, free) = CacheSpan::after(slots, prefix_slot, shared, plan.capacity - shared);
        slots = free;
        rows.push(Row {
            capacity: plan.capacity,
            prefix: plan.prefix,
            length: shared,
            latest: None,
            latents: 0,
            span,
        });
    }
    Ok((rows, slots.max(1)))
}
