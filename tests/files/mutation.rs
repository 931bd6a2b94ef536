//! Readers against damaged files: thousands of mutations of valid files and of headers known to be bad. None may panic,
//! hang, or hold more memory than a small multiple of the file.
//!
//! Everything follows from the case's number, so a failure can be repeated: its message names the number and the file
//! that was kept. LATCH_MUTATIONS sets the number of cases for each reader.

use super::{
    Gguf, gguf_keys, gguf_text, llama_json, normals, parse, safetensors_bytes, tensors, with_header,
};
use crate::allocation::most_held;
use latch::base::rng::{Draws, Purpose, StreamKey};
use latch::model::gguf::GgufFile;
use latch::model::safetensors_file::SafetensorsFile;
use latch::model::weights::Source;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Longest time one case may take.
const TIME: Duration = Duration::from_secs(10);
/// Most memory one case may hold: this many times the file, and a constant for messages and small tables.
const FACTOR: usize = 32;
const CONSTANT: usize = 256 << 10;

fn cases() -> u32 {
    match std::env::var("LATCH_MUTATIONS") {
        Ok(text) => text.parse().expect("LATCH_MUTATIONS is a number"),
        Err(_) => 2500,
    }
}

/// Numbers that headers get wrong.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    31,
    33,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 48,
    (1 << 61) - 1,
    1 << 63,
    u64::MAX,
];

/// Texts that JSON and names get wrong.
const TEXTS: [&str; 14] = [
    "-1",
    "1e999",
    "18446744073709551615",
    "99999999999999999999999",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "0.5",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "\u{0}",
    "\\ud800",
];

/// Damages `bytes`, mostly near the beginning, where headers are.
fn mutate(bytes: &mut Vec<u8>, draws: &mut Draws) {
    for _ in 0..1 + draws.below(4) {
        let reach = if draws.below(4) == 0 { bytes.len() } else { bytes.len().min(2500) };
        if reach == 0 {
            return;
        }
        let at = draws.below(reach);
        match draws.below(10) {
            0 | 1 => bytes[at] ^= 1 << draws.below(8),
            2 => bytes[at] = draws.below(256) as u8,
            3 => bytes.truncate(at),
            4 => {
                let number = NUMBERS[draws.below(NUMBERS.len())].to_le_bytes();
                let width = if draws.below(2) == 0 { 4 } else { 8 };
                for (byte, new) in bytes[at..].iter_mut().zip(&number[..width]) {
                    *byte = *new;
                }
            }
            5 => {
                // The length fields at the front of both formats.
                let at = [0, 4, 8, 16][draws.below(4)];
                let number = NUMBERS[draws.below(NUMBERS.len())].to_le_bytes();
                for (byte, new) in bytes.iter_mut().skip(at).zip(number) {
                    *byte = new;
                }
            }
            6 => {
                let end = (at + draws.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            7 => {
                let end = (at + draws.below(200)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = draws.below(reach);
                bytes.splice(to..to, piece);
            }
            8 => {
                // A number of the text becomes another one.
                let start = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit());
                if let Some(start) = start {
                    let length = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                    let text = match draws.below(2) {
                        0 => TEXTS[draws.below(TEXTS.len())].to_string(),
                        _ => NUMBERS[draws.below(NUMBERS.len())].to_string(),
                    };
                    bytes.splice(start..start + length, text.bytes());
                }
            }
            _ => {
                let text = TEXTS[draws.below(TEXTS.len())];
                bytes.splice(at..at, text.bytes());
            }
        }
    }
}

/// Reads everything a file offers, as a model would.
fn read_source(path: &Path) {
    let Ok(source) = Source::open(path) else { return };
    for (index, parameter) in source.parameters().iter().enumerate() {
        // No larger than the file's own tensors: opening has compared the shapes.
        let mut out = vec![0f32; parameter.shape.elements()];
        let _ = source.load(index, &mut out);
    }
    let _ = source.tokenizer();
    let _ = source.chat_template();
    let _ = source.stop_tokens();
}

/// Runs `read` on the damaged form of each file for every case, in a thread that reports before each case.
fn run(name: &'static str, purpose_seed: u64, files: Vec<Vec<u8>>, read: fn(&Path, &[u8])) {
    let (report, reports) = mpsc::channel::<(u32, Result<(), String>)>();
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().to_path_buf();
    let count = cases();
    let worker = std::thread::spawn(move || {
        for case in 0..count {
            let mut draws = StreamKey::new(purpose_seed, 0, case, 0, Purpose::Probe).draws(0, 0);
            let mut bytes = files[case as usize % files.len()].clone();
            // The first round takes the files as they are: valid ones, and headers known to be bad.
            if case as usize >= files.len() {
                mutate(&mut bytes, &mut draws);
            }
            let result = one(&work, &bytes, read).map_err(|problem| {
                let kept = keep(name, case, &bytes);
                format!("{name} case {case}: {problem}; the file is {}", kept.display())
            });
            if report.send((case, result)).is_err() {
                return;
            }
        }
    });
    for case in 0..count {
        match reports.recv_timeout(TIME) {
            Ok((_, result)) => result.unwrap_or_else(|problem| panic!("{problem}")),
            Err(_) => panic!("{name} case {case} has not ended after {TIME:?}"),
        }
    }
    worker.join().unwrap();
}

fn one(work: &Path, bytes: &[u8], read: fn(&Path, &[u8])) -> Result<(), String> {
    let limit = FACTOR * bytes.len() + CONSTANT;
    let (result, most) = most_held(|| catch_unwind(AssertUnwindSafe(|| read(work, bytes))));
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        return Err(format!("panicked: {}", text.unwrap_or_default()));
    }
    if most > limit {
        return Err(format!("held {most} bytes for a file of {}, allowed are {limit}", bytes.len()));
    }
    Ok(())
}

/// Writes a new file: one that was cut to nothing first would be flushed to the disk each time.
fn replace(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

/// Writes a file that all cases share.
fn once(path: &Path, bytes: impl Fn() -> Vec<u8>) {
    if !path.exists() {
        fs::write(path, bytes()).unwrap();
    }
}

fn keep(name: &str, case: u32, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutation-{name}-{case}"));
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn safetensors_files() {
    let config = parse(llama_json()).unwrap();
    let valid = safetensors_bytes(&tensors(&config));
    let entry = |offsets: &str| format!("{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{offsets}}}");
    let files = vec![
        valid,
        with_header(&format!("{{\"a\":{},\"b\":{}}}", entry("[0,8]"), entry("[4,12]")), &[0; 12]),
        with_header(&format!("{{\"a\":{}}}", entry("[0,18446744073709551615]")), &[0; 8]),
        with_header(
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
            &[],
        ),
        with_header(&format!("{{\"__metadata__\":{{\"k\":\"v\"}},\"a\":{}}}", entry("[0,8]")), &[0; 8]),
        with_header(&"[".repeat(50_000), &[]),
        with_header(&"{\"a\":".repeat(20_000), &[]),
        u64::MAX.to_le_bytes().to_vec(),
    ];
    run("safetensors", 1, files, |work, bytes| {
        once(&work.join("config.json"), || llama_json().to_string().into_bytes());
        let path = work.join("model.safetensors");
        replace(&path, bytes);
        if let Ok(file) = SafetensorsFile::open(&path) {
            for name in file.names() {
                let _ =
                    file.tensor(&name).map(|tensor| tensor.bytes.iter().map(|b| u64::from(*b)).sum::<u64>());
            }
        }
        read_source(work);
    });
}

#[test]
fn config_files() {
    let mut rope = llama_json();
    rope["rope_parameters"] = serde_json::json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let files = vec![
        llama_json().to_string().into_bytes(),
        rope.to_string().into_bytes(),
        super::gpt2_json().to_string().into_bytes(),
        b"[".repeat(100_000),
        b"{\"a\":".repeat(50_000),
        Vec::new(),
    ];
    run("config", 2, files, |work, bytes| {
        let weights = || safetensors_bytes(&tensors(&parse(llama_json()).unwrap()));
        once(&work.join("model.safetensors"), weights);
        replace(&work.join("config.json"), bytes);
        read_source(work);
    });
}

#[test]
fn index_files() {
    let index = br#"{"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    run("index", 3, vec![index.to_vec(), b"{\"weight_map\":{".to_vec()], |work, bytes| {
        for (file, tensor) in
            [("model-00001-of-00002.safetensors", "a"), ("model-00002-of-00002.safetensors", "b")]
        {
            once(&work.join(file), || safetensors_bytes(&[super::Raw::f32(tensor, &[1], &[0.0])]));
        }
        once(&work.join("config.json"), || llama_json().to_string().into_bytes());
        replace(&work.join("model.safetensors.index.json"), bytes);
        read_source(work);
    });
}

/// A small but whole model with a tokenizer of either kind.
fn gguf_model(sentence_piece: bool) -> Gguf {
    let mut file = gguf_keys("llama");
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "\u{2581}a", "<0x41>"];
    let list = |kind: u32, values: Vec<Vec<u8>>| (kind, values);
    file.texts("tokenizer.ggml.tokens", &tokens);
    let (kind, values) =
        list(5, [2i32, 3, 3, 1, 1, 1, 1, 1, 6].iter().map(|k| k.to_le_bytes().to_vec()).collect());
    file.list("tokenizer.ggml.token_type", kind, &values);
    if sentence_piece {
        file.text("tokenizer.ggml.model", "llama");
        let (kind, values) = list(6, (0..9).map(|i| (-(i as f32)).to_le_bytes().to_vec()).collect());
        file.list("tokenizer.ggml.scores", kind, &values);
    } else {
        file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "llama-bpe");
        file.texts("tokenizer.ggml.merges", &["a b"]);
    }
    file.text("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}");
    file.f32_tensor("token_embd.weight", &[9, 32], &normals(0, 288));
    for (name, shape, kind, bytes) in [
        ("output_norm", vec![32], 0u32, 128),
        ("blk.0.attn_norm", vec![32], 0, 128),
        ("blk.0.ffn_norm", vec![32], 0, 128),
        ("blk.0.attn_q", vec![64, 32], 8, 64 * 34),
        ("blk.0.attn_k", vec![32, 32], 2, 32 * 18),
        ("blk.0.attn_v", vec![32, 32], 3, 32 * 20),
        ("blk.0.attn_output", vec![32, 64], 1, 32 * 64 * 2),
        ("blk.0.ffn_gate", vec![64, 32], 30, 64 * 32 * 2),
        ("blk.0.ffn_up", vec![64, 32], 2, 64 * 18),
        ("blk.0.ffn_down", vec![32, 64], 8, 64 * 34),
    ] {
        file.tensor(&format!("{name}.weight"), &shape, kind, &vec![0x11; bytes]);
    }
    file
}

#[test]
fn gguf_files() {
    let head = |rest: &[u8]| [b"GGUF\x03\0\0\0", rest].concat();
    let mut nested = head(&[[0u8; 8], 1u64.to_le_bytes()].concat());
    nested.extend(gguf_text("k"));
    nested.extend(9u32.to_le_bytes());
    nested.extend([&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(5000));
    let files = vec![
        gguf_model(false).bytes(),
        gguf_model(true).bytes(),
        head(&[0xff; 16]),
        head(&[[0u8; 8], [0xff; 8]].concat()),
        nested,
    ];
    run("gguf", 4, files, |work, bytes| {
        let path = work.join("model.gguf");
        replace(&path, bytes);
        if let Ok(file) = GgufFile::open(&path) {
            for index in 0..file.tensors().len() {
                let _ = file.tensor(index).bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
            }
        }
        read_source(&path);
    });
}

#[test]
fn the_undamaged_files_are_whole() {
    for sentence_piece in [false, true] {
        let (_folder, path) = gguf_model(sentence_piece).write();
        let source = Source::open(&path).unwrap();
        source.tokenizer().unwrap();
        for (index, parameter) in source.parameters().iter().enumerate() {
            source.load(index, &mut vec![0f32; parameter.shape.elements()]).unwrap();
        }
    }
}
