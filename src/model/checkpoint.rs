//! Models from files to a device and back, one piece of a tensor at a time: never a second copy in memory.

use super::safetensors_file::{SafetensorsFile, TensorHeader, TensorWriter};
use super::save::{self, Companions, Saving};
use super::stored::{Stored, Target};
use super::weights::Source;
use super::{Model, Precision};
use crate::base::{Dtype, Error, Result};
use crate::device::{Device, Element};
use crate::ops::Tensor;
use std::path::Path;

/// Elements moved at once.
const PIECE: usize = 4 << 20;

impl Model {
    /// Opens a Hugging Face folder or a `.gguf` file and loads its weights.
    ///
    /// # Errors
    /// Anything that is missing, damaged, contradictory, not finite or not supported; the message names it.
    pub fn load(path: &Path, device: &Device, precision: Precision) -> Result<Model> {
        Model::from_source(&Source::open(path)?, device, precision)
    }

    /// Loads the weights of an open source.
    ///
    /// # Errors
    /// A weight that is not finite, or a device without room.
    pub fn from_source(source: &Source, device: &Device, precision: Precision) -> Result<Model> {
        let config = source.config().clone();
        let model = Model::build(config, device, precision, |index, _, tensor| match tensor.dtype() {
            Dtype::F64 => load::<f64>(source, index, tensor),
            Dtype::Bf16 => load::<half::bf16>(source, index, tensor),
            _ => load::<f32>(source, index, tensor),
        })?;
        model.with_projector_of(source.path())?.with_gates_of(source.path())
    }

    /// What [`Model::from_source`] would make, with zeros for the family's weights: nothing of them is read.
    ///
    /// # Errors
    /// As [`Model::from_source`].
    pub fn blank_of(source: &Source, device: &Device, precision: Precision) -> Result<Model> {
        let model = Model::build(source.config().clone(), device, precision, |_, _, _| Ok(()))?;
        model.with_projector_of(source.path())?.with_gates_of(source.path())
    }

    /// Writes a Hugging Face folder that transformers opens: config.json, model.safetensors, and the companions (the
    /// tokenizer and other files of the source). An adapter is merged into what is written. A folder that exists is
    /// replaced file by file, by rename.
    ///
    /// # Errors
    /// The place cannot be written to, the disk is full, or an adapter cannot be merged. Whatever was there before is
    /// still there.
    pub fn save(&self, folder: &Path, companions: &Companions) -> Result<()> {
        let stored = match self.parameters.iter().map(Tensor::dtype).find(|dtype| *dtype == Dtype::Bf16) {
            Some(_) => Stored::Bf16,
            None if self.dtype() == Dtype::F64 => Stored::F64,
            None => Stored::F32,
        };
        let companions = &self.with_projector_files(companions)?;
        let companions = &self.with_gate_files(companions)?;
        let tensors: Vec<TensorHeader> = self.parameter_list()[..self.family_parameters()]
            .iter()
            .zip(self.parameters())
            .map(|(parameter, tensor)| TensorHeader {
                name: parameter.name.clone(),
                shape: parameter.shape.dims().to_vec(),
                stored: stored_as(tensor.dtype()),
            })
            .collect();
        let contents = Saving { config: &self.config, stored, companions, tensors: &tensors };
        self.check_mergeable()?;
        save::save(folder, contents, &mut |index, writer| match self.merged(index)? {
            Some(merged) => write_tensor(&merged, writer),
            None => write_tensor(&self.parameters[index], writer),
        })?;
        self.remove_older_gates(folder)
    }
}

/// How a tensor of a dtype is stored.
pub(super) fn stored_as(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F64 => Stored::F64,
        Dtype::Bf16 => Stored::Bf16,
        _ => Stored::F32,
    }
}

/// The elements of a float tensor, a piece at a time.
pub(crate) fn write_tensor(tensor: &Tensor, writer: &mut TensorWriter) -> Result<()> {
    match tensor.dtype() {
        Dtype::F64 => write::<f64>(tensor, writer),
        Dtype::Bf16 => write::<half::bf16>(tensor, writer),
        _ => write::<f32>(tensor, writer),
    }
}

/// Fills a float tensor from one in a file, of the same shape and one element after the other.
///
/// # Errors
/// A number that is NaN or infinite: in `file`, the tensor called `name`.
pub(super) fn read_any(tensor: &mut Tensor, file: &SafetensorsFile, name: &str) -> Result<()> {
    match tensor.dtype() {
        Dtype::F64 => read::<f64>(tensor, file, name),
        Dtype::Bf16 => read::<half::bf16>(tensor, file, name),
        _ => read::<f32>(tensor, file, name),
    }
}

fn read<T: Target + Element>(tensor: &mut Tensor, file: &SafetensorsFile, name: &str) -> Result<()> {
    let stored = file.tensor(name)?;
    let (rows, cols, step) = rows_at_once(tensor);
    let width = cols * stored.stored.block_bytes();
    let mut piece = vec![T::default(); step.min(rows) * cols];
    for first in (0..rows).step_by(step) {
        let last = (first + step).min(rows);
        let piece = &mut piece[..(last - first) * cols];
        stored.stored.decode(&stored.bytes[first * width..last * width], piece);
        if let Some(at) = piece.iter().position(|value| !value.finite()) {
            return Err(Error::NotFinite {
                what: format!("{}: tensor \"{name}\"", file.path().display()),
                found: format!("{} at [{}, {}]", piece[at].to_f64(), first + at / cols, at % cols),
                advice: "the file is damaged, or comes from a run that diverged".into(),
            });
        }
        tensor.prefetch_at(first * cols, piece)?;
    }
    Ok(())
}

/// Rows that make up a piece of a matrix.
fn rows_at_once(tensor: &Tensor) -> (usize, usize, usize) {
    let (rows, cols) = tensor.shape().as_matrix();
    (rows, cols, (PIECE / cols.max(1)).max(1))
}

fn load<T: Target + Element>(source: &Source, index: usize, tensor: &mut Tensor) -> Result<()> {
    let (rows, cols, step) = rows_at_once(tensor);
    let mut piece = vec![T::default(); step.min(rows) * cols];
    for first in (0..rows).step_by(step) {
        let last = (first + step).min(rows);
        let piece = &mut piece[..(last - first) * cols];
        source.load_rows(index, first..last, piece)?;
        // It crosses while the next piece is read, and the layer that needs it first waits for it.
        tensor.prefetch_at(first * cols, piece)?;
    }
    Ok(())
}

fn write<T: Element>(tensor: &Tensor, writer: &mut TensorWriter) -> Result<()> {
    let (rows, _, step) = rows_at_once(tensor);
    for first in (0..rows).step_by(step) {
        let piece = tensor.rows(first..(first + step).min(rows))?.download::<T>()?;
        // Files are little-endian, and so is every machine that latch is built for (see the check below).
        writer.write(bytemuck::cast_slice(&piece))?;
    }
    Ok(())
}

const _: () =
    assert!(cfg!(target_endian = "little"), "weight files are written as the machine holds numbers");
