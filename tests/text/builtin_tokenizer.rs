//! The built-in tokenizer: exact round trips, whole words, pieces that join.

use super::problems;
use latch::text::{
    END_OF_TEXT, LATENT, LatentTokens, Tokenizer, UNKNOWN, WordProblems, builtin_files, builtin_tokenizer,
};
use std::path::Path;

#[test]
fn every_problem_comes_back_exactly() {
    let tokenizer = builtin_tokenizer().unwrap();
    let unknown = tokenizer.required_id(UNKNOWN).unwrap();
    let end = tokenizer.required_id(END_OF_TEXT).unwrap();
    assert_eq!(end, 0);
    for problem in problems(2000) {
        let text = problem.text();
        let ids = tokenizer.encode(&text, true).unwrap();
        assert!(!ids.contains(&unknown), "{text}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let mut stream = tokenizer.stream(true);
        let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        streamed.push_str(&stream.finish().unwrap());
        assert_eq!(streamed, text);
        problem.check_pieces(&tokenizer, end).unwrap();
    }
    assert!((300..900).contains(&tokenizer.vocab_size()), "{} tokens", tokenizer.vocab_size());
    assert_eq!(tokenizer.id_bound(), tokenizer.vocab_size());
}

#[test]
fn words_numbers_and_marks_are_single_tokens() {
    let tokenizer = builtin_tokenizer().unwrap();
    let pieces = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, false).unwrap();
        ids.into_iter().map(|id| tokenizer.token(id).unwrap()).collect()
    };
    assert_eq!(pieces("Ann has 12 apples."), ["Ann", " has ", "12", " apples", "."]);
    assert_eq!(pieces("<<12+345=357>>\n"), ["<<", "12", "+", "34", "5", "=", "35", "7", ">>", "\n"]);
    assert_eq!(pieces("### 7<|endoftext|>"), ["### ", "7", END_OF_TEXT]);
    assert_eq!(pieces("?<|latent|><|latent|>Every zumpus"), ["?", LATENT, LATENT, "Every", " zumpus"]);
    assert_eq!(pieces("é"), [UNKNOWN]);
    // Special tokens are left away on request, Coconut's are ordinary.
    let ids = tokenizer.encode("### 7<|latent|><|endoftext|>", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "### 7<|latent|>");
    let mut same = tokenizer.clone();
    LatentTokens::add(&mut same).unwrap();
    assert_eq!(same.vocab_size(), tokenizer.vocab_size());
}

#[test]
fn the_files_of_a_folder_are_the_same_tokenizer() {
    let tokenizer = builtin_tokenizer().unwrap();
    let files = builtin_files(&tokenizer).unwrap();
    assert_eq!(
        files.iter().map(|file| file.0.as_str()).collect::<Vec<_>>(),
        ["tokenizer.json", "tokenizer_config.json"]
    );
    let again = Tokenizer::from_bytes(&files[0].1, Path::new("tokenizer.json")).unwrap();
    let mut samples = Vec::new();
    for problem in problems(20) {
        let (text, ids) = (problem.text(), tokenizer.encode(&problem.text(), true).unwrap());
        assert_eq!(again.encode(&text, true).unwrap(), ids);
        samples.push(serde_json::json!({"text": text, "ids": ids}));
    }
    // Left for a look with transformers: AutoTokenizer.from_pretrained(folder) must give the same ids and text.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("builtin_tokenizer");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, contents) in &files {
        std::fs::write(folder.join(name), contents).unwrap();
    }
    std::fs::write(folder.join("samples.json"), serde_json::Value::from(samples).to_string()).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&files[1].1).unwrap();
    assert_eq!(settings["eos_token"], END_OF_TEXT);
}

#[test]
fn pieces_that_do_not_join_are_shown() {
    // A tokenizer for which the end of a line and what follows it are one token.
    let json = r####"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "\n": 1, "#": 2,
        " ": 3, "\n#": 4}, "merges": [["\n", "#"]]}, "decoder": {"type": "Fuse"}}"####;
    let tokenizer = Tokenizer::from_bytes(json.as_bytes(), Path::new("tokenizer.json")).unwrap();
    let text = |text: &str| text.to_string();
    let problem = latch::text::Problem { question: text("a"), steps: vec![], answer: text("a") };
    let error = problem.check_pieces(&tokenizer, 0).unwrap_err().to_string();
    assert!(error.contains(r#"token 1 is 1 "\n" in the pieces, 4 "\n#" in the whole"#), "{error}");
    let problem = WordProblems::default().problem(0, 0).unwrap();
    problem.check_pieces(&builtin_tokenizer().unwrap(), 0).unwrap();
}
