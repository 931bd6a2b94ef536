//! Experiments that settle claims (algorithms B.8): each is a list of variations of one arm, run from the same base
//! models on several seeds, and a table with intervals and paired tests.
//!
//! Results are kept line by line in results.jsonl, so an experiment that was stopped goes on, and experiments share the
//! variations that they have in common.

mod agenda;
mod bench;
mod laboratory;
mod matching;
mod table;

pub use agenda::{Agenda, Kept};
pub use laboratory::{Finding, Laboratory, Notice};
pub use table::{Comparison, compare, text};

use super::recipe::Recipe;
use super::reinforcement::{ArmPlan, SoftPlan};
use super::settings;
use crate::learn::advantages::{Baseline, Scale};
use crate::learn::policy::Replay;
use crate::learn::soft_policy::SoftEstimator;
use crate::model::Truncation;
use crate::ops::mask::SiteKind;
use crate::ops::soft_action::Perturbation;
use crate::rollout::masks::{Masking, Mode, Scope};
use std::str::FromStr;

/// One of the experiments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experiment {
    /// Mask modes.
    E1,
    /// Dropout probabilities.
    E2,
    /// Sites and scopes.
    E3,
    /// Which mask the update runs under.
    E4,
    /// Baselines and group sizes.
    E5,
    /// Controls: sampling without masks, supervised training continued.
    E6,
    /// Gaussian noise on latents in place of masks.
    E7,
    /// Gradients through latents.
    E8,
    /// Other distributions.
    E10,
    /// Methods against each other.
    Methods,
    /// Estimators and settings of soft latents.
    Soft,
}

impl Experiment {
    /// All experiments, with their names and what they ask.
    pub const ALL: [(Experiment, &'static str, &'static str); 11] = [
        (Experiment::E1, "e1", "does one mask held over all steps differ from fresh ones, or none?"),
        (Experiment::E2, "e2", "which dropout probability?"),
        (Experiment::E3, "e3", "which sites, in which scope?"),
        (Experiment::E4, "e4", "what if the update runs under another mask, or none?"),
        (Experiment::E5, "e5", "which baseline, and how many rollouts a prompt?"),
        (Experiment::E6, "e6", "what do sampling alone and supervised training continued reach?"),
        (Experiment::E7, "e7", "does Gaussian noise of the same spread do as well?"),
        (Experiment::E8, "e8", "is the gradient through the latents needed?"),
        (Experiment::E10, "e10", "does the gain carry over to other stories and longer chains?"),
        (Experiment::Methods, "methods", "how do the methods compare at equal updates and rollouts?"),
        (Experiment::Soft, "soft", "which estimator, noise, tau and number of soft latents?"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Experiment::ALL.iter().find(|(of, _, _)| *of == self).map_or("", |(_, name, _)| name)
    }

    /// What it asks.
    pub fn question(self) -> &'static str {
        Experiment::ALL.iter().find(|(of, _, _)| *of == self).map_or("", |(_, _, question)| question)
    }

    /// Its variations; the first is what the others are compared with.
    pub fn variations(self, recipe: &Recipe) -> Vec<Variation> {
        let latent = |name: &str| arm(recipe, name, Scope::Latent);
        let all = |name: &str| arm(recipe, name, Scope::All);
        let temp = || Variation::Arm(Box::new(ArmPlan::of(recipe, "temp (no masks)", Masking::NONE)));
        let both = |name: &str, change: &dyn Fn(&mut ArmPlan)| {
            [(Scope::Latent, "latent"), (Scope::All, "all")].map(|(scope, word)| {
                let mut plan = arm(recipe, &format!("{name}, {word}"), scope);
                change(&mut plan);
                Variation::Arm(Box::new(plan))
            })
        };
        match self {
            Experiment::Methods => methods(recipe),
            Experiment::Soft => soft(recipe),
            Experiment::E1 => {
                let mut list = vec![temp()];
                for (name, mode) in [
                    ("shared", Mode::Shared),
                    ("per_step", Mode::PerStep),
                    ("per_position", Mode::PerPosition),
                ] {
                    list.extend(both(name, &|plan| plan.masking.mode = mode));
                }
                list
            }
            Experiment::E2 => [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5]
                .into_iter()
                .flat_map(|p| both(&format!("p = {p}"), &|plan| plan.masking.p = p))
                .collect(),
            Experiment::E3 => {
                let sites: [(&str, Vec<SiteKind>); 5] = [
                    ("attn_out+mlp_out", vec![SiteKind::AttnOut, SiteKind::MlpOut]),
                    ("mlp_hid", vec![SiteKind::MlpHid]),
                    ("emb", vec![SiteKind::Emb]),
                    ("latent", vec![SiteKind::Latent]),
                    ("all sites", SiteKind::ALL.to_vec()),
                ];
                let scopes =
                    [(Scope::Latent, "latent"), (Scope::PromptLatent, "prompt+latent"), (Scope::All, "all")];
                sites
                    .iter()
                    .flat_map(|(name, sites)| {
                        scopes.map(|(scope, word)| {
                            let mut plan = arm(recipe, &format!("{name}, {word}"), scope);
                            plan.masking.sites.clone_from(sites);
                            Variation::Arm(Box::new(plan))
                        })
                    })
                    .collect()
            }
            Experiment::E4 => {
                [("same mask", Replay::Same), ("fresh mask", Replay::Fresh), ("no mask", Replay::Off)]
                    .into_iter()
                    .flat_map(|(name, replay)| both(name, &|plan| plan.replay = replay))
                    .collect()
            }
            Experiment::E5 => {
                let baselines: [(&str, Baseline, Scale); 4] = [
                    ("group mean", Baseline::GroupMean, Scale::None),
                    ("leave one out", Baseline::LeaveOneOut, Scale::None),
                    ("group mean / std", Baseline::GroupMean, Scale::GROUP),
                    ("no baseline", Baseline::None, Scale::None),
                ];
                let mut list: Vec<Variation> = baselines
                    .into_iter()
                    .map(|(name, baseline, scale)| {
                        let mut plan = latent(name);
                        (plan.objective.baseline, plan.objective.scale) = (baseline, scale);
                        Variation::Arm(Box::new(plan))
                    })
                    .collect();
                // The same number of rollouts an update.
                let rollouts = recipe.grpo.prompts * recipe.grpo.group;
                for group in [2, 4, 16, 32] {
                    let mut plan = latent(&format!("K = {group}"));
                    (plan.group, plan.prompts) = (group, (rollouts / group).max(1));
                    list.push(Variation::Arm(Box::new(plan)));
                }
                list
            }
            Experiment::E6 => vec![
                temp(),
                Variation::Arm(Box::new(latent("dropout, latent"))),
                Variation::Arm(Box::new(all("dropout, all"))),
                Variation::Continued("sft continued".into()),
            ],
            Experiment::E7 => vec![
                Variation::Arm(Box::new(latent("dropout, latent"))),
                Variation::Matched(
                    Box::new(ArmPlan::of(recipe, "Gaussian on z", Masking::NONE)),
                    Box::new(latent("")),
                ),
                temp(),
            ],
            Experiment::E8 => {
                let changes: [(&str, Truncation); 4] = [
                    ("through all latents", Truncation::default()),
                    ("last latent only", Truncation { latent_steps: Some(1), ..Truncation::default() }),
                    ("latents detached", Truncation { detach_latent: true, ..Truncation::default() }),
                    (
                        "latents, keys and values detached",
                        Truncation { detach_latent: true, detach_kv: true, ..Truncation::default() },
                    ),
                ];
                changes
                    .into_iter()
                    .flat_map(|(name, truncation)| both(name, &|plan| plan.truncation = truncation))
                    .collect()
            }
            Experiment::E10 => {
                vec![
                    temp(),
                    Variation::Arm(Box::new(latent("dropout, latent"))),
                    Variation::Arm(Box::new(all("dropout, all"))),
                ]
            }
        }
    }
}

impl FromStr for Experiment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Experiment::ALL.iter().find(|(_, name, _)| *name == text.to_lowercase());
        known.map(|(experiment, _, _)| *experiment).ok_or_else(|| {
            let names: Vec<&str> = Experiment::ALL.iter().map(|(_, name, _)| *name).collect();
            format!("unknown experiment `{text}`; known: {}", names.join(", "))
        })
    }
}

/// One variation of an arm.
#[derive(Clone, Debug)]
pub enum Variation {
    /// Reinforcement learning.
    Arm(Box<ArmPlan>),
    /// Reinforcement learning with Gaussian noise on the latents, of the spread that the second arm's masks cause.
    Matched(Box<ArmPlan>, Box<ArmPlan>),
    /// Supervised training continued.
    Continued(String),
    /// The model that reasons in words, as it is.
    Words(String),
}

impl Variation {
    /// What it is called in tables.
    pub fn name(&self) -> &str {
        match self {
            Variation::Arm(plan) | Variation::Matched(plan, _) => &plan.name,
            Variation::Continued(name) | Variation::Words(name) => name,
        }
    }

    /// Whether it starts from the model that reasons in words.
    pub fn words(&self) -> bool {
        match self {
            Variation::Arm(plan) => plan.words,
            Variation::Words(_) => true,
            _ => false,
        }
    }

    /// What its result depends on, besides recipe and seed: equal keys, equal results.
    pub fn key(&self) -> String {
        let of = |plan: &ArmPlan| {
            let masking = if plan.masking.is_active() { plan.masking.clone() } else { Masking::NONE };
            let key = format!("{:?}", ArmPlan { name: String::new(), masking, ..plan.clone() });
            // What an arm does not use leaves no trace in its key: results from before there was such a thing stay valid.
            key.replace(" gated: false,", "").replace(", infer_hard: false", "")
        };
        match self {
            Variation::Arm(plan) => of(plan),
            Variation::Matched(plan, like) => format!("matched {} {}", of(plan), of(like)),
            Variation::Continued(_) => "continued".into(),
            Variation::Words(_) => "words".into(),
        }
    }
}

/// Deviation of the noise on embeddings of the Soft Tokens arm, where the recipe has none: a fresh model's embeddings have
/// entries of deviation 0.02, and training widens them.
const EMBEDDING_NOISE: f64 = 0.02;

/// An arm with soft latents, which starts from the model that reasons in words.
fn lepo(recipe: &Recipe, name: &str, change: impl FnOnce(&mut SoftPlan)) -> Variation {
    let mut plan = ArmPlan { words: true, ..ArmPlan::lepo(recipe, name) };
    if let Some(soft) = &mut plan.soft {
        change(soft);
    }
    Variation::Arm(Box::new(plan))
}

fn with_estimator(estimator: SoftEstimator) -> impl FnOnce(&mut SoftPlan) {
    move |soft| {
        soft.objective.estimator = estimator;
        soft.thoughts.law.hard = estimator == SoftEstimator::StraightThrough;
    }
}

fn methods(recipe: &Recipe) -> Vec<Variation> {
    let tokens = ArmPlan { words: true, ..ArmPlan::of(recipe, "words, temp", Masking::NONE) };
    vec![
        Variation::Arm(Box::new(ArmPlan::of(recipe, "coconut, temp", Masking::NONE))),
        Variation::Arm(Box::new(arm(recipe, "coconut, dropout latent", Scope::Latent))),
        Variation::Arm(Box::new(arm(recipe, "coconut, dropout all", Scope::All))),
        Variation::Words("words, before".into()),
        Variation::Arm(Box::new(tokens)),
        lepo(recipe, "words, lepo soft_ce", with_estimator(SoftEstimator::SoftCe { full: true })),
        lepo(recipe, "words, lepo pathwise", with_estimator(SoftEstimator::Pathwise)),
        Variation::Arm(Box::new(ArmPlan { words: true, ..ArmPlan::hrpo(recipe, "words, hrpo") })),
    ]
}

fn soft(recipe: &Recipe) -> Vec<Variation> {
    let own = recipe.lepo.latents;
    let mut list = vec![Variation::Words("words, before".into())];
    for estimator in [
        SoftEstimator::SoftCe { full: true },
        SoftEstimator::Concrete { mean: true },
        SoftEstimator::GumbelG { floor: None, mean: true },
        SoftEstimator::Pathwise,
        SoftEstimator::StraightThrough,
        SoftEstimator::None,
    ] {
        list.push(lepo(recipe, estimator.name(), with_estimator(estimator)));
    }
    // Its noise is on embeddings, not on logits; a recipe that names none gets some.
    let deviation = match recipe.lepo.embedding_noise {
        0.0 => EMBEDDING_NOISE,
        own => own,
    };
    let mut noisy = recipe.clone();
    noisy.lepo.embedding_noise = deviation;
    list.push(lepo(&noisy, "gauss_embed", |soft| {
        with_estimator(SoftEstimator::GaussEmbed { mean: false })(soft);
        soft.thoughts.law.perturbation = Perturbation::None;
        soft.thoughts.law.tau = 0.5;
    }));
    list.push(lepo(recipe, "noise off", |soft| {
        soft.thoughts.law.perturbation = Perturbation::None;
        soft.objective.estimator = SoftEstimator::None;
    }));
    for tau in [0.1, 0.3, 0.5, 1.0] {
        list.push(lepo(recipe, &format!("tau {tau}"), |soft| soft.thoughts.law.tau = tau));
    }
    for (name, latents) in [("half", own.div_ceil(2)), ("twice", 2 * own)] {
        list.push(lepo(recipe, &format!("L_g {latents} ({name})"), |soft| soft.latents = latents));
    }
    list.push(Variation::Arm(Box::new(ArmPlan {
        words: true,
        ..ArmPlan::of(recipe, "L_g 0 (tokens alone)", Masking::NONE)
    })));
    list
}

fn arm(recipe: &Recipe, name: &str, scope: Scope) -> ArmPlan {
    ArmPlan::of(recipe, name, settings::masking(&recipe.mask, scope))
}
