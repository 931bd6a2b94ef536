//! Whole models: bits that must not depend on batch, cuts, sharing or threads; crossings; truncation; recompute.

use crate::models;
use latch::base::Dtype;
use latch::cpu::parallel;
use latch::device::Device;
use latch::model::config::Config;
use latch::model::{
    Gradients, Input, Model, Precision, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan,
    Truncation,
};
use latch::ops::mask::{MaskSet, SiteKind};
use latch::rollout::masks::{MaskPlan, Masking, Mode, Part, Rollout, Scope};

/// One small model of each family, with awkward sizes.
fn configs() -> Vec<Config> {
    [
        r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":61,"n_embd":21,"n_head":3,"n_layer":2,
            "n_positions":160,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,"tie_word_embeddings":true}"#,
        r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":67,"hidden_size":24,
            "num_attention_heads":6,"num_key_value_heads":2,"num_hidden_layers":2,"intermediate_size":40,
            "max_position_embeddings":160,"rms_norm_eps":1e-5,"hidden_act":"silu","tie_word_embeddings":false,
            "rope_theta":10000.0,"rope_scaling":{"rope_type":"llama3","factor":4.0,"low_freq_factor":1.0,
            "high_freq_factor":4.0,"original_max_position_embeddings":32}}"#,
        r#"{"model_type":"qwen2","architectures":["Qwen2ForCausalLM"],"vocab_size":65,"hidden_size":28,
            "num_attention_heads":7,"num_key_value_heads":1,"num_hidden_layers":2,"intermediate_size":36,
            "max_position_embeddings":160,"rms_norm_eps":1e-6,"hidden_act":"silu","tie_word_embeddings":true,
            "rope_theta":1000.0}"#,
        r#"{"model_type":"qwen3","architectures":["Qwen3ForCausalLM"],"vocab_size":63,"hidden_size":20,
            "num_attention_heads":3,"num_key_value_heads":3,"head_dim":10,"num_hidden_layers":2,"intermediate_size":44,
            "max_position_embeddings":160,"rms_norm_eps":1e-6,"hidden_act":"silu","tie_word_embeddings":false,
            "rope_theta":1000.0}"#,
    ]
    .map(|json| Config::from_json(serde_json::from_str(json).unwrap(), std::path::Path::new("config.json")).unwrap())
    .to_vec()
}

fn models() -> Vec<Model> {
    configs().into_iter().map(|config| random(config, Dtype::F32)).collect()
}

fn random(config: Config, dtype: Dtype) -> Model {
    Model::random(config, 11, &Device::cpu(), Precision::of(dtype)).unwrap()
}

fn tokens(row: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 7 + row * 13 + i * i) % 59).collect()
}

fn plan(rows: Vec<RowPlan>, positions: usize, record: Record) -> SequencesPlan {
    SequencesPlan { rows, record, tape_positions: positions }
}

/// The bits of the final hidden states of one row run alone, cut at `cuts`.
fn alone(model: &Model, row: u32, count: usize, cuts: &[usize]) -> Vec<u32> {
    let mut sequences =
        Sequences::new(model, &plan(vec![RowPlan::own(count)], count, Record::Nothing)).unwrap();
    let (tokens, mut bits) = (tokens(row, count), Vec::new());
    let mut start = 0;
    for &end in cuts.iter().chain([&count]) {
        let at = model.forward(&mut sequences, &Segment::of_tokens(0, &tokens[start..end]), None).unwrap();
        bits.extend(sequences.hidden(at).unwrap().download::<f32>().unwrap().iter().map(|v| v.to_bits()));
        start = end;
    }
    bits
}

#[test]
fn a_row_is_bit_equal_under_any_cut_batch_and_thread_count() {
    // Longer than one block of keys.
    let count = 150;
    for model in models() {
        let name = model.config().family.model_type();
        let whole = parallel::with_threads(1, || alone(&model, 1, count, &[]));
        assert_eq!(whole, parallel::with_threads(3, || alone(&model, 1, count, &[])), "{name}: threads");
        assert_eq!(whole, alone(&model, 1, count, &[1, 2, 63, 64, 65, 127, 130]), "{name}: cuts");
        let one_by_one: Vec<usize> = (1..count).collect();
        assert_eq!(whole, alone(&model, 1, count, &one_by_one), "{name}: token by token");

        // In a batch, packed with other rows of other lengths, positions interleaved.
        let lengths = [40, count, 7];
        let rows = lengths.iter().map(|&n| RowPlan::own(n)).collect();
        let total: usize = lengths.iter().sum();
        let mut sequences = Sequences::new(&model, &plan(rows, total, Record::Nothing)).unwrap();
        let (mut segment, mut mine) = (Segment::new(), Vec::new());
        for i in 0..count {
            for (row, &length) in lengths.iter().enumerate() {
                if i < length {
                    if row == 1 {
                        mine.push(segment.len());
                    }
                    segment.push(row as u32, Input::Token(tokens(row as u32, length)[i]));
                }
            }
        }
        let at = model.forward(&mut sequences, &segment, None).unwrap();
        let hidden = sequences.hidden(at).unwrap().download::<f32>().unwrap();
        let width = model.config().width;
        let batch: Vec<u32> = mine
            .iter()
            .flat_map(|&n| hidden[n * width..(n + 1) * width].iter().map(|v| v.to_bits()))
            .collect();
        assert_eq!(whole, batch, "{name}: batch");
    }
}

/// A group: one prompt, `rollouts` rows with `latents` latents and an answer; returns answer log-probabilities and
/// the gradients of their weighted sum.
struct Group {
    prompt: usize,
    rollouts: usize,
    latents: usize,
    answer: usize,
    share: bool,
    record: Record,
    masking: Option<Masking>,
    truncation: Truncation,
    token_by_token: bool,
    /// Every rollout under the mask of the first: then a masked prompt can be shared too.
    one_mask: bool,
}

impl Group {
    fn plain() -> Group {
        Group {
            prompt: 70,
            rollouts: 3,
            latents: 3,
            answer: 5,
            share: true,
            record: Record::Everything,
            masking: None,
            truncation: Truncation::default(),
            token_by_token: false,
            one_mask: false,
        }
    }

    fn masks(&self, model: &Model) -> (MaskPlan, Option<MaskSet>) {
        let masking = self.masking.clone().unwrap_or(Masking {
            p: 0.0,
            sites: vec![],
            scope: Scope::All,
            mode: Mode::None,
        });
        let rollouts =
            (0..self.rollouts as u32).map(|rollout| Rollout { update: 3, prompt: 5, rollout, attempt: 0 });
        let length = self.prompt + self.latents + self.answer;
        let plan = MaskPlan::new(masking, self.latents, length, rollouts.collect());
        let set = plan.draw(model, 77).unwrap();
        (plan, set)
    }

    fn run(&self, model: &Model) -> (Vec<f64>, Gradients, Sequences) {
        self.add_to(model.gradients().unwrap(), model)
    }

    fn add_to(&self, mut gradients: Gradients, model: &Model) -> (Vec<f64>, Gradients, Sequences) {
        let (mask_plan, masks) = self.masks(model);
        // The last prompt token plays the start token: computed per row, as latent scope needs.
        let shared = self.prompt - 1;
        let length = self.prompt + self.latents + self.answer;
        let mut rows = vec![RowPlan::own(shared)];
        for _ in 0..self.rollouts {
            rows.push(if self.share { RowPlan::sharing(0, shared, length) } else { RowPlan::own(length) });
        }
        let positions = shared + self.rollouts * length;
        let mut sequences = Sequences::new(model, &plan(rows, positions, self.record)).unwrap();
        let prompt = tokens(0, self.prompt);
        let push =
            |segment: &mut Segment, k: usize, input: Input, part: Part, position: usize| match mask_plan
                .instance(if self.one_mask { 0 } else { k }, part, position)
            {
                Some(instance) => segment.push_masked(k as u32 + 1, input, instance),
                None => segment.push(k as u32 + 1, input),
            };
        let mut segment = Segment::new();
        if self.share {
            for (i, &token) in prompt[..shared].iter().enumerate() {
                match mask_plan.instance(0, Part::Prompt, i) {
                    Some(instance) => {
                        assert!(self.one_mask, "each rollout masks the prompt its own way");
                        segment.push_masked(0, Input::Token(token), instance);
                    }
                    None => segment.push(0, Input::Token(token)),
                }
            }
        } else {
            for k in 0..self.rollouts {
                for (i, &token) in prompt[..shared].iter().enumerate() {
                    push(&mut segment, k, Input::Token(token), Part::Prompt, i);
                }
            }
        }
        model.forward(&mut sequences, &segment, masks.as_ref()).unwrap();
        let mut start = Segment::new();
        for k in 0..self.rollouts {
            push(&mut start, k, Input::Token(prompt[shared]), Part::Start, shared);
        }
        model.forward(&mut sequences, &start, masks.as_ref()).unwrap();
        let mut before = 0..0;
        for step in 1..=self.latents {
            let mut segment = Segment::new();
            for k in 0..self.rollouts {
                push(&mut segment, k, Input::Latent, Part::Latent(step), shared + step);
            }
            before = model.forward(&mut sequences, &segment, masks.as_ref()).unwrap();
        }
        // Answer token j is scored at the position before it.
        let (mut scored, mut targets) = (Vec::new(), Vec::new());
        let answers: Vec<Vec<u32>> =
            (0..self.rollouts).map(|k| tokens(k as u32 + 20, self.answer + 1)).collect();
        for (k, n) in before.clone().enumerate() {
            scored.push(n as u32);
            targets.push(answers[k][0]);
        }
        let mut feed = |sequences: &mut Sequences, range: std::ops::Range<usize>| {
            let mut segment = Segment::new();
            for j in range.clone() {
                for (k, answer) in answers.iter().enumerate() {
                    push(
                        &mut segment,
                        k,
                        Input::Token(answer[j]),
                        Part::Answer,
                        self.prompt + self.latents + j,
                    );
                }
            }
            let at = model.forward(sequences, &segment, masks.as_ref()).unwrap();
            for (n, at) in at.enumerate() {
                scored.push(at as u32);
                targets.push(answers[n % self.rollouts][range.start + n / self.rollouts + 1]);
            }
        };
        match self.token_by_token {
            true => (0..self.answer).for_each(|j| feed(&mut sequences, j..j + 1)),
            false => feed(&mut sequences, 0..self.answer),
        }
        let mut scores = Scores::reserve(model, scored.len()).unwrap();
        scores.forward(model, &sequences, &scored, &targets, 1.0).unwrap();
        let log_probabilities = scores.log_probabilities().unwrap();
        if self.record != Record::Nothing {
            let coefficients: Vec<f64> =
                (0..scored.len()).map(|i| ((i * 31 % 17) as f64 - 8.0) / 10.0).collect();
            scores.backward(model, &mut sequences, &coefficients, &mut gradients).unwrap();
            model.backward(&mut sequences, masks.as_ref(), self.truncation, &mut gradients).unwrap();
        }
        (log_probabilities, gradients, sequences)
    }
}

fn bits(gradients: &mut Gradients) -> Vec<u32> {
    let all = gradients.tensors().unwrap().iter();
    all.flat_map(|t| t.download::<f32>().unwrap()).map(f32::to_bits).collect()
}

/// ‖a - b‖ / ‖b‖ over all parameters.
fn difference(a: &mut Gradients, b: &mut Gradients) -> f64 {
    let flat = |g: &mut Gradients| -> Vec<f64> {
        g.tensors().unwrap().iter().flat_map(|t| t.download::<f32>().unwrap()).map(f64::from).collect()
    };
    models::apart(&flat(a), &flat(b))
}

fn masking(scope: Scope, mode: Mode, p: f64) -> Option<Masking> {
    Some(Masking { p, sites: SiteKind::ALL.to_vec(), scope, mode })
}

#[test]
fn sharing_the_prompt_changes_no_bit_forward_and_no_gradient() {
    for model in models() {
        let family = model.config().family.model_type();
        // Without latents the prompt and its readers are differentiated as one packed unit.
        let mut cases = vec![(3, None, false), (0, None, false)];
        for mode in [Mode::Shared, Mode::PerStep, Mode::PerPosition] {
            cases.push((3, masking(Scope::Latent, mode, 0.2), false));
            // Scopes that mask the prompt share it where all rollouts have one mask, and nothing otherwise.
            cases.push((3, masking(Scope::PromptLatent, mode, 0.2), true));
            cases.push((3, masking(Scope::All, mode, 0.2), true));
        }
        for (latents, masking, one_mask) in cases {
            let group =
                |share| Group { latents, masking: masking.clone(), share, one_mask, ..Group::plain() };
            let (mut shared, mut own) = (group(true).run(&model), group(false).run(&model));
            assert_eq!(shared.0, own.0, "{family}, {latents} latents, {masking:?}");
            let difference = difference(&mut shared.1, &mut own.1);
            assert!(difference < 1e-5, "{family}, {latents} latents, {masking:?}: {difference:.1e}");
        }
    }
}

#[test]
fn an_answer_token_by_token_is_bit_equal_to_the_answer_at_once() {
    for model in models() {
        for masking in [masking(Scope::All, Mode::Shared, 0.2), masking(Scope::All, Mode::PerPosition, 0.2)] {
            let mut at_once = Group { share: false, masking: masking.clone(), ..Group::plain() }.run(&model);
            let mut one_by_one =
                Group { share: false, masking, token_by_token: true, ..Group::plain() }.run(&model);
            assert_eq!(at_once.0, one_by_one.0);
            // The same packed unit is differentiated either way.
            assert_eq!(bits(&mut at_once.1), bits(&mut one_by_one.1));
        }
    }
}

/// Cleared gradients count as zero, though what stands there is replaced rather than added to.
#[test]
fn cleared_gradients_are_those_of_fresh_ones_to_the_bit() {
    for model in models() {
        let group = Group { masking: masking(Scope::Latent, Mode::Shared, 0.2), ..Group::plain() };
        let fresh = bits(&mut group.run(&model).1);
        let mut used = Group::plain().run(&model).1;
        used.clear();
        let (_, mut used, _) = group.add_to(used, &model);
        assert_eq!(bits(&mut used), fresh);
        // Without it they are added to.
        let (_, mut twice, _) = group.add_to(used, &model);
        let (_, mut expected, _) = group.add_to(group.run(&model).1, &model);
        assert_eq!(bits(&mut twice), bits(&mut expected));
        assert_ne!(bits(&mut twice), fresh);
        twice.clear();
        assert!(bits(&mut twice).iter().all(|&bits| bits == 0));
    }
}

#[test]
fn gradients_have_the_same_bits_on_any_number_of_threads() {
    for model in models() {
        let group = Group { masking: masking(Scope::Latent, Mode::Shared, 0.2), ..Group::plain() };
        let one = parallel::with_threads(1, || bits(&mut group.run(&model).1));
        assert_eq!(one, parallel::with_threads(3, || bits(&mut group.run(&model).1)));
    }
}

#[test]
fn recompute_gives_the_same_bits_in_less_memory() {
    for model in models() {
        let masking = masking(Scope::Latent, Mode::Shared, 0.2);
        let kept = Group { masking: masking.clone(), ..Group::plain() };
        let again = Group { masking, record: Record::LayerInputs, ..Group::plain() };
        assert_eq!(bits(&mut kept.run(&model).1), bits(&mut again.run(&model).1));
        let held = |group: &Group| {
            let before = model.device().traffic().count().bytes_held;
            let (_, gradients, sequences) = group.run(&model);
            let held = model.device().traffic().count().bytes_held - before;
            drop((gradients, sequences));
            held
        };
        assert!(held(&again) < held(&kept));
    }
}

#[test]
fn no_probability_is_bit_identical_to_no_mask() {
    for model in models() {
        let mut clean = Group::plain().run(&model);
        let mut zero =
            Group { masking: masking(Scope::All, Mode::Shared, 0.0), ..Group::plain() }.run(&model);
        assert_eq!(clean.0, zero.0);
        assert_eq!(bits(&mut clean.1), bits(&mut zero.1));
    }
}

#[test]
fn every_scope_and_mode_masks_something_different() {
    let model = random(configs().remove(0), Dtype::F32);
    let mut seen: Vec<Vec<f64>> = vec![Group { share: false, ..Group::plain() }.run(&model).0];
    for scope in [Scope::Latent, Scope::PromptLatent, Scope::All] {
        for mode in [Mode::Shared, Mode::PerStep, Mode::PerPosition] {
            let group = Group { share: false, masking: masking(scope, mode, 0.3), ..Group::plain() };
            let found = group.run(&model).0;
            assert_eq!(found, group.run(&model).0, "rebuilt from the key: {scope:?} {mode:?}");
            assert!(!seen.contains(&found), "{scope:?} {mode:?}");
            seen.push(found);
        }
    }
}

#[test]
fn truncation_stops_the_gradient_where_it_says() {
    for model in models() {
        let mut full = Group::plain().run(&model).1;
        let run = |truncation| Group { truncation, ..Group::plain() }.run(&model).1;
        let mut other = Group::plain().run(&model).1;
        let mut cut = |truncation| difference(&mut run(truncation), &mut other);
        let detach_latent = Truncation { detach_latent: true, ..Truncation::default() };
        let detach_kv = Truncation { detach_kv: true, ..Truncation::default() };
        assert!(cut(detach_latent) > 1e-6);
        assert!(cut(detach_kv) > 1e-6);
        let steps = |latent_steps| Truncation { latent_steps: Some(latent_steps), ..Truncation::default() };
        assert_eq!(bits(&mut run(steps(3))), bits(&mut full), "all three latents kept");
        assert_eq!(bits(&mut run(steps(0))), bits(&mut run(detach_latent)), "none kept");
        assert!(cut(steps(1)) > 0.0 && bits(&mut run(steps(1))) != bits(&mut run(steps(2))));
        // With both routes cut, nothing of the loss reaches the prompt, whose tokens the answers do not contain.
        let both =
            Truncation { detach_latent: true, detach_kv: true, latent_steps: None, ..Truncation::default() };
        let positions = model.parameter_list().iter().position(|p| p.name.ends_with("wpe.weight"));
        if let Some(index) = positions {
            let width = model.config().width;
            let gradient = run(both).tensors().unwrap()[index].download::<f32>().unwrap();
            assert!(gradient[..69 * width].iter().all(|&g| g == 0.0), "positions of the shared prompt");
            let gradient = full.tensors().unwrap()[index].download::<f32>().unwrap();
            assert!(gradient[..69 * width].iter().any(|&g| g != 0.0));
        }
    }
}

#[test]
fn a_training_step_crosses_a_fixed_number_of_times() {
    let model = random(configs().remove(1), Dtype::F32);
    let crossings = |answer: usize, rollouts: usize| {
        let before = model.device().traffic().count();
        Group { answer, rollouts, masking: masking(Scope::Latent, Mode::Shared, 0.2), ..Group::plain() }
            .run(&model);
        let after = model.device().traffic().count();
        (after.uploads - before.uploads, after.downloads - before.downloads)
    };
    let few = crossings(2, 2);
    assert_eq!(few, crossings(9, 5), "crossings depend on neither the answer's length nor the group's size");
    assert_eq!(few.1, 1, "one download: the log-probabilities");
}
