//! Safetensors folders: whole ones are read in every type, broken ones are refused with the name of what is wrong.

use super::{
    Raw, folder, gpt2_json, llama_json, message, parse, safetensors_bytes, says, sharded, tensors,
    with_header, write_index,
};
use half::{bf16, f16};
use latch::model::safetensors_file::SafetensorsFile;
use latch::model::weights::Source;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn llama_tensors() -> Vec<Raw> {
    tensors(&parse(llama_json()).unwrap())
}

fn open_error(folder: &tempfile::TempDir) -> String {
    message(Source::open(folder.path()))
}

/// The values of a parameter by name.
fn load(source: &Source, name: &str) -> Vec<f32> {
    let index = source.parameters().iter().position(|p| p.name == name).unwrap();
    let mut out = vec![0f32; source.parameters()[index].shape.elements()];
    source.load(index, &mut out).unwrap();
    out
}

fn f32s(raw: &Raw) -> Vec<f32> {
    raw.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn every_type_and_both_layouts_of_folders_load() {
    let original = llama_tensors();
    for (dtype, convert) in [
        ("F32", (|v: f32| v.to_le_bytes().to_vec()) as fn(f32) -> Vec<u8>),
        ("F64", |v| f64::from(v).to_le_bytes().to_vec()),
        ("F16", |v| f16::from_f32(v).to_le_bytes().to_vec()),
        ("BF16", |v| bf16::from_f32(v).to_le_bytes().to_vec()),
    ] {
        let mut stored = original.clone();
        for raw in &mut stored {
            raw.bytes = f32s(raw).into_iter().flat_map(convert).collect();
            raw.dtype = dtype.into();
        }
        for folder in [folder(&llama_json(), &stored), sharded(&llama_json(), &stored)] {
            let source = Source::open(folder.path()).unwrap();
            for raw in &original {
                let expected = f32s(raw).into_iter().map(|v| match dtype {
                    "F16" => f16::from_f32(v).to_f32(),
                    "BF16" => bf16::from_f32(v).to_f32(),
                    _ => v,
                });
                assert_eq!(load(&source, &raw.name), expected.collect::<Vec<f32>>(), "{dtype} {}", raw.name);
            }
        }
    }
}

#[test]
fn pieces_of_a_tensor_and_other_target_types() {
    let folder = folder(&llama_json(), &llama_tensors());
    let source = Source::open(folder.path()).unwrap();
    let whole = load(&source, "model.embed_tokens.weight");
    let mut rows = vec![0f64; 3 * 32];
    source.load_rows(0, 4..7, &mut rows).unwrap();
    assert!(rows.iter().zip(&whole[4 * 32..]).all(|(a, b)| *a == f64::from(*b)));
    let mut rounded = vec![bf16::ZERO; 32];
    source.load_rows(0, 8..9, &mut rounded).unwrap();
    assert!(rounded.iter().zip(&whole[8 * 32..]).all(|(a, b)| *a == bf16::from_f32(*b)));
    says(
        &message(source.load_rows(0, 8..10, &mut rows[..64])),
        &["model.embed_tokens.weight", "8..10", "0..9"],
    );
    says(&message(source.load(0, &mut rows)), &["model.embed_tokens.weight", "96 elements"]);
}

#[test]
fn gpt2_without_its_prefix_and_with_its_buffers() {
    let mut list = tensors(&parse(gpt2_json()).unwrap());
    let wte = list[0].clone();
    for raw in &mut list {
        raw.name = raw.name.replace("transformer.", "");
    }
    list.push(Raw::f32("h.0.attn.bias", &[1, 1, 2, 2], &[1.0, 0.0, 1.0, 1.0]));
    list.push(Raw::f32("h.0.attn.masked_bias", &[1], &[-1e4]));
    list.push(Raw { name: "lm_head.weight".into(), ..wte.clone() });
    let good = folder(&gpt2_json(), &list);
    let source = Source::open(good.path()).unwrap();
    assert_eq!(load(&source, "transformer.wte.weight"), f32s(&wte));

    let last = list.len() - 1;
    list[last].bytes[0] ^= 1;
    let text = open_error(&folder(&gpt2_json(), &list));
    says(&text, &["model.safetensors", "lm_head.weight", "tie_word_embeddings"]);
    list[last] = Raw { name: "transformer.wte.weight".into(), ..wte };
    says(
        &open_error(&folder(&gpt2_json(), &list)),
        &["\"wte.weight\"", "\"transformer.wte.weight\"", "same parameter"],
    );
}

#[test]
fn tensors_that_contradict_the_config() {
    let mut missing = llama_tensors();
    // A tenth tensor that is no parameter keeps the count plausible.
    let removed = missing.remove(4);
    missing.push(Raw::f32("model.layers.0.self_attn.rotary_emb.inv_freq", &[2], &[1.0, 0.1]));
    says(&open_error(&folder(&llama_json(), &missing)), &["is missing", &removed.name]);

    let mut extra = llama_tensors();
    extra.push(Raw::f32("model.layers.1.input_layernorm.weight", &[32], &[1.0; 32]));
    let text = open_error(&folder(&llama_json(), &extra));
    says(
        &text,
        &["model.safetensors", "unexpected tensor \"model.layers.1.input_layernorm.weight\"", "1 layers"],
    );

    let mut json = gpt2_json();
    let list = tensors(&parse(json.clone()).unwrap());
    json["n_embd"] = json!(64);
    says(
        &open_error(&folder(&json, &list)),
        &["\"transformer.wte.weight\" has shape [9, 32]", "config.json says n_embd = 64"],
    );
    let mut json = llama_json();
    json["head_dim"] = json!(8);
    let text = open_error(&folder(&json, &llama_tensors()));
    says(&text, &["self_attn.q_proj.weight", "[64, 32]", "num_attention_heads * head_dim = 32"]);
    let mut json = llama_json();
    json["num_hidden_layers"] = json!(4000);
    says(&open_error(&folder(&json, &llama_tensors())), &["4000 layers", "11 tensors"]);
    let mut json = llama_json();
    json["tie_word_embeddings"] = json!(false);
    says(
        &open_error(&folder(&json, &llama_tensors())),
        &["\"lm_head.weight\" is missing", "tie_word_embeddings"],
    );

    let mut integers = llama_tensors();
    integers[1].dtype = "I32".into();
    says(&open_error(&folder(&llama_json(), &integers)), &[&integers[1].name, "I32", "real numbers"]);
    integers[1].dtype = "F8_E4M3".into();
    integers[1].bytes.truncate(32);
    says(&open_error(&folder(&llama_json(), &integers)), &[&integers[1].name, "F8_E4M3", "BF16"]);
}

#[test]
fn not_a_number_is_found_when_loading() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let mut list = llama_tensors();
        let at = (5 * 32 + 7) * 4;
        list[0].bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let folder = folder(&llama_json(), &list);
        let source = Source::open(folder.path()).unwrap();
        let mut out = vec![0f32; 9 * 32];
        let text = message(source.load(0, &mut out));
        says(&text, &["model.safetensors", "model.embed_tokens.weight", shown, "[5, 7]"]);
    }
    let mut list = llama_tensors();
    list[1].bytes[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    let folder = folder(&llama_json(), &list);
    let source = Source::open(folder.path()).unwrap();
    says(&message(source.load(1, &mut [0f32; 32])), &["input_layernorm", "NaN at index 3"]);
}

#[test]
fn shards_and_index_must_agree() {
    let broken = |change: &dyn Fn(&Path)| {
        let folder = sharded(&llama_json(), &llama_tensors());
        change(folder.path());
        open_error(&folder)
    };
    let second = "model-00002-of-00002.safetensors";
    let text = broken(&|path| fs::remove_file(path.join(second)).unwrap());
    says(&text, &["index.json: names 2 shards, 1 is missing: ", second, "incomplete"]);
    let text = broken(&|path| {
        fs::copy(path.join(second), path.join("model-00003-of-00003.safetensors")).unwrap();
    });
    says(&text, &["does not name model-00003-of-00003.safetensors"]);
    let edit = |path: &Path, change: &dyn Fn(&mut Value)| {
        let index = path.join("model.safetensors.index.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
        change(&mut json["weight_map"]);
        write_index(path, &json["weight_map"]);
    };
    let text = broken(&|path| edit(path, &|map| map["model.extra"] = json!(second)));
    says(&text, &["\"model.extra\"", second, "does not have it"]);
    let text = broken(&|path| {
        edit(path, &|map| {
            map.as_object_mut().unwrap().remove("model.norm.weight");
        })
    });
    says(&text, &["does not list tensor \"model.norm.weight\""]);
    let text = broken(&|path| edit(path, &|map| map["model.norm.weight"] = json!("../secret.safetensors")));
    says(&text, &["../secret.safetensors", "without folders"]);
    let text = broken(&|path| fs::write(path.join("model.safetensors.index.json"), "{").unwrap());
    says(&text, &["index.json", "not valid JSON"]);
}

#[test]
fn headers_that_lie() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        message(SafetensorsFile::open(&path))
    };
    let header = |text: &str, data: usize| open(&with_header(text, &vec![0; data]));
    let whole = safetensors_bytes(&llama_tensors());
    says(&open(&whole[..whole.len() - 9]), &["model.safetensors", "describes", "incomplete"]);
    says(&open(&whole[..40]), &["header says it is", "has only 32"]);
    says(&open(&whole[..5]), &["5 bytes, too short"]);
    says(&open(&[]), &["0 bytes, too short"]);
    says(&open(&u64::MAX.to_le_bytes()), &["18446744073709551615 bytes"]);
    says(&open(b"version https://git-lfs.github.com/spec/v1\n"), &["Git LFS pointer", "git lfs pull"]);
    says(&header("{\"a\": ", 0), &["not valid JSON"]);
    says(&header("\u{7f}", 0), &["not valid JSON"]);
    says(&header(&"[".repeat(100_000), 0), &["not valid JSON"]);
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    let one = |dtype: &str, shape: &str, offsets: &str| format!("{{\"a\":{}}}", entry(dtype, shape, offsets));
    says(&header(&one("F99", "[1]", "[0,4]"), 4), &["tensor \"a\"", "unknown element type \"F99\""]);
    says(&header(&one("F32", "[1]", "[0,8]"), 8), &["tensor \"a\" of shape [1]", "F32 has 8 bytes"]);
    says(&header(&one("F32", "[-1]", "[0,4]"), 4), &["tensor \"a\"", "malformed"]);
    says(&header(&one("F32", "[1]", "[4,8]"), 8), &["tensor \"a\" lies at bytes 4..8", "start at 0"]);
    says(&header(&one("F32", "[1]", "[4,0]"), 4), &["tensor \"a\" lies at bytes 4..0"]);
    says(&header(&one("F32", "[1]", "[0,4]"), 2), &["describes 4 bytes", "has 2"]);
    let huge = one("F32", "[4611686018427387904, 4611686018427387904]", "[0,4]");
    says(&header(&huge, 4), &["tensor \"a\" of shape [4611686018427387904, 4611686018427387904]"]);
    let overlap =
        format!("{{\"a\":{},\"b\":{}}}", entry("F32", "[2]", "[0,8]"), entry("F32", "[2]", "[4,12]"));
    says(&header(&overlap, 12), &["tensor \"b\" lies at bytes 4..12", "start at 8", "overlap"]);
    // Sizes that add up beyond 2^64.
    let half = 1u64 << 60;
    let mut parts = Vec::new();
    for i in 0..20u64 {
        let (start, end) = (i.wrapping_mul(half), (i + 1).wrapping_mul(half));
        parts.push(format!("\"t{i:02}\":{}", entry("U8", &format!("[{half}]"), &format!("[{start},{end}]"))));
    }
    says(&header(&format!("{{{}}}", parts.join(",")), 0), &["model.safetensors"]);
}

#[test]
fn no_model_at_all() {
    let empty = tempfile::tempdir().unwrap();
    says(&open_error(&empty), &["config.json", "cannot open"]);
    fs::write(empty.path().join("config.json"), llama_json().to_string()).unwrap();
    says(&open_error(&empty), &["has neither model.safetensors nor", ".gguf"]);
    fs::write(empty.path().join("pytorch_model.bin"), "").unwrap();
    says(&open_error(&empty), &["pytorch_model.bin is not read"]);
    says(
        &message(Source::open(&empty.path().join("pytorch_model.bin"))),
        &["neither a folder nor a .gguf file"],
    );
    fs::write(empty.path().join("config.json"), "{\"model_type\": ").unwrap();
    says(&open_error(&empty), &["config.json", "not valid JSON"]);
}
