//! Recipes: TOML files that say what a run does.
//!
//! schema lists every key once; recipes/default.toml holds the values of keys that a recipe leaves out. Unknown keys,
//! wrong values and settings that contradict each other are errors with a line number and what was expected.

mod keys;
mod schema;

pub use schema::{
    AdapterKeys, AdapterSave, Arm, Baseline, CoconutKeys, CodiKeys, CotKeys, DataKeys, EvaluationKeys,
    EvaluationMode, Extractor, Family, Format, GrpoKeys, HrpoKeys, IcotKeys, KlEstimator, KlReference,
    LepoKeys, MaskKeys, ModelKeys, Preset, Recipe, RemovalSide, ResetOptimizer, RunKeys, Schedule,
    SoftEstimator, SoftNoise, SoftProxy, Source, Variant,
};

use super::settings;
use crate::base::{Error, Result};
use crate::model::adapter;
use crate::rollout::masks::Mode;
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// The recipes inside the program, by name. The first one runs when none is named.
pub const BUILT_IN: [(&str, &str); 15] = [
    ("default", include_str!("../../../recipes/default.toml")),
    ("gsm8k-gpt2", include_str!("../../../recipes/gsm8k-gpt2.toml")),
    ("gsm8k-smollm2", include_str!("../../../recipes/gsm8k-smollm2.toml")),
    ("gsm8k-qwen-lora", include_str!("../../../recipes/gsm8k-qwen-lora.toml")),
    ("hrpo-small", include_str!("../../../recipes/hrpo-small.toml")),
    ("gsm8k-icot", include_str!("../../../recipes/gsm8k-icot.toml")),
    ("codi-small", include_str!("../../../recipes/codi-small.toml")),
    ("icot-small", include_str!("../../../recipes/icot-small.toml")),
    ("lepo-small", include_str!("../../../recipes/lepo-small.toml")),
    ("lepo-qwen2.5-3b", include_str!("../../../recipes/lepo-qwen2.5-3b.toml")),
    ("lepo-llama3.2-3b", include_str!("../../../recipes/lepo-llama3.2-3b.toml")),
    ("methods-small", include_str!("../../../recipes/methods-small.toml")),
    ("soft-grpo", include_str!("../../../recipes/soft-grpo.toml")),
    ("soft-tokens", include_str!("../../../recipes/soft-tokens.toml")),
    ("prosqa", include_str!("../../../recipes/prosqa.toml")),
];

/// What messages tell a user to run for a list of all keys ([`Recipe::describe`]).
pub const LIST_KEYS: &str = "train --describe";

/// A name stands for a file: it has a folder or an extension.
fn is_path(source: &str) -> bool {
    source.ends_with(".toml") || source.contains(['/', '\\'])
}

/// The name that runs of a recipe get: the file's, without its folder and extension.
pub fn name(source: Option<&str>) -> String {
    let source = source.unwrap_or(BUILT_IN[0].0);
    let stem = Path::new(source).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| "run".into())
}

impl Recipe {
    /// The recipe of a run: a file or the name of a built-in recipe (none = the default one), with `key=value` overrides
    /// in their order, and everything checked.
    ///
    /// # Errors
    /// No such file or name; those of [`Recipe::parse`], [`Recipe::set`] and [`Recipe::check`].
    pub fn resolve(source: Option<&str>, overrides: &[String]) -> Result<Recipe> {
        let (mut recipe, place) = match source {
            Some(path) if is_path(path) => {
                let file = Path::new(path);
                let text =
                    std::fs::read_to_string(file).map_err(Error::io(file, "cannot read the recipe"))?;
                (Recipe::parse(&text, path)?, path.to_string())
            }
            name => {
                let name = name.unwrap_or(BUILT_IN[0].0);
                let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
                    let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                    return Err(Error::input(
                        "recipe",
                        format!("no built-in recipe is called `{name}`"),
                        format!("built in: {}; a file's name ends in .toml", known.join(", ")),
                    ));
                };
                let place = format!("the built-in recipe {name}");
                (Recipe::parse(text, &place)?, place)
            }
        };
        for text in overrides {
            recipe.set(text)?;
        }
        recipe.check(&place)?;
        Ok(recipe)
    }

    /// Reads the text of a recipe over the values of recipes/default.toml; `place` is named in messages. Settings that
    /// contradict each other are found by [`Recipe::check`], after all overrides.
    ///
    /// # Errors
    /// A syntax error, an unknown section or key, or a value that its key cannot take: with the line.
    pub fn parse(text: &str, place: &str) -> Result<Recipe> {
        let mut recipe = Recipe::blank();
        let (name, default) = BUILT_IN[0];
        recipe.overlay(default, &format!("the built-in recipe {name}"))?;
        recipe.overlay(text, place)?;
        Ok(recipe)
    }

    /// Takes one `section.key=value`, e.g. from `--set`. Text needs no quotes, a list no brackets: `grpo.arms=temp,sft`.
    ///
    /// # Errors
    /// No `=`, an unknown key, or a value that the key cannot take.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let place = format!("--set {text}");
        let Some((key, value)) = text.split_once('=') else {
            let advice = format!("write --set section.key=value; all keys: {LIST_KEYS}");
            return Err(Error::input(place, "has no `=`", advice));
        };
        let (key, value) = (key.trim(), value.trim());
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let Some(toml) = self.section_mut(section).and_then(|keys| keys.quote(name, value)) else {
            return Err(self.unknown_key(&place, key));
        };
        let place = Place { name: place, text: None };
        match DeValue::parse(&toml) {
            Ok(parsed) => self.take(&place, section, name, parsed.get_ref(), value),
            Err(_) => Err(self.wrong_value(&place.name, section, name, value)),
        }
    }

    /// Reads the keys that `text` has.
    fn overlay(&mut self, text: &str, name: &str) -> Result<()> {
        let place = Place { name: name.to_string(), text: Some(text) };
        let table = DeTable::parse(text).map_err(|error| {
            let place = place.at(error.span().unwrap_or(0..0));
            let advice = format!("recipes are TOML: key = value under [section]; all keys: {LIST_KEYS}");
            Error::input(place, error.message().trim_end().replace('\n', " "), advice)
        })?;
        for (key, value) in table.get_ref() {
            let source = |span: Range<usize>| text.get(span).unwrap_or_default();
            let known = self.sections().iter().any(|(name, _)| !name.is_empty() && name == key.get_ref());
            match value.get_ref() {
                DeValue::Table(entries) if known => {
                    for (inner, value) in entries {
                        let place = place.narrowed(inner.span());
                        self.take(
                            &place,
                            key.get_ref(),
                            inner.get_ref(),
                            value.get_ref(),
                            source(value.span()),
                        )?;
                    }
                }
                DeValue::Table(_) => return Err(self.unknown_section(&place.at(key.span()), key.get_ref())),
                _ if known => {
                    let found = shortened(source(value.span()));
                    return Err(Error::input(
                        place.at(key.span()),
                        format!("`{}` is {found}, expected the section [{}]", key.get_ref(), key.get_ref()),
                        format!("all keys: {LIST_KEYS}"),
                    ));
                }
                other => {
                    self.take(&place.narrowed(key.span()), "", key.get_ref(), other, source(value.span()))?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, place: &Place, section: &str, key: &str, value: &DeValue, found: &str) -> Result<()> {
        match self.section_mut(section).and_then(|keys| keys.set(key, value)) {
            Some(true) => Ok(()),
            Some(false) => Err(self.wrong_value(&place.name, section, key, found)),
            None => Err(self.unknown_key(&place.name, &full_name(section, key))),
        }
    }

    /// Every key: full name, value as TOML, what it takes, documentation in one line.
    pub fn entries(&self) -> Vec<(String, String, String, String)> {
        let mut list = Vec::new();
        for (section, keys) in self.sections() {
            for key in keys.keys() {
                let value = keys.get(key.name).unwrap_or_default();
                list.push((
                    full_name(section, key.name),
                    value,
                    key.takes,
                    key.doc.concat().trim().to_string(),
                ));
            }
        }
        list
    }

    fn wrong_value(&self, place: &str, section: &str, key: &str, found: &str) -> Error {
        let name = full_name(section, key);
        let entry = self.entries().into_iter().find(|entry| entry.0 == name);
        let (takes, doc) = entry.map(|(_, _, takes, doc)| (takes, doc)).unwrap_or_default();
        let problem = format!("`{name}` is {}, expected {takes}", shortened(found));
        Error::input(place, problem, format!("{name}: {doc}"))
    }

    fn unknown_key(&self, place: &str, name: &str) -> Error {
        let (section, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        if !self.sections().iter().any(|(known, _)| *known == section) {
            return self.unknown_section(place, section);
        }
        let nearest = self
            .entries()
            .into_iter()
            .map(|(known, ..)| {
                let known_leaf = known.rsplit('.').next().unwrap_or(&known);
                // A key of another section is one mistake away, however far its section's name is.
                let moved = if known_leaf == leaf { 1 } else { usize::MAX };
                (keys::distance(&known, name).min(moved), known)
            })
            .min_by_key(|(distance, _)| *distance)
            .filter(|(distance, _)| *distance <= 1 + leaf.chars().count() / 3);
        let hint = nearest.map(|(_, known)| format!("did you mean `{known}`?  ")).unwrap_or_default();
        Error::input(place, format!("unknown key `{name}`"), format!("{hint}All keys: {LIST_KEYS}"))
    }

    fn unknown_section(&self, place: &str, name: &str) -> Error {
        let known: Vec<&str> =
            self.sections().iter().map(|(name, _)| *name).filter(|n| !n.is_empty()).collect();
        let nearest = known.iter().map(|known| (keys::distance(known, name), known)).min();
        let hint = nearest.filter(|(distance, _)| *distance <= 2).map(|(_, known)| known);
        let hint = hint.map(|known| format!("did you mean [{known}]?  ")).unwrap_or_default();
        Error::input(
            place,
            format!("unknown section [{name}]"),
            format!("{hint}Sections: {}", known.join(", ")),
        )
    }

    /// Settings that contradict each other; `place` is named in messages.
    ///
    /// # Errors
    /// The first contradiction, with its keys.
    pub fn check(&self, place: &str) -> Result<()> {
        let Recipe { model, adapter, data, grpo, hrpo, mask, evaluation, .. } = self;
        let fresh = model.path.is_empty();
        let needs_masks = grpo.arms.iter().any(|arm| matches!(arm, Arm::DropoutLatent | Arm::DropoutAll));
        let no_masks = mask.mode == Mode::None || mask.sites.is_empty() || mask.p == 0.0;
        let alone = grpo.group == 1 && grpo.baseline != Baseline::None && !grpo.arms.is_empty();
        let head_dim = model.width / model.heads;
        let gated = grpo.arms.contains(&Arm::Hrpo);
        let adapters = adapter.rank > 0;
        let every = adapter::ALL_LINEAR;
        let twice = grpo.arms.iter().enumerate().find(|(n, arm)| grpo.arms[..*n].contains(arm));
        let twice = twice.map(|(_, arm)| arm.name());
        let wrong = [
            (
                gated && hrpo.thinking == 0,
                "grpo.arms has hrpo, but hrpo.thinking = 0 reads no token with its mixture".to_string(),
            ),
            (
                gated && adapters,
                "grpo.arms has hrpo, whose gates an adapter (adapter.rank) would freeze".to_string(),
            ),
            (
                gated && grpo.learning_rate == 0.0,
                "grpo.arms has hrpo, but grpo.learning_rate = 0, which the gates' rates fall with".to_string(),
            ),
            (
                fresh && !model.width.is_multiple_of(model.heads),
                format!("model.width = {} is no multiple of model.heads = {}", model.width, model.heads),
            ),
            (
                fresh && !model.heads.is_multiple_of(model.kv_heads),
                format!("model.kv_heads = {} does not divide model.heads = {}", model.kv_heads, model.heads),
            ),
            (
                fresh && model.family == Family::Gpt2 && model.kv_heads != model.heads,
                format!(
                    "model.kv_heads = {} and model.heads = {} differ; only family llama shares keys and values",
                    model.kv_heads, model.heads
                ),
            ),
            (
                fresh && model.family == Family::Llama && !head_dim.is_multiple_of(2),
                format!("model.width / model.heads = {head_dim} is odd; rotary positions need pairs"),
            ),
            (
                data.words_steps_min > data.words_steps_max,
                format!(
                    "data.words_steps_min = {} is above data.words_steps_max = {}",
                    data.words_steps_min, data.words_steps_max
                ),
            ),
            (
                data.graph_path >= data.graph_nodes,
                format!(
                    "data.graph_path = {} needs more than data.graph_nodes = {}",
                    data.graph_path, data.graph_nodes
                ),
            ),
            (
                data.source == Source::File && data.train.is_empty(),
                "data.source = \"file\" needs data.train".into(),
            ),
            (
                data.source == Source::File && (data.valid.is_empty() || data.test.is_empty()),
                "data.source = \"file\" needs data.valid and data.test".into(),
            ),
            (
                alone,
                "grpo.group = 1 leaves nothing to compare a rollout with; set grpo.baseline = \"none\" or a larger group"
                    .into(),
            ),
            (
                adapters && self.coconut.variant == Variant::Codi,
                format!(
                    "coconut.variant = \"codi\" trains a projector, which adapter.rank = {} would freeze; set adapter.rank = 0",
                    adapter.rank
                ),
            ),
            (
                needs_masks && no_masks,
                "grpo.arms has dropout, but mask.p = 0, mask.mode = \"none\" or mask.sites = [] leaves no masks".into(),
            ),
            (
                adapters && adapter.targets.is_empty() && !adapter.train_embeddings,
                format!("adapter.rank = {} trains nothing: adapter.targets is empty", adapter.rank),
            ),
            (
                adapters && adapter.targets.len() > 1 && adapter.targets.iter().any(|target| target == every),
                format!("adapter.targets has {every} beside other names; it stands alone"),
            ),
            (
                !adapters && (adapter.train_embeddings || adapter.rslora),
                "adapter.rank = 0, but adapter.train_embeddings or adapter.rslora is true; give a rank, e.g. 16".into(),
            ),
            (
                twice.is_some(),
                format!(
                    "grpo.arms names {} twice: both would be the same run, in one folder",
                    twice.unwrap_or_default()
                ),
            ),
            (
                evaluation.k > evaluation.masks,
                format!("evaluation.k = {} is above evaluation.masks = {}", evaluation.k, evaluation.masks),
            ),
        ];
        if let Some((_, problem)) = wrong.into_iter().find(|(wrong, _)| *wrong) {
            return Err(Error::input(place, problem, format!("all keys: {LIST_KEYS}")));
        }
        match grpo.arms.contains(&Arm::Lepo) {
            // Now, not after the schools that come before.
            true => {
                let plan = settings::soft(&self.lepo);
                plan.objective.check(&plan.thoughts, self.lepo.embedding_noise)
            }
            false => Ok(()),
        }
    }

    /// The recipe as TOML, every key with its documentation: what recipe.toml of a run holds. Reads back as itself.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for (section, keys) in self.sections() {
            if !section.is_empty() {
                // Writing into a String cannot fail, here and below.
                let _ = writeln!(out, "\n# {}\n[{section}]", keys.about());
            }
            for key in keys.keys() {
                for line in key.doc {
                    let _ = writeln!(out, "# {}", line.trim());
                }
                let _ = writeln!(out, "# ({})", key.takes);
                let _ = writeln!(out, "{} = {}", key.name, keys.get(key.name).unwrap_or_default());
            }
        }
        out
    }

    /// Every key with its value here, what it takes, and what it does; for reading.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        for (section, keys) in self.sections() {
            if !section.is_empty() {
                let _ = writeln!(out, "\n[{section}]  {}", keys.about());
            }
            for key in keys.keys() {
                let value = keys.get(key.name).unwrap_or_default();
                let _ = writeln!(out, "  {} = {value}   ({})", full_name(section, key.name), key.takes);
                for line in key.doc {
                    let _ = writeln!(out, "      {}", line.trim());
                }
            }
        }
        out
    }

    /// Keys whose values differ, as `(key, here, there)` in TOML.
    pub fn differences(&self, other: &Recipe) -> Vec<(String, String, String)> {
        let pairs = self.entries().into_iter().zip(other.entries());
        pairs.filter(|(a, b)| a.1 != b.1).map(|(a, b)| (a.0, a.1, b.1)).collect()
    }
}

/// Where a key stands.
struct Place<'a> {
    name: String,
    text: Option<&'a str>,
}

impl Place<'_> {
    /// `name line 9`.
    fn at(&self, span: Range<usize>) -> String {
        match self.text.and_then(|text| text.as_bytes().get(..span.start)) {
            Some(before) => {
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
                format!("{} line {line}", self.name)
            }
            None => self.name.clone(),
        }
    }

    fn narrowed(&self, span: Range<usize>) -> Place<'static> {
        Place { name: self.at(span), text: None }
    }
}

fn full_name(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_string() } else { format!("{section}.{key}") }
}

/// A value as it was written, cut to one short line.
fn shortened(found: &str) -> String {
    let line = found.lines().next().unwrap_or_default();
    let short: String = line.chars().take(60).collect();
    if short.len() < found.len() {
        format!("{short}...")
    } else if short.is_empty() {
        "empty".into()
    } else {
        short
    }
}
