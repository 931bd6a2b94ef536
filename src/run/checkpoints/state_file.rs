//! The file with everything that is not the model: moments and masters of the optimiser, and the state of the job.

use super::TrainState;
use crate::base::{Dtype, Error, Result};
use crate::learn::optimizer::Optimizer;
use crate::model::safetensors_file::{self, TensorHeader};
use crate::model::stored::Stored;
use crate::model::{Model, write_tensor};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Creates `path`, lets `body` write it, and has the system put it on the disk.
pub(super) fn write_synced(path: &Path, body: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::create(path).map_err(Error::io(path, "cannot create"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    body(&mut out)?;
    let file = out.into_inner().map_err(|error| Error::io(path, "cannot write")(error.into_error()))?;
    file.sync_all().map_err(Error::io(path, "cannot write"))
}

/// How the optimiser's state is stored: as it is held.
pub(super) fn stored_as(dtype: Dtype) -> Result<Stored> {
    match dtype {
        Dtype::F32 => Ok(Stored::F32),
        Dtype::F64 => Ok(Stored::F64),
        other => Err(Error::dtype("optimiser state", other, "f32 or f64")),
    }
}

/// Writes step, score and job as metadata, and the optimiser's tensors.
pub(super) fn write_train_state(
    path: &Path,
    step: u64,
    model: &Model,
    optimizer: Option<&Optimizer>,
    state: &TrainState,
) -> Result<()> {
    let list = optimizer.map(|optimizer| optimizer.state(model)).transpose()?.unwrap_or_default();
    let mut headers = Vec::with_capacity(list.len());
    for (name, tensor) in &list {
        let (shape, stored) = (tensor.shape().dims().to_vec(), stored_as(tensor.dtype())?);
        headers.push(TensorHeader { name: name.clone(), shape, stored });
    }
    let step = step.to_string();
    let optimizer_step = optimizer.map(|optimizer| optimizer.step().to_string());
    let score = state.score.map(|score| score.to_string());
    let mut metadata = vec![("format", "latch"), ("step", &step), ("job", &state.job)];
    metadata.extend(optimizer_step.iter().map(|text| ("optimizer_step", text.as_str())));
    metadata.extend(score.iter().map(|text| ("score", text.as_str())));
    write_synced(path, |out| {
        safetensors_file::write(path, out, &headers, &metadata, &mut |index, writer| {
            list[index].1.pieces(|piece| write_tensor(piece, writer))
        })
    })
}
