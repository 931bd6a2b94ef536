//! Tokenizers: from files and from GGUF parts, streaming, added and missing tokens, damaged files.

use super::{Gguf, gguf_keys, gguf_text, message, normals, says};
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::model::Precision;
use latch::model::weights::Source;
use latch::run::student::Student;
use latch::text::Tokenizer;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A byte-level BPE over single bytes with a few merges.
fn byte_level() -> Value {
    // GPT-2's printable stand-ins for bytes.
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let stand_in = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocab.insert(char::from_u32(stand_in).unwrap().to_string(), json!(byte));
    }
    for (i, token) in ["he", "ll", "hell", "hello", "Ġw"].iter().enumerate() {
        vocab.insert(token.to_string(), json!(256 + i));
    }
    json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": ["h e", "l l", "he ll", "hell o", "Ġ w"]}})
}

fn read(json: &Value) -> latch::base::Result<Tokenizer> {
    Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("tokenizer.json"))
}

#[test]
fn nothing_is_cut_off() {
    let tokenizer = read(&byte_level()).unwrap();
    // The file asks for two tokens at most.
    assert_eq!(tokenizer.encode("hello worldly", true).unwrap().len(), 8);
    assert_eq!(tokenizer.encode("hello w", true).unwrap(), [259, 260]);
}

#[test]
fn a_stream_of_any_bytes_gives_the_same_text() {
    let tokenizer = read(&byte_level()).unwrap();
    let whole = "a😀é漢\u{fffd}b".repeat(3);
    let mut draws = StreamKey::new(3, 0, 0, 0, Purpose::Probe).draws(0, 0);
    let mut cases = vec![tokenizer.encode(&whole, false).unwrap()];
    cases.extend((0..200).map(|_| {
        let length = draws.below(40);
        // Half of them from the bytes of multi-byte characters, so that broken ones are frequent.
        (0..length)
            .map(|_| if draws.below(2) == 0 { 128 + draws.below(128) } else { draws.below(261) } as u32)
            .collect()
    }));
    for ids in cases {
        let mut stream = tokenizer.stream(false);
        let mut text = String::new();
        for id in &ids {
            text.push_str(&stream.push(*id).unwrap());
        }
        text.push_str(&stream.finish().unwrap());
        assert_eq!(text, tokenizer.decode(&ids, false).unwrap(), "{ids:?}");
    }
    // Whole characters come at once.
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<String> =
        tokenizer.encode("é!", false).unwrap().into_iter().map(|id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "!"]);
}

#[test]
fn added_tokens_get_the_next_ids_and_are_found_in_text() {
    let mut tokenizer = read(&byte_level()).unwrap();
    let text = message(tokenizer.required_id("<|latent|>"));
    says(&text, &["tokenizer", "no token `<|latent|>`", "resize"]);
    let names = ["<|start-latent|>", "<|end-latent|>", "<|latent|>"];
    assert_eq!(tokenizer.add_tokens(&names, false).unwrap(), [261, 262, 263]);
    assert_eq!(tokenizer.add_tokens(&names, false).unwrap(), [261, 262, 263]);
    assert_eq!(tokenizer.add_tokens(&["<|end|>"], true).unwrap(), [264]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.id_bound()), (265, 265));
    let ids = tokenizer.encode("hello<|latent|><|end|>", true).unwrap();
    assert_eq!(ids, [259, 263, 264]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello<|latent|>");
    let again = Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes(), Path::new("t")).unwrap();
    assert_eq!(again.encode("hello<|latent|><|end|>", true).unwrap(), ids);
    assert_eq!(again.token(263).as_deref(), Some("<|latent|>"));
}

#[test]
fn damaged_files_are_refused() {
    says(
        &message(Tokenizer::from_file(Path::new("/nowhere/tokenizer.json"))),
        &["/nowhere/tokenizer.json", "cannot open"],
    );
    says(&message(Tokenizer::from_bytes(b"{", Path::new("t.json"))), &["t.json", "not valid JSON"]);
    says(&message(read(&json!({"model": {}}))), &["tokenizer.json", "no tokenizer"]);
    let mut json = byte_level();
    json["model"]["merges"] = json!(["hello hello"]);
    says(&message(read(&json)), &["hello hello", "not in the vocabulary"]);
    json["model"]["merges"] = json!([["h", "o"]]);
    says(&message(read(&json)), &["no tokenizer", "out of vocabulary"]);
    json["model"]["merges"] = json!([7]);
    says(&message(read(&json)), &["merge 7"]);
}

/// A file with a tokenizer of the SentencePiece kind.
/// Changes the tokens, scores and types of a vocabulary.
type Change<'a> = &'a dyn Fn(&mut Vec<String>, &mut Vec<f32>, &mut Vec<u32>);

fn sentence_piece(change: Change) -> Gguf {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut kinds: Vec<u32> = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    let pieces = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "abc"];
    tokens.extend(pieces.map(String::from));
    kinds.extend([1; 9]);
    let mut scores = vec![0f32; tokens.len()];
    // Letters are never made by merging; the better the score, the earlier the merge.
    scores[259..].copy_from_slice(&[-10.0, -10.0, -10.0, -10.0, -3.0, -1.0, -4.0, -5.0, -2.0]);
    change(&mut tokens, &mut scores, &mut kinds);
    let mut file = gguf_keys("llama");
    file.text("tokenizer.ggml.model", "llama").u32("tokenizer.ggml.unknown_token_id", 0);
    file.list("tokenizer.ggml.tokens", 8, &tokens.iter().map(|t| gguf_text(t)).collect::<Vec<_>>());
    file.list(
        "tokenizer.ggml.scores",
        6,
        &scores.iter().map(|s| s.to_le_bytes().to_vec()).collect::<Vec<_>>(),
    );
    file.list(
        "tokenizer.ggml.token_type",
        5,
        &kinds.iter().map(|k| k.to_le_bytes().to_vec()).collect::<Vec<_>>(),
    );
    file
}

/// The tokenizer of a file that has just enough of a model to open.
fn gguf_tokenizer(file: &Gguf) -> latch::base::Result<Tokenizer> {
    let mut file = file.clone();
    file.f32_tensor("token_embd.weight", &[9, 32], &normals(0, 288)).f32_tensor(
        "output_norm.weight",
        &[32],
        &[1.0; 32],
    );
    for (name, shape) in [
        ("attn_norm", vec![32]),
        ("ffn_norm", vec![32]),
        ("attn_q", vec![64, 32]),
        ("attn_k", vec![32, 32]),
        ("attn_v", vec![32, 32]),
        ("attn_output", vec![32, 64]),
        ("ffn_gate", vec![64, 32]),
        ("ffn_up", vec![64, 32]),
        ("ffn_down", vec![32, 64]),
    ] {
        file.f32_tensor(&format!("blk.0.{name}.weight"), &shape, &normals(1, shape.iter().product()));
    }
    let (_folder, path) = file.write();
    Source::open(&path).unwrap().tokenizer()
}

#[test]
fn sentence_piece_merges_the_best_score_first() {
    let tokenizer = gguf_tokenizer(&sentence_piece(&|_, _, _| {})).unwrap();
    let id = |token: &str| tokenizer.id(token).unwrap();
    // " abc": bc (-1), then a + bc = abc (-2), then nothing joins the space to it.
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, id("▁"), id("abc")]);
    // " ab": ab (-3) before ▁a (-4), then ▁ + ab (-5).
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [id("▁ab")]);
    // Unknown characters in bytes; the text comes back without the space that was put before it.
    let ids = tokenizer.encode("é b", false).unwrap();
    assert_eq!(ids, [id("▁"), id("<0xC3>"), id("<0xA9>"), id("▁"), id("b")]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "é b");
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces, ["", "", "", "é ", "b"]);
    let mut plain = sentence_piece(&|_, _, _| {});
    plain.key("tokenizer.ggml.add_space_prefix", 7, &[0]).key("tokenizer.ggml.add_bos_token", 7, &[0]);
    let plain = gguf_tokenizer(&plain).unwrap();
    assert_eq!(plain.encode("ab", true).unwrap(), [id("ab")]);
}

/// A run of byte tokens that is no UTF-8 as a whole decodes to one replacement character a byte, also those of its bytes
/// that were whole characters before the run went on.
#[test]
fn a_stream_of_byte_tokens_gives_the_same_text() {
    let tokenizer = gguf_tokenizer(&sentence_piece(&|_, _, _| {})).unwrap();
    let byte = |byte: u8| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap();
    let (letter, special) = (tokenizer.id("b").unwrap(), 1);
    let mut cases = vec![
        vec![letter, byte(b'-'), byte(0xff), letter],
        vec![byte(0xc3), byte(0xa9), byte(0xc3), letter],
        vec![byte(b'-'), special, byte(0xff)],
        vec![letter, byte(0xe2), byte(0x82)],
    ];
    let mut draws = StreamKey::new(4, 0, 0, 0, Purpose::Probe).draws(0, 0);
    cases.extend((0..300).map(|_| {
        let token = |kind: usize, draw: usize| match kind {
            0 => letter,
            1 => special,
            2 => byte(b'-'),
            3 => byte(128 + (draw % 128) as u8),
            _ => 259 + (draw % 9) as u32,
        };
        (0..draws.below(30)).map(|_| token(draws.below(5), draws.below(256))).collect()
    }));
    for ids in cases {
        let mut stream = tokenizer.stream(true);
        let mut text = String::new();
        for id in &ids {
            text.push_str(&stream.push(*id).unwrap());
        }
        text.push_str(&stream.finish().unwrap());
        assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "{ids:?}");
    }
}

#[test]
fn vocabularies_that_contradict_themselves() {
    let text = message(gguf_tokenizer(&sentence_piece(&|tokens, _, _| tokens[260] = "b".into())));
    says(&text, &["model.gguf", "tokens 260 and 261 are both \"b\""]);
    says(
        &message(gguf_tokenizer(&sentence_piece(&|_, scores, _| scores.truncate(267)))),
        &["scores has 267 entries for 268"],
    );
    let text = message(gguf_tokenizer(&sentence_piece(&|_, _, kinds| kinds.truncate(5))));
    says(&text, &["token_type has 5 entries for 268 tokens"]);
    let mut file = gguf_keys("llama");
    file.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", &["a", "b", "ab"]);
    file.texts("tokenizer.ggml.merges", &["a b"]);
    says(&message(gguf_tokenizer(&file)), &["tokenizer.ggml.pre is missing"]);
    says(
        &message(gguf_tokenizer(file.clone().text("tokenizer.ggml.pre", "klingon"))),
        &["\"klingon\" is unknown", "qwen2"],
    );
    assert_eq!(
        gguf_tokenizer(file.clone().text("tokenizer.ggml.pre", "qwen2")).unwrap().encode("ab", true).unwrap(),
        [2]
    );
    let mut file = gguf_keys("llama");
    file.text("tokenizer.ggml.model", "bert").texts("tokenizer.ggml.tokens", &["a"]);
    says(&message(gguf_tokenizer(&file)), &["\"bert\" is unknown", "gpt2, llama"]);
}

#[test]
fn a_model_without_a_tokenizer_says_so() {
    let folder =
        super::folder(&super::llama_json(), &super::tensors(&super::parse(super::llama_json()).unwrap()));
    let source = Source::open(folder.path()).unwrap();
    says(&message(source.tokenizer()), &["tokenizer.json", "cannot open"]);
    fs::write(folder.path().join("tokenizer.json"), byte_level().to_string()).unwrap();
    assert_eq!(source.tokenizer().unwrap().id_bound(), 261);
}

/// As transformers 5.23.0 generates, whose stops were compared for all of these: where there is a generation_config.json it
/// alone says what ends a text, and one without the key, or with null, says that nothing does.
#[test]
fn a_generation_config_decides_alone_what_ends_a_text() {
    let mut json = super::llama_json();
    json["eos_token_id"] = json!(3);
    let folder = super::folder(&json, &super::tensors(&super::parse(json.clone()).unwrap()));
    fs::write(folder.path().join("tokenizer.json"), byte_level().to_string()).unwrap();
    let source = Source::open(folder.path()).unwrap();
    assert_eq!(source.stop_tokens().unwrap(), [3], "no file: config.json says it");
    let stops = |text: &str| {
        fs::write(folder.path().join("generation_config.json"), text).unwrap();
        source.stop_tokens()
    };
    assert_eq!(stops("{\"eos_token_id\": [2, 7]}").unwrap(), [2, 7]);
    says(&message(stops("{\"eos_token_id\": \"x\"}")), &["generation_config.json", "\"x\""]);
    says(&message(stops("[]")), &["generation_config.json", "holds [], expected an object"]);
    for none in ["{\"eos_token_id\": null}", "{\"eos_token_id\": []}", "{\"_from_model_config\": true}"] {
        assert_eq!(stops(none).unwrap(), [0; 0], "{none}");
        // Lessons end with the token of config.json all the same.
        let student = Student::load(folder.path(), &Device::cpu(), Precision::F32).unwrap();
        assert_eq!(student.markers.stop, 3, "{none}");
    }
}
