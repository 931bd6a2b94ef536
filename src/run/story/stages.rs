//! Supervised parts of a story.

use super::asks::phase_examiner;
use super::progress::StageResult;
use super::{Event, Story};
use crate::base::Result;
use crate::learn::optimizer::Optimizer;
use crate::run::evaluation::Ask;
use crate::run::schooling::{Phase, School, updates_an_epoch};
use std::ops::ControlFlow;
use std::time::Instant;

impl Story<'_> {
    /// A phase of the curriculum, and its accuracy on the validation problems.
    pub(super) fn phase(
        &mut self,
        phase: &Phase,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let updates = phase.epochs * updates_an_epoch(self.problems.train.items.len(), phase.batch);
        let flow = self.school(phase, updates, watch)?;
        if flow.is_break() {
            return Ok(flow);
        }
        let began = Instant::now();
        let ask = Ask::deterministic(phase.stage);
        let examiner = phase_examiner(self.recipe, phase, &self.student, &self.problems);
        let scores = examiner.ask(&self.student.model, &self.problems.valid.items, &ask)?.scores(1)?;
        self.spend("evaluation", began);
        let _ =
            watch(&Event::Evaluated { what: &format!("after {}, validation", phase.name), scores: &scores });
        let (accuracy, loss) = (scores.accuracy, self.progress.loss);
        self.progress.validation = Some((self.progress.step, accuracy.value));
        self.progress.stages.push(StageResult { name: phase.name.clone(), updates, loss, accuracy });
        self.part_done();
        let first_arm = !matches!(self.parts.get(self.progress.part), Some(super::Part::Phase(_)));
        if first_arm {
            self.save_start()?;
            self.close(self.base_name(), None, watch)?;
        }
        let optimizer = self.optimizer.take();
        self.checkpoint(optimizer.as_ref(), Some(accuracy.value), watch)?;
        self.optimizer = optimizer;
        Ok(ControlFlow::Continue(()))
    }

    /// Supervised training of the last stage continued, for as many updates as an arm has.
    pub(super) fn continued(
        &mut self,
        phase: &Phase,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.begin_arm(watch)?;
        let flow = self.school(phase, self.recipe.grpo.updates, watch)?;
        if flow.is_break() {
            return Ok(flow);
        }
        self.progress.tally.updates = self.recipe.grpo.updates;
        self.end_arm(&phase.name, None, watch)?;
        Ok(flow)
    }

    fn school(
        &mut self,
        phase: &Phase,
        updates: usize,
        watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let done = self.progress.update;
        let _ = watch(&Event::Part { name: &phase.name, updates, done, rewarded: false });
        let optimizer = match self.optimizer.take() {
            Some(optimizer) => optimizer,
            None => {
                let mut optimizer = Optimizer::new(&self.student.model, phase.optimizer())?;
                self.restore(&mut optimizer)?;
                optimizer
            }
        };
        let items = self.problems.train.items.clone();
        let (markers, seed) = (self.student.markers, self.recipe.seed);
        let mut school = School::new(&self.student.model, phase, &items, markers, seed, optimizer)?;
        while self.progress.update < updates {
            let (began, update) = (Instant::now(), self.progress.update);
            let (report, learning_rate) = school
                .update(&mut self.student.model, update)
                .map_err(|error| self.fault(error, &phase.name))?;
            self.progress.loss = report.loss;
            self.progress.update += 1;
            self.progress.step += 1;
            self.spend("supervised", began);
            let seconds = began.elapsed().as_secs_f64();
            let record = self
                .record(&phase.name, update + 1)
                .number("loss", report.loss)
                .number("grad_norm", report.gradient_norm)
                .number("learning_rate", learning_rate)
                .with("positions", report.positions)
                .number("timing_s/step", seconds);
            let record = match report.distillation {
                None => record,
                Some(losses) => record
                    .number("loss/student", losses.student)
                    .number("loss/distill", losses.distill)
                    .number("loss/teacher", losses.teacher),
            };
            self.metrics.write(record)?;
            let event = Event::Supervised { update: update + 1, report: &report, learning_rate, seconds };
            let stop = watch(&event).is_break();
            let every = self.recipe.run.checkpoint_every;
            if stop || (every > 0 && self.progress.step.is_multiple_of(every as u64)) {
                self.checkpoint(Some(school.optimizer()), None, watch)?;
            }
            if stop {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.optimizer = Some(school.into_optimizer());
        Ok(ControlFlow::Continue(()))
    }
}
