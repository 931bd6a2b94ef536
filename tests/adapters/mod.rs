//! Low-rank adapters: against PEFT, against themselves under other batches and cuts, as files, and in training.

mod bits;
mod files;
mod golden;
mod operations;
mod story;
mod training;

use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::model::adapter::{ALL_LINEAR, Part};
use latch::model::{AdapterConfig, Embeddings, Model, Precision};
use latch::verify::models::{small_config, small_model};

/// The settings of the tests: everything adapted, nothing else trained.
pub fn config(rank: usize) -> AdapterConfig {
    AdapterConfig {
        rank,
        alpha: 2.0 * rank as f64 + 1.0,
        rslora: false,
        targets: vec![ALL_LINEAR.into()],
        embeddings: Embeddings::Frozen,
        base: String::new(),
    }
}

/// A small model of a family, at weights where every part of it matters.
pub fn base(family: &str, dtype: Dtype) -> Model {
    let config = small_config(family, 2, 61, 96, false).unwrap();
    let exact = small_model(config.clone(), 5).unwrap();
    Model::build(config, &Device::cpu(), Precision::of(dtype), |index, _, tensor| {
        let values: Vec<f64> = exact.parameters()[index].download().unwrap();
        match tensor.dtype() {
            Dtype::F64 => tensor.upload(&values),
            Dtype::Bf16 => {
                tensor.upload(&values.iter().map(|&v| half::bf16::from_f64(v)).collect::<Vec<_>>())
            }
            _ => tensor.upload(&values.iter().map(|&v| v as f32).collect::<Vec<_>>()),
        }
    })
    .unwrap()
}

/// The model with an adapter that has been trained: neither A nor B is zero.
pub fn lively(mut model: Model, config: AdapterConfig) -> Model {
    let f64s = model.dtype() == Dtype::F64;
    model
        .adapt_with(config, |index, parameter, tensor| {
            if parameter.part == Part::Whole {
                return Ok(());
            }
            let mut draws = StreamKey::new(9, 0, index as u32, 0, Purpose::Probe).draws(0, 0);
            let count = parameter.shape.elements();
            let values: Vec<f32> = (0..count).map(|_| 0.2 * draws.normal() as f32).collect();
            match f64s {
                true => tensor.upload(&values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()),
                false => tensor.upload(&values),
            }
        })
        .unwrap();
    model
}

/// All bits of some tensors.
pub fn bits<'a>(tensors: impl IntoIterator<Item = &'a latch::ops::Tensor>) -> Vec<u64> {
    let one = |tensor: &latch::ops::Tensor| -> Vec<u64> {
        match tensor.dtype() {
            Dtype::F64 => tensor.download::<f64>().unwrap().iter().map(|v| v.to_bits()).collect(),
            Dtype::Bf16 => {
                tensor.download::<half::bf16>().unwrap().iter().map(|v| u64::from(v.to_bits())).collect()
            }
            _ => tensor.download::<f32>().unwrap().iter().map(|v| u64::from(v.to_bits())).collect(),
        }
    };
    tensors.into_iter().flat_map(one).collect()
}
