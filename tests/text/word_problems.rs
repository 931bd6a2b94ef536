//! Word problems: exact steps in order, bounds, distinct splits, held-out stories.

use super::every_story;
use latch::text::{Operation, Problem, Templates, WordProblems, builtin_tokenizer};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// `a`, sign, `b`, `c` of `<<a+b=c>>`.
fn parts(step: &str) -> (i64, char, i64, i64) {
    let inner = step.strip_prefix("<<").and_then(|s| s.strip_suffix(">>")).expect(step);
    let (left, c) = inner.split_once('=').expect(step);
    let sign = left.find(['+', '-', '*', '/']).expect(step);
    let number = |text: &str| text.parse::<i64>().expect(step);
    (number(&left[..sign]), left[sign..].chars().next().unwrap(), number(&left[sign + 1..]), number(c))
}

fn numbers(text: &str) -> Vec<i64> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

#[test]
fn steps_are_exact_and_each_uses_the_result_before() {
    let mut signs: BTreeMap<char, usize> = BTreeMap::new();
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut last_is_answer, mut answers) = (0, BTreeSet::new());
    for (steps, bound) in [(2..=3, 99), (1..=1, 12), (5..=8, 500)] {
        let family = WordProblems { steps: steps.clone(), bound, ..every_story() };
        for index in 0..3000 {
            let Problem { question, steps: lines, answer } = family.problem(11, index).unwrap();
            assert!(steps.contains(&lines.len()));
            *counts.entry(lines.len()).or_default() += 1;
            let mentioned = numbers(&question);
            assert_eq!(mentioned.len(), lines.len() + 1, "{question}");
            let mut value = mentioned[0];
            for (line, operand) in lines.iter().zip(&mentioned[1..]) {
                let (a, sign, b, c) = parts(line);
                assert_eq!((a, b), (value, *operand), "{question} {line}");
                let result = match sign {
                    '+' => a + b,
                    '-' => a - b,
                    '*' => a * b,
                    _ => {
                        assert_eq!(a % b, 0, "{line}");
                        a / b
                    }
                };
                assert_eq!(c, result, "{line}");
                assert!((1..=i64::from(bound)).contains(&c), "{line}");
                assert!(b >= 2, "{line} changes nothing");
                *signs.entry(sign).or_default() += 1;
                value = c;
            }
            assert_eq!(answer, value.to_string());
            last_is_answer += usize::from(mentioned.contains(&value));
            answers.insert(value);
        }
    }
    assert_eq!(last_is_answer, 0, "answers that could be copied from the question");
    assert!(signs.len() == 4 && signs.values().all(|n| *n > 3000), "{signs:?}");
    assert!(counts[&2] > 1300 && counts[&3] > 1300, "{counts:?}");
    assert!(answers.len() > 300, "{} different answers", answers.len());
}

#[test]
fn a_problem_depends_on_seed_and_index_alone() {
    let family = WordProblems::default();
    let forward: Vec<Problem> = (0..50).map(|i| family.problem(7, i).unwrap()).collect();
    let backward: Vec<Problem> = (0..50).rev().map(|i| family.problem(7, i).unwrap()).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
    assert!((0..50).filter(|&i| family.problem(8, i).unwrap() == forward[i as usize]).count() < 3);
    // Frozen: a change of the generator changes published results.
    assert_eq!(
        forward[0].question,
        "A garden has 40 roses. By June there are 2 times as many. Only one of 2 equal rows is kept. Only one of \
         5 equal rows is kept. How many roses are left in the garden?"
    );
}

#[test]
fn splits_share_no_question() {
    let family = WordProblems::default();
    let split = family.split(1, 5000, 300, 500).unwrap();
    assert_eq!((split.train.len(), split.valid.len(), split.test.len()), (5000, 300, 500));
    let all = split.train.iter().chain(&split.valid).chain(&split.test);
    let questions: HashSet<&str> = all.map(|problem| problem.question.as_str()).collect();
    assert_eq!(questions.len(), 5800);
    // Neither part changes when more training problems are asked for.
    let larger = family.split(1, 6000, 300, 500).unwrap();
    assert_eq!((&larger.valid, &larger.test), (&split.valid, &split.test));
    assert_eq!(larger.train[..5000], split.train);
}

#[test]
fn a_space_that_is_too_small_is_an_error() {
    let family = WordProblems { steps: 1..=1, bound: 4, ..WordProblems::default() };
    let error = family.split(1, 100_000, 0, 0).unwrap_err().to_string();
    assert!(error.contains("different questions") && error.contains("100000 are wanted"), "{error}");
    let error = WordProblems::default().split(1, 1, usize::MAX, 1).unwrap_err().to_string();
    assert!(error.contains("are wanted, expected at most 10000000"), "{error}");
    for (family, words) in [
        (WordProblems { operations: vec![], ..WordProblems::default() }, "no operations"),
        (WordProblems { bound: 3, ..WordProblems::default() }, "bound is 3"),
        (WordProblems { steps: 1..=99_999_999, ..WordProblems::default() }, "at most 1000"),
        (WordProblems { steps: 0..=2, ..WordProblems::default() }, "0..=2"),
        #[allow(clippy::reversed_empty_ranges)]
        (WordProblems { steps: 3..=2, ..WordProblems::default() }, "3..=2"),
        (
            WordProblems {
                steps: 9..=9,
                bound: 20,
                operations: vec![Operation::Multiply],
                ..WordProblems::default()
            },
            "no chain of 9 steps",
        ),
    ] {
        let error = family.problem(1, 0).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn operations_that_are_not_allowed_do_not_occur() {
    let family = WordProblems { operations: vec![Operation::Add, Operation::Subtract], ..every_story() };
    for index in 0..500 {
        let problem = family.problem(2, index).unwrap();
        assert!(problem.steps.iter().all(|step| matches!(parts(step).1, '+' | '-')));
    }
}

#[test]
fn held_out_stories_are_new_sentences_of_known_words() {
    let tokenizer = builtin_tokenizer().unwrap();
    let told = |templates| {
        let family = WordProblems { templates, steps: 1..=4, ..WordProblems::default() };
        let problems = (0..6000).map(|i| family.problem(5, i).unwrap());
        let (mut sentences, mut tokens) = (BTreeSet::new(), BTreeSet::new());
        for problem in problems {
            tokens.extend(tokenizer.encode(&problem.question, false).unwrap());
            let plain: String =
                problem.question.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            sentences
                .extend(plain.replace("00", "0").split_inclusive(['.', '?']).map(|s| s.trim().to_string()));
        }
        (sentences, tokens)
    };
    let (known, known_tokens) = told(Templates::Training);
    let (new, new_tokens) = told(Templates::HeldOut);
    let shared: Vec<&String> = known.intersection(&new).collect();
    assert!(shared.is_empty(), "{shared:?}");
    let unseen: Vec<String> =
        new_tokens.difference(&known_tokens).map(|id| tokenizer.token(*id).unwrap()).collect();
    assert!(unseen.is_empty(), "never trained on: {unseen:?}");
}

#[test]
fn problems_are_short() {
    let tokenizer = builtin_tokenizer().unwrap();
    let (mut sum, mut longest) = (0, 0);
    for index in 0..2000 {
        let problem = WordProblems::default().problem(1, index).unwrap();
        let length = tokenizer.encode(&problem.question, false).unwrap().len() + 1;
        sum += length;
        longest = longest.max(length);
    }
    eprintln!("questions of 2 to 3 steps: {:.1} tokens on average, {longest} at most", sum as f64 / 2000.0);
    assert!(sum < 2000 * 32 && longest <= 45, "{sum} {longest}");
}
