//! What a segment asks for, checked on the host: which row, position and input each of its positions has.

use super::Model;
use super::rows::Row;
use super::segment::{Input, Segment};
use super::sequences::Sequences;
use super::tape::Feed;
use crate::base::{Error, Result};
use std::collections::HashMap;

/// Host-side index of one segment, checked.
pub(super) struct Placed {
    pub rows: Vec<u32>,
    pub positions: Vec<u32>,
    pub ids: Vec<i32>,
    pub feedback_rows: Vec<u32>,
    pub last: Vec<u32>,
    pub soft: Option<(Vec<u32>, Vec<f64>, usize)>,
    /// Embeddings that are given, one after the other.
    pub embedded: Vec<f64>,
    pub feeds: Vec<Feed>,
    /// Gated positions of the segment, and their tokens.
    pub gated: Vec<(usize, i32)>,
}

impl Model {
    /// Checks a segment against the rows and lays out its index.
    pub(super) fn place(&self, sequences: &Sequences, segment: &Segment, at: usize) -> Result<Placed> {
        let count = segment.len();
        if segment.inputs.len() != count
            || !(segment.instances.is_empty() || segment.instances.len() == count)
        {
            return Err(Error::shape(
                "segment",
                segment.inputs.len(),
                format!("{count} inputs and as many mask instances or none"),
            ));
        }
        let drawn = segment.inputs.iter().filter(|input| **input == Input::Drawn).count();
        if drawn != if segment.draw.is_some() { count } else { 0 } {
            return Err(Error::input(
                "drawn mixtures",
                format!("{drawn} of {count} positions, a law is given: {}", segment.draw.is_some()),
                "give a law (Segment::draw) to a segment of drawn mixtures alone, and to no other",
            ));
        }
        let mut placed = Placed {
            rows: segment.rows.clone(),
            positions: Vec::with_capacity(count),
            ids: Vec::with_capacity(count),
            feedback_rows: segment.rows.clone(),
            last: vec![0; count],
            soft: None,
            embedded: Vec::new(),
            feeds: Vec::new(),
            gated: Vec::new(),
        };
        let of = |holds: fn(&Input) -> bool| segment.inputs.iter().filter(|input| holds(input)).count();
        let (given, kept) =
            (of(|input| matches!(input, Input::Embedded(_))), of(|input| matches!(input, Input::Kept(_))));
        let tokens = of(|input| matches!(input, Input::Token(_)));
        if given.max(kept) > 0 && given.max(kept) + tokens != count {
            return Err(Error::input(
                "segment",
                "embedded inputs stand beside inputs of another kind",
                "give embedded inputs a segment with tokens alone",
            ));
        }
        if kept > 0 {
            // A position that reads none names a place that exists.
            placed.feedback_rows = vec![0; count];
        }
        let gates = segment.inputs.iter().any(|input| matches!(input, Input::Gated(_)));
        if gates {
            let plain = |input: &Input| matches!(input, Input::Gated(_) | Input::Token(_));
            if !segment.inputs.iter().all(plain) {
                return Err(Error::input(
                    "segment",
                    "gated positions stand beside latents or mixtures",
                    "give gated positions a segment with tokens alone",
                ));
            }
            // A gated position reads its place; the others, which read none, name one that exists.
            placed.feedback_rows = vec![0; count];
        }
        // Positions of each row in this segment so far, and the latest of them.
        let mut seen: HashMap<u32, (usize, usize)> = HashMap::new();
        for (n, (&row, input)) in segment.rows.iter().zip(&segment.inputs).enumerate() {
            let (before, _) = seen.get(&row).copied().unwrap_or((0, 0));
            check_room(&sequences.rows, row, before + 1)?;
            let state = &sequences.rows[row as usize];
            placed.positions.push((state.length + before) as u32);
            placed.ids.push(match input {
                Input::Token(token) if (*token as usize) < self.config().vocab => *token as i32,
                Input::Gated(token) if (*token as usize) < self.config().vocab => {
                    placed.feedback_rows[n] = placed.gated.len() as u32;
                    placed.gated.push((n, *token as i32));
                    -1
                }
                Input::Token(token) | Input::Gated(token) => {
                    return Err(Error::input(
                        "token",
                        format!("id {token} at position {} of row {row}; the vocabulary has {}", state.length + before, self.config().vocab),
                        "check that the tokenizer belongs to the model",
                    ));
                }
                Input::Latent | Input::LatentOf(_) | Input::Drawn if before > 0 => {
                    return Err(Error::input(
                        "segment",
                        format!("position {n} of row {row} is a latent or drawn, but an earlier position of the row stands in the same segment"),
                        "begin a new segment at each latent: its input is the final hidden state of the position before",
                    ));
                }
                Input::Latent | Input::LatentOf(_) | Input::Drawn => {
                    let of = if let Input::LatentOf(other) = input { *other } else { row };
                    let (feedback_row, source) = sequences.source_of(of)?;
                    placed.feedback_rows[n] = feedback_row;
                    let drawn = *input == Input::Drawn;
                    if drawn && sequences.soft_inputs.is_some() {
                        // What is read is an action, a constant: nothing is owed to what it was predicted from.
                        -1
                    } else {
                        placed.feeds.push(Feed { at: at + n, source, ordinal: state.latents, row });
                        if drawn { -2 - n as i32 } else { -1 }
                    }
                }
                Input::Kept(place) => {
                    let places = sequences.soft_inputs.as_ref().map_or(0, |inputs| inputs.view().count());
                    if *place >= places {
                        return Err(Error::shape("kept embedding", place, format!("one of {places}, as reserved")));
                    }
                    placed.feedback_rows[n] = *place as u32;
                    -1
                }
                Input::Embedded(values) => {
                    let width = self.config().width;
                    if values.len() != width {
                        let what = format!("embedded input at position {n}");
                        return Err(Error::shape(what, values.len(), format!("{width} numbers")));
                    }
                    placed.feedback_rows[n] = (placed.embedded.len() / width) as u32;
                    placed.embedded.extend(values);
                    -1
                }
                Input::Soft(terms) => {
                    let soft = placed.soft.get_or_insert_with(|| (Vec::new(), Vec::new(), terms.len()));
                    if terms.is_empty() || terms.len() != soft.2 {
                        return Err(Error::input(
                            "soft input",
                            format!("{} terms at position {n}, {} before", terms.len(), soft.2),
                            "give every soft position of a segment the same number of terms, at least one (weight 0 pads)",
                        ));
                    }
                    if let Some((id, _)) = terms.iter().find(|(id, _)| *id as usize >= self.config().vocab) {
                        return Err(Error::input(
                            "soft input",
                            format!("token id {id}; the vocabulary has {}", self.config().vocab),
                            "use ids of the vocabulary",
                        ));
                    }
                    let row = (soft.0.len() / soft.2) as i32;
                    soft.0.extend(terms.iter().map(|(id, _)| *id));
                    soft.1.extend(terms.iter().map(|(_, weight)| *weight));
                    -2 - row
                }
            });
            seen.insert(row, (before + 1, n));
        }
        for (_, n) in seen.into_values() {
            placed.last[n] = 1;
        }
        Ok(placed)
    }
}

/// Fails unless `more` positions fit into the row.
pub(super) fn check_room(rows: &[Row], row: u32, more: usize) -> Result<()> {
    let Some(state) = rows.get(row as usize) else {
        return Err(Error::input(
            "segment",
            format!("row {row}; {} rows are planned", rows.len()),
            "plan the row first",
        ));
    };
    if let Some((of, length)) = state.prefix
        && rows[of as usize].length < length
    {
        return Err(Error::input(
            "segment",
            format!(
                "row {row} shares {length} positions of row {of}, which holds {}",
                rows[of as usize].length
            ),
            "run the shared prefix first",
        ));
    }
    if state.length + more > state.capacity {
        return Err(Error::input(
            "segment",
            format!(
                "row {row} holds {} positions of {}; {more} more do not fit",
                state.length, state.capacity
            ),
            "plan the row with a larger capacity",
        ));
    }
    Ok(())
}
