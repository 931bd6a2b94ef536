//! Accuracy on problems (algorithms B.7): deterministic, over masks, sampled, or both; with the latents as they are,
//! removed, or taken from another problem.

use super::problems::Item;
use super::recipe::HrpoKeys;
use super::reinforcement::SoftPlan;
use super::settings;
use crate::base::{Error, Result};
use crate::learn::coconut::{Curriculum, Markers};
use crate::learn::estimators;
use crate::learn::intervals;
use crate::model::{Model, Record};
use crate::ops::sampler::Law;
use crate::rollout::group::{Drawing, Form, Limits, Member, Rollouts, Thoughts};
use crate::rollout::masks::{Masking, Rollout};
use crate::text::Tokenizer;
use crate::text::answer::{self, Extractor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What stays for a run's evaluations.
#[derive(Clone, Copy, Debug)]
pub struct Examiner<'a> {
    /// How questions are asked.
    pub curriculum: &'a Curriculum,
    /// Its tokens.
    pub markers: Markers,
    /// To read answers.
    pub tokenizer: &'a Tokenizer,
    /// How answers are read.
    pub extractor: Extractor,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Rows at once.
    pub batch: usize,
    /// Seed of masks and samples.
    pub seed: u64,
    /// How a model with gates reads its answers.
    pub hrpo: &'a HrpoKeys,
}

/// One way to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Stage of the curriculum.
    pub stage: usize,
    /// Masks of each answer.
    pub masking: Masking,
    /// Temperature; none = greedy.
    pub temperature: Option<f64>,
    /// Answers a problem.
    pub samples: usize,
    /// What becomes of the latents.
    pub thoughts: Thoughts,
    /// Latents that are mixtures of token embeddings; none = those of the curriculum.
    pub soft: Option<SoftPlan>,
    /// Keeps the randomness of different evaluations apart: stands in the place of the update.
    pub key: u32,
}

impl Ask {
    /// Without masks, greedy, one answer.
    pub fn deterministic(stage: usize) -> Ask {
        Ask {
            stage,
            masking: Masking::NONE,
            temperature: None,
            samples: 1,
            thoughts: Thoughts::Own,
            soft: None,
            key: u32::MAX,
        }
    }

    /// The soft steps that are run: there are none where thoughts are removed.
    fn mixtures(&self) -> Option<SoftPlan> {
        self.soft.filter(|_| self.thoughts != Thoughts::Removed)
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// What was read from it.
    pub value: Option<String>,
    /// Whether it is right, and ended.
    pub right: bool,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Sum of their log-probabilities.
    pub log_probability: f64,
}

/// A share with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The share.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What came of asking a set of problems.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// By problem, its answers.
    pub answers: Vec<Vec<Answer>>,
}

/// The numbers of an outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Problems asked.
    pub problems: usize,
    /// Answers a problem.
    pub samples: usize,
    /// Mean accuracy of single answers (avg@n; pass@1), with Wilson's interval for one answer a problem, or for all
    /// answers of one problem, and Student's over problems for more.
    pub accuracy: Share,
    /// The k of the next two.
    pub k: usize,
    /// Expected best of k answers drawn from those given, unbiased.
    pub pass_at_k: f64,
    /// Expected accuracy of the most frequent of k answers.
    pub majority_at_k: f64,
    /// Problems with at least one right answer.
    pub coverage: f64,
    /// Accuracy of the most frequent answer of all: the vote of the Bayesian model average.
    pub average_by_vote: f64,
    /// Mean tokens an answer.
    pub tokens: f64,
}

impl Examiner<'_> {
    /// Asks `items`.
    ///
    /// # Errors
    /// Those of rollouts.
    pub fn ask(&self, model: &Model, items: &[Item], ask: &Ask) -> Result<Outcome> {
        if ask.samples == 0 {
            return Err(Error::input("evaluation", "0 answers a problem", "ask for at least one"));
        }
        let mut answers = vec![Vec::new(); items.len()];
        for indices in self.alike(items, ask).values() {
            self.ask_alike(model, items, indices, ask, &mut answers)?;
        }
        Ok(Outcome { answers })
    }

    /// Reserves what [`Examiner::ask`] takes for `items`, and gives it back.
    ///
    /// # Errors
    /// As [`Examiner::ask`], before anything is asked.
    pub fn rehearse(&self, model: &Model, items: &[Item], ask: &Ask) -> Result<()> {
        let alike = self.alike(items, ask);
        alike.values().try_for_each(|indices| self.reserve(model, items, indices, ask).map(drop))
    }

    /// The problems by their number of latents: those of different numbers of steps may have different ones.
    fn alike(&self, items: &[Item], ask: &Ask) -> BTreeMap<usize, Vec<usize>> {
        let mut alike: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let thoughts = self.curriculum.thoughts(ask.stage, item.tokens.steps.len());
            alike.entry(thoughts).or_default().push(index);
        }
        alike
    }

    /// Room to ask the problems `indices`, and how many of them are asked at once.
    fn reserve(
        &self,
        model: &Model,
        items: &[Item],
        indices: &[usize],
        ask: &Ask,
    ) -> Result<(Rollouts, usize)> {
        let steps = items[indices[0]].tokens.steps.len();
        let form = self.curriculum.form(ask.stage, steps, &self.markers, self.max_new_tokens);
        let soft = ask.mixtures();
        let form = match (ask.thoughts, soft) {
            (Thoughts::Removed, _) => Form { latents: 0, ..form },
            (_, Some(soft)) => Form { latents: soft.latents, ..form },
            (_, None) => form,
        };
        let prompts_at_once = (self.batch / ask.samples).clamp(1, indices.len());
        let donates = ask.thoughts == Thoughts::Shuffled && form.latents > 0;
        if donates && items.len() < 2 {
            return Err(Error::input(
                "shuffled thoughts",
                "there is one problem, and no other whose thoughts it could have",
                "ask at least two problems; of a run: data.test, data.limit_test",
            ));
        }
        let law = match ask.temperature {
            None => Law::Greedy,
            Some(temperature) => Law::Categorical { temperature, top_k: None, top_p: None, min_p: None },
        };
        let drawing = Drawing {
            // A model with gates was trained to read its answers through them.
            gate: match model.has_gates() {
                true => settings::gating(self.hrpo, self.tokenizer)?,
                false => None,
            },
            masking: ask.masking.clone(),
            latent_noise: 0.0,
            soft: soft.map(|soft| soft.thoughts),
            thoughts: ask.thoughts,
            law,
            seed: self.seed,
            share: true,
        };
        // Beside the problems that are asked at once may stand the one whose thoughts the last of them has.
        let donates = donates && (indices.len() == 1 || prompts_at_once < indices.len());
        let question = |item: &Item| item.tokens.question.len();
        let prompt_tokens = match donates {
            true => items.iter().map(question).max(),
            false => indices.iter().map(|&i| question(&items[i])).max(),
        };
        let limits = Limits {
            prompts: prompts_at_once + usize::from(donates),
            members: prompts_at_once * ask.samples,
            prompt_tokens: prompt_tokens.unwrap_or(1),
        };
        Ok((Rollouts::reserve(model, form, drawing, limits, Record::Nothing)?, prompts_at_once))
    }

    fn ask_alike(
        &self,
        model: &Model,
        items: &[Item],
        indices: &[usize],
        ask: &Ask,
        answers: &mut [Vec<Answer>],
    ) -> Result<()> {
        let soft = ask.mixtures();
        let (mut rollouts, prompts_at_once) = self.reserve(model, items, indices, ask)?;
        for (number, part) in indices.chunks(prompts_at_once).enumerate() {
            // A problem has the thoughts of the one after it, whatever the size of a part; within a part of all problems the
            // first comes after the last.
            let donates = ask.thoughts == Thoughts::Shuffled && rollouts.form().latents > 0;
            let donor = match indices.len() {
                _ if !donates => None,
                1 => Some((indices[0] + 1) % items.len()),
                count if count == part.len() => None,
                count => Some(indices[(number * prompts_at_once + part.len()) % count]),
            };
            let prompts: Vec<Vec<u32>> =
                part.iter().chain(&donor).map(|&i| items[i].tokens.question.clone()).collect();
            let member = |prompt: usize, rollout: usize| Member {
                prompt,
                coordinates: Rollout {
                    update: ask.key,
                    prompt: items[part[prompt]].number,
                    rollout: rollout as u32,
                    attempt: 0,
                },
            };
            let members: Vec<Member> = (0..part.len())
                .flat_map(|prompt| (0..ask.samples).map(move |rollout| (prompt, rollout)))
                .map(|(prompt, rollout)| member(prompt, rollout))
                .collect();
            for trajectory in rollouts.sample(model, &prompts, &members, |_, _| ControlFlow::Continue(()))? {
                let index = part[trajectory.member.prompt];
                let said = match soft {
                    Some(soft) if soft.proxy_in_reward => trajectory.said(),
                    _ => trajectory.tokens,
                };
                let text = self.tokenizer.decode(&said, true)?;
                let gold = &items[index].problem.answer;
                answers[index].push(Answer {
                    value: answer::extracted(self.extractor, &text),
                    right: answer::reward(self.extractor, &text, trajectory.stopped, gold) > 0.0,
                    log_probability: trajectory.log_probabilities.iter().sum(),
                    ids: said,
                    text,
                });
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// Whether each problem's first answer is right.
    pub fn first_right(&self) -> Vec<bool> {
        self.answers.iter().map(|answers| answers.first().is_some_and(|answer| answer.right)).collect()
    }

    /// The numbers; `k` is bounded by the answers a problem has.
    ///
    /// # Errors
    /// No problems.
    pub fn scores(&self, k: usize) -> Result<Scores> {
        let problems = self.answers.len();
        let samples = self.answers.iter().map(Vec::len).min().unwrap_or(0);
        let k = k.clamp(1, samples.max(1));
        let right = |answers: &[Answer]| answers.iter().filter(|answer| answer.right).count();
        let single: Vec<f64> =
            self.answers.iter().map(|answers| right(answers) as f64 / answers.len().max(1) as f64).collect();
        let accuracy = match (samples, &self.answers[..]) {
            (0 | 1, _) => {
                intervals::proportion(self.first_right().iter().filter(|right| **right).count(), problems)?
            }
            // One problem has no spread over problems; its answers are draws of one proportion.
            (_, [only]) => intervals::proportion(right(only), only.len())?,
            _ => intervals::mean(&single)?,
        };
        let (mut pass, mut majority, mut covered, mut voted, mut tokens) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for answers in &self.answers {
            pass += estimators::pass_at_k(answers.len(), right(answers), k)?;
            // An unreadable answer votes as a value of its own. Equal values are right or wrong alike, but an answer
            // that did not end is wrong whatever it says, so whether it is right is part of what is voted on.
            let votes: Vec<(&Option<String>, bool)> =
                answers.iter().map(|answer| (&answer.value, answer.right)).collect();
            majority += estimators::maj_at_k(&votes, |vote| vote.1, k)?;
            covered += f64::from(u8::from(right(answers) > 0));
            voted += f64::from(u8::from(estimators::majority(&votes).is_some_and(|n| answers[n].right)));
            tokens +=
                answers.iter().map(|answer| answer.ids.len() as f64).sum::<f64>() / answers.len() as f64;
        }
        let count = problems as f64;
        Ok(Scores {
            problems,
            samples,
            accuracy: Share { value: accuracy.estimate, low: accuracy.low, high: accuracy.high },
            k,
            pass_at_k: pass / count,
            majority_at_k: majority / count,
            coverage: covered / count,
            average_by_vote: voted / count,
            tokens: tokens / count,
        })
    }
}
