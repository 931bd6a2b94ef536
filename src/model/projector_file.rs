//! The projector of latents in files: beside the model's weights, which stay those of the family.
//!
//! ```text
//! latent_projector.json          {"type": "mlp_layer_norm", "hidden": .., "activation": .., "layer_norm_eps": ..}
//! latent_projector.safetensors   prj.1.weight, prj.1.bias, prj.3.weight, prj.3.bias, prj.ln.weight, prj.ln.bias
//! latent_config.json             "projector": true where latents pass through one
//! ```

use super::config::read_json;
use super::module_file;
use super::projector::{self, Projector};
use super::safetensors_file::{self, SafetensorsFile, TensorHeader};
use super::save::Companions;
use super::stored::Stored;
use super::{LATENT_CONFIG, Model};
use crate::base::{Dtype, Error, Result};
use crate::ops::Tensor;
use serde_json::json;
use std::path::Path;

/// What the projector is.
pub const PROJECTOR_CONFIG: &str = "latent_projector.json";
/// Its weights.
pub const PROJECTOR_WEIGHTS: &str = "latent_projector.safetensors";
const KIND: &str = "mlp_layer_norm";
const ACTIVATION: &str = "gelu_pytorch_tanh";

impl Model {
    /// The model with the projector of `folder`, where the folder has one.
    ///
    /// # Errors
    /// The folder's latents need a projector that is not there, or its files are damaged or of another model.
    pub(super) fn with_projector_of(self, folder: &Path) -> Result<Model> {
        let (config, weights) = (folder.join(PROJECTOR_CONFIG), folder.join(PROJECTOR_WEIGHTS));
        if !config.is_file() {
            let latents = folder.join(LATENT_CONFIG);
            if latents.is_file() && read_json(&latents)?["projector"] == json!(true) {
                return Err(Error::file(
                    folder,
                    format!(
                        "{LATENT_CONFIG} says that latents pass through a projector, but {PROJECTOR_CONFIG} is missing"
                    ),
                    "copy latent_projector.json and latent_projector.safetensors from the run that trained the model",
                ));
            }
            return Ok(self);
        }
        let projector = read_projector(&config)?;
        if !weights.is_file() {
            return Err(Error::file(
                folder,
                format!("has {PROJECTOR_CONFIG}, but {PROJECTOR_WEIGHTS} is missing"),
                "copy latent_projector.safetensors from the run that trained the model",
            ));
        }
        let file = SafetensorsFile::open(&weights)?;
        self.with_projector(projector, |_, parameter, tensor| {
            let name = &parameter.name[..];
            module_file::load(&file, name, tensor, "the projector belongs to")
        })
    }

    /// `companions` with the projector's files, where the model has one; without them where it has none.
    pub(super) fn with_projector_files(&self, companions: &Companions) -> Result<Companions> {
        let mut companions = companions.clone();
        let Some(plan) = &self.projector else {
            companions.remove(PROJECTOR_CONFIG);
            companions.remove(PROJECTOR_WEIGHTS);
            return Ok(companions);
        };
        let config = json!({
            "type": KIND,
            "hidden": plan.projector.hidden,
            "activation": ACTIVATION,
            "layer_norm_eps": plan.projector.eps,
        });
        companions.set(PROJECTOR_CONFIG, format!("{config:#}\n").into_bytes());
        let parameters = projector::parameters(&plan.projector, self.config.width);
        let tensors = &self.parameters[plan.first..plan.first + parameters.len()];
        let stored = |tensor: &Tensor| match tensor.dtype() {
            Dtype::F64 => Stored::F64,
            Dtype::Bf16 => Stored::Bf16,
            _ => Stored::F32,
        };
        let headers: Vec<TensorHeader> = parameters
            .iter()
            .zip(tensors)
            .map(|(parameter, tensor)| TensorHeader {
                name: parameter.name.clone(),
                shape: parameter.shape.dims().to_vec(),
                stored: stored(tensor),
            })
            .collect();
        let mut bytes = Vec::new();
        let (path, metadata) = (Path::new(PROJECTOR_WEIGHTS), [("format", "pt")]);
        safetensors_file::write(path, &mut bytes, &headers, &metadata, &mut |index, writer| match tensors
            [index]
            .dtype()
        {
            Dtype::F64 => writer.write(bytemuck::cast_slice(&tensors[index].download::<f64>()?)),
            Dtype::Bf16 => writer.write(bytemuck::cast_slice(&tensors[index].download::<half::bf16>()?)),
            _ => writer.write(bytemuck::cast_slice(&tensors[index].download::<f32>()?)),
        })?;
        companions.set(PROJECTOR_WEIGHTS, bytes);
        Ok(companions)
    }
}

fn read_projector(path: &Path) -> Result<Projector> {
    let json = read_json(path)?;
    for (key, known) in [("type", KIND), ("activation", ACTIVATION)] {
        if json[key] != json!(known) {
            let problem = format!("{key} = {}, expected \"{known}\"", json[key]);
            return Err(Error::file(path, problem, "this build computes no other projector"));
        }
    }
    let hidden = json["hidden"].as_u64().filter(|&hidden| (1..=1 << 20).contains(&hidden));
    let eps = json["layer_norm_eps"].as_f64().filter(|&eps| eps > 0.0 && eps < 1.0);
    match (hidden, eps) {
        (Some(hidden), Some(eps)) => Ok(Projector { hidden: hidden as usize, eps }),
        _ => Err(Error::file(
            path,
            format!("hidden = {}, layer_norm_eps = {}", json["hidden"], json["layer_norm_eps"]),
            "expected a width from 1 and an epsilon between 0 and 1",
        )),
    }
}
