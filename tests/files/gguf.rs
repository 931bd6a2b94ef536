//! GGUF files: names, row orders, block types and rope settings against formulas written here, and broken headers.

use super::{Gguf, gguf_keys, gguf_text, gpt2_json, message, normals, parse, says, tensors};
use half::{bf16, f16};
use latch::model::config::{Family, RopeScaling};
use latch::model::gguf::GgufFile;
use latch::model::weights::Source;
use std::fs;

const ROWS: usize = 9;
const WIDTH: usize = 32;
const HEAD: usize = 16;

/// Query and key rows as llama.cpp's converter orders them: reshape (heads, 2, head / 2), swap the last two.
fn interleave(rows: &[f32], cols: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in rows.chunks(HEAD * cols) {
        for j in 0..HEAD / 2 {
            for half in 0..2 {
                let row = half * HEAD / 2 + j;
                out.extend_from_slice(&head[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

/// A whole model of the llama kind; `norm` names the extra q/k norms of qwen3.
fn model(architecture: &str) -> (Gguf, Vec<(&'static str, Vec<f32>)>) {
    let mut file = gguf_keys(architecture);
    let swap = architecture == "llama";
    let mut values = Vec::new();
    let mut add = |file: &mut Gguf, name: &str, hf: &'static str, shape: &[usize], swapped: bool| {
        let numbers = normals(values.len() as u64 + 100, shape.iter().product());
        let cols = if shape.len() == 2 { shape[1] } else { 1 };
        let stored = if swapped && swap { interleave(&numbers, cols) } else { numbers.clone() };
        file.f32_tensor(name, shape, &stored);
        values.push((hf, numbers));
    };
    add(&mut file, "token_embd.weight", "model.embed_tokens.weight", &[ROWS, WIDTH], false);
    add(&mut file, "output_norm.weight", "model.norm.weight", &[WIDTH], false);
    add(&mut file, "blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", &[WIDTH], false);
    add(
        &mut file,
        "blk.0.ffn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        &[WIDTH],
        false,
    );
    add(&mut file, "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight", &[64, WIDTH], true);
    add(&mut file, "blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight", &[32, WIDTH], true);
    add(&mut file, "blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", &[32, WIDTH], false);
    add(&mut file, "blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight", &[WIDTH, 64], false);
    add(&mut file, "blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight", &[64, WIDTH], false);
    add(&mut file, "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight", &[64, WIDTH], false);
    add(&mut file, "blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", &[WIDTH, 64], false);
    match architecture {
        "qwen3" => {
            add(
                &mut file,
                "blk.0.attn_q_norm.weight",
                "model.layers.0.self_attn.q_norm.weight",
                &[HEAD],
                false,
            );
            add(
                &mut file,
                "blk.0.attn_k_norm.weight",
                "model.layers.0.self_attn.k_norm.weight",
                &[HEAD],
                false,
            );
        }
        _ => {
            add(&mut file, "blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias", &[64], true);
            add(&mut file, "blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias", &[32], true);
            add(&mut file, "blk.0.attn_v.bias", "model.layers.0.self_attn.v_proj.bias", &[32], false);
        }
    }
    if architecture == "llama" {
        add(&mut file, "blk.0.attn_output.bias", "model.layers.0.self_attn.o_proj.bias", &[WIDTH], false);
    }
    (file, values)
}

fn check(source: &Source, values: &[(&str, Vec<f32>)]) {
    assert_eq!(source.parameters().len(), values.len());
    for (name, expected) in values {
        let index = source.parameters().iter().position(|p| p.name == *name).expect(name);
        let mut out = vec![0f32; expected.len()];
        source.load(index, &mut out).unwrap();
        assert_eq!(out, *expected, "{name}");
    }
}

#[test]
fn llama_rows_are_put_back_and_qwen_rows_stay() {
    for (architecture, family) in
        [("llama", Family::Llama), ("qwen2", Family::Qwen2), ("qwen3", Family::Qwen3)]
    {
        let (file, values) = model(architecture);
        let (_folder, path) = file.write();
        let source = Source::open(&path).unwrap();
        let config = source.config();
        assert_eq!((config.family, config.head_dim, config.kv_heads, config.tied), (family, HEAD, 2, true));
        assert_eq!((config.norm_eps, config.rope.unwrap().theta), (1e-5, 1e4));
        assert_eq!((config.bos, config.eos.as_slice()), (Some(1), &[2][..]));
        check(&source, &values);
    }
    // In pieces too.
    let (file, values) = model("llama");
    let (_folder, path) = file.write();
    let source = Source::open(&path).unwrap();
    let (name, expected) = &values[4];
    let index = source.parameters().iter().position(|p| p.name == *name).unwrap();
    let mut rows = vec![0f32; 20 * WIDTH];
    source.load_rows(index, 7..27, &mut rows).unwrap();
    assert_eq!(rows, expected[7 * WIDTH..27 * WIDTH]);
}

#[test]
fn gpt2_matrices_are_turned() {
    let config = parse(gpt2_json()).unwrap();
    let mut file = Gguf::default();
    file.text("general.architecture", "gpt2")
        .u32("gpt2.block_count", 1)
        .u32("gpt2.context_length", 16)
        .u32("gpt2.embedding_length", 32)
        .u32("gpt2.feed_forward_length", 128)
        .u32("gpt2.attention.head_count", 2)
        .f32("gpt2.attention.layer_norm_epsilon", 1e-5);
    let short = [
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("transformer.ln_f", "output_norm"),
        ("transformer.h.0.ln_1", "blk.0.attn_norm"),
        ("transformer.h.0.ln_2", "blk.0.ffn_norm"),
        ("transformer.h.0.attn.c_attn", "blk.0.attn_qkv"),
        ("transformer.h.0.attn.c_proj", "blk.0.attn_output"),
        ("transformer.h.0.mlp.c_fc", "blk.0.ffn_up"),
        ("transformer.h.0.mlp.c_proj", "blk.0.ffn_down"),
    ];
    let mut values = Vec::new();
    for raw in tensors(&config) {
        let (stem, kind) = raw.name.rsplit_once('.').unwrap();
        let name = format!("{}.{kind}", short.iter().find(|(hf, _)| *hf == stem).unwrap().1);
        let numbers: Vec<f32> =
            raw.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        if raw.shape.len() == 2 && stem.contains(".c_") {
            let (rows, cols) = (raw.shape[0], raw.shape[1]);
            let turned: Vec<f32> = (0..rows * cols).map(|i| numbers[i % rows * cols + i / rows]).collect();
            file.f32_tensor(&name, &[cols, rows], &turned);
        } else {
            file.f32_tensor(&name, &raw.shape, &numbers);
        }
        values.push((raw.name.clone(), numbers));
    }
    let mut twice = file.clone();
    twice.f32_tensor("output.weight", &[9, 32], &values[0].1);
    for file in [file, twice] {
        let (_folder, path) = file.write();
        let source = Source::open(&path).unwrap();
        assert!(source.config().tied);
        let values: Vec<(&str, Vec<f32>)> = values.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
        check(&source, &values);
        let mut rows = vec![0f32; 5 * 96];
        let index = source.parameters().iter().position(|p| p.name.ends_with("c_attn.weight")).unwrap();
        source.load_rows(index, 3..8, &mut rows).unwrap();
        let (_, whole) = values.iter().find(|(name, _)| name.ends_with("c_attn.weight")).unwrap();
        assert_eq!(rows, whole[3 * 96..8 * 96]);
    }
}

#[test]
fn every_block_type_loads() {
    let d = f16::from_f32(0.25).to_le_bytes();
    let m = f16::from_f32(-3.0).to_le_bytes();
    let q = |i: usize, bits: usize| (i * 7 + i / 32 * 3) % (1 << bits);
    let count = 32 * WIDTH;
    let nibbles = |block: usize| -> Vec<u8> {
        (0..16).map(|j| (q(block * 32 + j, 4) | q(block * 32 + j + 16, 4) << 4) as u8).collect()
    };
    let blocks = |head: &[u8], body: &dyn Fn(usize) -> Vec<u8>| -> Vec<u8> {
        (0..count / 32).flat_map(|block| [head.to_vec(), body(block)].concat()).collect()
    };
    let bytes8 = |block: usize| (0..32).map(|j| q(block * 32 + j, 8) as u8).collect::<Vec<u8>>();
    let plain = |i: usize| q(i, 6) as f32 - 20.0;
    type Formula<'a> = &'a dyn Fn(usize) -> f32;
    let cases: [(u32, Vec<u8>, Formula); 6] = [
        (1, (0..count).flat_map(|i| f16::from_f32(plain(i)).to_le_bytes()).collect(), &plain),
        (30, (0..count).flat_map(|i| bf16::from_f32(plain(i)).to_le_bytes()).collect(), &plain),
        (28, (0..count).flat_map(|i| f64::from(plain(i)).to_le_bytes()).collect(), &plain),
        (8, blocks(&d, &bytes8), &|i| 0.25 * f32::from(q(i, 8) as u8 as i8)),
        (2, blocks(&d, &nibbles), &|i| 0.25 * (q(i, 4) as f32 - 8.0)),
        (3, blocks(&[d, m].concat(), &nibbles), &|i| 0.25 * q(i, 4) as f32 - 3.0),
    ];
    for (kind, bytes, formula) in cases {
        let (original, _) = model("qwen2");
        let mut file = gguf_keys("qwen2");
        // All tensors again but the value projection, which comes in the type under test.
        let (_folder, path) = original.write();
        let all = GgufFile::open(&path).unwrap();
        for (index, place) in all.tensors().iter().enumerate() {
            if place.name != "blk.0.attn_v.weight" {
                file.tensor(&place.name, &place.shape, 0, all.tensor(index).bytes);
            }
        }
        file.tensor("blk.0.attn_v.weight", &[32, WIDTH], kind, &bytes);
        let (_folder, path) = file.write();
        let source = Source::open(&path).unwrap();
        let index = source.parameters().iter().position(|p| p.name.ends_with("v_proj.weight")).unwrap();
        let mut out = vec![0f32; count];
        source.load(index, &mut out).unwrap();
        let expected: Vec<f32> = (0..count).map(formula).collect();
        assert_eq!(out, expected, "type {kind}");
        let mut rows = vec![0f32; 3 * WIDTH];
        source.load_rows(index, 11..14, &mut rows).unwrap();
        assert_eq!(rows, expected[11 * WIDTH..14 * WIDTH], "type {kind}");
    }
}

#[test]
fn rope_scaling_in_its_two_forms() {
    let (mut file, _) = model("qwen2");
    file.text("qwen2.rope.scaling.type", "linear").f32("qwen2.rope.scaling.factor", 2.5);
    let (_folder, path) = file.write();
    let linear = Source::open(&path).unwrap().config().rope.unwrap().scaling;
    assert_eq!(linear, RopeScaling::Linear { factor: 2.5 });
    let (mut file, _) = model("qwen2");
    file.text("qwen2.rope.scaling.type", "yarn").f32("qwen2.rope.scaling.factor", 2.0);
    let (_folder, path) = file.write();
    says(&message(Source::open(&path)), &["model.gguf", "\"yarn\" is not supported"]);

    // Transformers' rule for rope_type "llama3", as it is written there.
    let divisor = |j: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * 10_000f64.powf(2.0 * j as f64 / HEAD as f64);
        if wavelength < 8192.0 / 4.0 {
            return 1.0;
        }
        if wavelength > 8192.0 {
            return 32.0;
        }
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        1.0 / ((1.0 - smooth) / 32.0 + smooth)
    };
    let mut divisors: Vec<f32> = (0..HEAD / 2).map(|j| divisor(j) as f32).collect();
    assert!(divisors.iter().any(|f| *f > 1.0 && *f < 32.0), "no frequency in the band: {divisors:?}");
    let (mut file, _) = model("llama");
    file.f32_tensor("rope_freqs.weight", &[HEAD / 2], &divisors);
    let (_folder, path) = file.write();
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    assert_eq!(Source::open(&path).unwrap().config().rope.unwrap().scaling, expected);
    divisors[2] = 1.5;
    let (mut file, _) = model("llama");
    file.f32_tensor("rope_freqs.weight", &[HEAD / 2], &divisors);
    let (_folder, path) = file.write();
    says(&message(Source::open(&path)), &["rope_freqs.weight", "frequency 2 by 1.5"]);
}

#[test]
fn models_that_are_not_supported() {
    let open = |file: &Gguf| {
        let (_folder, path) = file.write();
        message(Source::open(&path))
    };
    let (llama, _) = model("llama");
    let mut unknown = Gguf::default();
    says(
        &open(unknown.text("general.architecture", "rwkv6")),
        &["model.gguf", "\"rwkv6\"", "known: gpt2, llama"],
    );
    says(&open(&Gguf::default()), &["general.architecture is missing"]);
    says(&open(llama.clone().u32("llama.expert_count", 8)), &["experts"]);
    says(&open(llama.clone().u32("llama.attention.sliding_window", 64)), &["sliding window of 64"]);
    says(&open(llama.clone().f32("llama.logit_scale", 2.0)), &["llama.logit_scale"]);
    says(
        &open(llama.clone().f32_tensor("blk.0.extra.weight", &[1], &[1.0])),
        &["unexpected tensor \"blk.0.extra.weight\""],
    );
    says(&open(llama.clone().tensor("x", &[256], 14, &[0; 210])), &["tensor \"x\"", "Q6_K", "known: F32"]);
    says(&open(&gguf_keys("llama")), &["token_embd.weight"]);
    let mut few = gguf_keys("llama");
    few.f32_tensor("token_embd.weight", &[9, 32], &normals(0, 288));
    says(&open(&few), &["1 layers", "1 tensors"]);
    let (_folder, path) = llama.write();
    says(&message(Source::open(&path).unwrap().tokenizer()), &["tokenizer.ggml.model is missing"]);
}

#[test]
fn headers_that_lie() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        message(GgufFile::open(&path))
    };
    let head = |version: u32, tensors: u64, keys: u64, rest: &[u8]| {
        open(
            &[b"GGUF", &version.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), rest]
                .concat(),
        )
    };
    says(&open(b""), &["magic number", "0 left"]);
    says(&open(b"GGML\x03\0\0\0"), &["no GGUF file"]);
    says(&open(b"GGUF\x03\0"), &["version", "needs 4 bytes, the file has 2"]);
    says(&head(1, 0, 0, &[]), &["version 1", "versions 2 and 3"]);
    says(&head(3u32.swap_bytes(), 0, 0, &[]), &["big-endian"]);
    says(&head(3, u64::MAX, 0, &[0; 64]), &["number of tensors is 18446744073709551615"]);
    says(&head(3, 0, 1 << 60, &[0; 64]), &["number of metadata keys is 1152921504606846976"]);
    says(&head(3, 0, 1, &[0xff; 16]), &["name of metadata key 0 is 18446744073709551615"]);
    says(
        &head(3, 0, 1, &[gguf_text("\u{0}k"), vec![77, 0, 0, 0], vec![0; 9]].concat()),
        &["unknown kind 77"],
    );
    let key = |kind: u32, value: &[u8]| {
        [gguf_text("some.key"), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
    };
    says(&head(3, 0, 1, &key(8, &[&9u64.to_le_bytes()[..], b"short"].concat())), &["\"some.key\" is 9"]);
    says(
        &head(3, 0, 1, &key(8, &[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())),
        &["\"some.key\" is not UTF-8"],
    );
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    says(
        &head(3, 0, 1, &key(9, &array(4, 1 << 61))),
        &["\"some.key\" is 2305843009213693952, more than fit"],
    );
    says(
        &head(3, 0, 1, &key(9, &[array(9, 1).repeat(8), vec![0; 64]].concat())),
        &["nests arrays deeper than 4"],
    );
    says(&head(3, 0, 2, &[key(0, &[1]), key(0, &[1])].concat()), &["\"some.key\" appears twice"]);

    let file = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::default();
        change(&mut file);
        open(&file.bytes())
    };
    says(
        &file(&|f| {
            f.u32("general.alignment", 24);
        }),
        &["general.alignment is Some(24)"],
    );
    says(
        &file(&|f| {
            f.info("a", &[4], 99, 0);
        }),
        &["tensor \"a\"", "number 99"],
    );
    says(
        &file(&|f| {
            f.info("a", &[1, 1, 1, 1, 1], 0, 0);
        }),
        &["tensor \"a\" has 5 axes"],
    );
    says(
        &file(&|f| {
            f.info("a", &[2, 33], 2, 0);
        }),
        &["tensor \"a\"", "33", "Q4_0 blocks of 32"],
    );
    says(
        &file(&|f| {
            f.info("a", &[1 << 40, 1 << 40], 0, 0);
        }),
        &["tensor \"a\"", "more than any memory"],
    );
    says(
        &file(&|f| {
            f.info("a", &[4], 0, 7);
        }),
        &["tensor \"a\": offset 7", "alignment 32"],
    );
    says(
        &file(&|f| {
            f.info("a", &[4], 0, 32);
        }),
        &["tensor \"a\" lies at bytes 32..48", "has 0"],
    );
    says(
        &file(&|f| {
            f.info("a", &[4], 0, u64::MAX - 31);
        }),
        &["tensor \"a\" lies at bytes 18446744073709551584"],
    );
    let two = |f: &mut Gguf, name: &str, at: u64| {
        f.tensor("a", &[16], 0, &[0; 64]).info(name, &[8], 0, at);
    };
    says(&file(&|f| two(f, "b", 32)), &["tensors \"a\" and \"b\" overlap"]);
    says(&file(&|f| two(f, "a", 64)), &["tensor \"a\" lies at bytes 64..96"]);
    says(
        &file(&|f| {
            f.f32_tensor("a", &[8], &[0.0; 8]).f32_tensor("a", &[8], &[0.0; 8]);
        }),
        &["\"a\" appears twice"],
    );
    let (model, _) = model("llama");
    let whole = model.bytes();
    says(&open(&whole[..whole.len() - 33]), &["lies at bytes", "incomplete"]);
}

#[test]
fn keys_of_the_wrong_kind() {
    let open = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::default();
        file.text("general.architecture", "llama");
        change(&mut file);
        let (_folder, path) = file.write();
        message(Source::open(&path))
    };
    says(
        &open(&|f| {
            f.text("llama.context_length", "many");
        }),
        &["llama.context_length is not a whole number"],
    );
    says(
        &open(&|f| {
            f.key("llama.context_length", 5, &(-4i32).to_le_bytes());
        }),
        &["llama.context_length is -4"],
    );
    let (mut file, _) = model("qwen2");
    file.f32("qwen2.rope.scaling.factor", f32::NAN);
    let (_folder, path) = file.write();
    says(&message(Source::open(&path)), &["qwen2.rope.scaling.factor is NaN"]);
}
