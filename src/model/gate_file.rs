//! The gates of HRPO in files: beside the model's weights, which stay those of the family.
//!
//! ```text
//! latent_gates.json          {"type": "hrpo", "rate": 8, "width": ..}
//! latent_gates.safetensors   thinking_residual_gate_r.weight, .bias, thinking_residual_gate_i.*, thinking_residual_Lambda.*
//! ```

use super::Model;
use super::config::read_json;
use super::gates;
use super::module_file;
use super::safetensors_file::{self, SafetensorsFile, TensorHeader};
use super::save::Companions;
use super::stored::Stored;
use crate::base::{Dtype, Error, Result};
use crate::ops::Tensor;
use serde_json::json;
use std::fs;
use std::path::Path;

/// What the gates are.
pub const GATE_CONFIG: &str = "latent_gates.json";
/// Their weights.
pub const GATE_WEIGHTS: &str = "latent_gates.safetensors";
const KIND: &str = "hrpo";
const RATE: u32 = 8;

impl Model {
    /// The model with the gates of `folder`, where the folder has any.
    ///
    /// # Errors
    /// One of the two files is missing, damaged or of another model.
    pub(super) fn with_gates_of(self, folder: &Path) -> Result<Model> {
        let (config, weights) = (folder.join(GATE_CONFIG), folder.join(GATE_WEIGHTS));
        for (there, missing, name) in [(&config, &weights, GATE_WEIGHTS), (&weights, &config, GATE_CONFIG)] {
            if there.is_file() && !missing.is_file() {
                return Err(Error::file(
                    folder,
                    format!("its gates (hrpo.thinking) are not whole: {name} is missing"),
                    "copy latent_gates.json and latent_gates.safetensors from the run that trained the model",
                ));
            }
        }
        if !config.is_file() {
            return Ok(self);
        }
        let json = read_json(&config)?;
        let width = self.config().width;
        if json["type"] != json!(KIND) || json["rate"] != json!(RATE) || json["width"] != json!(width) {
            return Err(Error::file(
                &config,
                format!("type {}, rate {}, width {}", json["type"], json["rate"], json["width"]),
                format!(
                    "expected \"{KIND}\", {RATE} and the model's {width}: this build computes no other gates"
                ),
            ));
        }
        let file = SafetensorsFile::open(&weights)?;
        self.with_gates(|_, parameter, tensor| {
            let name = &parameter.name[..];
            module_file::load(&file, name, tensor, "the gates belong to")
        })
    }

    /// `companions` with the gates' files, where the model has gates; without them where it has none.
    pub(super) fn with_gate_files(&self, companions: &Companions) -> Result<Companions> {
        let mut companions = companions.clone();
        let Some(plan) = &self.gates else {
            companions.remove(GATE_CONFIG);
            return Ok(companions);
        };
        let config = json!({ "type": KIND, "rate": RATE, "width": self.config.width });
        companions.set(GATE_CONFIG, format!("{config:#}\n").into_bytes());
        let parameters = gates::parameters(self.config.width);
        let tensors = &self.parameters[plan.first..plan.first + parameters.len()];
        let header = |(parameter, tensor): (&super::families::Parameter, &Tensor)| TensorHeader {
            name: parameter.name.clone(),
            shape: parameter.shape.dims().to_vec(),
            stored: match tensor.dtype() {
                Dtype::F64 => Stored::F64,
                Dtype::Bf16 => Stored::Bf16,
                _ => Stored::F32,
            },
        };
        let headers: Vec<TensorHeader> = parameters.iter().zip(tensors).map(header).collect();
        let mut bytes = Vec::new();
        let (path, metadata) = (Path::new(GATE_WEIGHTS), [("format", "pt")]);
        safetensors_file::write(path, &mut bytes, &headers, &metadata, &mut |index, writer| {
            let tensor = &tensors[index];
            match tensor.dtype() {
                Dtype::F64 => writer.write(bytemuck::cast_slice(&tensor.download::<f64>()?)),
                Dtype::Bf16 => writer.write(bytemuck::cast_slice(&tensor.download::<half::bf16>()?)),
                _ => writer.write(bytemuck::cast_slice(&tensor.download::<f32>()?)),
            }
        })?;
        companions.set(GATE_WEIGHTS, bytes);
        Ok(companions)
    }

    /// Removes the gates of an older model from the folder that this one, without gates, was saved into.
    pub(super) fn remove_older_gates(&self, folder: &Path) -> Result<()> {
        for name in [GATE_CONFIG, GATE_WEIGHTS].into_iter().filter(|_| self.gates.is_none()) {
            let path = folder.join(name);
            if path.is_file() {
                fs::remove_file(&path).map_err(Error::io(&path, "cannot remove the older gates"))?;
            }
        }
        Ok(())
    }
}
