//! Every key of a recipe: its name, type, documentation and allowed range, once. The values of keys that a recipe leaves
//! out stand in recipes/default.toml, once.

mod choices;

use super::keys::{self, ANY, KeyInfo, Keys, Setting, above, below, between, section};
use crate::device::Matmul;
use crate::model::Precision;
use crate::ops::mask::SiteKind;
use crate::rollout::masks::{Mode, Scope};
pub use choices::*;
use toml::de::DeValue;

/// A count that has no natural limit.
const MANY: f64 = 1e9;

section! {
    /// A whole run.
    Recipe {
        /// Seed of everything random.
        seed: u64, between(0.0, 9007199254740991.0);
    } holds {
        /// The model.
        model: ModelKeys,
        /// Low-rank adapters.
        adapter: AdapterKeys,
        /// The problems.
        data: DataKeys,
        /// Chain-of-thought training.
        cot: CotKeys,
        /// The Coconut curriculum.
        coconut: CoconutKeys,
        /// Stepwise internalisation.
        icot: IcotKeys,
        /// Self-distillation.
        codi: CodiKeys,
        /// Reinforcement learning.
        grpo: GrpoKeys,
        /// Soft latents.
        lepo: LepoKeys,
        /// Tokens read with the mixtures they were sampled from.
        hrpo: HrpoKeys,
        /// Dropout masks.
        mask: MaskKeys,
        /// Evaluation.
        evaluation: EvaluationKeys,
        /// Files and terminal.
        run: RunKeys,
    }
}

section! {
    /// The model: a folder or GGUF file to start from, or the sizes of a fresh one.
    ModelKeys {
        /// Hugging Face folder or GGUF file to start from; empty = a fresh model of the sizes below.
        path: String, ANY;
        /// Family of a fresh model.
        family: Family, ANY;
        /// Transformer layers of a fresh model.
        layers: usize, between(1.0, 1000.0);
        /// Width of its residual stream; a multiple of heads.
        width: usize, between(2.0, 65536.0);
        /// Attention heads.
        heads: usize, between(1.0, 1024.0);
        /// Heads of keys and values (llama; gpt2 has as many as heads); divides heads.
        kv_heads: usize, between(1.0, 1024.0);
        /// Hidden width of the MLP.
        mlp_hidden: usize, between(1.0, 1e6);
        /// Longest sequence of a fresh model, latents included.
        max_positions: usize, between(8.0, 1e6);
        /// bf16 = matrices in bf16 under f32 activations; bf16-activations = activations, tape and KV cache too (on a GPU).
        /// Sums, log-probabilities, gradients of parameters and the optimiser are f32 in all of them.
        dtype: Precision, ANY;
    }
}

section! {
    /// Low-rank adapters (LoRA): with them supervised and reinforcement training change the adapters alone.
    AdapterKeys {
        /// Rank of the adapters; 0 = none: every weight is trained.
        rank: usize, between(0.0, 4096.0);
        /// What their product is scaled by, over the rank.
        alpha: f64, above(0.0, 1e6);
        /// Which matrices get one, by the names in their files (q_proj, down_proj, c_attn, ...); all-linear = every one.
        targets: Vec<String>, ANY;
        /// Scale over the root of the rank, so that higher ranks learn as fast (rsLoRA).
        rslora: bool, ANY;
        /// Also train the token embedding and the output head, whole: tokens that were added have no other way to learn.
        train_embeddings: bool, ANY;
        /// merged = models are saved as if there had been no adapter; separate = adapters alone, as PEFT reads them.
        save: AdapterSave, ANY;
    }
}

section! {
    /// The problems: embedded generators, or files.
    DataKeys {
        /// words = generated word problems, graph = generated reachability questions, file = the files below.
        source: Source, ANY;
        /// Training file (source = "file").
        train: String, ANY;
        /// Validation file; recipes are tuned on it.
        valid: String, ANY;
        /// Test file; only reported.
        test: String, ANY;
        /// Format of the files; auto looks at the first item.
        format: Format, ANY;
        /// Leave out malformed items and count them; otherwise the first one stops the run.
        skip_bad: bool, ANY;
        /// Training problems used; 0 = all.
        limit_train: usize, between(0.0, MANY);
        /// Validation problems used; 0 = all.
        limit_valid: usize, between(0.0, MANY);
        /// Test problems used; 0 = all.
        limit_test: usize, between(0.0, MANY);
        /// Longer examples are left out and counted; 0 = as long as the model takes.
        max_positions: usize, between(0.0, 1e6);
        /// Fewest reasoning steps of a generated word problem.
        words_steps_min: usize, between(1.0, 16.0);
        /// Most reasoning steps of a generated word problem.
        words_steps_max: usize, between(1.0, 16.0);
        /// Numbers of a generated word problem stay below this.
        words_bound: usize, between(4.0, 1e6);
        /// Steps from the question's node to its answer in a generated graph.
        graph_path: usize, between(1.0, 16.0);
        /// Nodes of a generated graph.
        graph_nodes: usize, between(4.0, 256.0);
        /// How an answer is read from generated text and compared: numeric = number after the last ####, strict_string =
        /// that text to the letter, last_number = the last number anywhere.
        extractor: Extractor, ANY;
    }
}

section! {
    /// Supervised training on written-out reasoning, before any latents.
    CotKeys {
        /// Passes over the training problems; 0 = start the curriculum from the model as it is.
        epochs: usize, between(0.0, 10000.0);
        /// Examples an update.
        batch: usize, between(1.0, 65536.0);
        /// Learning rate after the warm-up.
        learning_rate: f64, between(0.0, 1.0);
        /// Decoupled weight decay.
        weight_decay: f64, between(0.0, 1.0);
        /// Largest gradient norm; 0 = no clipping.
        clip: f64, between(0.0, 1e6);
        /// Updates over which the learning rate rises to its value.
        warmup_steps: usize, between(0.0, MANY);
        /// What is left of the learning rate at the end of a phase, falling linearly; 1 = constant.
        decay: f64, between(0.0, 1.0);
    }
}

section! {
    /// The Coconut curriculum: stage k replaces the first k reasoning steps by k * c_thought latents.
    CoconutKeys {
        /// coconut; or the comparisons: cot (no curriculum), no_cot (question and answer only), no_thoughts (steps
        /// removed, no latents), pause (learned pause tokens instead of latents), icot (the curriculum of [icot]), codi
        /// (the self-distillation of [codi]).
        variant: Variant, ANY;
        /// Latents that replace one reasoning step.
        c_thought: usize, between(0.0, 64.0);
        /// Last stage that still shows the steps after the latents.
        max_latent_stage: usize, between(0.0, 64.0);
        /// Passes over the training problems a stage.
        epochs_per_stage: usize, between(0.0, 10000.0);
        /// Passes after the last stage, with all steps removed.
        extra_epochs: usize, between(0.0, 10000.0);
        /// Give short problems as many latents as the stage has, instead of as many as they have steps.
        pad_latent_to_max: bool, ANY;
        /// Chance that an example is trained at a stage drawn at random.
        uniform_prob: f64, between(0.0, 1.0);
        /// When AdamW starts afresh.
        reset_optimizer: ResetOptimizer, ANY;
        /// Examples an update.
        batch: usize, between(1.0, 65536.0);
        /// Learning rate after the warm-up.
        learning_rate: f64, between(0.0, 1.0);
        /// Decoupled weight decay.
        weight_decay: f64, between(0.0, 1.0);
        /// Largest gradient norm; 0 = no clipping.
        clip: f64, between(0.0, 1e6);
        /// Updates over which the learning rate rises to its value.
        warmup_steps: usize, between(0.0, MANY);
        /// What is left of the learning rate at the end of a phase, falling linearly; 1 = constant.
        decay: f64, between(0.0, 1.0);
    }
}

section! {
    /// Stepwise internalisation (coconut.variant = "icot"): tokens of the reasoning are taken away a few an epoch.
    IcotKeys {
        /// Tokens of the reasoning that are removed an epoch, spread over its updates.
        removal_per_epoch: f64, above(0.0, 1e6);
        /// Once so many are scheduled to be removed, all are; 0 = never.
        removal_max: usize, between(0.0, 1e6);
        /// Which tokens go first.
        removal_side: RemovalSide, ANY;
        /// Lambda of the random extra removal, P(k more tokens) proportional to exp(-lambda k); 0 = no extra removal.
        removal_smoothing: f64, between(0.0, 1000.0);
        /// Start AdamW afresh whenever one more token is removed.
        reset_optimizer: bool, ANY;
        /// Passes over the training problems.
        epochs: usize, between(0.0, 10000.0);
        /// Examples an update.
        batch: usize, between(1.0, 65536.0);
        /// Learning rate.
        learning_rate: f64, between(0.0, 1.0);
        /// Decoupled weight decay.
        weight_decay: f64, between(0.0, 1.0);
        /// Largest gradient norm; 0 = no clipping.
        clip: f64, between(0.0, 1e6);
    }
}

section! {
    /// Self-distillation (coconut.variant = "codi"): the model learns to answer after latents from itself in words.
    CodiKeys {
        /// Latents between question and answer; each passes through a trained projector.
        latents: usize, between(1.0, 64.0);
        /// Width between the projector's two linear maps; 0 = the model's width.
        projector: usize, between(0.0, 1e6);
        /// The states that are distilled are those that predict this token of the answer, counted from 0. Answers begin
        /// with the mark ###; published: the state before the first token of the value.
        distill_token: usize, between(0.0, 64.0);
        /// Weight of the cross-entropy of answers after latents.
        student_weight: f64, between(0.0, 1e6);
        /// Weight of the distance of states (smooth L1, mean over layers); published: 1 for GPT-2, 20 for Llama.
        distill_weight: f64, between(0.0, 1e6);
        /// Weight of the cross-entropy of reasoning and answers in words.
        teacher_weight: f64, between(0.0, 1e6);
        /// Divide distances by the standard deviation of the states in words.
        divide_by_deviation: bool, ANY;
        /// Passes over the training problems.
        epochs: usize, between(0.0, 10000.0);
        /// Examples an update.
        batch: usize, between(1.0, 65536.0);
        /// Learning rate after the warm-up.
        learning_rate: f64, between(0.0, 1.0);
        /// Decoupled weight decay.
        weight_decay: f64, between(0.0, 1.0);
        /// Largest gradient norm; 0 = no clipping.
        clip: f64, between(0.0, 1e6);
        /// Updates over which the learning rate rises to its value.
        warmup_steps: usize, between(0.0, MANY);
        /// What is left of the learning rate at the end of a phase, falling linearly; 1 = constant.
        decay: f64, between(0.0, 1.0);
    }
}

section! {
    /// Reinforcement learning after the curriculum; each arm starts from the same model.
    GrpoKeys {
        /// What is compared: temp = answers sampled, no masks; dropout_latent and dropout_all = masks in scope latent or
        /// all; lepo = soft latents as [lepo] says; sft = supervised training continued for as many updates. Empty = stop after
        /// the curriculum.
        arms: Vec<Arm>, ANY;
        /// Updates of each arm.
        updates: usize, between(0.0, MANY);
        /// Prompts an update.
        prompts: usize, between(1.0, 65536.0);
        /// Further generated problems that prompts are taken from, of which only the answers are used; 0 = the training
        /// problems. Problems from files are always the training problems.
        fresh_problems: usize, between(0.0, MANY);
        /// Rollouts a prompt (K).
        group: usize, between(1.0, 4096.0);
        /// Loss, ratio clipping, scaling of advantages and summation (dapo: what long answers lose, too), as a named family
        /// member. A KL term and fresh prompts for dead groups are never the preset's: kl_beta, dynamic_sampling_refills.
        preset: Preset, ANY;
        /// What is subtracted from a reward; preset = the preset's.
        baseline: Baseline, ANY;
        /// Weight of the KL divergence from the model before reinforcement learning; 0 = none, and no reference is kept.
        kl_beta: f64, between(0.0, 100.0);
        /// Estimator of that divergence per token (Schulman's k1, k2, k3).
        kl_estimator: KlEstimator, ANY;
        /// Run the reference under each rollout's mask, or without masks.
        kl_reference: KlReference, ANY;
        /// Temperature of sampled answers. Never 0: a greedy policy has no score function.
        temperature: f64, above(0.0, 100.0);
        /// Sample among the k likeliest tokens; 0 = all.
        top_k: usize, between(0.0, 1e6);
        /// Sample among the likeliest tokens of this total probability; 1 = all.
        top_p: f64, above(0.0, 1.0);
        /// Leave out tokens less likely than this times the likeliest; 0 = none.
        min_p: f64, between(0.0, 1.0);
        /// Longest sampled answer, in tokens.
        max_new_tokens: usize, between(1.0, 65536.0);
        /// Passes over each batch of rollouts (mu); the first reuses what sampling computed.
        inner_epochs: usize, between(1.0, 64.0);
        /// Learning rate after the warm-up.
        learning_rate: f64, between(0.0, 1.0);
        /// Updates over which the learning rate rises to its value.
        warmup_steps: usize, between(0.0, MANY);
        /// What is left of the learning rate at the end of an arm; 1 = constant.
        decay: f64, between(0.0, 1.0);
        /// How it falls.
        schedule: Schedule, ANY;
        /// Decay of AdamW's mean of squared gradients.
        beta2: f64, below(0.0, 1.0);
        /// Decoupled weight decay.
        weight_decay: f64, between(0.0, 1.0);
        /// Largest gradient norm; 0 = no clipping.
        clip: f64, between(0.0, 1e6);
        /// Memory for what sampling leaves for backward, in MiB; beyond it rollouts are computed again. 0 = no limit.
        tape_mib: usize, between(0.0, 1e7);
        /// No gradient through the state that is fed back.
        detach_latent: bool, ANY;
        /// No gradient through keys and values of latent positions.
        detach_kv: bool, ANY;
        /// Latent steps that gradients pass through, counted from the answer; 0 = all.
        bptt: usize, between(0.0, 1024.0);
        /// Times that groups with equal rewards are replaced by fresh prompts (DAPO); 0 = they stay.
        dynamic_sampling_refills: usize, between(0.0, 64.0);
        /// Compute every rollout again from its key and compare, instead of one an update.
        verify_replay: bool, ANY;
    }
}

section! {
    /// Soft latents: the first positions after the question are mixtures of token embeddings (arms "lepo"; LEPO, SofT-GRPO, Soft Tokens).
    LepoKeys {
        /// Soft positions of a rollout (the papers' L_g).
        latents: usize, between(1.0, 1e6);
        /// Temperature of the mixture: small = nearly one token.
        tau: f64, between(1e-6, 1e6);
        /// Divides the logits before anything is kept.
        temperature: f64, between(1e-6, 1e6);
        /// Most tokens a mixture keeps; at least the vocabulary's size = all.
        top_k: usize, between(1.0, 1e6);
        /// Keep the fewest tokens whose mass reaches this; 1 = all.
        top_p: f64, above(0.0, 1.0);
        /// Keep tokens at least this fraction as probable as the first; 0 = all.
        min_p: f64, between(0.0, 1.0);
        /// Noise on the kept logits; none = deterministic mixtures.
        noise: SoftNoise, ANY;
        /// Gaussian noise: deviation over the root mean square of the kept logits. Dirichlet: concentration.
        noise_strength: f64, above(0.0, 1e6);
        /// Gumbel noise is never below this; -1e9 = no bound (SofT-GRPO: -1.5).
        gumbel_low: f64, between(-1e9, 1e9);
        /// Gumbel noise is never above this; 1e9 = no bound (SofT-GRPO: 3).
        gumbel_high: f64, between(-1e9, 1e9);
        /// Deviation of Gaussian noise on the mixed embedding; 0 = none.
        embedding_noise: f64, between(0.0, 1e6);
        /// What soft steps learn from.
        estimator: SoftEstimator, ANY;
        /// soft_ce: against the softmax over the whole vocabulary, untempered (as released), or over the kept tokens.
        full_softmax: bool, ANY;
        /// concrete, gumbel_g: the log-density is divided by the number of tokens that count; gauss_embed: by the width.
        mean_over_ids: bool, ANY;
        /// gumbel_g: only tokens above this log-probability count; -1e9 = all (SofT-GRPO: -3).
        floor: f64, between(-1e9, 0.0);
        /// Soft steps have a clipped ratio like tokens; otherwise -advantage * score, as LEPO is released.
        ratio: bool, ANY;
        /// The ratio's lower clip.
        clip_low: f64, between(0.0, 1e6);
        /// The ratio's upper clip.
        clip_high: f64, between(0.0, 1e6);
        /// Which token stands for a soft step in text.
        proxy: SoftProxy, ANY;
        /// A proxy that is a stop token ends the rollout.
        proxies_stop: bool, ANY;
        /// Rewards read the proxies before the sampled tokens.
        proxy_in_reward: bool, ANY;
        /// Evaluation asks without soft steps: train soft, infer hard (Soft Tokens).
        infer_hard: bool, ANY;
    }
}

section! {
    /// Answer tokens that are read together with the mixtures they were sampled from, through a learned gate (arms "hrpo"; HRPO).
    HrpoKeys {
        /// First tokens of an answer that are read so, at most; 0 = none.
        thinking: usize, between(0.0, 1e6);
        /// Text that ends it earlier; empty = nothing does.
        mark: String, ANY;
        /// Divides the logits before their softmax is the mixture.
        temperature: f64, between(1e-6, 1e6);
        /// Most tokens a mixture keeps; at least the vocabulary's size = all.
        top_k: usize, between(1.0, 1e6);
        /// Keep the fewest tokens whose mass reaches this; 1 = all.
        top_p: f64, above(0.0, 1.0);
        /// Least share a^(1/r) of the token in an untrained gate; the largest is 0.999.
        least_share: f64, between(0.001, 0.998);
        /// Learning rate of the gates' products, where grpo.learning_rate is the model's; both fall together.
        gate_learning_rate: f64, between(0.0, 1.0);
        /// Learning rate of Lambda, likewise.
        lambda_learning_rate: f64, between(0.0, 1.0);
    }
}

section! {
    /// Dropout masks of rollouts.
    MaskKeys {
        /// Probability that a unit is dropped; 0 = no masks.
        p: f64, below(0.0, 1.0);
        /// Which activations are masked.
        sites: Vec<SiteKind>, ANY;
        /// One mask a rollout, held over all latent steps (shared), or fresh ones (per_step, per_position), or none.
        mode: Mode, ANY;
        /// Which positions are masked in evaluation under masks; the arms of [grpo] name their own.
        scope: Scope, ANY;
    }
}

section! {
    /// Accuracy on held-out problems.
    EvaluationKeys {
        /// Updates of an arm between evaluations; 0 = none. Stages, and sft, are evaluated at their end.
        every: usize, between(0.0, MANY);
        /// Problems asked in an evaluation while training; 0 = all. The closing table asks all.
        problems: usize, between(0.0, MANY);
        /// What is asked: det = no masks, greedy; mc = masks, greedy; temp = sampled; mc+temp = both.
        modes: Vec<EvaluationMode>, ANY;
        /// Masks (or samples) a problem.
        masks: usize, between(1.0, 4096.0);
        /// The k of pass@k and maj@k; at most masks.
        k: usize, between(1.0, 4096.0);
        /// Temperature of sampled answers.
        temperature: f64, above(0.0, 100.0);
        /// Problems run at once.
        batch: usize, between(1.0, 65536.0);
    }
}

section! {
    /// Memory, checkpoints, and what the terminal shows.
    RunKeys {
        /// Keep each layer's input alone for the backward pass and compute the rest again: the same bits, less memory, a
        /// forward pass more.
        recompute: bool, ANY;
        /// Positions of a supervised batch that are on the tape at once; larger batches run in parts, whose gradients add
        /// up to the same but for rounding.
        positions_at_once: usize, between(1.0, MANY);
        /// Most memory for copies of weights in the order in which a CPU's rollouts and answers read them, in MiB: less is
        /// slower there, with the same bits. 0 = no copies. A GPU makes none.
        weight_copies_mib: usize, between(0.0, 1e7);
        /// Updates between checkpoints; 0 = only at the end of each stage.
        checkpoint_every: usize, between(0.0, MANY);
        /// Newest checkpoints that are kept.
        keep_last: usize, between(1.0, MANY);
        /// Also keep the checkpoint with the best validation score.
        keep_best: bool, ANY;
        /// Sampled answers shown at a time: best, worst, then others.
        samples_print: usize, between(0.0, 1000.0);
        /// Updates between lines in the terminal; files get every update.
        log_every: usize, between(1.0, MANY);
        /// Who multiplies matrices on a GPU: auto = cuBLASLt for gradients where it is installed, latch's kernels else;
        /// cublaslt = forward products too, whose bits then depend on the batch: the replay gap shows by how much.
        matmul: Matmul, ANY;
    }
}

impl Recipe {
    /// The sections by name; the keys outside any section come first, under an empty name.
    pub(super) fn sections(&self) -> [(&'static str, &dyn Keys); 14] {
        [
            ("", self),
            ("model", &self.model),
            ("adapter", &self.adapter),
            ("data", &self.data),
            ("cot", &self.cot),
            ("coconut", &self.coconut),
            ("icot", &self.icot),
            ("codi", &self.codi),
            ("grpo", &self.grpo),
            ("lepo", &self.lepo),
            ("hrpo", &self.hrpo),
            ("mask", &self.mask),
            ("evaluation", &self.evaluation),
            ("run", &self.run),
        ]
    }

    /// One section, to change.
    pub(super) fn section_mut(&mut self, name: &str) -> Option<&mut dyn Keys> {
        Some(match name {
            "" => self,
            "model" => &mut self.model,
            "adapter" => &mut self.adapter,
            "data" => &mut self.data,
            "cot" => &mut self.cot,
            "coconut" => &mut self.coconut,
            "icot" => &mut self.icot,
            "codi" => &mut self.codi,
            "grpo" => &mut self.grpo,
            "lepo" => &mut self.lepo,
            "hrpo" => &mut self.hrpo,
            "mask" => &mut self.mask,
            "evaluation" => &mut self.evaluation,
            "run" => &mut self.run,
            _ => return None,
        })
    }
}
