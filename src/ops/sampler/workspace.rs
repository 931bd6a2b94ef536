//! Memory in which the blocks of a GPU that draw from one row meet.

use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Device};
use crate::ops::Tensor;

/// Columns of a chunk of logits (cuda/softmax.cuh); parts of the memory are whole sectors, four words.
const CHUNK: usize = 1024;
/// Words of 64 bits: the header, a chunk's statistics, buckets and list, a bit an id (cuda/sampler_split.cuh).
const HEADER: usize = 8;
const OF_CHUNK: usize = 4;
const BUCKETS: usize = 2048;
const LIST: usize = 2048;
const BITS: usize = CHUNK / 64;

/// Working memory of [`super::sample`] and [`super::mixture`] on a GPU, reserved once; a CPU needs none, and the default
/// holds none. Nothing in it outlives a call, so kernels write it through a shared reference; everything is ordered on
/// one stream.
#[derive(Debug, Default)]
pub struct Workspace {
    memory: Option<Tensor>,
    vocabulary: usize,
}

impl Workspace {
    /// Room for `rows` rows of logits of one vocabulary: about a sixth of a byte an id and 32 KiB a row.
    pub fn reserve(device: &Device, rows: usize, vocabulary: usize) -> Result<Workspace> {
        let memory = match device {
            Device::Cpu(_) => None,
            Device::Gpu(_) => Some(Tensor::zeros(device, [rows, words(vocabulary)], Dtype::U32)?),
        };
        Ok(Workspace { memory, vocabulary })
    }

    /// Where the memory of `rows` rows is. Another vocabulary would lie otherwise in it, and meet what this one's
    /// draws left where it counts the blocks that have come.
    pub(super) fn address(&self, rows: usize, vocabulary: usize) -> Result<Argument> {
        match &self.memory {
            Some(memory) if self.vocabulary == vocabulary => memory.rows(0..rows)?.address(),
            Some(_) => {
                let (found, expected) = (self.vocabulary, format!("{vocabulary}, that of the logits"));
                Err(Error::shape("the vocabulary of the sampler's workspace", found, expected))
            }
            None => Err(Error::device(
                "the sampler's workspace lies on the host, the logits on a GPU",
                "reserve it on the device of the logits",
            )),
        }
    }
}

/// Words of 32 bits of a row.
fn words(vocabulary: usize) -> usize {
    let chunks = vocabulary.div_ceil(CHUNK).next_multiple_of(4);
    2 * (HEADER + BUCKETS + LIST + (OF_CHUNK + BITS) * chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_none_and_the_vocabulary_is_checked() {
        let host = Workspace::reserve(&Device::cpu(), 3, 50).unwrap();
        let text = host.address(3, 50).unwrap_err().to_string();
        assert!(text.contains("lies on the host"), "{text}");
        let simulated = Workspace::reserve(&Device::simulated(), 3, 50).unwrap();
        assert!(simulated.address(3, 50).is_ok());
        let text = simulated.address(3, 51).unwrap_err().to_string();
        assert!(text.contains("51, that of the logits"), "{text}");
        assert!(simulated.address(4, 50).is_err());
    }
}
