//! Tensors of a module that stands in a file of its own beside a model's weights: gates, projectors.

use super::safetensors_file::SafetensorsFile;
use super::stored::Target;
use crate::base::{Dtype, Error, Result};
use crate::device::Element;
use crate::ops::Tensor;

/// Reads tensor `name` into `tensor`; `module` begins the advice in messages, e.g. "the gates belong to".
///
/// # Errors
/// A tensor that is missing, of another shape, not of real numbers, or not finite.
pub(super) fn load(file: &SafetensorsFile, name: &str, tensor: &mut Tensor, module: &str) -> Result<()> {
    match tensor.dtype() {
        Dtype::F64 => load_as::<f64>(file, name, tensor, module),
        Dtype::Bf16 => load_as::<half::bf16>(file, name, tensor, module),
        _ => load_as::<f32>(file, name, tensor, module),
    }
}

fn load_as<T: Target + Element>(
    file: &SafetensorsFile,
    name: &str,
    tensor: &mut Tensor,
    module: &str,
) -> Result<()> {
    let found = file.tensor(name)?;
    let expected = tensor.shape();
    if found.shape != expected.dims() || !found.stored.is_real() {
        return Err(Error::file(
            file.path(),
            format!(
                "tensor \"{name}\" has shape {:?}, expected {:?} of real numbers",
                found.shape,
                expected.dims()
            ),
            format!("{module} another model"),
        ));
    }
    let mut values = vec![T::default(); expected.elements()];
    found.stored.decode(found.bytes, &mut values);
    if let Some(at) = values.iter().position(|value| !value.finite()) {
        return Err(Error::NotFinite {
            what: format!("{}: tensor \"{name}\"", file.path().display()),
            found: format!("{} at element {at}", values[at].to_f64()),
            advice: "the checkpoint is damaged or comes from a run that diverged".into(),
        });
    }
    tensor.upload(&values)
}
