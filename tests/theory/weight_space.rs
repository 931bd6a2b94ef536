//! A mask is a sample of the weights: with scope `all`, running under it is running a model without masks whose
//! weights were multiplied by it. Bits and factors reach the masked run through MaskSet, the other run through
//! plain multiplication of parameters, by the layouts that Hugging Face stores.

use super::toy::scattered;
use latch::base::rng::{Purpose, StreamKey};
use latch::model::families::{LayerRole, Layout, Parameter, Role};
use latch::model::{Config, Input, Model, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan};
use latch::ops::mask::{MaskSet, Site, SiteKind, Sites};

const P: f64 = 0.3;

/// Untied heads: masking the embedding must not touch the output.
fn configs() -> Vec<Config> {
    [
        r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":31,"n_embd":12,"n_head":3,"n_layer":2,
            "n_positions":40,"activation_function":"gelu_new","layer_norm_epsilon":1e-5,"tie_word_embeddings":false}"#,
        r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":31,"hidden_size":12,
            "num_attention_heads":6,"num_key_value_heads":2,"num_hidden_layers":2,"intermediate_size":37,
            "max_position_embeddings":40,"rms_norm_eps":1e-5,"hidden_act":"silu","tie_word_embeddings":false,
            "mlp_bias":true,"attention_bias":true,"rope_theta":10000.0}"#,
        r#"{"model_type":"qwen2","architectures":["Qwen2ForCausalLM"],"vocab_size":31,"hidden_size":12,
            "num_attention_heads":2,"num_key_value_heads":1,"num_hidden_layers":2,"intermediate_size":36,
            "max_position_embeddings":40,"rms_norm_eps":1e-6,"hidden_act":"silu","tie_word_embeddings":false,
            "rope_theta":1000.0}"#,
        r#"{"model_type":"qwen3","architectures":["Qwen3ForCausalLM"],"vocab_size":31,"hidden_size":12,
            "num_attention_heads":3,"num_key_value_heads":3,"head_dim":10,"num_hidden_layers":2,"intermediate_size":44,
            "max_position_embeddings":40,"rms_norm_eps":1e-6,"hidden_act":"silu","tie_word_embeddings":false,
            "rope_theta":1000.0}"#,
    ]
    .map(|json| Config::from_json(serde_json::from_str(json).unwrap(), std::path::Path::new("config.json")).unwrap())
    .to_vec()
}

/// Bits of a site, 1 = kept; the same for every set that asks.
fn keep(kind: SiteKind, layer: usize, width: usize) -> Vec<u8> {
    let stream = StreamKey::new(5, 0, 0, 0, Purpose::Mask);
    let number = (layer * 8) as u32 + kind as u32;
    (0..width as u32)
        .map(|i| u8::from(stream.word(number, 0, i, 0) >= (P * 4_294_967_296.0) as u32))
        .collect()
}

/// A set of one instance. `bits_of` names the site whose bits a site takes.
fn masks(model: &Model, kinds: &[SiteKind], bits_of: impl Fn(SiteKind) -> SiteKind) -> Option<MaskSet> {
    let config = model.config();
    let sites = Sites::new(config.width, config.mlp_hidden, config.layers, kinds);
    let bits: Vec<(Site, Vec<u8>)> =
        sites.iter().map(|site| (*site, keep(bits_of(site.kind), site.layer, site.width))).collect();
    let of = |site: &Site| bits.iter().find(|(known, _)| known == site).map(|(_, bits)| bits.as_slice());
    (!kinds.is_empty()).then(|| MaskSet::from_keep(model.device(), sites.clone(), P, 1, of).unwrap())
}

/// Log-probabilities of a whole rollout: prompt, latents, answer, every position masked where there are masks.
fn run(model: &Model, masks: Option<&MaskSet>, latents: usize) -> Vec<f64> {
    let (prompt, answer) = ([3_u32, 17, 8, 25, 1], [4_u32, 30, 2, 9]);
    let length = prompt.len() + latents + answer.len();
    let record = Record::Everything;
    let plan = SequencesPlan { rows: vec![RowPlan::own(length)], record, tape_positions: length };
    let mut sequences = Sequences::new(model, &plan).unwrap();
    let mut feed = |inputs: Vec<Input>| {
        let mut segment = Segment::new();
        for input in inputs {
            match masks {
                Some(_) => segment.push_masked(0, input, 0),
                None => segment.push(0, input),
            }
        }
        model.forward(&mut sequences, &segment, masks).unwrap();
    };
    feed(prompt.iter().map(|&token| Input::Token(token)).collect());
    (0..latents).for_each(|_| feed(vec![Input::Latent]));
    feed(answer.iter().map(|&token| Input::Token(token)).collect());
    // Every token of the vocabulary at every position from the prompt's end on.
    let vocab = model.config().vocab as u32;
    let pairs = (prompt.len() - 1..length).flat_map(|n| (0..vocab).map(move |token| (n as u32, token)));
    let (positions, targets): (Vec<u32>, Vec<u32>) = pairs.unzip();
    let mut scores = Scores::reserve(model, positions.len()).unwrap();
    scores.forward(model, &sequences, &positions, &targets, 1.0).unwrap();
    scores.log_probabilities().unwrap()
}

/// Multiplies parameters by the masks of `kind`: outputs of W_o and W_down with their biases, inputs of W_down,
/// columns of the embeddings.
fn multiply(model: &mut Model, kind: SiteKind) {
    let config = model.config().clone();
    let list: Vec<Parameter> = model.parameter_list().to_vec();
    let mut touched = 0;
    for (parameter, tensor) in list.iter().zip(model.parameters_mut()) {
        // Whether the mask lies along outputs, or along inputs.
        let (layer, outputs) = match (kind, parameter.role) {
            (SiteKind::AttnOut, Role::Layer(layer, LayerRole::OutputWeight | LayerRole::OutputBias)) => {
                (layer, true)
            }
            (SiteKind::MlpOut, Role::Layer(layer, LayerRole::DownWeight | LayerRole::DownBias)) => {
                (layer, true)
            }
            (SiteKind::MlpHid, Role::Layer(layer, LayerRole::DownWeight)) => (layer, false),
            // A table is [entries, width]: its columns are what it gives out.
            (SiteKind::Emb, Role::TokenEmbedding | Role::PositionEmbedding) => (0, true),
            _ => continue,
        };
        let width = if kind == SiteKind::MlpHid { config.mlp_hidden } else { config.width };
        let factors: Vec<f64> =
            keep(kind, layer, width).iter().map(|&kept| f64::from(kept) / (1.0 - P)).collect();
        let along_rows = match parameter.layout {
            Layout::Vector | Layout::Table => false,
            Layout::InOut => !outputs,
            Layout::OutIn => outputs,
        };
        let cols = tensor.shape().as_matrix().1;
        let mut values = tensor.download::<f64>().unwrap();
        for (n, value) in values.iter_mut().enumerate() {
            *value *= factors[if along_rows { n / cols } else { n % cols }];
        }
        tensor.upload(&values).unwrap();
        touched += 1;
    }
    assert!(touched > 0, "{kind:?} touched nothing");
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn a_masked_rollout_is_a_clean_rollout_on_multiplied_weights() {
    use SiteKind::{AttnOut, Emb, Latent, MlpHid, MlpOut};
    for config in configs() {
        let clean = run(&scattered(config.clone(), 0.3, 4), None, 3);
        for kinds in [
            &[AttnOut][..],
            &[MlpOut],
            &[MlpHid],
            &[AttnOut, MlpOut],
            &[Emb],
            &[Emb, AttnOut, MlpOut, MlpHid],
        ] {
            let mut model = scattered(config.clone(), 0.3, 4);
            let set = masks(&model, kinds, |kind| kind);
            for latents in [0, 3] {
                let masked = run(&model, set.as_ref(), latents);
                let mut other = scattered(config.clone(), 0.3, 4);
                kinds.iter().for_each(|&kind| multiply(&mut other, kind));
                // A fed-back latent enters through the embedding: its reading is diag(m) on the recurrence, the
                // only part that is no parameter. Tokens need none.
                let feedback = if kinds.contains(&Emb) && latents > 0 { vec![Latent] } else { vec![] };
                let recurrence = masks(&other, &feedback, |_| Emb);
                let multiplied = run(&other, recurrence.as_ref(), latents);
                let difference = largest_difference(&masked, &multiplied);
                let family = config.family.model_type();
                println!("{family} {kinds:?}, {latents} latents: {difference:.1e}");
                assert!(difference < 1e-11, "{family} {kinds:?}, {latents} latents: {difference:e}");
                if latents == 3 {
                    assert!(largest_difference(&masked, &clean) > 1e-3, "the mask changed nothing");
                }
            }
            // Multiplying one bias or column too few is seen.
            let set = masks(&model, kinds, |kind| kind);
            let before = run(&model, set.as_ref(), 0);
            kinds.iter().for_each(|&kind| multiply(&mut model, kind));
            assert!(
                largest_difference(&before, &run(&model, set.as_ref(), 0)) > 1e-3,
                "squared masks are not masks"
            );
        }
    }
}
