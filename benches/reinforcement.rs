//! Rollouts of a group and whole Dropout-GRPO updates, by the engine that training uses; checked once before anything
//! is timed. The shapes are those of benches/pytorch_grpo.py.

use crate::workloads::{ANSWER, GROUP, LATENTS, PROMPT, settle, tokens};
use latch::base::Result;
use latch::learn::objective::Preset;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::policy::{Policy, Replay, Settings, Source};
use latch::learn::policy_report::{Question, Report, Times};
use latch::model::{Model, Record, Truncation};
use latch::ops::mask::SiteKind;
use latch::ops::sampler::Law;
use latch::rollout::group::{Drawing, Form, Limits, Member, Rollouts, Thoughts, Trajectory};
use latch::rollout::masks::{self, Masking, Mode, Scope};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Prompts of an update.
pub const PROMPTS: usize = 2;
/// Token between thoughts and answer.
const END: u32 = 0;

/// One mask a rollout, held over all its steps: the default recipe's sites, p = 0.1.
pub fn masked(scope: Scope) -> Masking {
    Masking { p: 0.1, sites: vec![SiteKind::AttnOut, SiteKind::MlpOut], scope, mode: Mode::Shared }
}

/// What rollouts have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    pub prompts: usize,
    pub group: usize,
    pub latents: usize,
    pub masking: Masking,
    /// Whether a group shares what is the same for all of it.
    pub share: bool,
    /// Deviation of noise on the latents.
    pub noise: f64,
}

impl Plan {
    /// `prompts` groups under `masking`.
    pub fn new(prompts: usize, masking: Masking, share: bool) -> Plan {
        Plan { prompts, group: GROUP, latents: LATENTS, masking, share, noise: 0.0 }
    }

    fn form(&self) -> Form {
        Form {
            start: Vec::new(),
            latents: self.latents,
            end: vec![END],
            stop: Vec::new(),
            max_new_tokens: ANSWER,
        }
    }

    fn drawing(&self) -> Drawing {
        Drawing {
            gate: None,
            masking: self.masking.clone(),
            latent_noise: self.noise,
            soft: None,
            thoughts: Thoughts::Own,
            law: Law::PLAIN,
            seed: 5,
            share: self.share,
        }
    }

    /// Different prompts of the same length.
    fn questions(&self, vocabulary: usize) -> Vec<Vec<u32>> {
        tokens(self.prompts * PROMPT, vocabulary).chunks(PROMPT).map(<[u32]>::to_vec).collect()
    }
}

/// Groups of rollouts: `PROMPT` prompt tokens, latent steps, an end marker, `ANSWER` sampled tokens with their
/// log-probabilities.
pub struct Rollout {
    model: Arc<Model>,
    rollouts: Rollouts,
    prompts: Vec<Vec<u32>>,
    members: Vec<Member>,
    sampled: Vec<Trajectory>,
}

impl Rollout {
    pub fn new(model: Arc<Model>, plan: &Plan) -> Result<Rollout> {
        let mut rollout = Rollout::prepare(model.clone(), plan)?;
        rollout.run();
        // The other way to run what rollouts have in common must sample the same tokens, as likely to the bit.
        let mut other = Rollout::prepare(model, &Plan { share: !plan.share, ..plan.clone() })?;
        other.run();
        assert_eq!(rollout.sampled, other.sampled, "with and without prefix sharing");
        for trajectory in &rollout.sampled {
            assert_eq!(trajectory.tokens.len(), ANSWER);
            assert!(trajectory.log_probabilities.iter().all(|&value| value <= 0.0), "a probability above 1");
        }
        Ok(rollout)
    }

    fn prepare(model: Arc<Model>, plan: &Plan) -> Result<Rollout> {
        let member = |index: usize| {
            let (prompt, rollout) = (index / plan.group, (index % plan.group) as u32);
            let coordinates = masks::Rollout { prompt: prompt as u32, rollout, ..masks::Rollout::default() };
            Member { prompt, coordinates }
        };
        let members: Vec<Member> = (0..plan.prompts * plan.group).map(member).collect();
        let limits = Limits { prompts: plan.prompts, members: members.len(), prompt_tokens: PROMPT };
        let rollouts = Rollouts::reserve(&model, plan.form(), plan.drawing(), limits, Record::Nothing)?;
        let prompts = plan.questions(model.config().vocab);
        Ok(Rollout { model, rollouts, prompts, members, sampled: Vec::new() })
    }

    pub fn run(&mut self) -> Duration {
        let start = Instant::now();
        let go_on = |_, _| ControlFlow::Continue(());
        let sampled = self.rollouts.sample(&self.model, &self.prompts, &self.members, go_on);
        self.sampled = sampled.expect("it ran before");
        settle(self.model.device());
        start.elapsed()
    }

    #[allow(dead_code)] // one of the two bench binaries asks
    /// How long the last run took before the answers: prompts, latent steps, end markers.
    pub fn thinking(&self) -> Duration {
        self.rollouts.timing().prefill
    }
}

/// One Dropout-GRPO update after another: rollouts, rewards, advantages, backward through answers, latents and prompts,
/// AdamW; with the audit of one rollout that every update makes.
pub struct GrpoStep {
    model: Model,
    policy: Policy,
    questions: Vec<Question>,
    update: u32,
    /// Largest difference between a log-probability at an update and at its rollout, before the weights moved.
    pub at_update: f64,
    /// The same of the rollouts that were run again from their keys.
    pub audited: f64,
    /// Where the time of the last update went.
    pub times: Times,
}

impl GrpoStep {
    pub fn new(model: Model, plan: &Plan) -> Result<GrpoStep> {
        let settings = Settings {
            group: plan.group,
            prompts: plan.prompts,
            prompt_tokens: PROMPT,
            passes: 1,
            truncation: Truncation::default(),
            tape_bytes: usize::MAX,
            audit_all: false,
            reference_masked: false,
            refills: 0,
            record: Record::Everything,
            replay: Replay::Same,
            soft: None,
        };
        let optimizer =
            Optimizer::new(&model, optimizer::Settings { clip: None, ..optimizer::Settings::default() })?;
        let objective = Preset::DropoutGrpo.objective();
        let policy =
            Policy::new(&model, (plan.form(), plan.drawing()), objective, settings, optimizer, None)?;
        let prompts = plan.questions(model.config().vocab);
        let questions =
            (0..).zip(prompts).map(|(number, tokens)| Question { tokens, number }).collect::<Vec<_>>();
        let times = Times::default();
        let mut step = GrpoStep { model, policy, questions, update: 0, at_update: 0.0, audited: 0.0, times };
        let report = step.update()?;
        assert_eq!(report.groups().live, plan.prompts, "groups whose rewards differ");
        assert_eq!(report.passes[0].tokens, plan.prompts * plan.group * ANSWER);
        assert_eq!((report.source, report.audited), (Some(Source::Tape), 1));
        // Known value: fresh small weights give nearly equal logits.
        let uniform = (step.model.config().vocab as f64).ln();
        assert!((report.entropy() - uniform).abs() < 0.5, "{} nats a token, not {uniform}", report.entropy());
        assert!(report.gradient_norms[0] > 0.0, "a gradient");
        Ok(step)
    }

    fn update(&mut self) -> Result<Report> {
        let vocabulary = self.model.config().vocab as f64;
        let questions = &self.questions;
        let report = self.policy.update(
            &mut self.model,
            self.update,
            1e-5,
            |count| questions[..count].to_vec(),
            // Differs within every group, so that no group is dead.
            |_, trajectory| Ok(f64::from(trajectory.tokens[0]) / vocabulary),
        )?;
        self.update += 1;
        self.at_update = self.at_update.max(report.passes[0].log_ratio);
        self.audited = self.audited.max(report.replay_gap);
        self.times = report.times;
        Ok(report)
    }

    pub fn run(&mut self) -> Duration {
        let start = Instant::now();
        self.update().expect("it ran before");
        settle(self.model.device());
        start.elapsed()
    }

    /// Most bytes of tensors that were ever alive at once.
    pub fn bytes(&self) -> usize {
        self.model.device().traffic().count().bytes_high_water
    }
}
