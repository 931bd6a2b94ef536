//! Reinforcement learning parts of a story, and what every model is asked at the end.

use super::asks::{self, Closing};
use super::progress::{Entry, Tally, marks};
use super::{Event, Sample, Story, form};
use crate::base::Result;
use crate::learn::policy_report::Report;
use crate::learn::soft_policy::SoftStatistics;
use crate::ops::policy_loss::Statistic;
use crate::run::adapters;
use crate::run::evaluation::{Ask, Share};
use crate::run::metrics::Record;
use crate::run::reinforcement::{Arm, ArmPlan, SoftPlan, learning_rate};
use std::ops::ControlFlow;
use std::time::Instant;

impl Story<'_> {
    /// One arm: it starts from the base.
    pub(super) fn arm(
        &mut self,
        plan: &ArmPlan,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.begin_arm(watch)?;
        plan.prepare(&mut self.student.model, self.recipe)?;
        self.student.describe_gating(plan.gated.then_some(&self.recipe.hrpo));
        let (recipe, updates) = (self.recipe, self.recipe.grpo.updates);
        let done = self.progress.update;
        let _ = watch(&Event::Part { name: &plan.name, updates, done, rewarded: true });
        let reference = match plan.objective.loss.kl {
            None => None,
            Some(_) => Some(self.load_start()?),
        };
        let form = form(recipe, &self.curriculum, &self.student);
        let (items, tokenizer) = (self.problems.prompts().items.clone(), self.student.tokenizer.clone());
        let mut arm = Arm::new(&self.student.model, recipe, plan, form, &items, &tokenizer, reference)?;
        arm.drawn = self.progress.drawn;
        self.restore(arm.policy_mut().optimizer_mut())?;
        while self.progress.update < updates {
            let (began, update) = (Instant::now(), self.progress.update);
            let report =
                arm.update(&mut self.student.model, update).map_err(|error| self.fault(error, &plan.name))?;
            let seconds = began.elapsed().as_secs_f64();
            self.progress.update += 1;
            self.progress.step += 1;
            self.progress.drawn = arm.drawn;
            self.count(&report);
            let record = metrics(self.record(&plan.name, update + 1), &report, seconds);
            self.metrics.write(record)?;
            let samples = self.log_samples(plan, update, &report)?;
            let rate = learning_rate(recipe, update);
            let event = Event::Rewarded {
                update: update + 1,
                report: &report,
                samples: &samples,
                learning_rate: rate,
                seconds,
            };
            let stop = watch(&event).is_break();
            let score = self.maybe_evaluate(plan, watch)?;
            let every = recipe.run.checkpoint_every;
            if stop || (every > 0 && self.progress.step.is_multiple_of(every as u64)) {
                self.checkpoint(Some(arm.policy().optimizer()), score, watch)?;
            }
            if stop {
                return Ok(ControlFlow::Break(()));
            }
        }
        drop(arm);
        self.end_arm(&plan.name, plan.soft, watch)?;
        Ok(ControlFlow::Continue(()))
    }

    /// Puts the base in the place of the model, unless the arm goes on from a checkpoint.
    pub(super) fn begin_arm(&mut self, watch: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<()> {
        self.optimizer = None;
        if self.progress.update == 0 {
            self.restored = None;
            // Without a supervised phase the base is the model as it came; a folder of that name is an older run's.
            if self.progress.entries.is_empty() {
                self.save_start()?;
                self.close(self.base_name(), None, watch)?;
            } else {
                self.student.model = self.load_start()?;
            }
        }
        Ok(())
    }

    /// Asks the finished arm, keeps its model, and moves on.
    pub(super) fn end_arm(
        &mut self,
        name: &str,
        soft: Option<SoftPlan>,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<()> {
        self.optimizer = None;
        let folder = self.folder.models().join(name);
        adapters::save(self.recipe, &self.student, &folder)?;
        self.close(name, soft, watch)?;
        self.part_done();
        // Checkpoints are chosen by validation problems, never by those that are reported.
        let score =
            self.progress.validation.filter(|(step, _)| *step == self.progress.step).map(|(_, score)| score);
        self.checkpoint(None, score, watch)
    }

    fn count(&mut self, report: &Report) {
        let groups = report.groups();
        self.progress.tally.add(Tally {
            updates: 1,
            rollouts: report.rollouts.len(),
            dead_low: groups.dead_low,
            dead_high: groups.dead_high,
            live: groups.live,
            replay_gap: report.replay_gap,
            audited: report.audited,
            first_reward: report.reward(),
            last_reward: report.reward(),
        });
        let times = report.times;
        for (what, spent) in [
            ("rollout", times.rollout),
            ("reward", times.reward),
            ("backward", times.backward),
            ("optimizer", times.optimizer),
            ("audit", times.audit),
        ] {
            *self.progress.seconds.entry(what.into()).or_default() += spent.as_secs_f64();
        }
    }

    /// Writes every rollout to samples.jsonl; returns as many as the recipe shows as text: the best, the worst, then others in
    /// their order.
    fn log_samples(&mut self, plan: &ArmPlan, update: usize, report: &Report) -> Result<Vec<Sample>> {
        let mut samples: Vec<Sample> = Vec::new();
        for judged in &report.rollouts {
            let trajectory = &judged.trajectory;
            let coordinates = trajectory.member.coordinates;
            let problem = &self.problems.prompts().items[coordinates.prompt as usize].problem;
            let sample = Sample {
                question: problem.question.clone(),
                gold: problem.answer.clone(),
                answer: self.student.tokenizer.decode(&trajectory.said(), true)?,
                reward: judged.reward,
                advantage: judged.advantage,
            };
            let record = self
                .record(&plan.name, update + 1)
                .with("prompt", coordinates.prompt)
                .with("rollout", coordinates.rollout)
                .with("attempt", coordinates.attempt)
                .with("question", sample.question.as_str())
                .with("gold", sample.gold.as_str())
                .with("answer", sample.answer.as_str())
                .with("proxies", trajectory.actions.iter().map(|action| action.proxy).collect::<Vec<_>>())
                .with("ids", trajectory.tokens.clone())
                .numbers("logprobs", &trajectory.log_probabilities)
                .with("stopped", trajectory.stopped)
                .number("reward", judged.reward)
                .number("advantage", judged.advantage);
            self.samples.write(record)?;
            samples.push(sample);
        }
        let by_reward = |a: &usize, b: &usize| samples[*a].reward.total_cmp(&samples[*b].reward);
        let best = (0..samples.len()).max_by(by_reward);
        let worst = (0..samples.len()).min_by(by_reward).filter(|worst| best != Some(*worst));
        let others = (0..samples.len()).filter(|n| best != Some(*n) && worst != Some(*n));
        let shown = best.into_iter().chain(worst).chain(others).take(self.recipe.run.samples_print);
        Ok(shown.map(|n| samples[n].clone()).collect())
    }

    /// Greedy accuracy on some validation problems, every so many updates.
    fn maybe_evaluate(
        &mut self,
        plan: &ArmPlan,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Option<f64>> {
        let name = plan.name.as_str();
        let keys = &self.recipe.evaluation;
        let update = self.progress.update;
        if keys.every == 0 || !update.is_multiple_of(keys.every) {
            return Ok(None);
        }
        let began = Instant::now();
        let items = asks::between(self.recipe, &self.problems.valid.items);
        let ask = asks::plain(&self.curriculum, plan.soft);
        let scores = self.examiner().ask(&self.student.model, items, &ask)?.scores(1)?;
        self.spend("evaluation", began);
        let what = format!("after {update} updates of {name}, validation");
        let _ = watch(&Event::Evaluated { what: &what, scores: &scores });
        let record = self.record(name, update).number("eval/accuracy", scores.accuracy.value);
        self.metrics.write(record)?;
        self.progress.validation = Some((self.progress.step, scores.accuracy.value));
        Ok(Some(scores.accuracy.value))
    }

    /// Asks the model the test problems in every way of the recipe, and enters the result in the closing table.
    pub(super) fn close(
        &mut self,
        name: &str,
        soft: Option<SoftPlan>,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<()> {
        let began = Instant::now();
        let ways = Closing::of(self.recipe, &self.curriculum, soft);
        let (model, test) = (&self.student.model, &self.problems.test.items);
        let examiner = self.examiner();
        let greedy = examiner.ask(model, test, &ways.plain)?;
        let det = greedy.scores(1)?;
        let _ = watch(&Event::Evaluated { what: &format!("{name}, test"), scores: &det });
        let accuracy = |ask: &Ask, items: &[crate::run::problems::Item]| -> Result<Share> {
            Ok(examiner.ask(model, items, ask)?.scores(1)?.accuracy)
        };
        let mut entry = Entry {
            name: name.into(),
            right: marks(&greedy),
            det,
            modes: Default::default(),
            removed: accuracy(&ways.removed, test)?,
            shuffled: accuracy(&ways.shuffled, test)?,
            shifted: Default::default(),
            tally: self.progress.tally,
        };
        for (mode, ask) in &ways.modes {
            let scores = examiner.ask(model, test, ask)?.scores(self.recipe.evaluation.k)?;
            entry.modes.insert(mode.to_string(), scores);
        }
        for set in &self.problems.shifted {
            entry.shifted.insert(set.name.clone(), accuracy(&ways.plain, &set.items)?);
        }
        self.progress.entries.push(entry);
        self.spend("evaluation", began);
        Ok(())
    }
}

/// The line of one update in metrics.jsonl; names follow TRL's and verl's.
fn metrics(record: Record, report: &Report, seconds: f64) -> Record {
    let groups = report.groups();
    let all = (groups.live + groups.dead_low + groups.dead_high).max(1) as f64;
    let first = &report.passes[0];
    let last = &report.passes[report.passes.len() - 1];
    let soft = SoftStatistics::of(report);
    let of_soft = |value: fn(&SoftStatistics) -> f64| soft.as_ref().map(value);
    record
        .maybe("soft/kept", of_soft(|soft| soft.kept))
        .maybe("soft/singleton_rate", of_soft(|soft| soft.singletons))
        .maybe("soft/entropy", of_soft(|soft| soft.entropy))
        .maybe("soft/proxy_disagreement", of_soft(|soft| soft.disagreement))
        .maybe("soft/stopped_by_proxy", of_soft(|soft| soft.stopped_by_proxy))
        .maybe("soft/loss", first.soft.as_ref().map(|soft| soft.loss))
        .maybe("soft/score", first.soft.as_ref().map(|soft| soft.mean_score()))
        .maybe("soft/ratio", last.soft.as_ref().map(|soft| soft.mean(Statistic::Ratio)))
        .maybe("soft/ratio_spread", last.soft.as_ref().map(|soft| soft.ratio_spread))
        .maybe("soft/churn_left", last.soft.as_ref().map(|soft| soft.churn().0))
        .maybe("soft/churn_entered", last.soft.as_ref().map(|soft| soft.churn().1))
        .number("reward", report.reward())
        .number("reward_std", report.reward_deviation())
        .number("frac_reward_zero_std", (groups.dead_low + groups.dead_high) as f64 / all)
        .with("groups/live", groups.live)
        .with("groups/all_wrong", groups.dead_low)
        .with("groups/all_right", groups.dead_high)
        .number("entropy", report.entropy())
        .number("kl", last.mean(Statistic::Kl))
        .number("clip_ratio/low_mean", last.mean(Statistic::ClippedLow))
        .number("clip_ratio/high_mean", last.mean(Statistic::ClippedHigh))
        .number("ratio_spread", last.ratio_spread)
        .number("completions/mean_length", report.length())
        .number("completions/clipped_ratio", report.truncated())
        .number("loss", first.loss)
        .numbers("grad_norm", &report.gradient_norms)
        .number("replay_gap", report.replay_gap)
        .maybe("latent_norm", report.thoughts.map(|thoughts| thoughts.norm))
        .maybe("latent_similarity", report.thoughts.and_then(|thoughts| thoughts.similarity))
        .with("audited", report.audited)
        .with("tokens", report.tokens)
        .number("timing_s/rollout", report.times.rollout.as_secs_f64())
        .number("timing_s/reward", report.times.reward.as_secs_f64())
        .number("timing_s/backward", report.times.backward.as_secs_f64())
        .number("timing_s/update", report.times.optimizer.as_secs_f64())
        .number("timing_s/audit", report.times.audit.as_secs_f64())
        .number("timing_s/step", seconds)
}
