//! How a story asks problems: after a phase, between the updates of an arm, and at the end. The rehearsal of its memory
//! (run/rehearsal.rs) asks in the same ways.

use crate::learn::coconut::Curriculum;
use crate::rollout::group::Thoughts;
use crate::run::evaluation::{Ask, Examiner};
use crate::run::problems::{Item, Problems};
use crate::run::recipe::{EvaluationMode, Recipe};
use crate::run::reinforcement::SoftPlan;
use crate::run::schooling::Phase;
use crate::run::settings;
use crate::run::student::Student;

/// Who asks, by the recipe's curriculum.
pub(in crate::run) fn examiner<'a>(
    recipe: &'a Recipe,
    curriculum: &'a Curriculum,
    student: &'a Student,
) -> Examiner<'a> {
    Examiner {
        curriculum,
        markers: student.markers,
        tokenizer: &student.tokenizer,
        extractor: settings::extractor(recipe),
        max_new_tokens: recipe.grpo.max_new_tokens,
        batch: recipe.evaluation.batch,
        seed: recipe.seed,
        hrpo: &recipe.hrpo,
    }
}

/// Who asks after a phase: an answer in words takes as many tokens as the longest that was trained.
pub(in crate::run) fn phase_examiner<'a>(
    recipe: &'a Recipe,
    phase: &'a Phase,
    student: &'a Student,
    problems: &Problems,
) -> Examiner<'a> {
    let count = problems.train.items.len();
    let answer = |item: &Item| phase.at_end(&item.tokens, count, &student.markers).answer.len();
    let longest = problems.valid.items.iter().map(answer).max().unwrap_or(1);
    Examiner { max_new_tokens: longest + 2, ..examiner(recipe, &phase.curriculum, student) }
}

/// The validation problems that are asked between updates.
pub(in crate::run) fn between<'a>(recipe: &Recipe, valid: &'a [Item]) -> &'a [Item] {
    match recipe.evaluation.problems {
        0 => valid,
        problems => &valid[..problems.min(valid.len())],
    }
}

/// Greedily, without masks, with all thoughts, and without the noise of `soft` ones.
pub(in crate::run) fn plain(curriculum: &Curriculum, soft: Option<SoftPlan>) -> Ask {
    Ask {
        soft: soft.and_then(SoftPlan::asked).map(SoftPlan::quiet),
        ..Ask::deterministic(curriculum.max_latent_stage + 1)
    }
}

/// How a finished model is asked.
pub(in crate::run) struct Closing {
    /// See [`plain`].
    pub plain: Ask,
    /// Without thoughts.
    pub removed: Ask,
    /// With another problem's.
    pub shuffled: Ask,
    /// In the recipe's other modes.
    pub modes: Vec<(EvaluationMode, Ask)>,
}

impl Closing {
    pub fn of(recipe: &Recipe, curriculum: &Curriculum, soft: Option<SoftPlan>) -> Closing {
        let (keys, plain) = (&recipe.evaluation, plain(curriculum, soft));
        let soft = soft.and_then(SoftPlan::asked);
        let with = |thoughts| Ask { thoughts, ..plain.clone() };
        let mut modes = Vec::new();
        for &mode in &keys.modes {
            let masking = settings::masking(&recipe.mask, recipe.mask.scope);
            let (temperature, samples) = (Some(keys.temperature), keys.masks);
            let ask = match mode {
                EvaluationMode::Det => continue,
                EvaluationMode::Mc => Ask { masking, samples, ..plain.clone() },
                EvaluationMode::Temp => Ask { temperature, samples, soft, ..plain.clone() },
                EvaluationMode::McTemp => Ask { masking, temperature, samples, soft, ..plain.clone() },
            };
            modes.push((mode, ask));
        }
        Closing { removed: with(Thoughts::Removed), shuffled: with(Thoughts::Shuffled), plain, modes }
    }
}
