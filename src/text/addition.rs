//! Embedded problems: additions of two numbers, and a tokenizer of one token a character. Nothing is downloaded.
//!
//! The sum is written lowest digit first, which is the order in which it is computed: `47+85=231.` means 132.

use crate::base::rng::{Purpose, StreamKey};
use std::collections::BTreeSet;

/// The vocabulary: one token a character. `.` ends an answer.
pub const CHARACTERS: &str = "0123456789+=.";

/// One problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addition {
    /// First summand.
    pub a: u32,
    /// Second summand.
    pub b: u32,
}

impl Addition {
    /// The text before the answer, e.g. `47+85=`.
    pub fn prompt(&self) -> String {
        format!("{}+{}=", self.a, self.b)
    }

    /// The answer with its end mark, lowest digit first, e.g. `231.`.
    pub fn answer(&self) -> String {
        (self.a + self.b).to_string().chars().rev().chain(['.']).collect()
    }
}

/// Token ids of a text made of [`CHARACTERS`]; other characters are left out.
pub fn encode(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| CHARACTERS.find(c)).map(|id| id as u32).collect()
}

/// The text of token ids; unknown ids are left out.
pub fn decode(ids: &[u32]) -> String {
    ids.iter().filter_map(|&id| CHARACTERS.chars().nth(id as usize)).collect()
}

/// `held_out` problems of summands below `bound`, and all others, both in a random order of `seed`.
pub fn split(bound: u32, held_out: usize, seed: u64) -> (Vec<Addition>, Vec<Addition>) {
    let mut draws = StreamKey::new(seed, 0, 0, 0, Purpose::Problem).draws(0, 0);
    let mut all: Vec<Addition> =
        (0..bound).flat_map(|a| (0..bound).map(move |b| Addition { a, b })).collect();
    // Fisher and Yates.
    for last in (1..all.len()).rev() {
        all.swap(last, draws.below(last + 1));
    }
    let rest = all.split_off(held_out.min(all.len()));
    debug_assert!(all.iter().collect::<BTreeSet<_>>().is_disjoint(&rest.iter().collect()));
    (all, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_answers_are_sums() {
        let problem = Addition { a: 47, b: 85 };
        assert_eq!(problem.prompt() + &problem.answer(), "47+85=231.");
        assert_eq!(decode(&encode("47+85=231.")), "47+85=231.");
    }

    #[test]
    fn the_split_is_a_partition_and_depends_on_the_seed_alone() {
        let (held_out, rest) = split(20, 50, 1);
        assert_eq!((held_out.len(), rest.len()), (50, 350));
        let all: BTreeSet<_> = held_out.iter().chain(&rest).collect();
        assert_eq!(all.len(), 400);
        assert_eq!(split(20, 50, 1).0, held_out);
        assert_ne!(split(20, 50, 2).0, held_out);
    }
}
