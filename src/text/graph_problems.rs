//! Embedded graph problems in ProsQA's form (facebookresearch/coconut, data/prosqa): made-up kinds, "Every X is a Y.",
//! and a question with two candidates, of which one can be reached.
//!
//! A problem is a pure function of `(seed, index)`. The graph has two people. Kinds on the side of the first are
//! reachable from it, the others, the false candidate among them, are not: no edge leads over. Reachable kinds have a
//! depth, and no edge skips one, so the shortest way to the target has exactly the wanted length.

use super::problem::{Problem, Split};
use crate::base::rng::{Draws, Purpose, StreamKey};
use crate::base::{Error, Result};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// A family of graph problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphProblems {
    /// Edges from the person to the target, which is the number of steps; each number in it is equally likely.
    pub path: RangeInclusive<usize>,
    /// Kinds, on both sides together.
    pub kinds: usize,
    /// Sentences, those of the path included. Where a drawn graph has room for fewer, it has fewer.
    pub edges: usize,
}

impl Default for GraphProblems {
    /// Two or three steps in a graph of ten kinds and fourteen edges.
    fn default() -> Self {
        GraphProblems { path: 2..=3, kinds: 10, edges: 14 }
    }
}

const PEOPLE: [&str; 17] = [
    "Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly", "Rex",
    "Sally", "Sam", "Stella", "Tom", "Wren",
];

const KINDS: [&str; 37] = [
    "bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus", "grimpus",
    "gwompus", "hilpus", "jelpus", "jompus", "kerpus", "lempus", "lorpus", "numpus", "quimpus", "rempus",
    "rompus", "rorpus", "scrompus", "shumpus", "sterpus", "storpus", "terpus", "timpus", "tumpus", "vumpus",
    "worpus", "wumpus", "yerpus", "yimpus", "yumpus", "zhorpus", "zumpus",
];

/// A node of the graph: what sentences call it, and how far it is from its person.
#[derive(Clone, Copy, Debug)]
struct Node {
    name: &'static str,
    depth: usize,
    /// Whether it belongs to the side of the person who is asked about.
    reachable: bool,
}

impl GraphProblems {
    /// Problem `index` of `seed`.
    ///
    /// # Errors
    /// The family is empty: no path, or too few or too many kinds for it.
    pub fn problem(&self, seed: u64, index: u32) -> Result<Problem> {
        self.check()?;
        let mut draws = StreamKey::new(seed, 0, index, 0, Purpose::Problem).draws(1, 0);
        let length = self.path.start() + draws.below(self.path.end() - self.path.start() + 1);
        let (nodes, mut edges) = self.graph(length, &mut draws);
        // Nodes 0 and 1 are the people; then come the kinds of the path.
        let (root, target, false_target) = (0, 1 + length, 2 + length);
        let steps = std::iter::once((root, 2)).chain((2..target).map(|node| (node, node + 1)));
        let steps = steps.map(|edge| sentence(&nodes, edge)).collect();
        shuffle(&mut edges, &mut draws);
        let mut question: String = edges.iter().map(|edge| sentence(&nodes, *edge) + " ").collect();
        let (person, target) = (nodes[root].name, nodes[target].name);
        let mut candidates = [target, nodes[false_target].name];
        shuffle(&mut candidates, &mut draws);
        question.push_str(&format!("Is {person} a {} or {}?", candidates[0], candidates[1]));
        Ok(Problem { question, steps, answer: format!("{person} is a {target}.") })
    }

    /// Different problems for training, validation and test, in the order of their index, test first.
    ///
    /// # Errors
    /// As [`GraphProblems::problem`], and too few different questions.
    pub fn split(&self, seed: u64, train: usize, valid: usize, test: usize) -> Result<Split> {
        Split::of_distinct("graph problems", [train, valid, test], |index| self.problem(seed, index))
    }

    /// Nodes (two people, the path's kinds, the false target, others) and edges.
    fn graph(&self, length: usize, draws: &mut Draws) -> (Vec<Node>, Vec<(usize, usize)>) {
        let (mut people, mut kinds) = (PEOPLE, KINDS);
        shuffle(&mut people, draws);
        shuffle(&mut kinds, draws);
        let person = |name, reachable| Node { name, depth: 0, reachable };
        let mut nodes = vec![person(people[0], true), person(people[1], false)];
        for (i, name) in kinds[..self.kinds].iter().copied().enumerate() {
            nodes.push(if i < length {
                Node { name, depth: i + 1, reachable: true }
            } else if i == length {
                // As far from its person as the target is, so that its depth gives nothing away.
                Node { name, depth: length, reachable: false }
            } else if i < 2 * length {
                // The way to the false target: one kind of each depth.
                Node { name, depth: i - length, reachable: false }
            } else {
                Node { name, depth: 1 + draws.below(length), reachable: draws.below(2) == 0 }
            });
        }
        // Every kind has a reason to be there: an edge from its own side, one depth up.
        let mut edges: BTreeSet<(usize, usize)> = BTreeSet::new();
        for (to, node) in nodes.iter().enumerate().skip(2) {
            let on_path = to < 2 + length;
            let parents: Vec<usize> = (0..nodes.len())
                .filter(|&from| {
                    nodes[from].reachable == node.reachable && nodes[from].depth + 1 == node.depth
                })
                .collect();
            let path_parent = if to == 2 { 0 } else { to - 1 };
            edges.insert((if on_path { path_parent } else { parents[draws.below(parents.len())] }, to));
        }
        let mut more: Vec<(usize, usize)> = (0..nodes.len())
            .flat_map(|from| (2..nodes.len()).map(move |to| (from, to)))
            .filter(|edge| may_be_added(&nodes, *edge) && !edges.contains(edge))
            .collect();
        shuffle(&mut more, draws);
        edges.extend(more.into_iter().take(self.edges.saturating_sub(edges.len())));
        (nodes, edges.into_iter().collect())
    }

    fn check(&self) -> Result<()> {
        let wrong = |problem| {
            Error::input("graph problems", problem, "choose a shorter path or other numbers of kinds")
        };
        if *self.path.start() == 0 || self.path.is_empty() {
            return Err(wrong(format!("path is {:?}, expected a range that begins at 1 or more", self.path)));
        }
        let least = 2 * self.path.end();
        if !(least..=KINDS.len()).contains(&self.kinds) {
            return Err(wrong(format!(
                "{} kinds for a path of up to {}, expected {least} to {}",
                self.kinds,
                self.path.end(),
                KINDS.len()
            )));
        }
        if self.edges < self.kinds {
            return Err(wrong(format!(
                "{} edges for {} kinds, expected one each at least",
                self.edges, self.kinds
            )));
        }
        Ok(())
    }
}

/// Whether an edge keeps the promises: no cycle, no way over to the other side of the graph, no shorter way to the target.
fn may_be_added(nodes: &[Node], (from, to): (usize, usize)) -> bool {
    let (a, b) = (nodes[from], nodes[to]);
    match (a.reachable, b.reachable) {
        (true, false) => false,
        // Nothing on the reachable side leads back, so these close no cycle.
        (false, true) => a.depth + 1 >= b.depth && a.depth > 0,
        _ => b.depth == a.depth + 1 || (b.depth == a.depth && from < to),
    }
}

fn sentence(nodes: &[Node], (from, to): (usize, usize)) -> String {
    let (every, from, to) =
        (if nodes[from].depth == 0 { "" } else { "Every " }, nodes[from].name, nodes[to].name);
    format!("{every}{from} is a {to}.")
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], draws: &mut Draws) {
    for last in (1..items.len()).rev() {
        items.swap(last, draws.below(last + 1));
    }
}

/// Sentences with every word of all problems, and of ProsQA's, which also has `impus`.
pub(super) fn all_sentences() -> Vec<String> {
    let people = PEOPLE.iter().map(|person| format!("{person} is a"));
    let kinds = KINDS.iter().chain(&["impus"]);
    people.chain(kinds.map(|kind| format!("Is Every {kind} or"))).collect()
}
