//! Graph problems: what the text says is searched, not what the generator meant.

use latch::text::{GraphProblems, Problem};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Edges of a question's sentences, by name, and the person and candidates of its last one.
fn parse(question: &str) -> (BTreeMap<&str, BTreeSet<&str>>, &str, [&str; 2]) {
    let (facts, asked) = question.rsplit_once("Is ").unwrap();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for fact in facts.split_terminator('.').map(str::trim).filter(|fact| !fact.is_empty()) {
        let (from, to) = fact.split_once(" is a ").expect(fact);
        assert!(edges.entry(from.trim_start_matches("Every ")).or_default().insert(to), "{fact} twice");
    }
    let (person, candidates) = asked.strip_suffix('?').unwrap().split_once(" a ").unwrap();
    let (first, second) = candidates.split_once(" or ").unwrap();
    (edges, person, [first, second])
}

/// Edges from `root` to every node that can be reached.
fn distances<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, root: &'a str) -> BTreeMap<&'a str, usize> {
    let (mut found, mut queue) = (BTreeMap::from([(root, 0)]), VecDeque::from([root]));
    while let Some(node) = queue.pop_front() {
        for next in edges.get(node).into_iter().flatten() {
            if !found.contains_key(next) {
                found.insert(next, found[node] + 1);
                queue.push_back(next);
            }
        }
    }
    found
}

/// Checks one problem; returns whether the target is named first.
fn check(problem: &Problem, lengths: &std::ops::RangeInclusive<usize>) -> bool {
    let (edges, person, candidates) = parse(&problem.question);
    let found = distances(&edges, person);
    let target = problem.answer.strip_prefix(&format!("{person} is a ")).unwrap().strip_suffix('.').unwrap();
    let other = candidates.iter().find(|candidate| **candidate != target).unwrap();
    assert!(candidates.contains(&target), "{problem:?}");
    assert!(!found.contains_key(other), "{other} can be reached: {problem:?}");
    assert_eq!(found[target], problem.steps.len(), "a shorter way: {problem:?}");
    assert!(lengths.contains(&problem.steps.len()));
    // Something else leads to the false candidate: it is not given away by being named nowhere else.
    assert!(edges.values().any(|to| to.contains(other)), "{problem:?}");
    let mut at = person;
    for step in &problem.steps {
        assert!(problem.question.contains(step.as_str()), "{step}");
        let (from, to) = step.strip_suffix('.').unwrap().split_once(" is a ").unwrap();
        assert_eq!(from.trim_start_matches("Every "), at);
        at = to;
    }
    assert_eq!(at, target);
    // No cycles: nothing reaches itself.
    for (from, to) in &edges {
        assert!(to.iter().all(|next| !distances(&edges, next).contains_key(from)), "a cycle: {problem:?}");
    }
    candidates[0] == target
}

#[test]
fn the_target_is_reached_and_the_other_is_not() {
    for family in [
        GraphProblems::default(),
        GraphProblems { path: 1..=1, kinds: 2, edges: 2 },
        GraphProblems { path: 3..=6, kinds: 23, edges: 36 },
        GraphProblems { path: 4..=4, kinds: 37, edges: 1000 },
    ] {
        let count = if family.edges > 100 { 20 } else { 500 };
        let problems: Vec<Problem> = (0..count).map(|index| family.problem(9, index).unwrap()).collect();
        let first = problems.iter().filter(|problem| check(problem, &family.path)).count();
        let share = first as f64 / f64::from(count);
        assert!(count < 500 || (0.4..0.6).contains(&share), "the target is named first in {share}");
        if family.edges == 36 {
            assert!(problems.iter().all(|problem| problem.question.matches(" is a ").count() == 36));
        }
    }
}

#[test]
fn splits_are_distinct_and_bad_families_are_refused() {
    let split = GraphProblems::default().split(1, 400, 50, 50).unwrap();
    let all = split.train.iter().chain(&split.valid).chain(&split.test);
    assert_eq!(all.map(|problem| &problem.question).collect::<BTreeSet<_>>().len(), 500);
    for (family, words) in [
        (GraphProblems { path: 0..=2, kinds: 10, edges: 14 }, "0..=2"),
        (GraphProblems { path: 2..=6, kinds: 10, edges: 14 }, "expected 12 to"),
        (GraphProblems { path: 2..=3, kinds: 99, edges: 140 }, "99 kinds"),
        (GraphProblems { path: 2..=3, kinds: 10, edges: 9 }, "9 edges for 10 kinds"),
    ] {
        let error = family.problem(1, 0).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
