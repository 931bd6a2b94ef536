//! The flags of soft thinking.

use clap::{Args, ValueEnum};
use latch::model::SoftLaw;
use latch::ops::sampler::Law;
use latch::ops::soft_action::{Perturbation, Proxy};
use latch::rollout::group::{ColdStop, SoftReplay, SoftThoughts};

/// Noise on the logits of soft steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Noise {
    /// Deterministic mixtures (Soft Thinking)
    None,
    /// Gumbel-Softmax (LEPO)
    Gumbel,
    /// Normal, of --soft-strength times the kept logits' root mean square
    Gaussian,
    /// Weights from a Dirichlet distribution of concentration --soft-strength
    Dirichlet,
}

/// Thinking in mixtures of tokens before the answer.
#[derive(Args, Debug)]
#[command(next_help_heading = "Soft thinking")]
pub struct SoftArguments {
    /// Latent steps are mixtures of token embeddings, up to this many, instead of hidden states (LEPO; with
    /// --soft-noise none, Soft Thinking)
    #[arg(long, value_name = "STEPS", conflicts_with = "latents")]
    pub soft: Option<usize>,
    /// Temperature of the mixture: small = nearly one token
    #[arg(long, default_value_t = 0.3, requires = "soft")]
    tau: f64,
    /// Divides the logits before anything is kept
    #[arg(long, default_value_t = 1.0, requires = "soft")]
    soft_temperature: f64,
    /// Most tokens a mixture keeps
    #[arg(long, default_value_t = 30, requires = "soft")]
    soft_top_k: usize,
    /// A mixture keeps the fewest tokens whose probability reaches this
    #[arg(long, default_value_t = 0.95, requires = "soft")]
    soft_top_p: f64,
    /// Noise on the kept logits (evaluate: where answers are sampled; greedy ones are asked without)
    #[arg(long, value_enum, default_value = "gumbel", requires = "soft")]
    soft_noise: Noise,
    /// Strength of Gaussian noise, or concentration of Dirichlet noise
    #[arg(long, default_value_t = 0.3, requires = "soft")]
    soft_strength: f64,
    /// Thinking ends early after --cold-steps steps whose mixtures have less entropy than this (nats)
    #[arg(long, requires = "soft")]
    cold_entropy: Option<f64>,
    /// See --cold-entropy
    #[arg(long, default_value_t = 256, requires = "cold_entropy")]
    cold_steps: usize,
    /// Thinking ends early when this token is the most probable one, e.g. that of </think>
    #[arg(long, requires = "soft", value_name = "ID")]
    leave_at: Option<u32>,
}

impl SoftArguments {
    /// How thoughts are drawn, if they are soft.
    pub fn thoughts(&self) -> Option<SoftThoughts> {
        self.soft?;
        Some(SoftThoughts {
            law: SoftLaw {
                law: Law::Categorical {
                    temperature: self.soft_temperature,
                    top_k: Some(self.soft_top_k),
                    top_p: (self.soft_top_p != 1.0).then_some(self.soft_top_p),
                    min_p: None,
                },
                tau: self.tau,
                perturbation: match self.soft_noise {
                    Noise::None => Perturbation::None,
                    Noise::Gumbel => Perturbation::Gumbel { clamp: None },
                    Noise::Gaussian => Perturbation::Gaussian { strength: self.soft_strength },
                    Noise::Dirichlet => Perturbation::Dirichlet { concentration: self.soft_strength },
                },
                proxy: Proxy::Argmax,
                hard: false,
            },
            proxies_stop: true,
            cold: self.cold_entropy.map(|entropy| ColdStop { entropy, steps: self.cold_steps }),
            leave_at: self.leave_at,
            replay: SoftReplay::Actions,
        })
    }
}
