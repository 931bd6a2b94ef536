//! How soft steps are trained (algorithms C.3): the estimators, what each of them needs, and the loss of a batch of
//! actions.
//!
//! | estimator | loss of a soft step | gradient into soft inputs |
//! |---|---|---|
//! | `none` | - | none |
//! | `soft_ce` | A CE(y, p), as LEPO is released | none |
//! | `concrete` | -A log-density of y, or its ratio | the embedding table |
//! | `gumbel_g` | -A log-density of g (SofT-GRPO), or its ratio | none |
//! | `gauss_embed` | -A log-density of the noisy embedding (Soft Tokens), or its ratio | none; the density's mean moves the table |
//! | `pathwise` | - | through weights, logits and earlier steps, and the table |
//! | `straight_through` | - | as pathwise, while the input was one-hot |

use super::policy_batch::{Batch, Passed, Row};
use super::policy_report::Report;
use crate::base::{Error, Result};
use crate::model::{
    Action, Churn, Gradients, Model, NoisyInput, Sequences, SoftGradient, SoftScore, SoftScores,
};
use crate::ops::gaussian_density::Normal;
use crate::ops::policy_loss::Hyper;
use crate::ops::soft_action::{Perturbation, Score};
use crate::rollout::group::{SoftReplay, SoftThoughts};
use std::fmt;

/// What a soft step learns from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SoftEstimator {
    /// Nothing: only tokens are trained.
    None,
    /// Cross-entropy of the executed weights against the softmax: over the whole vocabulary as released, or over the
    /// stored support.
    SoftCe {
        /// Over the whole vocabulary.
        full: bool,
    },
    /// The exact density of the weights on the stored support (C.2).
    Concrete {
        /// Divided by the number of kept ids.
        mean: bool,
    },
    /// The density of the perturbed logits (SofT-GRPO).
    GumbelG {
        /// Only ids of at least this log-probability count.
        floor: Option<f64>,
        /// Mean over the ids that count.
        mean: bool,
    },
    /// The density of the embedding that was read, whose noise ([`crate::rollout::group::Drawing::latent_noise`]) is
    /// normal around the mixture (Soft Tokens).
    GaussEmbed {
        /// Divided by the model's width.
        mean: bool,
    },
    /// Nothing of its own: answers' gradients flow through the weights.
    Pathwise,
    /// The same through a hard choice.
    StraightThrough,
}

impl SoftEstimator {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            SoftEstimator::None => "none",
            SoftEstimator::SoftCe { .. } => "soft_ce",
            SoftEstimator::Concrete { .. } => "concrete",
            SoftEstimator::GumbelG { .. } => "gumbel_g",
            SoftEstimator::GaussEmbed { .. } => "gauss_embed",
            SoftEstimator::Pathwise => "pathwise",
            SoftEstimator::StraightThrough => "straight_through",
        }
    }

    /// Which gradients flow into soft inputs.
    pub fn gradient(self) -> SoftGradient {
        match self {
            SoftEstimator::Pathwise | SoftEstimator::StraightThrough => SoftGradient::Pathwise,
            SoftEstimator::Concrete { .. } => SoftGradient::Table,
            _ => SoftGradient::Nothing,
        }
    }

    /// What later passes feed: the stored weights or embeddings, or the weights that the stored noise gives now.
    pub fn replay(self) -> SoftReplay {
        match self {
            SoftEstimator::Pathwise | SoftEstimator::StraightThrough => SoftReplay::Noise,
            SoftEstimator::GaussEmbed { .. } => SoftReplay::Inputs,
            _ => SoftReplay::Actions,
        }
    }

    /// What a step's score is; none where steps have no loss of their own.
    fn score(self, thoughts: &SoftThoughts, embedding_noise: f64) -> Option<SoftScore> {
        let tau = thoughts.law.tau;
        // SofT-GRPO bounds its noise again when it scores.
        let clamp = match thoughts.law.perturbation {
            Perturbation::Gumbel { clamp } => clamp,
            _ => None,
        };
        match self {
            SoftEstimator::SoftCe { full } => Some(Score::SoftCe { full }.into()),
            SoftEstimator::Concrete { mean } => Some(Score::Concrete { tau, mean }.into()),
            SoftEstimator::GumbelG { floor, mean } => Some(Score::GumbelG { clamp, floor, mean }.into()),
            SoftEstimator::GaussEmbed { mean } => {
                Some(NoisyInput { tau, normal: Normal { deviation: embedding_noise, mean } }.into())
            }
            SoftEstimator::None | SoftEstimator::Pathwise | SoftEstimator::StraightThrough => None,
        }
    }
}

impl fmt::Display for SoftEstimator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How soft steps are trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftObjective {
    /// The estimator.
    pub estimator: SoftEstimator,
    /// The loss of a scored step: [`crate::ops::policy_loss::Surrogate::Plain`] as LEPO is released, or a clipped ratio.
    pub loss: Hyper,
}

impl SoftObjective {
    /// Checks that thoughts can be trained so. `embedding_noise` is the deviation of the noise on their embeddings.
    ///
    /// # Errors
    /// A penalty on soft steps, an estimator without the noise it needs, a hard choice where mixtures are trained or
    /// the reverse.
    pub fn check(&self, thoughts: &SoftThoughts, embedding_noise: f64) -> Result<()> {
        self.loss.check()?;
        thoughts.law.validate()?;
        let estimator = self.estimator;
        let refuse = |found: String, expected: &str, advice: &str| {
            Err(Error::input(
                format!("lepo.estimator `{estimator}`"),
                format!("found {found}, expected {expected}"),
                advice,
            ))
        };
        if self.loss.kl.is_some() {
            return refuse(
                "a KL penalty on soft steps".into(),
                "none: it holds tokens alone",
                "set it for tokens (grpo.kl_beta)",
            );
        }
        let perturbation = thoughts.law.perturbation;
        match (estimator, perturbation) {
            (SoftEstimator::GaussEmbed { .. }, Perturbation::None) if embedding_noise > 0.0 => {}
            (SoftEstimator::GaussEmbed { .. }, Perturbation::None) => {
                return refuse(
                    format!("lepo.embedding_noise = {embedding_noise}"),
                    "a deviation above 0: a point has no density",
                    "set lepo.embedding_noise, e.g. to a third of the root mean square of the embeddings' entries",
                );
            }
            (SoftEstimator::GaussEmbed { .. }, other) => {
                return refuse(
                    format!("{other:?}"),
                    "no noise on the logits: its density is that of the noise on embeddings alone",
                    "set lepo.noise = \"none\", or take another lepo.estimator",
                );
            }
            (SoftEstimator::Concrete { .. } | SoftEstimator::GumbelG { .. }, Perturbation::Gumbel { .. }) => {
            }
            (SoftEstimator::Concrete { .. } | SoftEstimator::GumbelG { .. }, other) => {
                return refuse(
                    format!("{other:?}"),
                    "Gumbel noise, whose density it is",
                    "set lepo.noise = \"gumbel\", or take another lepo.estimator",
                );
            }
            (SoftEstimator::Pathwise | SoftEstimator::StraightThrough, Perturbation::Dirichlet { .. }) => {
                return refuse(
                    "Dirichlet noise".into(),
                    "noise that is added to logits",
                    "set lepo.noise to gumbel or gaussian, or take another lepo.estimator",
                );
            }
            _ => {}
        }
        if thoughts.law.hard != (estimator == SoftEstimator::StraightThrough) {
            return refuse(
                format!("inputs that are one-hot: {}", thoughts.law.hard),
                "one-hot inputs with straight_through and with nothing else",
                "choose lepo.estimator = \"straight_through\" for hard inputs",
            );
        }
        Ok(())
    }
}

/// What was seen of the soft steps of an update (algorithms C.3, diagnostics).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SoftStatistics {
    /// Steps drawn.
    pub steps: usize,
    /// Mean number of kept ids.
    pub kept: f64,
    /// Share of steps that kept one id.
    pub singletons: f64,
    /// Mean entropy of the weights (nats).
    pub entropy: f64,
    /// Share of steps whose proxy is not the id of the largest weight.
    pub disagreement: f64,
    /// Share of rollouts that a proxy stopped.
    pub stopped_by_proxy: f64,
}

impl SoftStatistics {
    /// Those of a report's rollouts; none without soft steps.
    pub fn of(report: &Report) -> Option<SoftStatistics> {
        let trajectories = || report.rollouts.iter().map(|judged| &judged.trajectory);
        let actions = || trajectories().flat_map(|trajectory| &trajectory.actions);
        let steps = actions().count();
        let share = |count: usize| count as f64 / steps.max(1) as f64;
        let silent = trajectories().filter(|trajectory| trajectory.tokens.is_empty()).count();
        (steps > 0).then(|| SoftStatistics {
            steps,
            kept: share(actions().map(|action| action.ids.len()).sum()),
            singletons: share(actions().filter(|action| action.ids.len() == 1).count()),
            entropy: actions().map(Action::entropy).sum::<f64>() / steps as f64,
            disagreement: share(actions().filter(|action| action.largest() != Some(action.proxy)).count()),
            stopped_by_proxy: silent as f64 / report.rollouts.len() as f64,
        })
    }
}

/// The soft steps of some rollouts in a pass, one rollout after the other.
pub(super) struct Steps<'a> {
    /// Tape positions that predict them.
    pub at: &'a [u32],
    /// What was drawn.
    pub actions: &'a [&'a Action],
    /// Their scores in the first pass; none in that pass, where they are the scores of now.
    pub old: Option<&'a [f64]>,
    /// Whether their logits may be others than those that they were drawn from: not in a first pass under the same mask.
    pub moved: bool,
}

/// Scores and losses of soft steps.
#[derive(Debug)]
pub(super) struct SoftLearner {
    loss: Hyper,
    scores: SoftScores,
    batch: Batch,
}

impl SoftLearner {
    /// Room for `rows` rollouts of up to `steps` soft steps each; none where steps have no loss of their own.
    pub fn reserve(
        model: &Model,
        objective: &SoftObjective,
        (thoughts, embedding_noise): (&SoftThoughts, f64),
        rows: usize,
        steps: usize,
    ) -> Result<Option<SoftLearner>> {
        let Some(kind) = objective.estimator.score(thoughts, embedding_noise) else { return Ok(None) };
        // As released, the cross-entropy is against the model's own softmax, untempered.
        let inverse_temperature = match kind {
            SoftScore::Action(Score::SoftCe { full: true }) => 1.0,
            _ => thoughts.law.law.inverse_temperature(),
        };
        let terms = thoughts.law.terms(model.config().vocab);
        let mut scores = SoftScores::reserve(model, rows * steps, terms, kind, inverse_temperature)?;
        scores.watch_support(model, &thoughts.law)?;
        Ok(Some(SoftLearner {
            loss: objective.loss,
            scores,
            batch: Batch::reserve(model, rows, rows * steps)?,
        }))
    }

    /// Adds the gradient of the soft steps of some rollouts, `rows`. Returns their scores.
    pub fn learn(
        &mut self,
        model: &Model,
        sequences: &mut Sequences,
        rows: &[Row],
        steps: &Steps,
        gradients: &mut Gradients,
        passed: &mut Passed,
    ) -> Result<Vec<f64>> {
        let &Steps { at, actions, old, moved } = steps;
        if actions.is_empty() {
            return Ok(Vec::new());
        }
        let churn = match moved {
            true => self.scores.forward_watching(model, sequences, at, actions)?,
            false => self.scores.forward(model, sequences, at, actions).map(|()| Churn::default())?,
        };
        let now = self.scores.values()?;
        passed.count_steps(&now, churn);
        self.batch.load(rows, old.unwrap_or(&now), None)?;
        let (score, coefficient) = self.scores.coefficients_mut()?;
        self.batch.run((score, &now), coefficient, &self.loss, passed)?;
        self.scores.backward_written(model, sequences, gradients)?;
        Ok(now)
    }
}
