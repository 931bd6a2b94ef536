//! Recipes of runs beside the default one. They are read as plain TOML, so that keys of another version are no hindrance.

use super::markup::{element, table};
use super::read::Run;
use crate::base::Result;
use crate::run::recipe::{BUILT_IN, Recipe};
use std::collections::BTreeMap;

/// Keys of a recipe with their values; none where the text is no TOML.
pub fn keys(text: &str) -> Option<BTreeMap<String, String>> {
    let parsed: toml::Table = text.parse().ok()?;
    let mut list = BTreeMap::new();
    for (name, value) in &parsed {
        match value {
            toml::Value::Table(section) => {
                list.extend(section.iter().map(|(key, value)| (format!("{name}.{key}"), written(value))));
            }
            value => {
                list.insert(name.clone(), written(value));
            }
        }
    }
    Some(list)
}

fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => format!("{number:?}"),
        toml::Value::Boolean(truth) => truth.to_string(),
        toml::Value::Array(list) => {
            format!("[{}]", list.iter().map(written).collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// Keys of recipes that are not as in the default one, or not alike.
///
/// # Errors
/// A built-in recipe that cannot be read.
pub fn table_of(runs: &mut [Run]) -> Result<String> {
    let built_in = |name: &str| -> Result<BTreeMap<String, String>> {
        Ok(keys(&Recipe::resolve(Some(name), &[])?.to_toml()).unwrap_or_default())
    };
    let default = built_in(BUILT_IN[0].0)?;
    let mut all = Vec::new();
    let mut out = String::new();
    let several = runs.len() > 1;
    for run in runs.iter_mut() {
        let Some(own) = keys(&run.recipe) else {
            run.counts.missing += 1;
            run.problems.push("recipe.toml: is not TOML; its keys are not shown".into());
            all.push(BTreeMap::new());
            continue;
        };
        let mut nearest: Option<(usize, &str)> = None;
        for (name, _) in BUILT_IN {
            let other = built_in(name)?;
            let differing = own.iter().filter(|(key, value)| other.get(*key) != Some(value)).count();
            if nearest.is_none_or(|(least, _)| differing < least) {
                nearest = Some((differing, name));
            }
        }
        if let Some((differing, name)) = nearest {
            let whose = if several { run.label.as_str() } else { "This run" };
            let how = match differing {
                0 => format!("the built-in recipe {name}"),
                1 => format!("1 key differs from the nearest built-in recipe, {name}"),
                n => format!("{n} keys differ from the nearest built-in recipe, {name}"),
            };
            out += &element("p", &format!("{whose}: {how}."));
        }
        all.push(own);
    }
    let mut names: Vec<&String> = default.keys().chain(all.iter().flat_map(BTreeMap::keys)).collect();
    names.sort_unstable();
    names.dedup();
    let value = |keys: &BTreeMap<String, String>, name: &str| {
        keys.get(name).cloned().unwrap_or_else(|| "not there".into())
    };
    let rows: Vec<Vec<String>> = names
        .into_iter()
        .filter(|name| all.iter().any(|keys| !keys.is_empty() && keys.get(*name) != default.get(*name)))
        .map(|name| {
            let values = all.iter().map(|keys| value(keys, name));
            [name.clone(), value(&default, name)].into_iter().chain(values).collect()
        })
        .collect();
    let header: Vec<&str> =
        ["key", "default"].into_iter().chain(runs.iter().map(|run| run.label.as_str())).collect();
    out += &match rows.is_empty() {
        true => element("p", "Every key has the value of the default recipe."),
        false => table(&header, &rows),
    };
    Ok(out)
}
