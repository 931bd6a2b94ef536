//! The runtime's public oracle: logits, loss and every gradient of given rows, through the recurrence, nothing
//! detached. `src/bin/probe.rs` is its command line; `tests/golden.rs` compares it with transformers.
//!
//! Rows all have the same length T and no padding. A row is cut where any row has a latent, so that each latent
//! begins a segment; a position's result does not depend on the cuts.

use crate::base::{Dtype, Error, Result};
use crate::model::{Input, Model, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan, Truncation};
use crate::ops::Tensor;
use crate::ops::mask::{MaskSet, Site, SiteKind, Sites};
use safetensors::tensor::{Dtype as Stored, TensorView, serialize_to_file};
use safetensors::{SafeTensorError, SafeTensors};
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

/// A position that reads the previous final hidden state.
const LATENT: i64 = -1;
/// A position that reads a mixture of token embeddings.
const SOFT: i64 = -2;
/// A label that is not trained.
const IGNORED: i64 = -100;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Rows.
    pub rows: usize,
    /// Positions of each row.
    pub length: usize,
    /// `[rows, length]`: token, -1 (latent) or -2 (soft).
    pub ids: Vec<i64>,
    /// `[rows, length]`: the logits of position t are scored against `labels[t + 1]`; -100 = not.
    pub labels: Vec<i64>,
    /// Terms of a soft position.
    pub terms: usize,
    /// `[rows, length, terms]`.
    pub soft_ids: Vec<i64>,
    /// `[rows, length, terms]`.
    pub soft_weights: Vec<f32>,
    /// Probability that was used to draw `masks`.
    pub p: f64,
    /// `(layer, site)` to keep bytes `[rows, width]`.
    pub masks: HashMap<(usize, SiteKind), Vec<u8>>,
}

/// What came out, as f64 numbers (exact for f32 results).
#[derive(Clone, Debug)]
pub struct Answer {
    /// `[rows, length, vocab]`.
    pub logits: Vec<f64>,
    /// Mean cross-entropy over all trained labels; absent when there are none.
    pub loss: Option<f64>,
    /// One gradient for each trained tensor, in the order of [`Model::trained`]; empty without labels.
    pub gradients: Vec<Vec<f64>>,
}

/// Runs `request` on `model`.
///
/// # Errors
/// Shapes that do not fit, ids or labels outside the vocabulary, weights that are negative or no numbers, a probability of
/// masks outside [0, 1), a latent at position 0.
pub fn probe(model: &Model, request: &Request) -> Result<Answer> {
    check(request, model.config().vocab)?;
    let (rows, length) = (request.rows, request.length);
    let masks = mask_set(model, request)?;
    let mut sequences = Sequences::new(
        model,
        &SequencesPlan {
            rows: vec![RowPlan::own(length); rows],
            record: Record::Everything,
            tape_positions: rows * length,
        },
    )?;
    // Where position t of row r stands on the tape.
    let mut place = vec![0; rows * length];
    for (start, end) in cuts(request) {
        let mut segment = Segment::new();
        for r in 0..rows {
            for t in start..end {
                place[r * length + t] = sequences_filled(start, end, rows, r, t);
                match masks {
                    Some(_) => segment.push_masked(r as u32, input(request, r * length + t), r as u32),
                    None => segment.push(r as u32, input(request, r * length + t)),
                }
            }
        }
        model.forward(&mut sequences, &segment, masks.as_ref())?;
    }
    let logits = logits(model, &sequences, &place)?;

    let mut positions = Vec::new();
    let mut targets = Vec::new();
    for r in 0..rows {
        for t in 1..length {
            let label = request.labels[r * length + t];
            if label != IGNORED {
                positions.push(place[r * length + t - 1] as u32);
                targets.push(label as u32);
            }
        }
    }
    if positions.is_empty() {
        return Ok(Answer { logits, loss: None, gradients: Vec::new() });
    }
    let count = positions.len();
    let mut scores = Scores::reserve(model, count)?;
    scores.forward(model, &sequences, &positions, &targets, 1.0)?;
    let loss = -scores.log_probabilities()?.iter().sum::<f64>() / count as f64;
    let mut gradients = model.gradients()?;
    scores.backward(model, &mut sequences, &vec![-1.0 / count as f64; count], &mut gradients)?;
    model.backward(&mut sequences, masks.as_ref(), Truncation::default(), &mut gradients)?;
    let gradients: Result<Vec<_>> = gradients.tensors()?.iter().map(numbers).collect();
    Ok(Answer { logits, loss: Some(loss), gradients: gradients? })
}

/// Tape position of `(row, t)` in a segment of columns `start..end` pushed row by row; earlier columns fill
/// `rows * start` positions.
fn sequences_filled(start: usize, end: usize, rows: usize, row: usize, t: usize) -> usize {
    rows * start + row * (end - start) + (t - start)
}

fn check(request: &Request, vocabulary: usize) -> Result<()> {
    let positions = request.rows * request.length;
    let wrong = |what: &str, found: usize, expected: usize| Err(Error::shape(what, found, expected));
    if positions == 0 {
        return Err(Error::input("ids", "no positions", "give at least one row of one token"));
    }
    if request.ids.len() != positions {
        return wrong("ids", request.ids.len(), positions);
    }
    if request.labels.len() != positions {
        return wrong("labels", request.labels.len(), positions);
    }
    let soft = request.ids.contains(&SOFT);
    if soft && request.terms == 0 {
        return Err(Error::input(
            "soft_ids",
            "ids hold a soft position (-2), but there are no soft_ids",
            "add soft_ids and soft_weights",
        ));
    }
    let expected = positions * request.terms;
    if request.soft_ids.len() != expected || request.soft_weights.len() != expected {
        return wrong(
            "soft_ids and soft_weights",
            request.soft_ids.len().min(request.soft_weights.len()),
            expected,
        );
    }
    check_values(request, vocabulary)
}

/// Every number that is read: ids, labels, and the terms of soft positions.
fn check_values(request: &Request, vocabulary: usize) -> Result<()> {
    let known = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocabulary);
    let wrong = |what: &str, found: &dyn Display, n: usize, advice: &str| {
        let (row, position) = (n / request.length, n % request.length);
        Err(Error::input(what, format!("{found} at row {row}, position {position}"), advice))
    };
    let ids = format!("token ids are 0 to {}", vocabulary.saturating_sub(1));
    for (n, (&id, &label)) in request.ids.iter().zip(&request.labels).enumerate() {
        if !known(id) && id != LATENT && id != SOFT {
            return wrong("ids", &id, n, &format!("{ids}; -1 is a latent, -2 a soft position"));
        }
        if !known(label) && label != IGNORED {
            return wrong("labels", &label, n, &format!("{ids}; -100 is not trained"));
        }
        // What stands beside other positions is not read.
        let terms = if id == SOFT { n * request.terms..(n + 1) * request.terms } else { 0..0 };
        for (&id, &weight) in request.soft_ids[terms.clone()].iter().zip(&request.soft_weights[terms]) {
            if !known(id) {
                return wrong("soft_ids", &id, n, &ids);
            }
            if !(weight.is_finite() && weight >= 0.0) {
                return wrong("soft_weights", &weight, n, "weights are finite numbers from 0 up");
            }
        }
    }
    Ok(())
}

/// Column ranges: a new one begins at every column where some row has a latent.
fn cuts(request: &Request) -> Vec<(usize, usize)> {
    let latent = |t: usize| (0..request.rows).any(|r| request.ids[r * request.length + t] == LATENT);
    let mut starts: Vec<usize> = (0..request.length).filter(|&t| t == 0 || latent(t)).collect();
    starts.push(request.length);
    starts.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

fn input(request: &Request, n: usize) -> Input {
    match request.ids[n] {
        LATENT => Input::Latent,
        SOFT => {
            let terms = n * request.terms..(n + 1) * request.terms;
            let weights = request.soft_weights[terms.clone()].iter().map(|&weight| f64::from(weight));
            Input::Soft(request.soft_ids[terms].iter().map(|&id| id as u32).zip(weights).collect())
        }
        id => Input::Token(id as u32),
    }
}

fn mask_set(model: &Model, request: &Request) -> Result<Option<MaskSet>> {
    if request.masks.is_empty() {
        return Ok(None);
    }
    let config = model.config();
    let named = |kind: &SiteKind| request.masks.keys().any(|(_, found)| found == kind);
    let kinds: Vec<SiteKind> = SiteKind::ALL.into_iter().filter(named).collect();
    let sites = Sites::new(config.width, config.mlp_hidden, config.layers, &kinds);
    if let Some((layer, kind)) =
        request.masks.keys().find(|(layer, kind)| sites.find(*kind, *layer).is_none())
    {
        return Err(Error::input(
            "masks",
            format!("mask.{layer}.{} names a layer that has no such site", kind.name()),
            format!("the model has {} layers; emb and latent stand in layer 0", config.layers),
        ));
    }
    // A site without bytes is not masked, whatever its siblings in other layers.
    let sites = sites.retain(|site| request.masks.contains_key(&(site.layer, site.kind)));
    let keep = |site: &Site| request.masks.get(&(site.layer, site.kind)).map(Vec::as_slice);
    MaskSet::from_keep(model.device(), sites, request.p, request.rows, keep).map(Some)
}

/// Logits by row and position, a few thousand positions at a time.
fn logits(model: &Model, sequences: &Sequences, place: &[usize]) -> Result<Vec<f64>> {
    const AT_ONCE: usize = 1024;
    let (count, vocab) = (place.len(), model.config().vocab);
    let mut by_tape = Vec::with_capacity(count * vocab);
    let mut chunk = Tensor::zeros(model.device(), [AT_ONCE.min(count), vocab], model.dtype().accumulation())?;
    for start in (0..count).step_by(AT_ONCE) {
        let end = (start + AT_ONCE).min(count);
        model.logits(sequences.hidden(start..end)?, chunk.rows_mut(0..end - start)?)?;
        by_tape.extend(chunk.rows(0..end - start)?.numbers()?);
    }
    Ok(place.iter().flat_map(|&n| by_tape[n * vocab..(n + 1) * vocab].iter().copied()).collect())
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.view().numbers()
}

/// Reads a request from a safetensors file (names and shapes: the fields of [`Request`], README).
///
/// # Errors
/// A file that is no safetensors file, a tensor that is missing, unknown, or of the wrong type or shape.
pub fn read(path: &Path) -> Result<Request> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "cannot read"))?;
    let broken = |error: safetensors::SafeTensorError| {
        Error::file(path, format!("not a safetensors file: {error}"), "write it with the safetensors library")
    };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let file = |problem: String, advice: &str| Error::file(path, problem, advice);
    let ids =
        tensors.tensor("ids").map_err(|_| file("tensor `ids` is missing".into(), "add ids i64 [rows, T]"))?;
    let [rows, length] = *ids.shape() else {
        return Err(file(format!("ids has shape {:?}", ids.shape()), "ids is i64 [rows, T]"));
    };
    let mut request = Request { rows, length, ids: integers(path, "ids", &ids)?, ..Request::default() };
    request.labels = vec![IGNORED; rows * length];
    for (name, tensor) in tensors.tensors() {
        let expect = |shape: &[usize]| match tensor.shape() == shape {
            true => Ok(()),
            false => {
                Err(file(format!("{name} has shape {:?}", tensor.shape()), &format!("expected {shape:?}")))
            }
        };
        match name.as_str() {
            "ids" => {}
            "labels" => {
                expect(&[rows, length])?;
                request.labels = integers(path, &name, &tensor)?;
            }
            "soft_ids" | "soft_weights" => {
                let terms = tensor.shape().last().copied().unwrap_or(0);
                expect(&[rows, length, terms])?;
                request.terms = terms;
                match (name.as_str(), tensor.dtype()) {
                    ("soft_ids", _) => request.soft_ids = integers(path, &name, &tensor)?,
                    (_, Stored::F32) => request.soft_weights = bytemuck::pod_collect_to_vec(tensor.data()),
                    (_, found) => return Err(file(format!("soft_weights is {found:?}"), "write it as F32")),
                }
            }
            _ => {
                let Some((layer, kind)) = mask_name(&name) else {
                    return Err(file(
                        format!("unknown tensor `{name}`"),
                        "known: ids, labels, soft_ids, soft_weights, mask.<layer>.<emb|attn_out|mlp_out|mlp_hid|latent>",
                    ));
                };
                expect(&[rows, tensor.shape().last().copied().unwrap_or(0)])?;
                if tensor.dtype() != Stored::U8 {
                    return Err(file(
                        format!("{name} is {:?}", tensor.dtype()),
                        "write masks as U8, 1 = kept",
                    ));
                }
                request.masks.insert((layer, kind), tensor.data().to_vec());
            }
        }
    }
    if !request.masks.is_empty() {
        let p = metadata.metadata().as_ref().and_then(|m| m.get("p")).and_then(|p| p.parse::<f64>().ok());
        request.p = p.ok_or_else(|| {
            file("masks without a number `p` in the metadata".into(), "add metadata {\"p\": \"0.25\"}")
        })?;
    }
    Ok(request)
}

/// `mask.<layer>.<site>` taken apart.
fn mask_name(name: &str) -> Option<(usize, SiteKind)> {
    let (layer, site) = name.strip_prefix("mask.")?.split_once('.')?;
    Some((layer.parse().ok()?, SiteKind::from_name(site)?))
}

fn integers(path: &Path, name: &str, tensor: &TensorView) -> Result<Vec<i64>> {
    match tensor.dtype() {
        Stored::I64 => Ok(bytemuck::pod_collect_to_vec(tensor.data())),
        found => Err(Error::file(path, format!("{name} is {found:?}"), "write it as I64")),
    }
}

/// Refuses a place that [`write`] cannot or should not replace: results are written beside it and renamed, which would put
/// a file where a device like /dev/null was.
///
/// # Errors
/// Something is there that is no file, or there is no such folder.
pub fn check_place(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let problem = match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => "cannot write: what is there is no file",
        Err(_) if !parent.is_dir() => "cannot write: there is no such folder",
        _ => return Ok(()),
    };
    Err(Error::file(path, problem, "name a file to be written, in a folder that exists"))
}

/// Writes `logits` [rows, T, V], `loss` [1] and `grad/<parameter>` in the model's dtype.
///
/// # Errors
/// As [`check_place`]; the file cannot be written.
pub fn write(path: &Path, model: &Model, request: &Request, answer: &Answer) -> Result<()> {
    check_place(path)?;
    let mut list: Vec<(String, Vec<usize>, &[f64])> =
        vec![("logits".into(), vec![request.rows, request.length, model.config().vocab], &answer.logits)];
    let loss = answer.loss.map(|loss| [loss]);
    if let Some(loss) = &loss {
        list.push(("loss".into(), vec![1], loss));
    }
    for ((name, tensor), gradient) in model.trained_names().iter().zip(model.trained()).zip(&answer.gradients)
    {
        list.push((format!("grad/{name}"), tensor.shape().dims().to_vec(), gradient));
    }
    let stored = if model.dtype() == Dtype::F64 { Stored::F64 } else { Stored::F32 };
    let bytes: Vec<Vec<u8>> = list.iter().map(|(_, _, values)| encode(values, stored)).collect();
    let mut views = Vec::with_capacity(list.len());
    for ((name, shape, _), bytes) in list.iter().zip(&bytes) {
        let view = TensorView::new(stored, shape.clone(), bytes).map_err(|error| {
            Error::file(path, format!("{name}: {error}"), "report this: a shape of ours is wrong")
        })?;
        views.push((name.as_str(), view));
    }
    serialize_to_file(views, None, path).map_err(|error| match error {
        SafeTensorError::IoError(source) => Error::io(path, "cannot write")(source),
        other => {
            Error::file(path, format!("cannot write: {other}"), "report this: a header of ours is wrong")
        }
    })
}

fn encode(values: &[f64], stored: Stored) -> Vec<u8> {
    match stored {
        Stored::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
    }
}
