//! Whole steps of whole models: one position of each row of a group, and what masks add to it and to a training step.

use super::counts::{Seen, Spent, device, total};
use super::kernels::{Extra, Heads};
use super::verdicts::Verdicts;
use super::{Arguments, Kind};
use latch::base::Result;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::model::{
    Config, Input, Model, Precision, Record, RowPlan, Segment, Sequences, SequencesPlan, Truncation,
};
use latch::ops::mask::{MaskKey, MaskSet, SiteKind, Sites};
use latch::verify::workloads::Size;
use latch::verify::workloads::bars::{Bar, Subject, Verdict};
use serde_json::json;
use std::path::Path;

/// Tokens of the models that are run; the head comes from the table of kernels.
const VOCABULARY: usize = 512;

/// Prints the tables of steps and of masks; false where nobody reads any more.
pub fn table(
    arguments: &Arguments,
    size: Size,
    kind: Kind,
    heads: &Heads,
    verdicts: &mut Verdicts,
) -> Result<bool> {
    let precision = kind.precision();
    let (steps, masks) = (arguments.wants("steps"), arguments.wants("masks"));
    let all = arguments.sequences;
    let mut groups = Vec::new();
    if steps && all > 1 {
        groups.push(Group { rows: 1, masked: false });
    }
    if steps || masks {
        groups.push(Group { rows: all, masked: false });
    }
    if masks {
        groups.push(Group { rows: all, masked: true });
    }
    let found = whole(size, |layers| {
        let run = Run::new(size, layers, precision, [all, arguments.length], false)?;
        run.steps(&groups)
    })?;
    // What a decode step and a latent step of a group cost.
    let of = |rows, masked| groups.iter().position(|&group| group == Group { rows, masked });
    let of = |rows, masked| {
        of(rows, masked).map_or([Extra::default(); 2], |at| [found[2 * at], found[2 * at + 1]])
    };
    if steps {
        let mut text = format!("\n{} in {}: whole steps of {} layers\n", size.name, kind.name(), size.layers);
        text += &format!(
            "{:34} {:>9} {:>9} {:>9} {:>9} {:>7}\n",
            "step", "requested", "device", "floor MB", "requested", "device"
        );
        for group in groups.iter().filter(|group| !group.masked) {
            let [mut decode, latent] = of(group.rows, false);
            for part in [&heads.head, &heads.draw] {
                decode.requested += part.requested;
                decode.device += part.device;
                decode.floor += part.floor;
            }
            for (name, found) in [("decode", decode), ("latent", latent)] {
                let work = format!("{name} step of {} rows", group.rows);
                let at = Subject { size: size.name, work: &work, kernel: "" };
                text += &row(&at, kind, &found, verdicts);
            }
        }
        if !arguments.write(&text)? {
            return Ok(false);
        }
    }
    if masks {
        let mut text = format!("\n{} in {}: bytes with masks over bytes without\n", size.name, kind.name());
        text += &format!(
            "{:34} {:>12} {:>12} {:>9} {:>8}\n",
            "work", "without MB", "with MB", "requested", "device"
        );
        let [without, with] = [false, true].map(|masked| of(all, masked));
        let [plain, masked] = [false, true].map(|masked| {
            whole(size, |layers| {
                let run = Run::new(size, layers, precision, [all, arguments.length], true)?;
                run.train(masked).map(|found| vec![found])
            })
        });
        let names = ["decode step", "latent step", "forward and backward"];
        let without = without.into_iter().chain(plain?);
        let with = with.into_iter().chain(masked?);
        for ((name, without), with) in names.into_iter().zip(without).zip(with) {
            let work = format!("{name} of {all} rows under masks");
            let at = Subject { size: size.name, work: &work, kernel: "" };
            let ratio = |with: u64, without: u64| with as f64 / without as f64;
            let (requested, device) =
                (ratio(with.requested, without.requested), ratio(with.device, without.device));
            let verdict = Verdict { bar: Bar::Masks, found: requested.max(device) };
            let mark = verdicts.note(&at, kind.name(), &verdict);
            let [without, with] = [without, with].map(|found| found.requested as f64 / 1e6);
            text += &format!("{name:34} {without:>12.2} {with:>12.2} {requested:>9.4} {device:>8.4}{mark}\n");
        }
        return arguments.write(&text);
    }
    Ok(true)
}

/// The row of a step.
fn row(at: &Subject, kind: Kind, found: &Extra, verdicts: &mut Verdicts) -> String {
    let ratio = |bytes: u64| bytes as f64 / found.floor as f64;
    let verdict = Verdict { bar: Bar::Step, found: ratio(found.device) };
    let mark = verdicts.note(at, kind.name(), &verdict);
    let [requested, device, floor] =
        [found.requested, found.device, found.floor].map(|bytes| bytes as f64 / 1e6);
    format!(
        "{:34} {requested:>9.2} {device:>9.2} {floor:>9.2} {:>9.3} {:>7.3}{mark}\n",
        at.work,
        ratio(found.requested),
        verdict.found
    )
}

/// From runs of one and of two layers, what all layers of a model cost.
fn whole(size: Size, run: impl Fn(usize) -> Result<Vec<Extra>>) -> Result<Vec<Extra>> {
    let more = size.layers as u64 - 1;
    let at = |one: u64, two: u64| one + more * (two - one);
    let both = run(1)?.into_iter().zip(run(2)?);
    Ok(both
        .map(|(one, two)| Extra {
            requested: at(one.requested, two.requested),
            device: at(one.device, two.device),
            floor: at(one.floor, two.floor),
        })
        .collect())
}

/// Rows that step together behind a prompt that all groups share.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Group {
    rows: usize,
    masked: bool,
}

fn config(size: Size, layers: usize) -> Result<Config> {
    let (width, [heads, kv_heads]) = (size.width, size.heads);
    let json = if heads == kv_heads {
        json!({"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": width, "n_head": heads,
            "n_layer": layers, "n_positions": 1024, "activation_function": "gelu_new"})
    } else {
        json!({"model_type": "qwen2", "vocab_size": VOCABULARY, "hidden_size": width,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": layers,
            "intermediate_size": size.hidden, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 1000000.0})
    };
    Config::from_json(json, Path::new("config.json"))
}

/// A model of few layers and the rows of a group behind their prompt.
struct Run {
    size: Size,
    layers: usize,
    rows: usize,
    prompt: usize,
    device: Device,
    model: Model,
}

impl Run {
    /// Rows behind a prompt of so many positions; a sample of the blocks of large grids, or all.
    fn new(
        size: Size,
        layers: usize,
        precision: Precision,
        [rows, prompt]: [usize; 2],
        sample: bool,
    ) -> Result<Run> {
        let device = device(sample, Kind::All.compute_capability());
        let model = Model::random(config(size, layers)?, 0, &device, precision)?;
        Ok(Run { size, layers, rows, prompt, device, model })
    }

    fn token(&self, at: usize) -> u32 {
        (at * 7919 % VOCABULARY) as u32
    }

    fn masks(&self, rows: usize) -> Result<MaskSet> {
        let sites = Sites::new(
            self.size.width,
            self.size.hidden,
            self.layers,
            &[SiteKind::AttnOut, SiteKind::MlpOut],
        );
        let key = |row| MaskKey { stream: StreamKey::new(3, 0, 0, row, Purpose::Mask), step: 0, attempt: 0 };
        MaskSet::fill(&self.device, sites, 0.1, &(0..rows as u32).map(key).collect::<Vec<_>>())
    }

    /// For each group a decode step (a sampled token for each row) and the latent step behind it. The masks of a rollout
    /// are drawn once, here for each step.
    fn steps(&self, groups: &[Group]) -> Result<Vec<Extra>> {
        let prompt = self.prompt;
        let rows: usize = groups.iter().map(|group| group.rows).sum();
        let plans = std::iter::once(RowPlan::own(prompt))
            .chain((0..rows).map(|_| RowPlan::sharing(0, prompt, prompt + 8)))
            .collect();
        let plan =
            SequencesPlan { rows: plans, record: Record::Nothing, tape_positions: prompt.max(rows) * 4 };
        let mut sequences = Sequences::new(&self.model, &plan)?;
        let tokens: Vec<u32> = (0..prompt).map(|at| self.token(at)).collect();
        self.model.forward(&mut sequences, &Segment::of_tokens(0, &tokens), None)?;
        let (mut found, mut first) = (Vec::new(), 1);
        for &Group { rows, masked } in groups {
            let masks = self.masks(rows)?;
            for latent in [false, true] {
                let mut segment = Segment::new();
                for row in 0..rows {
                    let input = if latent { Input::Latent } else { Input::Token(self.token(row)) };
                    segment.push_under((first + row) as u32, input, masked.then_some(row as u32));
                }
                let mut seen = Seen::of(&self.device)?;
                if masked {
                    self.masks(rows)?;
                }
                self.model.forward(&mut sequences, &segment, masked.then_some(&masks))?;
                let keys = prompt + rows * (1 + usize::from(latent));
                found.push(self.extra(&seen.advance(&self.device)?, rows, keys));
            }
            first += rows;
        }
        Ok(found)
    }

    /// All positions of all rows, each its own, forward and backward.
    fn train(&self, masked: bool) -> Result<Extra> {
        let (rows, length) = (self.rows, self.prompt);
        let plan = SequencesPlan {
            rows: vec![RowPlan::own(length); rows],
            record: Record::Everything,
            tape_positions: rows * length,
        };
        let mut sequences = Sequences::new(&self.model, &plan)?;
        let mut segment = Segment::new();
        for at in 0..rows * length {
            let row = (at / length) as u32;
            segment.push_under(row, Input::Token(self.token(at)), masked.then_some(row));
        }
        let mut gradients = self.model.gradients()?;
        let masks = self.masks(rows)?;
        let mut seen = Seen::of(&self.device)?;
        if masked {
            self.masks(rows)?;
        }
        let masks = masked.then_some(&masks);
        self.model.forward(&mut sequences, &segment, masks)?;
        self.model.backward(&mut sequences, masks, Truncation::default(), &mut gradients)?;
        Ok(self.extra(&seen.advance(&self.device)?, rows, 0))
    }

    /// What was counted, and the floor of a step of `rows` rows that sees `keys` keys: weights, keys and values, and each number that
    /// stands between two operations once.
    fn extra(&self, spent: &[Spent], rows: usize, keys: usize) -> Extra {
        let traffic = total(spent).traffic;
        let tables = |shape: &[usize]| shape.first() == Some(&VOCABULARY) || shape.first() == Some(&1024);
        let weights: usize =
            self.model.parameters().iter().filter(|p| !tables(p.shape().dims())).map(|p| p.bytes()).sum();
        let [heads, kv_heads] = self.size.heads.map(|count| count * self.size.head_dim);
        let size = self.model.precision().activations().size();
        let cache = self.layers * keys * 2 * kv_heads * size;
        // Twice the stream and its norm, q, k, v, what attention and its projection give; inside the MLP, and its
        // projection.
        let inside = if heads == kv_heads { 2 } else { 3 } * self.size.hidden;
        let layer = 6 * self.size.width + 2 * heads + 2 * kv_heads + inside;
        let activations = rows * size * (self.layers * layer + 2 * self.size.width);
        Extra {
            requested: traffic.global().bytes(),
            device: traffic.moved_once(),
            floor: (weights + cache + activations) as u64,
        }
    }
}
