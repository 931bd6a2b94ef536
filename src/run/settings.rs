//! A recipe's keys as the settings of the floors below.

use super::recipe::{
    Baseline as BaselineKey, Extractor as ExtractorKey, GrpoKeys, HrpoKeys, KlEstimator, KlReference,
    LepoKeys, MaskKeys, Preset as PresetKey, Recipe, RemovalSide, SoftEstimator as SoftEstimatorKey,
    SoftNoise, SoftProxy, Variant as VariantKey,
};
use super::reinforcement::SoftPlan;
use super::school_room::Distillation;
use crate::base::Result;
use crate::learn::advantages::Baseline;
use crate::learn::coconut::{Curriculum, Variant};
use crate::learn::codi::Weights;
use crate::learn::implicit::{Removal, Side};
use crate::learn::objective::{Objective, Preset};
use crate::learn::optimizer;
use crate::learn::soft_policy::{SoftEstimator, SoftObjective};
use crate::model::{Record, SoftGradient, SoftLaw, Truncation};
use crate::ops::policy_loss::{Estimator, Hyper, Kl, Ratio, Surrogate};
use crate::ops::sampler::Law;
use crate::ops::soft_action::{Perturbation, Proxy};
use crate::rollout::group::{Gating, SoftThoughts};
use crate::rollout::masks::{Masking, Mode, Scope};
use crate::text::Tokenizer;
use crate::text::answer::Extractor;

/// Bounds in `[lepo]` from which on there are none.
const UNBOUNDED: f64 = 1e9;

/// The curriculum of a recipe.
pub fn curriculum(recipe: &Recipe) -> Curriculum {
    let keys = &recipe.coconut;
    if keys.variant == VariantKey::Codi {
        // The student thinks as Coconut does after its last stage.
        return Curriculum {
            variant: Variant::Coconut,
            thoughts_per_step: 1,
            max_latent_stage: recipe.codi.latents,
            pad_latent_to_max: true,
            uniform_prob: 0.0,
            seed: recipe.seed,
        };
    }
    Curriculum {
        variant: match keys.variant {
            VariantKey::Coconut | VariantKey::Codi => Variant::Coconut,
            VariantKey::Cot => Variant::Cot,
            VariantKey::NoCot => Variant::NoCot,
            VariantKey::NoThoughts => Variant::NoThoughts,
            VariantKey::Pause => Variant::Pause,
            VariantKey::Icot => Variant::Implicit,
        },
        thoughts_per_step: if keys.variant == VariantKey::Icot { 0 } else { keys.c_thought },
        max_latent_stage: keys.max_latent_stage,
        pad_latent_to_max: keys.pad_latent_to_max,
        uniform_prob: keys.uniform_prob,
        seed: recipe.seed,
    }
}

/// What a model that teaches itself is trained by.
pub fn distillation(recipe: &Recipe) -> Distillation {
    let keys = &recipe.codi;
    Distillation {
        weights: Weights {
            student: keys.student_weight,
            distill: keys.distill_weight,
            teacher: keys.teacher_weight,
            by_deviation: keys.divide_by_deviation,
            ..Weights::default()
        },
        tap: keys.distill_token,
    }
}

/// How reasoning is taken away token by token.
pub fn removal(recipe: &Recipe) -> Removal {
    let keys = &recipe.icot;
    Removal {
        per_epoch: keys.removal_per_epoch,
        max: (keys.removal_max > 0).then_some(keys.removal_max),
        side: match keys.removal_side {
            RemovalSide::Left => Side::Left,
            RemovalSide::Right => Side::Right,
        },
        smoothing: (keys.removal_smoothing > 0.0).then_some(keys.removal_smoothing),
        reset_optimizer: keys.reset_optimizer,
        seed: recipe.seed,
    }
}

/// How answers are read.
pub fn extractor(recipe: &Recipe) -> Extractor {
    match recipe.data.extractor {
        ExtractorKey::Numeric => Extractor::Numeric,
        ExtractorKey::StrictString => Extractor::StrictString,
        ExtractorKey::LastNumber => Extractor::LastNumber,
    }
}

/// What tapes keep for the backward pass.
pub fn record(recipe: &Recipe) -> Record {
    if recipe.run.recompute { Record::LayerInputs } else { Record::Everything }
}

/// The masks of a recipe in a given scope.
pub fn masking(keys: &MaskKeys, scope: Scope) -> Masking {
    match keys.mode {
        Mode::None => Masking::NONE,
        mode => Masking { p: keys.p, sites: keys.sites.clone(), scope, mode },
    }
}

/// What updates optimise.
pub fn objective(keys: &GrpoKeys) -> Objective {
    let preset = match keys.preset {
        PresetKey::DropoutGrpo => Preset::DropoutGrpo,
        PresetKey::Grpo => Preset::Grpo,
        PresetKey::Bnpo => Preset::TrlBnpo,
        PresetKey::DrGrpo => Preset::DrGrpo,
        PresetKey::Dapo => Preset::Dapo,
        PresetKey::Rloo => Preset::Rloo,
        PresetKey::Gspo => Preset::Gspo,
        PresetKey::Cispo => Preset::Cispo,
    };
    let mut objective = preset.objective();
    match keys.baseline {
        BaselineKey::Preset => {}
        BaselineKey::GroupMean => objective.baseline = Baseline::GroupMean,
        BaselineKey::LeaveOneOut => objective.baseline = Baseline::LeaveOneOut,
        BaselineKey::None => objective.baseline = Baseline::None,
    }
    let estimator = match keys.kl_estimator {
        KlEstimator::K1 => Estimator::K1,
        KlEstimator::K2 => Estimator::K2,
        KlEstimator::K3 => Estimator::K3,
    };
    // The recipe's penalty replaces the preset's: a recipe says what runs.
    objective.loss.kl = (keys.kl_beta > 0.0).then_some(Kl {
        estimator,
        beta: keys.kl_beta,
        clamp: Some(20.0),
        cap: Some(10.0),
    });
    objective
}

/// Whether the reference runs under each rollout's mask.
pub fn reference_masked(keys: &GrpoKeys) -> bool {
    keys.kl_reference == KlReference::Masked
}

/// The law that answers are sampled from.
pub fn law(keys: &GrpoKeys) -> Law {
    Law::Categorical {
        temperature: keys.temperature,
        top_k: (keys.top_k > 0).then_some(keys.top_k),
        top_p: (keys.top_p < 1.0).then_some(keys.top_p),
        min_p: (keys.min_p > 0.0).then_some(keys.min_p),
    }
}

/// Where gradients stop.
pub fn truncation(keys: &GrpoKeys) -> Truncation {
    Truncation {
        detach_latent: keys.detach_latent,
        detach_kv: keys.detach_kv,
        latent_steps: (keys.bptt > 0).then_some(keys.bptt),
        // What flows into mixtures is their estimator's.
        soft: SoftGradient::default(),
    }
}

/// Soft thoughts.
pub fn soft(keys: &LepoKeys) -> SoftPlan {
    let perturbation = match keys.noise {
        SoftNoise::None => Perturbation::None,
        SoftNoise::Gumbel => {
            let bounded = keys.gumbel_low > -UNBOUNDED || keys.gumbel_high < UNBOUNDED;
            Perturbation::Gumbel { clamp: bounded.then_some((keys.gumbel_low, keys.gumbel_high)) }
        }
        SoftNoise::Gaussian => Perturbation::Gaussian { strength: keys.noise_strength },
        SoftNoise::Dirichlet => Perturbation::Dirichlet { concentration: keys.noise_strength },
    };
    let estimator = match keys.estimator {
        SoftEstimatorKey::None => SoftEstimator::None,
        SoftEstimatorKey::SoftCe => SoftEstimator::SoftCe { full: keys.full_softmax },
        SoftEstimatorKey::Concrete => SoftEstimator::Concrete { mean: keys.mean_over_ids },
        SoftEstimatorKey::GumbelG => SoftEstimator::GumbelG {
            floor: (keys.floor > -UNBOUNDED).then_some(keys.floor),
            mean: keys.mean_over_ids,
        },
        SoftEstimatorKey::GaussEmbed => SoftEstimator::GaussEmbed { mean: keys.mean_over_ids },
        SoftEstimatorKey::Pathwise => SoftEstimator::Pathwise,
        SoftEstimatorKey::StraightThrough => SoftEstimator::StraightThrough,
    };
    let surrogate = match keys.ratio {
        false => Surrogate::Plain,
        true => Surrogate::Clipped { low: keys.clip_low, high: keys.clip_high, delta: None, dual: None },
    };
    SoftPlan {
        latents: keys.latents,
        thoughts: SoftThoughts {
            law: SoftLaw {
                law: Law::Categorical {
                    temperature: keys.temperature,
                    top_k: Some(keys.top_k),
                    top_p: (keys.top_p < 1.0).then_some(keys.top_p),
                    min_p: (keys.min_p > 0.0).then_some(keys.min_p),
                },
                tau: keys.tau,
                perturbation,
                proxy: if keys.proxy == SoftProxy::Argmax { Proxy::Argmax } else { Proxy::Draw },
                hard: estimator == SoftEstimator::StraightThrough,
            },
            proxies_stop: keys.proxies_stop,
            cold: None,
            leave_at: None,
            replay: estimator.replay(),
        },
        objective: SoftObjective {
            estimator,
            loss: Hyper { ratio: Ratio::Token, surrogate, clamp: Some(20.0), kl: None },
        },
        proxy_in_reward: keys.proxy_in_reward,
        infer_hard: keys.infer_hard,
    }
}

/// What a mixture of a gated token holds.
pub fn gating_law(keys: &HrpoKeys) -> Law {
    Law::Categorical {
        temperature: keys.temperature,
        top_k: Some(keys.top_k),
        top_p: (keys.top_p < 1.0).then_some(keys.top_p),
        min_p: None,
    }
}

/// Gated answers; `None` where `hrpo.thinking` is 0.
///
/// # Errors
/// A mark that the tokenizer cannot write.
pub fn gating(keys: &HrpoKeys, tokenizer: &Tokenizer) -> Result<Option<Gating>> {
    let mark = if keys.mark.is_empty() { Vec::new() } else { tokenizer.encode(&keys.mark, false)? };
    Ok((keys.thinking > 0).then_some(Gating { law: gating_law(keys), thinking: keys.thinking, mark }))
}

/// AdamW with the given decay and clipping; 0 = no clipping.
pub fn optimizer(weight_decay: f64, clip: f64) -> optimizer::Settings {
    optimizer::Settings { weight_decay, clip: (clip > 0.0).then_some(clip), ..optimizer::Settings::default() }
}
