//! A model so small that every mask and every answer can be listed, run by the product's own forward and backward.

use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::model::{
    Config, Input, Model, Precision, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan, Truncation,
};
use latch::ops::Tensor;
use latch::ops::mask::{MaskSet, SiteKind, Sites};
use latch::verify::operations::values;

/// The last token ends an answer.
const VOCABULARY: usize = 5;
const EOS: u32 = 4;
const LATENTS: usize = 2;
const WIDTH: usize = 3;
/// Scored (position, token) pairs of one mask: five first tokens, and five second ones after each of four.
const PAIRS: usize = VOCABULARY + 4 * VOCABULARY;

/// A prompt and which answers are right.
#[derive(Clone, Copy)]
pub struct Problem {
    pub prompt: [u32; 3],
    pub right: fn(&[u32]) -> bool,
}

/// Right answers have rather likely and rather unlikely members, of both lengths.
pub const PROBLEMS: [Problem; 2] = [
    Problem { prompt: [0, 3, 2], right: |answer| answer.iter().sum::<u32>() % 3 == 1 },
    Problem { prompt: [1, 1, 2], right: |answer| answer == [2, EOS] || answer == [0, 3] },
];

/// An answer: its tokens' places among the pairs of a mask.
pub struct Answer {
    pub tokens: Vec<u32>,
    pub pairs: Vec<usize>,
}

/// All answers of at most two tokens: those that stop, and those that are cut.
pub fn answers() -> Vec<Answer> {
    let mut all = vec![Answer { tokens: vec![EOS], pairs: vec![EOS as usize] }];
    for first in 0..EOS {
        for second in 0..VOCABULARY as u32 {
            let pairs = vec![first as usize, VOCABULARY * (1 + first as usize) + second as usize];
            all.push(Answer { tokens: vec![first, second], pairs });
        }
    }
    all
}

/// What one rollout may meet: the instance of each part, and how probable that is.
#[derive(Clone, Copy)]
pub struct Outcome {
    pub probability: f64,
    /// Of prompt, start token, latents 1 and 2, answer.
    pub instances: [Option<u32>; 5],
}

/// A law of masks, given by listing it. Instances are all bit patterns of the free elements; the other elements of
/// the sites are always kept (and scaled, as everything that an active mask keeps).
pub struct Law {
    kinds: Vec<SiteKind>,
    /// Free elements of each site.
    free: usize,
    p: f64,
    pub outcomes: Vec<Outcome>,
}

impl Law {
    fn new(kinds: &[SiteKind], free: usize, p: f64) -> Law {
        Law { kinds: kinds.to_vec(), free, p, outcomes: Vec::new() }
    }

    fn bits(&self) -> usize {
        self.kinds.len() * self.free
    }

    fn probability(&self, instance: usize) -> f64 {
        let kept = instance.count_ones() as i32;
        (1.0 - self.p).powi(kept) * self.p.powi(self.bits() as i32 - kept)
    }

    /// One mask for the whole rollout, at every position.
    pub fn shared_everywhere(kinds: &[SiteKind], free: usize, p: f64) -> Law {
        let mut law = Law::new(kinds, free, p);
        for instance in 0..1 << law.bits() {
            let probability = law.probability(instance);
            law.outcomes.push(Outcome { probability, instances: [Some(instance as u32); 5] });
        }
        law
    }

    /// One mask from the start token through the latents.
    pub fn shared(kinds: &[SiteKind], free: usize, p: f64) -> Law {
        let mut law = Law::shared_everywhere(kinds, free, p);
        for outcome in &mut law.outcomes {
            (outcome.instances[0], outcome.instances[4]) = (None, None);
        }
        law
    }

    /// The start token and each latent under a mask of their own.
    pub fn per_step(kinds: &[SiteKind], free: usize, p: f64) -> Law {
        let mut law = Law::new(kinds, free, p);
        let count = 1 << law.bits();
        for [a, b, c] in (0..count * count * count).map(|i| [i % count, i / count % count, i / count / count])
        {
            let probability = law.probability(a) * law.probability(b) * law.probability(c);
            let instances = [None, Some(a as u32), Some(b as u32), Some(c as u32), None];
            law.outcomes.push(Outcome { probability, instances });
        }
        law
    }

    /// One outcome alone, with certainty.
    pub fn only(&self, outcome: usize) -> Law {
        let mut law = Law::new(&self.kinds, self.free, self.p);
        law.outcomes.push(Outcome { probability: 1.0, ..self.outcomes[outcome] });
        law
    }

    /// No mask at all.
    pub fn none() -> Law {
        let mut law = Law::new(&[], 0, 0.0);
        law.outcomes.push(Outcome { probability: 1.0, instances: [None; 5] });
        law
    }

    fn masks(&self, model: &Model) -> Option<MaskSet> {
        let config = model.config();
        let sites = Sites::new(config.width, config.mlp_hidden, config.layers, &self.kinds);
        let count = 1_usize << self.bits();
        let keep: Vec<Vec<u8>> = (0..self.kinds.len())
            .map(|site| {
                let bit =
                    |instance: usize, i: usize| i >= self.free || instance >> (site * self.free + i) & 1 == 1;
                (0..count).flat_map(|n| (0..config.width).map(move |i| u8::from(bit(n, i)))).collect()
            })
            .collect();
        let of = |kind| self.kinds.iter().position(|&known| known == kind).map(|site| keep[site].as_slice());
        (!self.kinds.is_empty())
            .then(|| MaskSet::from_keep(model.device(), sites, self.p, count, |site| of(site.kind)).unwrap())
    }
}

/// One layer, width 3, f64, weights large enough that masks and latents matter.
pub fn model() -> Model {
    let json = r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":5,"n_embd":3,"n_head":1,
        "n_layer":1,"n_inner":5,"n_positions":8,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,
        "tie_word_embeddings":true}"#;
    let config =
        Config::from_json(serde_json::from_str(json).unwrap(), std::path::Path::new("config.json")).unwrap();
    assert_eq!((config.width, config.vocab), (WIDTH, VOCABULARY));
    scattered(config, 0.7, 2)
}

/// A model with normal weights of one deviation (gains around 1), in f64.
pub fn scattered(config: Config, deviation: f64, seed: u64) -> Model {
    Model::build(config, &Device::cpu(), Precision::of(Dtype::F64), |index, parameter, tensor| {
        let mut draws = StreamKey::new(seed, 0, index as u32, 0, Purpose::Init).draws(0, 0);
        let gain = if parameter.name.contains("norm") || parameter.name.contains("ln_") { 1.0 } else { 0.0 };
        let gain = if parameter.name.ends_with("bias") { 0.0 } else { gain };
        let count = tensor.shape().elements();
        let numbers: Vec<f64> = (0..count).map(|_| gain + deviation * draws.normal()).collect();
        tensor.upload(&numbers)
    })
    .unwrap()
}

/// Log-probabilities of every pair under every outcome of a law.
pub struct Enumeration<'a> {
    pub model: &'a Model,
    pub law: &'a Law,
    pub problem: Problem,
    /// `[outcomes, PAIRS]`.
    log_probabilities: Vec<f64>,
}

impl<'a> Enumeration<'a> {
    pub fn new(model: &'a Model, law: &'a Law, problem: Problem) -> Enumeration<'a> {
        let mut all = Enumeration { model, law, problem, log_probabilities: Vec::new() };
        all.log_probabilities = all.run(None).0;
        all
    }

    /// Index of an answer token's log-probability.
    pub fn pair(&self, outcome: usize, pair: usize) -> usize {
        outcome * PAIRS + pair
    }

    pub fn log_probability(&self, outcome: usize, pair: usize) -> f64 {
        self.log_probabilities[self.pair(outcome, pair)]
    }

    /// pi(answer | mask).
    pub fn likelihood(&self, outcome: usize, answer: &Answer) -> f64 {
        answer.pairs.iter().map(|&pair| self.log_probability(outcome, pair)).sum::<f64>().exp()
    }

    pub fn reward(&self, answer: &Answer) -> f64 {
        f64::from(u8::from((self.problem.right)(&answer.tokens)))
    }

    /// Expected reward under one outcome.
    pub fn value(&self, outcome: usize) -> f64 {
        answers().iter().map(|answer| self.likelihood(outcome, answer) * self.reward(answer)).sum()
    }

    /// J: expected reward over masks and answers.
    pub fn objective(&self) -> f64 {
        let outcomes = self.law.outcomes.iter().enumerate();
        outcomes.map(|(n, outcome)| outcome.probability * self.value(n)).sum()
    }

    /// Coefficient `of(outcome, answer)` on every log-probability of that answer's tokens, summed over all
    /// outcomes and answers.
    pub fn spread(&self, of: impl Fn(usize, &Answer) -> f64) -> Vec<f64> {
        let mut coefficients = vec![0.0; self.log_probabilities.len()];
        for outcome in 0..self.law.outcomes.len() {
            for answer in answers() {
                let value = of(outcome, &answer);
                for &pair in &answer.pairs {
                    coefficients[self.pair(outcome, pair)] += value;
                }
            }
        }
        coefficients
    }

    /// The exact gradient of J: `sum q(m) pi(y|m) r(y) grad ln pi(y|m)`.
    pub fn exact(&self) -> Vec<f64> {
        self.gradient(&self.spread(|outcome, answer| {
            let q = self.law.outcomes[outcome].probability;
            q * self.likelihood(outcome, answer) * self.reward(answer)
        }))
    }

    /// The gradient of `sum coefficient * log-probability` by all parameters, in one line.
    pub fn gradient(&self, coefficients: &[f64]) -> Vec<f64> {
        self.run(Some(coefficients)).1
    }

    /// Every outcome four times, once for each first token that does not stop. All rows run together.
    fn run(&self, coefficients: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
        let (model, outcomes) = (self.model, &self.law.outcomes);
        let rows = outcomes.len() * EOS as usize;
        let length = self.problem.prompt.len() + LATENTS + 1;
        let plan = SequencesPlan {
            rows: vec![RowPlan::own(length); rows],
            // Without recording, a segment's hidden states would be overwritten by the next.
            record: Record::Everything,
            tape_positions: rows * length,
        };
        let masks = self.law.masks(model);
        let mut sequences = Sequences::new(model, &plan).unwrap();
        let push = |segment: &mut Segment, row: usize, input: Input, part: usize| match outcomes
            [row / EOS as usize]
            .instances[part]
        {
            Some(instance) => segment.push_masked(row as u32, input, instance),
            None => segment.push(row as u32, input),
        };
        let mut segment = Segment::new();
        for row in 0..rows {
            for (n, &token) in self.problem.prompt.iter().enumerate() {
                push(&mut segment, row, Input::Token(token), usize::from(n + 1 == self.problem.prompt.len()));
            }
        }
        model.forward(&mut sequences, &segment, masks.as_ref()).unwrap();
        let mut latest = 0..0;
        for step in 0..LATENTS {
            let mut segment = Segment::new();
            (0..rows).for_each(|row| push(&mut segment, row, Input::Latent, 2 + step));
            latest = model.forward(&mut sequences, &segment, masks.as_ref()).unwrap();
        }
        let mut segment = Segment::new();
        (0..rows).for_each(|row| push(&mut segment, row, Input::Token((row % EOS as usize) as u32), 4));
        let after = model.forward(&mut sequences, &segment, masks.as_ref()).unwrap();
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for outcome in 0..outcomes.len() {
            let row = |first: usize| outcome * EOS as usize + first;
            for token in 0..VOCABULARY {
                // Each first token at a row that goes on with it, the stop token at the first row.
                positions.push((latest.start + row(token % EOS as usize)) as u32);
                targets.push(token as u32);
            }
            for first in 0..EOS as usize {
                for token in 0..VOCABULARY {
                    positions.push((after.start + row(first)) as u32);
                    targets.push(token as u32);
                }
            }
        }
        let mut scores = Scores::reserve(model, positions.len()).unwrap();
        scores.forward(model, &sequences, &positions, &targets, 1.0).unwrap();
        let log_probabilities = scores.log_probabilities().unwrap();
        let Some(coefficients) = coefficients else { return (log_probabilities, Vec::new()) };
        let mut gradients = model.gradients().unwrap();
        scores.backward(model, &mut sequences, coefficients, &mut gradients).unwrap();
        model.backward(&mut sequences, masks.as_ref(), Truncation::default(), &mut gradients).unwrap();
        let flat =
            gradients.tensors().unwrap().iter().flat_map(|tensor| values(tensor.view()).unwrap()).collect();
        (log_probabilities, flat)
    }
}

/// The model's parameters in one line.
pub fn flat(model: &Model) -> Vec<f64> {
    model.parameters().iter().flat_map(|tensor| tensor.download::<f64>().unwrap()).collect()
}

/// The inverse of [`flat`].
pub fn place(model: &mut Model, values: &[f64]) {
    let mut at = 0;
    for tensor in model.parameters_mut() {
        let count = tensor.shape().elements();
        tensor.upload(&values[at..at + count]).unwrap();
        at += count;
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// ‖a - scale b‖ / ‖scale b‖.
pub fn distance(a: &[f64], b: &[f64], scale: f64) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - scale * b).collect();
    norm(&difference) / (scale.abs() * norm(b))
}

pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (norm(a) * norm(b))
}

/// A column on the host's device.
pub fn column(values: &[f64]) -> Tensor {
    Tensor::from_host(&Device::cpu(), [values.len(), 1], values).unwrap()
}
