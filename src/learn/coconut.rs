//! Coconut's curriculum (algorithms A.1-A.5; facebookresearch/coconut dataset.py and run.py): reasoning steps give way
//! to latent thoughts, stage by stage.
//!
//! ```text
//! stage 0             question            start end  step 1 .. step S  answer
//! stage k <= max      question  start  k c thoughts  end  step k+1 .. step S  answer
//! after the last      question  start  max c thoughts  end  answer
//! ```

use super::supervised::Example;
use crate::base::rng::{Purpose, StreamKey};
use crate::rollout::group::Form;
use crate::text::EncodedProblem;
use std::str::FromStr;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Steps become latent thoughts.
    Coconut,
    /// All steps in words, no markers.
    Cot,
    /// The answer alone, no markers.
    NoCot,
    /// Steps are taken away stage by stage and nothing takes their place.
    NoThoughts,
    /// Steps become learned pause tokens.
    Pause,
    /// Tokens of the steps are taken away one by one (implicit.rs); asked like the answer alone.
    Implicit,
}

impl FromStr for Variant {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "coconut" => Variant::Coconut,
            "cot" => Variant::Cot,
            "no_cot" => Variant::NoCot,
            "no_thoughts" => Variant::NoThoughts,
            "pause" => Variant::Pause,
            "icot" => Variant::Implicit,
            other => {
                return Err(format!(
                    "unknown variant `{other}`; known: coconut, cot, no_cot, no_thoughts, pause, icot"
                ));
            }
        })
    }
}

/// Ids of the tokens that the curriculum adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Markers {
    /// Opens the thoughts.
    pub start: u32,
    /// Closes them.
    pub end: u32,
    /// Stands for a thought in the pause variant.
    pub pause: u32,
    /// Ends every answer that is taught.
    pub stop: u32,
    /// Tokens that end an answer as well, where the model came with more than one such token (Llama 3 with three).
    pub other_stops: [Option<u32>; 7],
}

/// How problems become examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curriculum {
    /// What is trained.
    pub variant: Variant,
    /// Thoughts a removed step (`c_thought`).
    pub thoughts_per_step: usize,
    /// The last stage that removes one step more.
    pub max_latent_stage: usize,
    /// Whether problems with fewer steps get as many thoughts as those with many.
    pub pad_latent_to_max: bool,
    /// Probability that an example is shown at a stage drawn uniformly from 0 to its number of steps.
    pub uniform_prob: f64,
    /// Seed of that draw.
    pub seed: u64,
}

/// What a problem looks like at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    skipped: usize,
    thoughts: usize,
}

impl Curriculum {
    /// The stage that example number `index` is shown at in `epoch`, where the run is at `stage`.
    pub fn stage_of(&self, stage: usize, steps: usize, epoch: u32, index: u32) -> usize {
        if self.uniform_prob <= 0.0 {
            return stage;
        }
        let mut draws = StreamKey::new(self.seed, epoch, index, 0, Purpose::DataOrder).draws(1, 0);
        if draws.uniform() < self.uniform_prob { draws.below(steps + 1) } else { stage }
    }

    /// Latent thoughts (or pauses) of a problem of `steps` steps at `stage`, as in training beyond the last stage and
    /// in evaluation.
    pub fn thoughts(&self, stage: usize, steps: usize) -> usize {
        let most =
            if self.pad_latent_to_max { self.max_latent_stage } else { self.max_latent_stage.min(steps) };
        match self.variant {
            Variant::Coconut | Variant::Pause => self.thoughts_per_step * stage.min(most),
            _ => 0,
        }
    }

    fn view(&self, stage: usize, steps: usize) -> View {
        let thoughts = match self.variant {
            // Training inserts a thought a removed stage even where the problem has fewer steps.
            Variant::Coconut | Variant::Pause if stage <= self.max_latent_stage => {
                self.thoughts_per_step * stage
            }
            _ => self.thoughts(stage, steps),
        };
        let skipped = match self.variant {
            Variant::Cot => 0,
            Variant::NoCot | Variant::Implicit => steps,
            _ if stage > self.max_latent_stage => steps,
            _ => stage.min(steps),
        };
        View { skipped, thoughts }
    }

    /// The training example of `problem` at `stage`.
    pub fn example(&self, problem: &EncodedProblem, stage: usize, markers: &Markers) -> Example {
        let View { skipped, thoughts } = self.view(stage, problem.steps.len());
        let mut prompt = problem.question.clone();
        prompt.extend(self.start(thoughts, markers));
        Example {
            prompt,
            latents: if self.variant == Variant::Coconut { thoughts } else { 0 },
            end: self.end(markers),
            answer: problem.steps[skipped..].iter().flatten().chain(&problem.answer).copied().collect(),
        }
    }

    /// How an answer is asked for at `stage` of a problem of `steps` steps (A.5).
    pub fn form(&self, stage: usize, steps: usize, markers: &Markers, max_new_tokens: usize) -> Form {
        let thoughts = self.thoughts(stage, steps);
        Form {
            start: self.start(thoughts, markers),
            latents: if self.variant == Variant::Coconut { thoughts } else { 0 },
            end: self.end(markers),
            stop: std::iter::once(markers.stop).chain(markers.other_stops.into_iter().flatten()).collect(),
            max_new_tokens,
        }
    }

    fn start(&self, thoughts: usize, markers: &Markers) -> Vec<u32> {
        match self.variant {
            Variant::Coconut => vec![markers.start],
            Variant::Pause => {
                std::iter::once(markers.start).chain(std::iter::repeat_n(markers.pause, thoughts)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn end(&self, markers: &Markers) -> Vec<u32> {
        match self.variant {
            Variant::Coconut | Variant::Pause => vec![markers.end],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKERS: Markers = Markers { start: 90, end: 91, pause: 92, stop: 99, other_stops: [None; 7] };

    fn curriculum(variant: Variant) -> Curriculum {
        Curriculum {
            variant,
            thoughts_per_step: 2,
            max_latent_stage: 3,
            pad_latent_to_max: true,
            uniform_prob: 0.0,
            seed: 1,
        }
    }

    fn problem() -> EncodedProblem {
        EncodedProblem { question: vec![1, 2], steps: vec![vec![10], vec![20, 21]], answer: vec![5, 99] }
    }

    #[test]
    fn stages_follow_the_reference() {
        let c = curriculum(Variant::Coconut);
        let at = |stage| c.example(&problem(), stage, &MARKERS);
        let example = |latents, answer: &[u32]| Example {
            prompt: vec![1, 2, 90],
            latents,
            end: vec![91],
            answer: answer.to_vec(),
        };
        assert_eq!(at(0), example(0, &[10, 20, 21, 5, 99]));
        assert_eq!(at(1), example(2, &[20, 21, 5, 99]));
        assert_eq!(at(2), example(4, &[5, 99]));
        assert_eq!(at(3), example(6, &[5, 99]));
        assert_eq!(at(4), example(6, &[5, 99]));
        let unpadded = Curriculum { pad_latent_to_max: false, ..c };
        assert_eq!(unpadded.example(&problem(), 4, &MARKERS).latents, 4);
        assert_eq!(unpadded.example(&problem(), 3, &MARKERS).latents, 6);
        assert_eq!(unpadded.form(3, 2, &MARKERS, 8).latents, 4);
        assert_eq!(c.form(9, 2, &MARKERS, 8).latents, 6);
    }

    #[test]
    fn variants_differ_where_they_say() {
        let at = |variant, stage| curriculum(variant).example(&problem(), stage, &MARKERS);
        let plain =
            |answer: &[u32]| Example { prompt: vec![1, 2], latents: 0, end: vec![], answer: answer.to_vec() };
        assert_eq!(at(Variant::Cot, 3), plain(&[10, 20, 21, 5, 99]));
        assert_eq!(at(Variant::NoCot, 0), plain(&[5, 99]));
        assert_eq!(at(Variant::NoThoughts, 1), plain(&[20, 21, 5, 99]));
        let pause = at(Variant::Pause, 1);
        assert_eq!((pause.prompt, pause.latents), (vec![1, 2, 90, 92, 92], 0));
        assert_eq!((pause.end, pause.answer), (vec![91], vec![20, 21, 5, 99]));
    }

    #[test]
    fn mixed_stages_are_uniform_over_the_steps_and_replayable() {
        let c = Curriculum { uniform_prob: 0.5, ..curriculum(Variant::Coconut) };
        let drawn: Vec<usize> = (0..4000).map(|index| c.stage_of(9, 2, 0, index)).collect();
        assert_eq!(drawn, (0..4000).map(|index| c.stage_of(9, 2, 0, index)).collect::<Vec<_>>());
        for stage in 0..=2 {
            let share = drawn.iter().filter(|&&found| found == stage).count() as f64 / 4000.0;
            assert!((share - 1.0 / 6.0).abs() < 0.02, "stage {stage}: {share}");
        }
        assert_eq!(curriculum(Variant::Coconut).stage_of(9, 2, 0, 5), 9);
    }
}
