//! Readers of data sets: small texts with every trap, then the real files where they are at hand.

use latch::text::datasets::{Dataset, Format, OnBad, SameQuestion, overlap, parse, read};
use latch::text::{Problem, Tokenizer, builtin_tokenizer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn failing(text: &str, format: Option<Format>) -> String {
    parse(Path::new("data.txt"), text, format, OnBad::Fail).unwrap_err().to_string()
}

fn parsed(text: &str) -> Dataset {
    parse(Path::new("data.txt"), text, None, OnBad::Fail).unwrap()
}

fn problem(question: &str, steps: &[&str], answer: &str) -> Problem {
    let steps = steps.iter().map(|step| step.to_string()).collect();
    Problem { question: question.into(), steps, answer: answer.into() }
}

const GSM8K: &str = r#"{"question": "How many?", "answer": "It is 2+3=<<2+3=5>>5.\nThen <<5*300=1500>>1500.\n#### 1,500"}
{"question": "And now?", "answer": "Nothing is annotated.\n#### 7"}
"#;
const ICOT: &str = "A\u{2028}b\u{85}c?||<<2+3=5>> <<5*2=10>> #### 10\r\nD?||#### 7";
const COCONUT: &str = "[{\"question\": \"Q\", \"steps\": [\"<<1+1=2>>\"], \"answer\": \"2,000\"},\n {\"question\":\"R\",\"steps\":[],\"answer\":\"no\",\"more\":1}]";
const PROSQA: &str = r#"[{"question": "Every a is a b. Is T a b or c?", "answer": "T is a b.", "steps": ["T is a a.", "Every a is a b."],
    "idx_to_symbol": ["T"], "edges": [[0, 1]], "root": 0, "target": 1, "neg_target": 2}]"#;
const SVAMP: &str = r#"[{"ID": "c", "Body": "He had 5 ", "Question": "How many?", "Equation": "( 76.0 - 25.5 )", "Answer": 50.50, "Type": "x"}]"#;
const MULTIARITH: &str =
    r#"[{"iIndex": 0, "lEquations": ["X"], "lSolutions": [39.0], "sQuestion": " How many? "}]"#;
const ASDIV: &str = r#"<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="n1" Grade="1"><Body>Tom &amp; Ann.</Body><Question>How many? </Question><Answer>9 (apples)</Answer></Problem>
<Problem ID="n2"><Body>B.</Body><Question>Q?</Question><Answer>5 (ft); 6 (ft)</Answer></Problem>
</ProblemSet></Machine-Reading-Corpus-File>"#;

#[test]
fn every_format_is_recognised_and_read() {
    let cases: [(&str, Format, Vec<Problem>); 7] = [
        (
            GSM8K,
            Format::Gsm8k,
            vec![
                problem("How many?", &["<<2+3=5>>", "<<5*300=1500>>"], "1500"),
                problem("And now?", &[], "7"),
            ],
        ),
        (
            ICOT,
            Format::Icot,
            vec![problem("A\u{2028}b\u{85}c?", &["<<2+3=5>>", "<<5*2=10>>"], "10"), problem("D?", &[], "7")],
        ),
        (COCONUT, Format::Coconut, vec![problem("Q", &["<<1+1=2>>"], "2000"), problem("R", &[], "no")]),
        (
            PROSQA,
            Format::ProsQa,
            vec![problem("Every a is a b. Is T a b or c?", &["T is a a.", "Every a is a b."], "T is a b.")],
        ),
        (SVAMP, Format::Svamp, vec![problem("He had 5 How many?", &[], "50.5")]),
        (MULTIARITH, Format::MultiArith, vec![problem("How many?", &[], "39")]),
        (
            ASDIV,
            Format::Asdiv,
            vec![problem("Tom & Ann. How many?", &[], "9"), problem("B. Q?", &[], "5; 6")],
        ),
    ];
    for (text, format, problems) in cases {
        for text in [text.to_string(), format!("\u{feff}{text}"), format!("{text}\n\n")] {
            let dataset = parsed(&text);
            assert_eq!((dataset.format, &dataset.problems), (format, &problems));
            assert!(dataset.skipped.is_empty());
            assert_eq!(parse(Path::new("x"), &text, Some(format), OnBad::Fail).unwrap(), dataset);
        }
        assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
    }
    let dataset = parsed(GSM8K);
    assert_eq!((dataset.without_steps(), dataset.without_number()), (1, 0));
    assert_eq!(parsed(ASDIV).without_number(), 1);
}

#[test]
fn bad_items_are_named_or_left_out() {
    let icot = "A?||<<1+1=2>> #### 2\n\nB? #### 3\nC?||<<1+1=2 #### 2\nD?||<<1+1=2>> and #### 2\nE?||<<1+1=2>> ### 2\nF?||#### \n||#### 4\nG?||#### 8";
    let gsm8k = "{\"question\": \"A\", \"answer\": \"#### 2\"}\n{\"question\": \"B\"}\n{\"question\": \"C\", \"answer\": \"2\"}\nnot json\n{\"question\": \"D\", \"answer\": \"<<1+1\\n#### 2\"}\n";
    let coconut = "[{\"question\":\"A\",\"steps\":[],\"answer\":\"1\"},\n\n{\"question\":\"B\",\"answer\":\"1\"}, 5,\n{\"question\":\"C\",\"steps\":[],\"answer\":2}]";
    let svamp = "[{\"Body\":\"A\",\"Question\":\"Q\",\"Answer\":1.0},\n{\"Body\":\"A\",\"Question\":\"Q\",\"Answer\":\"1\"},\n{\"Body\":\"A\"}]";
    let multiarith = "[{\"sQuestion\":\"A\",\"lSolutions\":[1.0]},\n{\"sQuestion\":\"A\",\"lSolutions\":[1.0,2.0]},\n{\"sQuestion\":\"A\"}]";
    let asdiv =
        ASDIV.replace("<Answer>9 (apples)</Answer>", "").replace("<Body>B.</Body>", "<Body>B.</Body>\n");
    // Text, good items, and for each bad one its line, item and words of the reason.
    type Bad = (usize, usize, &'static str);
    let cases: [(&str, usize, &[Bad]); 6] = [
        (
            icot,
            2,
            &[
                (3, 2, "no `||`"),
                (4, 3, "not closed: \"<<1+1=2 \""),
                (5, 4, "\" and \" stands between"),
                (6, 5, "no `####`"),
                (7, 6, "the answer is empty"),
                (8, 7, "the question is empty"),
            ],
        ),
        (
            gsm8k,
            1,
            &[
                (2, 2, "missing field `answer`"),
                (3, 3, "no `####`"),
                (4, 4, "expected an object"),
                (5, 5, "not closed"),
            ],
        ),
        (coconut, 1, &[(3, 2, "missing field `steps`"), (3, 3, "invalid type"), (4, 4, "invalid type")]),
        (svamp, 1, &[(2, 2, "Answer is \"1\", expected a number"), (3, 3, "Question is null")]),
        (multiarith, 1, &[(2, 2, "[1.0,2.0], expected an array of one"), (3, 3, "lSolutions is null")]),
        (&asdiv, 1, &[(3, 1, "problem n1 has no text in <Answer>")]),
    ];
    for (text, good, bad) in cases {
        let dataset = parse(Path::new("data.txt"), text, None, OnBad::Skip).unwrap();
        assert_eq!(dataset.problems.len(), good, "{text}");
        assert_eq!(dataset.skipped.len(), bad.len(), "{:?}", dataset.skipped);
        for (found, (line, item, reason)) in dataset.skipped.iter().zip(bad) {
            assert_eq!((found.line, found.item), (*line, *item), "{found}");
            assert!(found.reason.contains(reason), "{found}");
        }
        let error = failing(text, Some(dataset.format));
        let (line, item, reason) = bad[0];
        for words in ["data.txt", &format!("line {line} (item {item})"), reason, "--skip-bad"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}

#[test]
fn broken_files_are_refused_whatever_is_skipped() {
    let cases = [
        (
            "[{\"question\":\"A\",\"steps\":[],\"answer\":\"1\"},\n{\"question\":\n\"B\",]",
            "line 3: item 2 is not valid JSON",
        ),
        ("[{\"question\":\"A\",\"steps\":[],\"answer\":\"1\"}", "line 1: the end of the file after item 1"),
        ("[{\"question\":\"A\",\"steps\":[],\"answer\":\"1\"}\n {}]", "line 2: '{' after item 1"),
        ("[{\"question\":\"A\",\"steps\":[],\"answer\":\"1\"}]\n]", "line 2: ']' after the end"),
        ("<ProblemSet>\n<Problem>\n</ProblemSet>", "line 3: is not valid XML"),
        ("plain words\n", "begins with \"plain words\""),
        ("", "is empty"),
        ("\u{feff}\n\n", "is empty"),
        ("[]", "begins with \"[]\""),
        ("[{\"text\": \"A\"}]", "name the format if it is one of gsm8k, icot, coconut, prosqa, svamp"),
    ];
    for (text, words) in cases {
        let error = parse(Path::new("data.txt"), text, None, OnBad::Skip).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("data.txt"), "{error}");
    }
    let error = failing("[]", Some(Format::Coconut));
    assert!(error.contains("holds no problem in format coconut"), "{error}");
    let error = failing("{}", Some(Format::Svamp));
    assert!(error.contains("line 1: expected a JSON array"), "{error}");
    let error = "gsm".parse::<Format>().unwrap_err().to_string();
    assert!(error.contains("`gsm`") && error.contains("multiarith, asdiv"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.txt");
    std::fs::write(&path, b"a\nb\xe9||\n").unwrap();
    let error = read(&path, None, OnBad::Skip).unwrap_err().to_string();
    assert!(error.contains("line 2: is not UTF-8"), "{error}");
    let error = read(&folder.path().join("missing"), None, OnBad::Skip).unwrap_err().to_string();
    assert!(error.contains("cannot open"), "{error}");
}

#[test]
fn shared_questions_are_found() {
    let long = "word ".repeat(20);
    let train =
        [problem("A  b", &[], "1"), problem("C", &[], "1"), problem(&(long.clone() + "end"), &[], "1")];
    let valid =
        [problem("X", &[], "1"), problem(" A\u{2028}b\n", &[], "2"), problem(&(long + "other"), &[], "1")];
    assert_eq!(overlap(&train, &valid, SameQuestion::Whole), [(0, 1)]);
    assert_eq!(overlap(&train, &valid, SameQuestion::First80), [(0, 1), (2, 2)]);
    assert_eq!(overlap(&train, &[], SameQuestion::Whole), []);
}

/// The real files, which are not part of the repository: in `shared/data` of a folder above.
fn real(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path =
        root.ancestors().map(|folder| folder.join("shared/data").join(name)).find(|path| path.is_file());
    if path.is_none() {
        eprintln!("skipped: ../shared/data/{name} is not there");
    }
    path
}

#[test]
fn real_files_have_the_published_counts() {
    // File, format, problems, with steps, with a number as answer.
    let files = [
        ("gsm8k/train.jsonl", Format::Gsm8k, 7473, 7378, 7473),
        ("gsm8k/test.jsonl", Format::Gsm8k, 1319, 1301, 1319),
        ("icot-gsm8k/valid.txt", Format::Icot, 500, 494, 500),
        ("icot-gsm8k/test.txt", Format::Icot, 1319, 1301, 1319),
        ("prosqa/prosqa_valid.json", Format::ProsQa, 300, 300, 0),
        ("prosqa/prosqa_test.json", Format::ProsQa, 500, 500, 0),
        ("svamp/SVAMP.json", Format::Svamp, 1000, 0, 1000),
        ("multiarith/MultiArith.json", Format::MultiArith, 600, 0, 600),
        ("asdiv/ASDiv.xml", Format::Asdiv, 2305, 0, 2305 - 221),
    ];
    for (name, format, problems, with_steps, with_number) in files {
        let Some(path) = real(name) else { continue };
        let dataset = read(&path, None, OnBad::Fail).unwrap();
        let steps = dataset.problems.len() - dataset.without_steps();
        let numbers = dataset.problems.len() - dataset.without_number();
        eprintln!(
            "{name}: {format}, {} problems, {steps} with steps, {numbers} numbers",
            dataset.problems.len()
        );
        assert_eq!(dataset.format, format, "{name}");
        assert_eq!((dataset.problems.len(), steps, numbers), (problems, with_steps, with_number), "{name}");
    }
}

#[test]
fn every_icot_validation_question_is_in_gsm8k_train() {
    let (Some(train), Some(valid)) = (real("gsm8k/train.jsonl"), real("icot-gsm8k/valid.txt")) else {
        return;
    };
    let train = read(&train, None, OnBad::Fail).unwrap().problems;
    let valid = read(&valid, None, OnBad::Fail).unwrap().problems;
    for rule in [SameQuestion::Whole, SameQuestion::First80] {
        let pairs = overlap(&train, &valid, rule);
        let found: BTreeSet<usize> = pairs.iter().map(|pair| pair.1).collect();
        assert_eq!((pairs.len(), found.len()), (500, 500), "{rule:?}");
        // The same items: answers agree as well.
        assert!(pairs.iter().all(|(a, b)| train[*a].answer == valid[*b].answer));
    }
}

#[test]
fn the_built_in_tokenizer_knows_every_word_of_prosqa() {
    let tokenizer = builtin_tokenizer().unwrap();
    for name in ["prosqa/prosqa_valid.json", "prosqa/prosqa_test.json"] {
        let Some(path) = real(name) else { continue };
        for problem in read(&path, None, OnBad::Fail).unwrap().problems {
            let ids = tokenizer.encode(&problem.text(), true).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), problem.text());
        }
    }
}

#[test]
fn pieces_of_real_problems_join_in_gpt2s_tokens() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tokenizer = root.ancestors().map(|folder| folder.join("shared/tokenizers/gpt2/tokenizer.json"));
    let Some(path) = tokenizer.into_iter().find(|path| path.is_file()) else {
        eprintln!("skipped: ../shared/tokenizers/gpt2/tokenizer.json is not there");
        return;
    };
    let mut tokenizer = Tokenizer::from_file(&path).unwrap();
    let tokens = latch::text::LatentTokens::add(&mut tokenizer).unwrap();
    assert_eq!((tokens.start, tokens.end, tokens.latent), (50257, 50258, 50259));
    assert_eq!(latch::text::initial_row_token(&tokenizer).unwrap(), 16791);
    for name in ["gsm8k/test.jsonl", "icot-gsm8k/valid.txt", "prosqa/prosqa_valid.json", "svamp/SVAMP.json"] {
        let Some(path) = real(name) else { continue };
        for problem in read(&path, None, OnBad::Fail).unwrap().problems.iter().take(200) {
            problem.check_pieces(&tokenizer, 50256).unwrap();
        }
    }
}
