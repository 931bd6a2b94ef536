//! The check of CODI's whole loss: cross-entropies of student and teacher, latents through the projector, and the
//! distance of their states, differentiated by every parameter.
//!
//! The teacher's states are constants of the gradient, so the loss whose differences are taken holds them at what they
//! were at the first point.

use super::gradient::{Subject, Variable};
use super::models::{in_precision, small_config, small_model};
use super::operations::values;
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::learn::codi::{self, Distiller, Lesson, Weights};
use crate::learn::supervised::Example;
use crate::model::{Model, Precision, Projector, Record};

/// Tokens of the small models.
const VOCABULARY: usize = 29;
/// Latent thoughts.
const THOUGHTS: usize = 3;

/// Lessons of different lengths; token ids from a stream.
fn lessons(seed: u64) -> Vec<Lesson> {
    let mut draws = StreamKey::new(seed, 0, 0, 1, Purpose::Probe).draws(0, 0);
    let mut tokens = |count: usize| (0..count).map(|_| draws.below(VOCABULARY) as u32).collect::<Vec<u32>>();
    [(3, 4, 3), (5, 2, 2), (2, 6, 4)]
        .into_iter()
        .map(|(question, reasoning, answer)| {
            let (question, steps, answer) = (tokens(question), tokens(reasoning), tokens(answer));
            let start = tokens(1);
            Lesson {
                student: Example {
                    prompt: [&question[..], &start].concat(),
                    latents: THOUGHTS,
                    end: tokens(1),
                    answer: answer.clone(),
                },
                teacher: Example {
                    prompt: question,
                    latents: 0,
                    end: Vec::new(),
                    answer: [&steps[..], &answer].concat(),
                },
                tap: 1,
                reasoning,
            }
        })
        .collect()
}

/// CODI's loss as something to check.
pub struct CodiSubject {
    name: String,
    variables: Vec<Variable>,
    lessons: Vec<Lesson>,
    weights: Weights,
    model: Model,
    distiller: Distiller,
    device: Device,
}

impl CodiSubject {
    /// A small model of a family with a projector; all terms have different weights, so that none stands in for
    /// another.
    ///
    /// # Errors
    /// Those of building and planning.
    pub fn new(family: &str, record: Record, seed: u64, device: &Device) -> Result<CodiSubject> {
        let model = small_model(small_config(family, 2, VOCABULARY, 24, false)?, seed)?;
        let mut model = model.with_random_projector(Projector::of(11), seed)?;
        let weights = Weights { student: 0.8, distill: 3.0, teacher: 1.3, ..Weights::default() };
        let lessons = lessons(seed);
        let limits = codi::limits(&lessons, lessons.len(), usize::MAX);
        let mut distiller = Distiller::new(&model, limits, weights, record)?;
        // Points are numbers that f32 holds.
        for tensor in model.parameters_mut() {
            let rounded: Vec<f64> = tensor.download::<f64>()?.iter().map(|&v| f64::from(v as f32)).collect();
            tensor.upload(&rounded)?;
        }
        distiller.hold(&model, &lessons)?;
        let named = model.parameter_list().iter().zip(model.parameters());
        let variables = named.map(|(parameter, tensor)| {
            Ok(Variable { name: parameter.name.clone(), values: tensor.download::<f64>()? })
        });
        Ok(CodiSubject {
            name: format!("codi {family}"),
            variables: variables.collect::<Result<_>>()?,
            lessons,
            weights,
            distiller,
            model,
            device: device.clone(),
        })
    }

    fn single(&self) -> Result<Vec<Vec<f64>>> {
        // The teacher is held where the differences hold it: at the first point.
        let mut model = in_precision(&self.model, &self.device, Precision::F32)?;
        for (tensor, variable) in model.parameters_mut().iter_mut().zip(&self.variables) {
            tensor.upload(&variable.values.iter().map(|&v| v as f32).collect::<Vec<f32>>())?;
        }
        let limits = codi::limits(&self.lessons, self.lessons.len(), usize::MAX);
        let mut distiller = Distiller::new(&model, limits, self.weights, Record::Everything)?;
        distiller.hold(&model, &self.lessons)?;
        model.copy_from(&in_precision(&self.model, &self.device, Precision::F32)?)?;
        gradient(&mut distiller, &model, &self.lessons)
    }
}

fn gradient(distiller: &mut Distiller, model: &Model, lessons: &[Lesson]) -> Result<Vec<Vec<f64>>> {
    let mut gradients = model.gradients()?;
    distiller.gradient(model, lessons, &mut gradients)?;
    gradients.tensors()?.iter().map(|gradient| values(gradient.view())).collect()
}

impl Subject for CodiSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn variables(&self) -> &[Variable] {
        &self.variables
    }

    fn set(&mut self, variable: usize, at: usize, values: &[f64]) -> Result<()> {
        self.model.parameters_mut()[variable].upload_at(at, values)
    }

    fn loss(&mut self) -> Result<f64> {
        Ok(self.distiller.losses(&self.model, &self.lessons)?.total(&self.weights))
    }

    fn gradient(&mut self, dtype: Dtype) -> Result<Vec<Vec<f64>>> {
        match dtype {
            Dtype::F64 => gradient(&mut self.distiller, &self.model, &self.lessons),
            _ => self.single(),
        }
    }
}
