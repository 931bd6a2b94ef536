//! The work that whole models are timed on. The shapes are those of benches/pytorch.py, so that one table can hold
//! both; each kind of work checks its own result once before anything is timed.

use latch::base::Result;
use latch::device::Device;
use latch::learn::optimizer::{Optimizer, Settings};
use latch::learn::supervised::{Example, Limits as BatchLimits, Trainer};
use latch::model::{Config, Model, Precision, Record, RowPlan, Segment, Sequences, SequencesPlan};
use latch::ops::Tensor;
use latch::ops::sampler::Law;
use latch::rollout::group::{Drawing, Form, Limits, Member, Rollouts, Thoughts};
use latch::rollout::masks::{self, Masking};
use std::ops::ControlFlow;
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
        "smollm2-135m" => {
            r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":49152,"hidden_size":576,
            "num_attention_heads":9,"num_key_value_heads":3,"num_hidden_layers":30,"intermediate_size":1536,
            "max_position_embeddings":8192,"rms_norm_eps":1e-5,"hidden_act":"silu","tie_word_embeddings":true,
            "rope_theta":100000.0}"#
        }
        // For the simulator.
        "tiny" => {
            r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":64,"n_embd":32,"n_head":2,
            "n_layer":1,"n_positions":512,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,
            "tie_word_embeddings":true}"#
        }
        _ => return None,
    };
    let json = serde_json::from_str(json).expect("the text above is JSON");
    Some(Config::from_json(json, Path::new(name)).expect("the shapes above are valid"))
}

/// A model of that shape with random weights.
pub fn model(config: Config, precision: Precision, device: &Device) -> Model {
    Model::random(config, 1, device, precision).expect("a valid configuration, and room for it")
}

/// Waits until a GPU has done everything that it was given.
pub fn settle(device: &Device) {
    if let Device::Gpu(gpu) = device {
        gpu.synchronise().expect("a device that works");
    }
}

/// Token ids without a pattern that matters.
pub fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
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
        let limits = BatchLimits { rows: BATCH, longest: LENGTH, positions: BATCH * LENGTH };
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
        settle(self.model.device());
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
        let logits = Tensor::zeros(model.device(), [1, model.config().vocab], model.dtype().accumulation())?;
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
        settle(self.model.device());
        start.elapsed()
    }
}

/// Batch 1, greedy: `ANSWER` tokens after a prompt that is in the cache already and its first token.
pub struct Decode {
    model: Arc<Model>,
    rollouts: Rollouts,
    prompt: Vec<Vec<u32>>,
    answer: Vec<u32>,
}

impl Decode {
    pub fn new(model: Arc<Model>) -> Result<Decode> {
        let form = Form {
            start: Vec::new(),
            latents: 0,
            end: Vec::new(),
            stop: Vec::new(),
            max_new_tokens: ANSWER + 1,
        };
        let drawing = Drawing {
            gate: None,
            masking: Masking::NONE,
            latent_noise: 0.0,
            soft: None,
            thoughts: Thoughts::Own,
            law: Law::Greedy,
            seed: 0,
            share: false,
        };
        let limits = Limits { prompts: 1, members: 1, prompt_tokens: PROMPT };
        let rollouts = Rollouts::reserve(&model, form, drawing, limits, Record::Nothing)?;
        let prompt = vec![tokens(PROMPT, model.config().vocab)];
        let mut decode = Decode { model, rollouts, prompt, answer: Vec::new() };
        decode.run();
        // Known value: prompt and answer read at once must predict the same tokens.
        let (model, length) = (&decode.model, PROMPT + ANSWER);
        let plan = SequencesPlan {
            rows: vec![RowPlan::own(length)],
            record: Record::Nothing,
            tape_positions: length,
        };
        let mut sequences = Sequences::new(model, &plan)?;
        let row = [&decode.prompt[0][..], &decode.answer[..ANSWER]].concat();
        let at = model.forward(&mut sequences, &Segment::of_tokens(0, &row), None)?;
        let vocabulary = model.config().vocab;
        let logits_dtype = model.dtype().accumulation();
        let mut logits = Tensor::zeros(model.device(), [ANSWER + 1, vocabulary], logits_dtype)?;
        model.logits(sequences.hidden(at.end - ANSWER - 1..at.end)?, logits.view_mut())?;
        let predicted: Vec<u32> = logits.download::<f32>()?.chunks(vocabulary).map(largest).collect();
        assert_eq!(predicted, decode.answer, "greedy tokens");
        Ok(decode)
    }

    /// Times what follows the first token.
    pub fn run(&mut self) -> Duration {
        let member = Member { prompt: 0, coordinates: masks::Rollout::default() };
        let mut start = None;
        let sampled = self.rollouts.sample(&self.model, &self.prompt, &[member], |_, _| {
            start.get_or_insert_with(Instant::now);
            ControlFlow::Continue(())
        });
        settle(self.model.device());
        let taken = start.expect("a token was sampled").elapsed();
        self.answer = sampled.expect("it ran before").remove(0).tokens;
        taken
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
