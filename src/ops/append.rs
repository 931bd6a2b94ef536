//! Rows of many tensors appended to longer ones in one launch: what a step kept goes to the tape, and what it sampled to
//! the list of what was sampled. Where they go is read from memory, so that a captured launch appends behind what it
//! appended before. CPU: here, a copy of slices. Kernel: cuda/append.cu. Parity: tests/parity/append.rs.

use super::launch::{arguments, kernels, size};
use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Device, Element, Grid};
use half::bf16;

kernels!("append": ROWS = "append_rows");

/// Threads of a block, and bytes of a row that a block copies; as the kernel is declared.
const BLOCK: u32 = 256;
const PIECE: usize = 4096;
/// 32-bit words of a pair in the table: two addresses, bytes of a row, rows of the target, 64 bits each.
const WORDS: usize = 8;

/// A tensor whose rows are appended, and the one they go to.
#[derive(Debug)]
pub struct Pair<'a> {
    source: View<'a>,
    target: ViewMut<'a>,
    /// Rows of both that belong to one place.
    each: usize,
}

impl<'a> Pair<'a> {
    /// The rows of `source` go to `target`; a place has `each` rows in both.
    pub fn new(source: &'a Tensor, target: &'a mut Tensor, each: usize) -> Pair<'a> {
        Pair { source: source.view(), target: target.view_mut(), each }
    }

    /// Bytes of what belongs to one place.
    fn bytes(&self) -> usize {
        self.each * self.source.cols() * self.source.dtype().size()
    }

    /// Places that the target holds.
    fn capacity(&self) -> usize {
        self.target.count() / self.each.max(1)
    }

    fn check(&self, places: usize) -> Result<()> {
        let (cols, dtype) = (self.source.cols(), self.source.dtype());
        self.target.expect("append target", self.target.count(), cols, dtype)?;
        if places * self.each > self.source.count() {
            return Err(Error::shape(
                "append source",
                format!("{} rows", self.source.count()),
                format!("at least {places} x {}", self.each),
            ));
        }
        Ok(())
    }
}

/// Appends the rows of a list of pairs, the same tensors at every call.
#[derive(Debug)]
pub struct Append {
    /// [`WORDS`] a pair, on a GPU.
    table: Tensor,
    written: Vec<u64>,
}

impl Append {
    /// For lists of so many pairs.
    ///
    /// # Errors
    /// Memory that the device does not have.
    pub fn reserve(device: &Device, pairs: usize) -> Result<Append> {
        Ok(Append { table: Tensor::zeros(device, [pairs, WORDS], Dtype::U32)?, written: Vec::new() })
    }

    /// Copies the first `count` places of each source to its target, from place `place` (U32 `[1, 1]`) on.
    ///
    /// The caller knows that they fit: the CPU checks it again, a GPU drops what lies beyond a target. The first call with
    /// other tensors uploads their addresses, which a capture refuses; run a step once before it is captured.
    ///
    /// # Errors
    /// More pairs than reserved, shapes or dtypes that do not fit.
    pub fn run(&mut self, pairs: &mut [Pair], count: usize, place: View) -> Result<()> {
        let most = self.table.shape().as_matrix().0;
        if pairs.len() > most {
            return Err(Error::shape("append", format!("{} pairs", pairs.len()), format!("at most {most}")));
        }
        place.expect("append place", 1, 1, Dtype::U32)?;
        pairs.iter().try_for_each(|pair| pair.check(count))?;
        let device = self.table.device().clone();
        match &device {
            Device::Cpu(_) => {
                let first = place.slice::<u32>()?[0] as usize;
                pairs.iter_mut().try_for_each(|pair| copy(pair, count, first))
            }
            Device::Gpu(_) if count == 0 || pairs.is_empty() => Ok(()),
            Device::Gpu(gpu) => {
                let mut words = Vec::with_capacity(4 * pairs.len());
                for pair in pairs.iter_mut() {
                    let (from, to) = (number(pair.source.address()?)?, number(pair.target.address()?)?);
                    words.extend([from, to, pair.bytes() as u64, pair.capacity() as u64]);
                }
                if words != self.written {
                    let halves: Vec<u32> =
                        words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect();
                    self.table.upload_at(0, &halves)?;
                    self.written = words;
                }
                let longest = pairs.iter().map(Pair::bytes).max().unwrap_or(0);
                let number = size("append pairs", pairs.len())?;
                let across = size("append bytes of a row", longest)?.div_ceil(PIECE as u32).max(1);
                let blocks = [across, size("append rows", count)?, number];
                let grid = Grid { blocks, ..Grid::linear(1, BLOCK) };
                gpu.launch(&ROWS, grid, &arguments![self.table.view().address()?, place.address()?, number])
            }
        }
    }
}

fn number(argument: Argument) -> Result<u64> {
    match argument {
        Argument::Address(address) => Ok(address),
        other => Err(Error::device(format!("{other:?} is no address"), "report this as a fault of latch")),
    }
}

fn copy(pair: &mut Pair, count: usize, first: usize) -> Result<()> {
    match pair.source.dtype() {
        Dtype::F32 => copy_of::<f32>(pair, count, first),
        Dtype::F64 => copy_of::<f64>(pair, count, first),
        Dtype::Bf16 => copy_of::<bf16>(pair, count, first),
        Dtype::U32 => copy_of::<u32>(pair, count, first),
        Dtype::I32 => copy_of::<i32>(pair, count, first),
    }
}

fn copy_of<T: Element>(pair: &mut Pair, count: usize, first: usize) -> Result<()> {
    if first + count > pair.capacity() {
        return Err(Error::shape(
            "append",
            format!("places {first}..{}", first + count),
            format!("inside {}", pair.capacity()),
        ));
    }
    let of_place = pair.each * pair.source.cols();
    let source = &pair.source.slice::<T>()?[..count * of_place];
    pair.target.slice::<T>()?[first * of_place..(first + count) * of_place].copy_from_slice(source);
    Ok(())
}
