//! The work that whole models are timed on. The shapes are those of benches/pytorch.py, so that one table can hold
//! both; each kind of work checks its own result once before anything is timed.

use latch::base::rng::{Purpose, StreamKey};
use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::learn::optimizer::{Optimizer, Settings};
use latch::learn::supervised::{Example, Limits, Trainer};
use latch::model::{Config, Input, Model, Precision, Record, RowPlan, Segment, Sequences, SequencesPlan};
use latch::ops::Tensor;
use latch::ops::index;
use latch::ops::sampler::{self, Law};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of the prompt of decode and of rollouts.
pub const PROMPT: usize = 64;
/// Latent steps of a rollout.
pub const LATENTS: usize = 6;
/// Tokens decoded or sampled.
pub const ANSWER: usize = 32;
/// Rollouts of one prompt.
pub const GROUP: usize = 8;
/// Rows of a training batch.
pub const BATCH: usize = 4;
/// Positions of a training row.
pub const LENGTH: usize = 64;
/// Tokens of a prefill.
pub const PREFILL: usize = 256;

/// One run of prepared work; returns the time of the part that counts.
pub type Run = Box<dyn FnMut() -> Duration + Send>;

/// The configuration of a shape that pytorch.py also knows.
pub fn config(name: &str) -> Option<Config> {
    let json = match name {
        "small" => {
            r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":1000,"n_embd":256,"n_head":8,
            "n_layer":4,"n_positions":1024,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,
            "tie_word_embeddings":true}"#
        }
        "gpt2-124m" => {
            r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":50257,"n_embd":768,"n_head":12,
            "n_layer":12,"n_positions":1024,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,
            "tie_word_embeddings":true}"#
        }
        "qwen2.5-0.5b" => {
            r#"{"model_type":"qwen2","architectures":["Qwen2ForCausalLM"],"vocab_size":151936,"hidden_size":896,
            "num_attention_heads":14,"num_key_value_heads":2,"num_hidden_layers":24,"intermediate_size":4864,
            "max_position_embeddings":32768,"rms_norm_eps":1e-6,"hidden_act":"silu","tie_word_embeddings":true,
            "rope_theta":1000000.0}"#
        }
        _ => return None,
    };
    let json = serde_json::from_str(json).expect("the text above is JSON");
    Some(Config::from_json(json, Path::new(name)).expect("the shapes above are valid"))
}

/// A model of that shape with random weights on a device of its own, whose counters show what the work holds.
pub fn model(config: Config, dtype: Dtype) -> Model {
    Model::random(config, 1, &Device::cpu(), Precision::of(dtype)).expect("a valid configuration")
}

fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 7 + 3) % vocabulary) as u32).collect()
}

/// Forward, backward, gradient norm and AdamW on `BATCH` rows of `LENGTH` positions, every position trained.
pub struct TrainStep {
    model: Model,
    trainer: Trainer,
    batch: Vec<Example>,
}

impl TrainStep {
    pub fn new(mut model: Model, record: Record) -> Result<TrainStep> {
        let ids = tokens(BATCH * (LENGTH + 1), model.config().vocab);
        let batch: Vec<Example> = ids
            .chunks(LENGTH + 1)
            .map(|row| Example { prompt: row[..1].to_vec(), answer: row[1..].to_vec(), ..Example::default() })
            .collect();
        let optimizer = Optimizer::new(&model, Settings { clip: None, ..Settings::default() })?;
        let limits = Limits { rows: BATCH, longest: LENGTH, positions: BATCH * LENGTH };
        let mut trainer = Trainer::new(&model, optimizer, limits, record)?;
        // Known value: fresh small weights give nearly equal logits, so the loss is near ln(vocabulary), and
        // training on one batch lowers it.
        let first = trainer.step(&mut model, &batch, 1e-3)?.loss;
        let uniform = (model.config().vocab as f64).ln();
        assert!((first - uniform).abs() < 0.5, "first loss {first}, expected about {uniform}");
        let second = trainer.step(&mut model, &batch, 1e-5)?.loss;
        assert!(second < first, "the loss went from {first} to {second}");
        Ok(TrainStep { model, trainer, batch })
    }

    pub fn run(&mut self) -> Duration {
        let start = Instant::now();
        self.trainer.step(&mut self.model, &self.batch, 1e-5).expect("it ran before");
        start.elapsed()
    }

    /// Most bytes of tensors that were ever alive at once: parameters, moments, gradients, tape.
    pub fn bytes(&self) -> usize {
        self.model.device().traffic().count().bytes_high_water
    }
}

/// One row of `PREFILL` tokens, logits of the last position. The cache is reserved before.
pub struct Prefill {
    model: Arc<Model>,
    sequences: Sequences,
    logits: Tensor,
    segment: Segment,
}

impl Prefill {
    pub fn new(model: Arc<Model>) -> Result<Prefill> {
        let segment = Segment::of_tokens(0, &tokens(PREFILL, model.config().vocab));
        let plan = SequencesPlan {
            rows: vec![RowPlan::own(PREFILL)],
            record: Record::Nothing,
            tape_positions: PREFILL,
        };
        let logits = Tensor::zeros(model.device(), [1, model.config().vocab], model.dtype())?;
        let mut prefill = Prefill { sequences: Sequences::new(&model, &plan)?, model, logits, segment };
        // The same row cut in two must give the same bits.
        prefill.run();
        let whole = prefill.logits.download::<f32>()?;
        assert!(whole.iter().all(|logit| logit.is_finite()) && whole.iter().any(|&logit| logit != whole[0]));
        prefill.sequences.restart()?;
        let ids = tokens(PREFILL, prefill.model.config().vocab);
        for part in [&ids[..100], &ids[100..]] {
            prefill.model.forward(&mut prefill.sequences, &Segment::of_tokens(0, part), None)?;
        }
        prefill.model.logits(prefill.sequences.latest_hidden(), prefill.logits.view_mut())?;
        assert_eq!(whole, prefill.logits.download::<f32>()?, "a prompt cut in two");
        Ok(prefill)
    }

    pub fn run(&mut self) -> Duration {
        let start = Instant::now();
        let mut run = || -> Result<()> {
            self.sequences.restart()?;
            self.model.forward(&mut self.sequences, &self.segment, None)?;
            self.model.logits(self.sequences.latest_hidden(), self.logits.view_mut())
        };
        run().expect("it ran before");
        start.elapsed()
    }
}

/// Tokens sampled step by step: only they cross to the host.
struct Sampling {
    model: Arc<Model>,
    sequences: Sequences,
    law: Law,
    logits: Tensor,
    tokens: Tensor,
    keys: Tensor,
    steps: Tensor,
    log_probabilities: Tensor,
}

impl Sampling {
    fn new(model: Arc<Model>, plan: &SequencesPlan, rows: usize, law: Law) -> Result<Sampling> {
        let (device, dtype) = (model.device(), model.dtype());
        let keys: Vec<u32> =
            (0..rows as u32).flat_map(|row| StreamKey::new(5, 0, 0, row, Purpose::Token).0).collect();
        Ok(Sampling {
            sequences: Sequences::new(&model, plan)?,
            law,
            logits: Tensor::zeros(device, [rows, model.config().vocab], dtype)?,
            tokens: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            keys: Tensor::from_host(device, [rows, 2], &keys)?,
            steps: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
            log_probabilities: Tensor::zeros(device, [rows * ANSWER, 1], dtype)?,
            model,
        })
    }

    /// One token for each row from the hidden states at `at`.
    fn sample(&mut self, at: Range<usize>, step: usize) -> Result<Vec<u32>> {
        let count = at.len();
        self.model.logits(self.sequences.hidden(at)?, self.logits.rows_mut(0..count)?)?;
        sampler::sample(
            self.logits.view(),
            &self.law,
            sampler::Noise { keys: self.keys.view(), steps: self.steps.view(), site: 0 },
            sampler::Sampled {
                tokens: self.tokens.view_mut(),
                log_probability: self.log_probabilities.rows_mut(step * count..(step + 1) * count)?,
                support: None,
            },
        )?;
        index::repeat(&mut self.steps, 0..count, 0, 1)?;
        self.tokens.download::<u32>()
    }

    /// Appends the tokens just sampled.
    fn advance(&mut self, at: Range<usize>, rows: &[u32]) -> Result<Range<usize>> {
        self.model.forward_sampled(&mut self.sequences, at, rows, self.tokens.view(), None)
    }
}

/// Batch 1, greedy: `ANSWER` tokens after a prompt that is in the cache already.
pub struct Decode {
    sampling: Sampling,
    prompt: Segment,
    answer: Vec<u32>,
}

impl Decode {
    pub fn new(model: Arc<Model>) -> Result<Decode> {
        let prompt = tokens(PROMPT, model.config().vocab);
        let plan = SequencesPlan {
            rows: vec![RowPlan::own(PROMPT + ANSWER)],
            record: Record::Nothing,
            tape_positions: PROMPT + ANSWER,
        };
        let sampling = Sampling::new(model, &plan, 1, Law::Greedy)?;
        let mut decode = Decode { sampling, prompt: Segment::of_tokens(0, &prompt), answer: Vec::new() };
        decode.run();
        // Known value: prompt and answer read at once must predict the same tokens.
        let Sampling { model, sequences, .. } = &mut decode.sampling;
        let vocabulary = model.config().vocab;
        sequences.restart()?;
        let row = [&prompt[..], &decode.answer[..ANSWER]].concat();
        let at = model.forward(sequences, &Segment::of_tokens(0, &row), None)?;
        let mut logits = Tensor::zeros(model.device(), [ANSWER + 1, vocabulary], model.dtype())?;
        model.logits(sequences.hidden(at.end - ANSWER - 1..at.end)?, logits.view_mut())?;
        let predicted: Vec<u32> = logits.download::<f32>()?.chunks(vocabulary).map(largest).collect();
        assert_eq!(predicted, decode.answer, "greedy tokens");
        Ok(decode)
    }

    pub fn run(&mut self) -> Duration {
        let mut run = || -> Result<Duration> {
            let sampling = &mut self.sampling;
            sampling.sequences.restart()?;
            let prompt = sampling.model.forward(&mut sampling.sequences, &self.prompt, None)?;
            let mut at = prompt.end - 1..prompt.end;
            self.answer = sampling.sample(at.clone(), 0)?;
            let start = Instant::now();
            for _ in 0..ANSWER {
                at = sampling.advance(at, &[0])?;
                self.answer.extend(sampling.sample(at.clone(), 0)?);
            }
            Ok(start.elapsed())
        };
        run().expect("it ran before")
    }
}

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// `GROUP` rollouts of one prompt: `LATENTS` latent steps, an end marker, `ANSWER` sampled tokens with their
/// log-probabilities; the prompt computed once, or by each rollout.
pub struct Rollout {
    sampling: Sampling,
    shared: bool,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

impl Rollout {
    pub fn new(model: Arc<Model>, shared: bool) -> Result<Rollout> {
        let mut rollout = Rollout::prepare(model.clone(), shared)?;
        rollout.run();
        // The other way to run the prompt must sample the same tokens.
        let mut other = Rollout::prepare(model, !shared)?;
        other.run();
        assert_eq!(rollout.tokens, other.tokens, "with and without prefix sharing");
        assert_eq!(rollout.tokens.len(), GROUP * ANSWER);
        Ok(rollout)
    }

    fn prepare(model: Arc<Model>, shared: bool) -> Result<Rollout> {
        let length = PROMPT + LATENTS + 1 + ANSWER - 1;
        let mut rows = vec![RowPlan::own(length); GROUP];
        if shared {
            rows = vec![RowPlan::sharing(0, PROMPT, length); GROUP];
            rows.insert(0, RowPlan::own(PROMPT));
        }
        let tape_positions = if shared { PROMPT } else { GROUP * PROMPT };
        let plan = SequencesPlan { rows, record: Record::Nothing, tape_positions };
        let prompt = tokens(PROMPT, model.config().vocab);
        let sampling = Sampling::new(model, &plan, GROUP, Law::PLAIN)?;
        Ok(Rollout { sampling, shared, prompt, tokens: Vec::new() })
    }

    pub fn run(&mut self) -> Duration {
        let start = Instant::now();
        let mut run = || -> Result<()> {
            let sampling = &mut self.sampling;
            let sequences = &mut sampling.sequences;
            sequences.restart()?;
            sampling.steps.clear()?;
            self.tokens.clear();
            let first = u32::from(self.shared);
            let rows: Vec<u32> = (first..first + GROUP as u32).collect();
            let mut prompt = Segment::new();
            for &row in if self.shared { &[0][..] } else { &rows[..] } {
                prompt.extend_tokens(row, &self.prompt);
            }
            sampling.model.forward(sequences, &prompt, None)?;
            for _ in 0..LATENTS {
                sampling.model.forward(sequences, &Segment::latent_step(rows.iter().copied()), None)?;
            }
            let mut marker = Segment::new();
            for &row in &rows {
                marker.push(row, Input::Token(0));
            }
            let mut at = sampling.model.forward(sequences, &marker, None)?;
            for step in 0..ANSWER {
                let tokens = sampling.sample(at.clone(), step)?;
                self.tokens.extend(tokens);
                if step + 1 < ANSWER {
                    at = sampling.advance(at, &rows)?;
                }
            }
            let log_probabilities = sampling.log_probabilities.download::<f32>()?;
            assert!(log_probabilities.iter().all(|&value| value <= 0.0), "a probability above 1");
            Ok(())
        };
        run().expect("it ran before");
        start.elapsed()
    }
}
