//! config.json: both forms of transformers, and everything that must be refused.

use super::{gpt2_json, llama_json, message, parse, says};
use latch::model::config::{Family, Rope, RopeScaling};
use latch::model::stored::Stored;
use serde_json::{Value, json};

/// `base` with `changes` on top.
fn with(mut base: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

#[test]
fn forms_of_transformers_4_and_5_mean_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let four = with(llama_json(), json!({"rope_theta": 5e5, "rope_scaling": llama3}));
    let mut five = llama_json();
    five.as_object_mut().unwrap().remove("rope_theta");
    five.as_object_mut().unwrap().remove("torch_dtype");
    let parameters = with(llama3, json!({"rope_theta": 5e5}));
    let five = with(five, json!({"rope_parameters": parameters, "dtype": "float32"}));
    let (four, five) = (parse(four).unwrap(), parse(five).unwrap());
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    assert_eq!(four.rope, Some(Rope { theta: 5e5, scaling }));
    assert_eq!(five.rope, four.rope);
    assert_eq!((four.stored, five.stored), (Some(Stored::F32), Some(Stored::F32)));
    let older = parse(with(llama_json(), json!({"rope_scaling": {"type": "linear", "factor": 2}}))).unwrap();
    assert_eq!(older.rope.unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
}

/// What transformers 5 reads where a file holds both forms, or an empty one, or leaves the original context out.
#[test]
fn rope_settings_in_several_places_mean_what_transformers_reads() {
    let rope = |changes: Value| parse(with(llama_json(), changes)).unwrap().rope.unwrap();
    let linear = |factor: f64| json!({"rope_type": "linear", "factor": factor, "rope_theta": 5e5});
    let both = rope(json!({"rope_scaling": linear(3.0), "rope_parameters": linear(2.0)}));
    assert_eq!(both, Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 3.0 } });
    let only = Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(rope(json!({"rope_scaling": {}, "rope_parameters": linear(2.0)})), only);
    assert_eq!(rope(json!({"rope_scaling": linear(2.0), "rope_parameters": {}})), only);
    let empty = rope(json!({"rope_scaling": {}, "rope_parameters": {}, "rope_theta": 7.0}));
    assert_eq!(empty, Rope { theta: 7.0, scaling: RopeScaling::None });

    let llama3 =
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let original = |changes: Value| match rope(changes).scaling {
        RopeScaling::Llama3 { original_max_position_embeddings, .. } => original_max_position_embeddings,
        other => panic!("{other:?}"),
    };
    assert_eq!(original(json!({"rope_scaling": llama3})), 128.0, "the model's own context");
    let inside = with(llama3, json!({"original_max_position_embeddings": 64}));
    assert_eq!(original(json!({"rope_scaling": inside})), 64.0);
    let beside = json!({"rope_scaling": inside, "original_max_position_embeddings": 32});
    assert_eq!(original(beside), 32.0);
}

#[test]
fn what_a_file_leaves_out_is_what_transformers_assumes() {
    let without = |mut json: Value, keys: &[&str]| {
        keys.iter().for_each(|key| drop(json.as_object_mut().unwrap().remove(*key)));
        json
    };
    let qwen = |model_type: &str| with(llama_json(), json!({"model_type": model_type}));
    let head_dim = |json: Value| parse(without(json, &["head_dim"])).unwrap().head_dim;
    assert_eq!([head_dim(qwen("qwen3")), head_dim(qwen("qwen2")), head_dim(llama_json())], [128, 8, 8]);
    // A window of 4096 positions from layer 28 on.
    let windowed = |changes: Value| {
        let used =
            json!({"use_sliding_window": true, "max_position_embeddings": 8192, "max_window_layers": 0});
        parse(with(with(qwen("qwen2"), used), changes))
    };
    says(&message(windowed(json!({}))), &["sliding_window = 4096 of 8192"]);
    assert!(windowed(json!({"sliding_window": null})).is_ok());
    assert!(parse(without(windowed_from_28(), &["max_window_layers"])).is_ok());
    // The token that transformers names for any GPT-2, in a vocabulary without it.
    let named = json!({"bos_token_id": 50256, "eos_token_id": 50256});
    let small = parse(with(gpt2_json(), named)).unwrap();
    assert_eq!((small.bos, small.eos), (None, vec![]));
    let whole = with(with(gpt2_json(), json!({"vocab_size": 50257})), json!({"eos_token_id": 50256}));
    let whole = parse(whole).unwrap();
    assert_eq!((whole.bos, whole.eos), (Some(50256), vec![50256]));
    says(&message(parse(with(gpt2_json(), json!({"eos_token_id": 9})))), &["token id 9"]);
}

fn windowed_from_28() -> Value {
    let changes = json!({"model_type": "qwen3", "use_sliding_window": true, "sliding_window": 8, "num_hidden_layers": 28});
    with(llama_json(), changes)
}

#[test]
fn fields() {
    let llama = parse(with(llama_json(), json!({"eos_token_id": [2, 5], "attention_bias": true}))).unwrap();
    assert_eq!(llama.family, Family::Llama);
    assert_eq!((llama.head_dim, llama.query_width(), llama.kv_width()), (16, 64, 32));
    assert_eq!((llama.bos, llama.eos.as_slice(), llama.pad), (Some(1), &[2, 5][..], None));
    assert!(llama.qkv_bias && llama.output_bias && !llama.mlp_bias && llama.tied);
    let qwen2 = parse(with(llama_json(), json!({"model_type": "qwen2"}))).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
    let qwen3 = parse(with(llama_json(), json!({"model_type": "qwen3"}))).unwrap();
    assert!(!qwen3.qkv_bias && qwen3.qk_norm);
    let gpt2 = parse(with(gpt2_json(), json!({"n_inner": null, "reorder_and_upcast_attn": true}))).unwrap();
    assert_eq!((gpt2.mlp_hidden, gpt2.head_dim, gpt2.tied, gpt2.rope), (128, 16, true, None));
    let window = json!({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": false});
    assert!(parse(with(llama_json(), window)).is_ok(), "an unused window does no harm");
}

/// As transformers 5.23.0 does, whose outputs of small models were compared with and without these keys: where the kinds of
/// layers are listed, nothing else is asked. Without the list Qwen's window needs use_sliding_window, and those of Llama and
/// GPT-2 leave the forward pass alone but shorten the cache of generation.
#[test]
fn listed_kinds_of_layers_decide_whether_a_window_is_used() {
    let layers = llama_json()["num_hidden_layers"].as_u64().unwrap() as usize;
    let full = json!({"layer_types": vec!["full_attention"; layers]});
    let used = json!({"sliding_window": 64, "use_sliding_window": true, "max_window_layers": 0});
    for family in ["llama", "qwen2", "qwen3"] {
        let json = with(with(llama_json(), used.clone()), json!({"model_type": family}));
        says(&message(parse(json.clone())), &["sliding_window = 64 of 128"]);
        assert!(parse(with(json.clone(), full.clone())).is_ok(), "{family}");
        let short = json!({"layer_types": vec!["full_attention"; layers + 1]});
        says(&message(parse(with(json.clone(), short))), &["layer_types", &format!("list of {layers}")]);
        says(&message(parse(with(json, json!({"layer_types": "full"})))), &["layer_types = \"full\""]);
    }
    let llama = parse(with(llama_json(), json!({"sliding_window": 64})));
    says(&message(llama), &["when it generates", "remove sliding_window", "layer_types"]);
    assert!(parse(with(llama_json(), json!({"sliding_window": 128}))).is_ok(), "as long as the context");
    says(&message(parse(with(gpt2_json(), json!({"sliding_window": 2})))), &["sliding_window = 2 of"]);
}

#[test]
fn written_back_without_loss() {
    let mut config = parse(llama_json()).unwrap();
    config.vocab = 12;
    let json = config.to_json(Stored::Bf16);
    let expected = with(llama_json(), json!({"vocab_size": 12, "torch_dtype": "bfloat16"}));
    assert_eq!(json, expected);
    let again = parse(json).unwrap();
    assert_eq!((again.vocab, again.stored), (12, Some(Stored::Bf16)));
}

#[test]
fn refused_with_the_reason() {
    let llama = |changes: Value| message(parse(with(llama_json(), changes)));
    let gpt2 = |changes: Value| message(parse(with(gpt2_json(), changes)));
    says(
        &llama(json!({"model_type": "mamba"})),
        &["config.json", "\"mamba\"", "known: gpt2, llama, qwen2, qwen3"],
    );
    says(
        &llama(json!({"model_type": null, "architectures": ["RwkvForCausalLM"]})),
        &["\"RwkvForCausalLM\"", "known:"],
    );
    says(&llama(json!({"hidden_act": "gelu"})), &["hidden_act", "\"gelu\"", "silu"]);
    says(&llama(json!({"num_key_value_heads": 3})), &["4 heads", "3 key/value heads"]);
    says(&llama(json!({"head_dim": 15})), &["even head width", "15"]);
    says(&llama(json!({"head_dim": null, "hidden_size": 33})), &["33", "4", "head_dim"]);
    says(&llama(json!({"num_hidden_layers": 0})), &["number of layers is 0"]);
    says(&llama(json!({"vocab_size": 1u64 << 40})), &["vocabulary", "1099511627776"]);
    says(&llama(json!({"hidden_size": "32"})), &["hidden_size", "\"32\"", "whole number"]);
    says(&llama(json!({"hidden_size": -1})), &["hidden_size = -1"]);
    says(&llama(json!({"intermediate_size": null})), &["intermediate_size is missing"]);
    says(&llama(json!({"eos_token_id": 9})), &["token id 9", "vocabulary of 9"]);
    says(
        &llama(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}})),
        &["\"yarn\"", "default, linear, llama3"],
    );
    says(&llama(json!({"rope_scaling": {"rope_type": "linear"}})), &["factor is missing"]);
    says(&llama(json!({"rope_scaling": {"rope_type": "linear", "factor": -2}})), &["factor is -2"]);
    says(&llama(json!({"rope_scaling": 3})), &["rope_scaling = 3", "object"]);
    says(&llama(json!({"rope_parameters": {"full_attention": {"rope_theta": 1}}})), &["\"full_attention\""]);
    says(&llama(json!({"partial_rotary_factor": 0.5})), &["partial_rotary_factor = 0.5"]);
    says(&llama(json!({"rope_interleaved": true})), &["rope_interleaved"]);
    says(&llama(json!({"sliding_window": 64})), &["sliding_window = 64 of 128"]);
    let window = json!({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": true, "max_window_layers": 0});
    says(&llama(window), &["sliding_window = 64"]);
    says(&llama(json!({"layer_types": ["sliding_attention"]})), &["sliding_attention"]);
    says(&llama(json!({"quantization_config": {"bits": 4}})), &["quantization_config"]);
    says(&llama(json!({"num_local_experts": 8})), &["experts"]);
    says(&llama(json!({"final_logit_softcapping": 30.0})), &["final_logit_softcapping"]);
    says(&llama(json!({"torch_dtype": "int4"})), &["\"int4\"", "bfloat16"]);
    says(&gpt2(json!({"activation_function": "relu"})), &["activation_function", "\"relu\"", "gelu_new"]);
    says(&gpt2(json!({"activation_function": "gelu"})), &["\"gelu\""]);
    says(&gpt2(json!({"scale_attn_by_inverse_layer_idx": true})), &["scale_attn_by_inverse_layer_idx"]);
    says(&gpt2(json!({"scale_attn_weights": false})), &["scale_attn_weights"]);
    says(&gpt2(json!({"n_head": 5})), &["n_embd = 32", "n_head = 5"]);
    says(&message(parse(json!([1]))), &["not a JSON object"]);
}
