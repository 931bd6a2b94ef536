//! The kept ids of sampled tokens and of mixtures.

use crate::base::{Dtype, Error, Result};
use crate::device::Device;
use crate::ops::Tensor;
use std::ops::Range;

/// Kept ids of sampled tokens, so that an update scores them under the law they were sampled from. Reserved once
/// for a tape of tokens; [`super::sample`] and [`super::mixture`] fill it, or [`Support::upload`] with what they kept
/// before. No ids stand for the whole vocabulary (greedy, or no filter); mixtures always list theirs.
#[derive(Debug)]
pub struct Support {
    pub(super) ids: Tensor,
    pub(super) counts: Tensor,
}

impl Support {
    /// Room for `rows` tokens with up to `capacity` kept ids each; top-k never keeps more than k.
    pub fn reserve(device: &Device, rows: usize, capacity: usize) -> Result<Support> {
        Ok(Support {
            ids: Tensor::zeros(device, [rows, capacity], Dtype::U32)?,
            counts: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
        })
    }

    /// Kept ids, u32 `[rows, capacity]`: ascending, the first `counts[row]` of each row.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// Number of kept ids, u32 `[rows, 1]`; 0 for the whole vocabulary.
    pub fn counts(&self) -> &Tensor {
        &self.counts
    }

    /// Most ids of a row.
    pub fn capacity(&self) -> usize {
        self.ids.shape().as_matrix().1
    }

    /// Replaces rows `at` by stored ones: `ids[rows, capacity]` row by row, with their numbers (two uploads). Whether
    /// ids ascend inside the vocabulary is asked by the operation that reads them.
    ///
    /// # Errors
    /// Rows outside the support, lengths that do not fit, or a number above the capacity.
    pub fn upload(&mut self, at: Range<usize>, ids: &[u32], counts: &[u32]) -> Result<()> {
        let capacity = self.capacity();
        let rows = self.counts.rows(at.clone())?.count();
        if counts.len() != rows || ids.len() != rows * capacity {
            return Err(Error::shape(
                "sampler support upload",
                format!("{} ids and {} counts", ids.len(), counts.len()),
                format!("{} ids and {rows} counts: {rows} rows of {capacity}", rows * capacity),
            ));
        }
        if let Some(row) = counts.iter().position(|&count| count as usize > capacity) {
            return Err(Error::input(
                "sampler support upload",
                format!("row {row} keeps {} tokens, the support has room for {capacity}", counts[row]),
                "reserve with the capacity that the stored support had",
            ));
        }
        self.ids.upload_at(at.start * capacity, ids)?;
        self.counts.upload_at(at.start, counts)
    }

    /// Ids `[rows, capacity]` and their numbers of rows `at` (two downloads). Places beyond a row's number hold
    /// whatever the support held there.
    ///
    /// # Errors
    /// Rows outside the support.
    pub fn download(&self, at: Range<usize>) -> Result<(Vec<u32>, Vec<u32>)> {
        Ok((self.ids.rows(at.clone())?.download()?, self.counts.rows(at)?.download()?))
    }
}
