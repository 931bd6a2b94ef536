//! One launch over many tensors: the tables on the device by which a block finds its chunk of its tensor.
//! Kernels: cuda/tensor_list.cuh.

use super::Tensor;
use super::launch::size;
use crate::base::{Dtype, Error, Result};
use crate::cpu::gradient_norm::CHUNK;
use crate::device::{Argument, Device};

/// The tables of a list of tensors. Addresses are uploaded when they differ from those of the call before.
#[derive(Debug)]
pub(in crate::ops) struct TensorList {
    /// A row of 64-bit numbers a tensor, low word first: first chunk, elements, addresses.
    table: Tensor,
    /// U32 `[chunks, 1]`: the tensor of each chunk.
    tensor_of_chunk: Tensor,
    elements: Vec<usize>,
    addresses: Vec<u64>,
    chunks: u32,
}

impl TensorList {
    /// Tables for tensors of so many `elements`, with `operands` addresses each (one upload).
    pub fn reserve(device: &Device, elements: &[usize], operands: usize) -> Result<TensorList> {
        let mut tensor_of_chunk = Vec::new();
        for (tensor, &count) in elements.iter().enumerate() {
            let tensor = size("tensors of a list", tensor)?;
            tensor_of_chunk.resize(tensor_of_chunk.len() + count.div_ceil(CHUNK), tensor);
        }
        let columns = 2 * (2 + operands);
        Ok(TensorList {
            table: Tensor::zeros(device, [elements.len(), columns], Dtype::U32)?,
            chunks: size("chunks of a list", tensor_of_chunk.len())?,
            tensor_of_chunk: Tensor::from_host(device, [tensor_of_chunk.len(), 1], &tensor_of_chunk)?,
            elements: elements.to_vec(),
            addresses: Vec::new(),
        })
    }

    /// Blocks of a launch.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Whether the tables are those of tensors of so many elements.
    pub fn is_for(&self, elements: impl Iterator<Item = usize>) -> bool {
        self.elements.iter().copied().eq(elements)
    }

    /// Table and chunks as a kernel's arguments. `operands` are the addresses of the first tensor's operands, then the
    /// second's, and so on.
    pub fn arguments(&mut self, operands: impl Iterator<Item = Argument>) -> Result<[Argument; 2]> {
        let addresses = operands.map(address).collect::<Result<Vec<u64>>>()?;
        if addresses != self.addresses {
            let mut words = Vec::with_capacity(self.table.shape().elements());
            let mut first = 0_u64;
            let each = addresses.len() / self.elements.len().max(1);
            for (&elements, addresses) in self.elements.iter().zip(addresses.chunks(each.max(1))) {
                for number in [first, elements as u64].iter().chain(addresses) {
                    words.extend([*number as u32, (*number >> 32) as u32]);
                }
                first += elements.div_ceil(CHUNK) as u64;
            }
            self.table.upload(&words)?;
            self.addresses = addresses;
        }
        Ok([self.table.view().address()?, self.tensor_of_chunk.view().address()?])
    }
}

fn address(argument: Argument) -> Result<u64> {
    match argument {
        Argument::Address(address) => Ok(address),
        other => Err(Error::device(format!("{other:?} is no address"), "report this as a fault of latch")),
    }
}
