//! What keys may be set to, where that is one of a few names.

use crate::device::Matmul;
use crate::model::Precision;
use crate::ops::mask::SiteKind;
use crate::rollout::masks::{Mode, Scope};
use crate::run::recipe::keys::{self, Setting, choices, named};
use toml::de::DeValue;

choices! {
    /// Families of fresh models.
    Family {
        /// Learned positions, layer norm, GELU, tied head.
        Gpt2 = "gpt2",
        /// Rotary positions, RMS norm, SwiGLU.
        Llama = "llama",
    }
}

choices! {
    /// How models with adapters are saved.
    AdapterSave {
        /// Folded into the weights.
        Merged = "merged",
        /// In a folder of their own.
        Separate = "separate",
    }
}

choices! {
    /// Where problems come from.
    Source {
        /// Generated multi-step word problems.
        Words = "words",
        /// Generated graph reachability questions.
        Graph = "graph",
        /// Files.
        File = "file",
    }
}

choices! {
    /// Formats of problem files.
    Format {
        /// Told apart by the first item.
        Auto = "auto",
        /// GSM8K's JSON lines.
        Gsm8k = "gsm8k",
        /// `question||steps #### answer`.
        Icot = "icot",
        /// Coconut's JSON array.
        Coconut = "coconut",
        /// ProsQA's JSON array.
        Prosqa = "prosqa",
        /// SVAMP's JSON array.
        Svamp = "svamp",
        /// MultiArith's JSON array.
        Multiarith = "multiarith",
        /// ASDiv's XML.
        Asdiv = "asdiv",
    }
}

choices! {
    /// How answers are read and compared.
    Extractor {
        /// The number after the last `####`, compared as a number.
        Numeric = "numeric",
        /// The text after the last `#`, compared to the letter (Coconut).
        StrictString = "strict_string",
        /// The last number anywhere (CODI).
        LastNumber = "last_number",
    }
}

choices! {
    /// Coconut and its comparisons.
    Variant {
        /// Latent thoughts.
        Coconut = "coconut",
        /// Written-out steps, no curriculum.
        Cot = "cot",
        /// Question and answer only.
        NoCot = "no_cot",
        /// The curriculum without latents.
        NoThoughts = "no_thoughts",
        /// Learned pause tokens in place of latents.
        Pause = "pause",
        /// Stepwise internalisation.
        Icot = "icot",
        /// Self-distillation.
        Codi = "codi",
    }
}

choices! {
    /// From which end reasoning is removed.
    RemovalSide {
        /// The first tokens go first.
        Left = "left",
        /// The last tokens go first.
        Right = "right",
    }
}

choices! {
    /// When the optimiser of the curriculum starts afresh.
    ResetOptimizer {
        /// At each epoch, as Coconut's code does.
        Epoch = "epoch",
        /// At each stage, as Coconut's paper says.
        Stage = "stage",
        /// Never.
        Never = "never",
    }
}

choices! {
    /// What reinforcement learning is compared with.
    Arm {
        /// Sampled answers, no masks.
        Temp = "temp",
        /// Masks on the latents.
        DropoutLatent = "dropout_latent",
        /// Masks on every position.
        DropoutAll = "dropout_all",
        /// Soft latents, as [lepo] says.
        Lepo = "lepo",
        /// Tokens read with their mixtures, as [hrpo] says.
        Hrpo = "hrpo",
        /// Supervised training continued.
        Sft = "sft",
    }
}

choices! {
    /// How a learning rate falls.
    Schedule {
        /// In a line.
        Linear = "linear",
        /// Along half a cosine.
        Cosine = "cosine",
    }
}

choices! {
    /// Noise on the logits of soft latents.
    SoftNoise {
        /// Deterministic mixtures.
        None = "none",
        /// Gumbel-Softmax.
        Gumbel = "gumbel",
        /// Normal.
        Gaussian = "gaussian",
        /// Weights from a Dirichlet distribution around the softmax.
        Dirichlet = "dirichlet",
    }
}

choices! {
    /// How soft latents are trained.
    SoftEstimator {
        /// Not at all: tokens alone.
        None = "none",
        /// Cross-entropy with the drawn weights, as LEPO is released.
        SoftCe = "soft_ce",
        /// The exact density of the weights.
        Concrete = "concrete",
        /// The density of the perturbed logits (SofT-GRPO).
        GumbelG = "gumbel_g",
        /// The density of the noisy embedding (Soft Tokens); noise = "none" and embedding_noise above 0.
        GaussEmbed = "gauss_embed",
        /// Through the weights, with the noise held: unbiased.
        Pathwise = "pathwise",
        /// One token forward, the mixture's gradient backward.
        StraightThrough = "straight_through",
    }
}

choices! {
    /// Tokens that stand for soft latents.
    SoftProxy {
        /// The most probable one before noise.
        Argmax = "argmax",
        /// One drawn from the mixture.
        Draw = "draw",
    }
}

choices! {
    /// Members of the GRPO family.
    Preset {
        /// Rewards minus the group's mean, sums over tokens divided by K: unbiased up to (K-1)/K.
        DropoutGrpo = "dropout_grpo",
        /// DeepSeekMath, but for its KL term: grpo.kl_beta.
        Grpo = "grpo",
        /// Divided by the tokens of the local batch.
        Bnpo = "bnpo",
        /// No standard deviation, constant divisor.
        DrGrpo = "dr_grpo",
        /// Clip-higher, token mean, overlong shaping; dynamic sampling is grpo.dynamic_sampling_refills.
        Dapo = "dapo",
        /// Leave-one-out baseline.
        Rloo = "rloo",
        /// One ratio a sequence.
        Gspo = "gspo",
        /// Clipped weights, no clipped gradients.
        Cispo = "cispo",
    }
}

choices! {
    /// What is subtracted from a reward.
    Baseline {
        /// What the preset says.
        Preset = "preset",
        /// The group's mean.
        GroupMean = "group_mean",
        /// The mean of the others.
        LeaveOneOut = "leave_one_out",
        /// Nothing.
        None = "none",
    }
}

choices! {
    /// Estimators of the KL divergence per token, with D = log pi - log pi_ref.
    KlEstimator {
        /// D.
        K1 = "k1",
        /// D^2 / 2.
        K2 = "k2",
        /// exp(-D) - 1 + D.
        K3 = "k3",
    }
}

choices! {
    /// How the reference model is run.
    KlReference {
        /// Under the rollout's mask.
        Masked = "masked",
        /// Without masks.
        Clean = "clean",
    }
}

choices! {
    /// Ways to ask.
    EvaluationMode {
        /// No masks, greedy.
        Det = "det",
        /// Masks, greedy.
        Mc = "mc",
        /// No masks, sampled.
        Temp = "temp",
        /// Masks, sampled.
        McTemp = "mc+temp",
    }
}

named!(Matmul { "auto" => Matmul::Auto, "latch" => Matmul::Own, "cublaslt" => Matmul::Library, });
named!(Precision {
    "f32" => Precision::F32,
    "bf16" => Precision::Bf16,
    "bf16-activations" => Precision::Bf16Activations,
});
named!(Scope { "latent" => Scope::Latent, "prompt+latent" => Scope::PromptLatent, "all" => Scope::All, });
named!(Mode {
    "shared" => Mode::Shared,
    "per_step" => Mode::PerStep,
    "per_position" => Mode::PerPosition,
    "none" => Mode::None,
});
named!(SiteKind {
    "emb" => SiteKind::Emb,
    "attn_out" => SiteKind::AttnOut,
    "mlp_out" => SiteKind::MlpOut,
    "mlp_hid" => SiteKind::MlpHid,
    "latent" => SiteKind::Latent,
});
