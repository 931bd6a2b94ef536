//! One arm of reinforcement learning: prompts in an order that all arms share, rewards, updates.

use super::problems::Item;
use super::recipe::{Recipe, Schedule};
use super::schooling::order;
use super::settings;
use crate::base::Result;
use crate::learn::coconut::{Curriculum, Markers};
use crate::learn::objective::Objective;
use crate::learn::optimizer::{self, Optimizer};
use crate::learn::policy::{Policy, Replay, Settings};
use crate::learn::policy_report::{Question, Report};
use crate::learn::soft_policy::SoftObjective;
use crate::model::{Model, Truncation};
use crate::ops::soft_action::Perturbation;
use crate::rollout::group::{Drawing, Form, SoftReplay, SoftThoughts, Thoughts};
use crate::rollout::masks::Masking;
use crate::text::Tokenizer;
use crate::text::answer::{self, Extractor};

/// Everything that tells one arm from another.
#[derive(Clone, Debug)]
pub struct ArmPlan {
    /// What it is called in tables.
    pub name: String,
    /// It starts from the model that reasons in words, whatever the recipe's curriculum makes of it.
    pub words: bool,
    /// Dropout of its rollouts.
    pub masking: Masking,
    /// Gaussian noise on its latents; 0 = none.
    pub latent_noise: f64,
    /// Latents that are mixtures of token embeddings (LEPO).
    pub soft: Option<SoftPlan>,
    /// Answers' tokens are read with their mixtures, as `[hrpo]` says.
    pub gated: bool,
    /// What it optimises.
    pub objective: Objective,
    /// Which mask its updates run under.
    pub replay: Replay,
    /// Where its gradients stop.
    pub truncation: Truncation,
    /// Rollouts a prompt.
    pub group: usize,
    /// Prompts an update.
    pub prompts: usize,
}

impl ArmPlan {
    /// The arm of a recipe under `masking`.
    pub fn of(recipe: &Recipe, name: &str, masking: Masking) -> ArmPlan {
        ArmPlan {
            name: name.into(),
            words: false,
            masking,
            latent_noise: 0.0,
            soft: None,
            gated: false,
            objective: settings::objective(&recipe.grpo),
            replay: Replay::Same,
            truncation: settings::truncation(&recipe.grpo),
            group: recipe.grpo.group,
            prompts: recipe.grpo.prompts,
        }
    }

    /// The arm of a recipe with the soft thoughts of its `[lepo]`.
    pub fn lepo(recipe: &Recipe, name: &str) -> ArmPlan {
        ArmPlan {
            latent_noise: recipe.lepo.embedding_noise,
            soft: Some(settings::soft(&recipe.lepo)),
            ..ArmPlan::of(recipe, name, Masking::NONE)
        }
    }

    /// The arm of a recipe with the gates of its `[hrpo]`.
    pub fn hrpo(recipe: &Recipe, name: &str) -> ArmPlan {
        ArmPlan { gated: true, ..ArmPlan::of(recipe, name, Masking::NONE) }
    }

    /// Gives `model` untrained gates, where the arm needs gates and there are none.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn prepare(&self, model: &mut Model, recipe: &Recipe) -> Result<()> {
        match self.gated && !model.has_gates() {
            true => model.add_random_gates(recipe.seed, recipe.hrpo.least_share),
            false => Ok(()),
        }
    }

    /// The form of its rollouts, where others take `form`.
    pub fn form(&self, form: Form) -> Form {
        match self.soft {
            None => form,
            Some(soft) => Form { latents: soft.latents, ..form },
        }
    }
}

/// Soft thoughts of an arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftPlan {
    /// Soft steps: the first positions after the question.
    pub latents: usize,
    /// How they are drawn.
    pub thoughts: SoftThoughts,
    /// How they are trained.
    pub objective: SoftObjective,
    /// Whether rewards read the proxies of soft steps before the sampled tokens.
    pub proxy_in_reward: bool,
    /// Whether evaluation asks without soft steps.
    pub infer_hard: bool,
}

impl SoftPlan {
    /// The soft steps that evaluation runs, if any.
    pub fn asked(self) -> Option<SoftPlan> {
        (!self.infer_hard).then_some(self)
    }

    /// The same without noise: what greedy evaluation runs.
    pub fn quiet(mut self) -> SoftPlan {
        self.thoughts.law.perturbation = Perturbation::None;
        // Nothing is drawn that a replay would have to be given.
        self.thoughts.replay = SoftReplay::Actions;
        self
    }
}

/// An arm under way.
#[derive(Debug)]
pub struct Arm<'a> {
    recipe: &'a Recipe,
    items: &'a [Item],
    tokenizer: &'a Tokenizer,
    extractor: Extractor,
    /// Whether rewards read proxies.
    proxies: bool,
    policy: Policy,
    /// Questions drawn so far.
    pub drawn: usize,
    order: (usize, Vec<usize>),
}

/// The form in which an arm asks: that of the curriculum's end.
pub fn form(recipe: &Recipe, curriculum: &Curriculum, markers: &Markers) -> Form {
    let stage = curriculum.max_latent_stage + 1;
    curriculum.form(stage, usize::MAX, markers, recipe.grpo.max_new_tokens)
}

/// Learning rate of update number `update` of an arm, from 0.
pub fn learning_rate(recipe: &Recipe, update: usize) -> f64 {
    let keys = &recipe.grpo;
    let rise = ((update + 1) as f64 / keys.warmup_steps.max(1) as f64).min(1.0);
    let warm = keys.warmup_steps.min(update);
    let done = ((update - warm) as f64 / (keys.updates - keys.warmup_steps.min(keys.updates)).max(1) as f64)
        .min(1.0);
    let fallen = match keys.schedule {
        Schedule::Linear => done,
        Schedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * done).cos()),
    };
    keys.learning_rate * rise * (1.0 - (1.0 - keys.decay) * fallen)
}

impl<'a> Arm<'a> {
    /// Reserves room; `reference` is the model before, for a KL penalty.
    ///
    /// # Errors
    /// Settings that contradict each other, or too little memory.
    pub fn new(
        model: &Model,
        recipe: &'a Recipe,
        plan: &ArmPlan,
        form: Form,
        items: &'a [Item],
        tokenizer: &'a Tokenizer,
        reference: Option<Model>,
    ) -> Result<Arm<'a>> {
        let keys = &recipe.grpo;
        let form = plan.form(form);
        let drawing = Drawing {
            gate: if plan.gated { settings::gating(&recipe.hrpo, tokenizer)? } else { None },
            masking: plan.masking.clone(),
            latent_noise: plan.latent_noise,
            soft: plan.soft.map(|soft| soft.thoughts),
            thoughts: Thoughts::Own,
            law: settings::law(keys),
            seed: recipe.seed,
            share: true,
        };
        let settings = Settings {
            group: plan.group,
            prompts: plan.prompts,
            prompt_tokens: items.iter().map(|item| item.tokens.question.len()).max().unwrap_or(1),
            passes: keys.inner_epochs,
            truncation: plan.truncation,
            tape_bytes: if keys.tape_mib == 0 { usize::MAX } else { keys.tape_mib << 20 },
            audit_all: keys.verify_replay,
            reference_masked: settings::reference_masked(keys),
            refills: keys.dynamic_sampling_refills,
            replay: plan.replay,
            record: settings::record(recipe),
            soft: plan.soft.map(|soft| soft.objective),
        };
        let optimizer_settings =
            optimizer::Settings { beta2: keys.beta2, ..settings::optimizer(keys.weight_decay, keys.clip) };
        let mut optimizer = Optimizer::new(model, optimizer_settings)?;
        if let (true, Some((products, lambda))) = (plan.gated, model.gate_parameters()) {
            let factor = |rate: f64| rate / keys.learning_rate;
            optimizer.set_rates(&[
                (products, factor(recipe.hrpo.gate_learning_rate)),
                (lambda, factor(recipe.hrpo.lambda_learning_rate)),
            ])?;
        }
        Ok(Arm {
            policy: Policy::new(model, (form, drawing), plan.objective, settings, optimizer, reference)?,
            extractor: settings::extractor(recipe),
            proxies: plan.soft.is_some_and(|soft| soft.proxy_in_reward),
            recipe,
            items,
            tokenizer,
            drawn: 0,
            order: (usize::MAX, Vec::new()),
        })
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The policy, whose optimiser may be restored.
    pub fn policy_mut(&mut self) -> &mut Policy {
        &mut self.policy
    }

    /// Update number `update`, from 0.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub fn update(&mut self, model: &mut Model, update: usize) -> Result<Report> {
        let learning_rate = learning_rate(self.recipe, update);
        let Arm { recipe, items, tokenizer, extractor, proxies, policy, drawn, order: current } = self;
        let draw = |count: usize| -> Vec<Question> {
            (0..count)
                .map(|_| {
                    let round = *drawn / items.len();
                    if current.0 != round {
                        // Apart from the rounds of supervised training.
                        *current = (round, order(items.len(), recipe.seed, round + (1 << 20)));
                    }
                    let item = &items[current.1[*drawn % items.len()]];
                    *drawn += 1;
                    Question { tokens: item.tokens.question.clone(), number: item.number }
                })
                .collect()
        };
        policy.update(model, update as u32, learning_rate, draw, |question, trajectory| {
            let said = if *proxies { trajectory.said() } else { trajectory.tokens.clone() };
            let text = tokenizer.decode(&said, true)?;
            let gold = &items[question.number as usize].problem.answer;
            Ok(answer::reward(*extractor, &text, trajectory.stopped, gold))
        })
    }
}
