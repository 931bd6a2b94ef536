//! Models that are given the tokens of the curriculum.

use super::*;
use latch::model::save::Companions;
use latch::run::recipe::Recipe;
use latch::run::settings;
use latch::run::student::Student;
use latch::text::{END_OF_TEXT, MARKER_TOKENS, builtin_files, builtin_tokenizer, initial_row_token};

/// A model whose vocabulary is `padding` rows larger than its tokenizer's, which knows none of the curriculum's tokens.
fn padded(padding: usize, tied: bool, folder: &Path) -> usize {
    let tokenizer = builtin_tokenizer().unwrap();
    let stop = tokenizer.required_id(END_OF_TEXT).unwrap();
    let config = serde_json::json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tokenizer.id_bound() + padding,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "rope_theta": 10000.0,
        "eos_token_id": stop,
    });
    let config = Config::from_json(config, Path::new("test")).unwrap();
    let model = Model::random(config, 7, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
    let mut files = builtin_files(&tokenizer).unwrap();
    for (_, contents) in &mut files {
        // The tokens that the built-in tokenizer has already are others here.
        let text = MARKER_TOKENS
            .iter()
            .enumerate()
            .fold(String::from_utf8(contents.clone()).unwrap(), |text, (n, name)| {
                text.replace(name, &format!("<|spare-{n}|>"))
            });
        *contents = text.into_bytes();
    }
    model.save(folder, &Companions::of_contents(files)).unwrap();
    tokenizer.id_bound()
}

/// Llama 3's models for conversations end their answers with another token than their texts.
#[test]
fn any_stop_token_of_a_model_ends_its_answers() {
    let home = tempfile::tempdir().unwrap();
    padded(0, true, home.path());
    let stops = |said: serde_json::Value| {
        let config = serde_json::json!({"eos_token_id": said}).to_string();
        std::fs::write(home.path().join("generation_config.json"), config).unwrap();
        let student = Student::load(home.path(), &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
        let curriculum = settings::curriculum(&Recipe::resolve(None, &[]).unwrap());
        let form = curriculum.form(3, 2, &student.markers, 8);
        assert_eq!(student.markers.stop, form.stop[0]);
        form.stop
    };
    assert_eq!(stops(serde_json::json!([5, 3, 9])), [5, 3, 9]);
    assert_eq!(stops(serde_json::json!(4)), [4]);
}

#[test]
fn new_tokens_begin_alike_whether_the_vocabulary_was_padded_or_not() {
    let home = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        // Room for none, for some, and for more than are added.
        for padding in [0, 2, 9] {
            let folder = home.path().join(format!("{tied}-{padding}"));
            let known = padded(padding, tied, &folder);
            let read =
                |folder: &Path| Student::load(folder, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
            let student = read(&folder);
            let markers = student.markers;
            let like = initial_row_token(&student.tokenizer).unwrap_or(markers.stop) as usize;
            let before = Model::load(&folder, &Device::cpu(), Precision::of(Dtype::F32)).unwrap();
            let tables = student.model.parameters().iter().zip(before.parameters());
            let tables: Vec<_> = tables
                .filter(|(table, _)| table.shape().dims() == [student.model.config().vocab, 8])
                .collect();
            assert_eq!(tables.len(), if tied { 1 } else { 2 });
            for (table, before) in tables {
                let rows: Vec<f32> = table.download().unwrap();
                let row = |id: usize| &rows[id * 8..(id + 1) * 8];
                for id in [markers.start, markers.end, markers.pause] {
                    assert_eq!(row(id as usize), row(like), "{id} with padding {padding}");
                }
                // No other row has changed.
                let old: Vec<f32> = before.download().unwrap();
                assert_eq!(rows[..known * 8], old[..known * 8]);
                let rest = (known + 4) * 8;
                assert!(padding < 4 || rows[rest..] == old[rest..]);
            }
            // Its own folder is not that of the model any more; a model that knows the tokens stays as it is.
            assert_eq!(student.unchanged, None);
            let saved = home.path().join(format!("{tied}-{padding} again"));
            student.model.save(&saved, &student.companions).unwrap();
            let again = read(&saved);
            assert_eq!(again.unchanged, Some(saved));
            let bits = |model: &Model| -> Vec<Vec<f32>> {
                model.parameters().iter().map(|tensor| tensor.download().unwrap()).collect()
            };
            assert_eq!(bits(&again.model), bits(&student.model));
        }
    }
}
