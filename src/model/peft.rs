//! Adapters as files, in the folder format of the library PEFT: adapter_config.json and adapter_model.safetensors.
//!
//! What PEFT can do and we cannot (other kinds of adapters, other ranks for some layers, DoRA) is refused by name. The
//! file's metadata hold a fingerprint of the base, so that an adapter of another base of the same sizes is refused too;
//! files of other programs have none.

use super::adapter::{ALL_LINEAR, AdapterConfig, AdapterParameter, Embeddings, HEAD, Part, parameters};
use super::config::{Family, read_json};
use super::families::Role;
use super::safetensors_file::{SafetensorsFile, TensorHeader};
use super::save::{self, Companions, FolderOf};
use super::{Model, checkpoint};
use crate::base::{Dtype, Error, Result};
use crate::ops::Tensor;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The description of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Its tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The metadata entry with the fingerprint of the base.
const FINGERPRINT: &str = "latch_base";

/// Settings of PEFT under which its adapters compute something else; each must be absent or empty.
const UNSUPPORTED: [&str; 15] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "exclude_modules",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "megatron_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Beginnings of an adapter that leave the base alone; others (PiSSA, OLoRA, LoftQ, CorDA) begin by taking a part out of
/// its weights, and PEFT does so again whenever such an adapter is loaded.
const PLAIN_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl Model {
    /// Writes the adapter as a folder that PEFT opens. A folder that exists is replaced file by file, by rename.
    ///
    /// # Errors
    /// The model has no adapter, the place cannot be written to, or the disk is full.
    pub fn save_adapter(&self, folder: &Path, companions: &Companions) -> Result<()> {
        let Some(config) = self.adapter() else {
            return Err(Error::input("adapter to save", "the model has none", "save the model itself"));
        };
        let list = self.adapter_list();
        // A tied matrix stands in the file as embedding and as head, as PEFT writes it.
        let again = list.iter().position(|p| p.part == Part::Whole && config.embeddings == Embeddings::Tied);
        let header = |parameter: &AdapterParameter, tensor: &Tensor| TensorHeader {
            name: parameter.name.clone(),
            shape: parameter.shape.dims().to_vec(),
            stored: checkpoint::stored_as(tensor.dtype()),
        };
        let mut headers: Vec<TensorHeader> =
            list.iter().zip(self.trained()).map(|(p, t)| header(p, t)).collect();
        headers.extend(again.map(|at| TensorHeader { name: full(HEAD), ..headers[at].clone() }));
        let fingerprint = self.fingerprint()?;
        let contents = FolderOf {
            weights: WEIGHTS_FILE,
            metadata: &[("format", "pt"), (FINGERPRINT, &fingerprint)],
            tensors: &headers,
            companions,
            config: (CONFIG_FILE, &self.config_json(config)),
        };
        save::save_folder(folder, contents, &mut |index, writer| {
            let index = if index < list.len() { Some(index) } else { again };
            index.map_or(Ok(()), |index| checkpoint::write_tensor(&self.trained()[index], writer))
        })
    }

    /// adapter_config.json, with the keys that PEFT writes.
    fn config_json(&self, config: &AdapterConfig) -> Value {
        let table = self.table_name();
        let whole: Option<Vec<&str>> = match config.embeddings {
            Embeddings::Frozen => None,
            Embeddings::Table => Some(vec![table]),
            Embeddings::Head => Some(vec![module(HEAD)]),
            Embeddings::Both | Embeddings::Tied => Some(vec![table, module(HEAD)]),
        };
        let mut targets: Vec<String> = config.targets.clone();
        if targets.iter().any(|target| target == ALL_LINEAR) {
            let names = self.adapter_list().iter().filter(|p| p.part == Part::A);
            targets = names.map(|p| module(&self.architecture.list[p.of].name).to_string()).collect();
        }
        targets.sort();
        targets.dedup();
        let alpha = match config.alpha.fract() == 0.0 && config.alpha < 1e15 {
            true => json!(config.alpha as u64),
            false => json!(config.alpha),
        };
        json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": config.base,
            "bias": "none",
            "ensure_weight_tying": config.embeddings == Embeddings::Tied,
            "exclude_modules": null,
            "fan_in_fan_out": self.config.family == Family::Gpt2,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_bias": false,
            "lora_dropout": 0.0,
            "modules_to_save": whole,
            "peft_type": "LORA",
            "r": config.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": config.rslora,
        })
    }

    /// The module name of the token embedding.
    fn table_name(&self) -> &str {
        module(&self.architecture.list[self.architecture.token_embedding].name)
    }

    /// Gives the model the adapter in `folder`, which PEFT or [`Model::save_adapter`] wrote.
    ///
    /// # Errors
    /// Files that are missing or damaged, settings that are not supported, or an adapter of another base model.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(CONFIG_FILE);
        if !path.exists() {
            let advice = "expected an adapter's folder, as PEFT or latch saves it";
            return Err(Error::file(folder, format!("has no {CONFIG_FILE}"), advice));
        }
        let json = read_json(&path)?;
        let Some(keys) = json.as_object() else {
            return Err(Error::file(&path, "is not a JSON object", "expected an adapter of PEFT"));
        };
        let file = SafetensorsFile::open(&folder.join(WEIGHTS_FILE))?;
        let names = file.names();
        let config =
            AdapterConfig { embeddings: self.embeddings_of(keys, &file)?, ..config_of(&path, keys)? };
        let base = config.base.clone();
        let other_base = |problem: String| {
            let of = if base.is_empty() { String::new() } else { format!("; it was made for {base}") };
            Error::file(file.path(), format!("{problem}{of}"), "this adapter belongs to another base model")
        };
        let list = parameters(self, &config).map_err(|error| other_base(error.to_string()))?;
        let known = |name: &str| {
            let tied = config.embeddings == Embeddings::Tied && name == full(HEAD);
            tied || list.iter().any(|parameter| parameter.name == name)
        };
        if let Some(name) = names.iter().find(|name| !known(name)) {
            return Err(other_base(format!("holds \"{name}\", for which the model has no place")));
        }
        if let Some(parameter) = list.iter().find(|p| !names.contains(&p.name)) {
            return Err(other_base(format!("has no tensor \"{}\"", parameter.name)));
        }
        for parameter in &list {
            let stored = file.tensor(&parameter.name)?;
            if stored.shape != parameter.shape.dims() || !stored.stored.is_real() {
                return Err(other_base(format!(
                    "tensor \"{}\" is {:?} {:?}, the model needs {:?}",
                    parameter.name,
                    stored.stored,
                    stored.shape,
                    parameter.shape.dims()
                )));
            }
        }
        let fingerprint = self.fingerprint()?;
        let made_for = file.metadata().and_then(|metadata| metadata.get(FINGERPRINT));
        if made_for.is_some_and(|made_for| *made_for != fingerprint) {
            return Err(other_base("was made for other weights of the same sizes".into()));
        }
        self.adapt_with(config, |_, parameter, tensor| checkpoint::read_any(tensor, &file, &parameter.name))
    }

    /// Which whole matrices an adapter holds.
    fn embeddings_of(&self, keys: &Map<String, Value>, file: &SafetensorsFile) -> Result<Embeddings> {
        let table_of = &self.architecture.list[self.architecture.token_embedding].name;
        let modules = keys.get("modules_to_save").and_then(Value::as_array);
        for name in modules.into_iter().flatten().filter_map(Value::as_str) {
            let own = table_of.strip_suffix(".weight").unwrap_or(table_of);
            let end = own.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
            if !end && name != module(HEAD) {
                return Err(Error::file(
                    file.path(),
                    format!("trains the whole module \"{name}\", which is not supported"),
                    format!(
                        "known: {}, {}; or the adapter belongs to another base model",
                        self.table_name(),
                        module(HEAD)
                    ),
                ));
            }
        }
        let (table, head) = (full(table_of), full(HEAD));
        let names = file.names();
        let tied = self.architecture.head == self.architecture.token_embedding;
        let tying = keys.get("ensure_weight_tying") == Some(&Value::Bool(true));
        Ok(match (names.contains(&table), names.contains(&head)) {
            (false, false) => Embeddings::Frozen,
            (true, false) if tied && tying => Embeddings::Tied,
            (true, false) => Embeddings::Table,
            (false, true) => Embeddings::Head,
            (true, true) => {
                let (a, b) = (file.tensor(&table)?, file.tensor(&head)?);
                let same = a.stored == b.stored && a.shape == b.shape && a.bytes == b.bytes;
                if tied && same { Embeddings::Tied } else { Embeddings::Both }
            }
        })
    }

    /// A hash of the first row of each frozen parameter of the layers, rounded to bf16: the same for every way in which
    /// the weights can be loaded, and whatever tokens were added.
    fn fingerprint(&self) -> Result<String> {
        // FNV-1a: no one forges an adapter's base.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |bytes: &[u8]| {
            for &byte in bytes {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        };
        for (parameter, tensor) in self.architecture.list.iter().zip(self.parameters()) {
            if !matches!(parameter.role, Role::Layer(..)) {
                continue;
            }
            take(parameter.name.as_bytes());
            for size in parameter.shape.dims() {
                take(&(*size as u64).to_le_bytes());
            }
            let row = tensor.rows(0..1.min(tensor.shape().as_matrix().0))?;
            let values: Vec<half::bf16> = match tensor.dtype() {
                Dtype::F64 => {
                    row.download::<f64>()?.into_iter().map(crate::base::dtype::bf16_of_f64).collect()
                }
                Dtype::Bf16 => row.download()?,
                _ => row.download::<f32>()?.into_iter().map(half::bf16::from_f32).collect(),
            };
            values.iter().for_each(|value| take(&value.to_bits().to_le_bytes()));
        }
        Ok(format!("{hash:016x}"))
    }
}

/// The settings in adapter_config.json but for the embeddings.
fn config_of(path: &Path, keys: &Map<String, Value>) -> Result<AdapterConfig> {
    let wrong = |problem: String, advice: &str| Err(Error::file(path, problem, advice));
    let get = |key: &str| keys.get(key).unwrap_or(&Value::Null);
    if get("peft_type") != "LORA" {
        return wrong(format!("peft_type is {}", get("peft_type")), "adapters of type LORA are supported");
    }
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if let Some(key) = UNSUPPORTED.iter().find(|key| !empty(get(key))) {
        return wrong(
            format!("{key} is {}", get(key)),
            "merge this adapter with PEFT, and use the merged model",
        );
    }
    if !matches!(get("bias"), Value::Null) && get("bias") != "none" {
        return wrong(format!("bias is {}", get("bias")), "adapters that leave biases alone are supported");
    }
    let init = get("init_lora_weights");
    if !(init.is_null() || init.is_boolean() || PLAIN_BEGINNINGS.iter().any(|name| init == name)) {
        return wrong(
            format!(
                "init_lora_weights is {init}, which may change the base's weights before the adapter is added"
            ),
            "save it with PEFT as a plain LoRA (path_initial_model_for_weight_conversion), or merge it",
        );
    }
    let Some(rank) = get("r").as_u64() else {
        return wrong(format!("r is {}", get("r")), "expected a whole number");
    };
    let Some(alpha) = get("lora_alpha").as_f64() else {
        return wrong(format!("lora_alpha is {}", get("lora_alpha")), "expected a number");
    };
    let targets = match get("target_modules") {
        Value::String(text) if text == ALL_LINEAR => vec![text.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(String::from).collect(),
        other => return wrong(format!("target_modules is {other}"), "expected a list of names"),
    };
    let rslora = get("use_rslora") == &Value::Bool(true);
    let base = get("base_model_name_or_path").as_str().unwrap_or_default().to_string();
    Ok(AdapterConfig { rank: rank as usize, alpha, rslora, targets, embeddings: Embeddings::Frozen, base })
}

/// The name of a module in an adapter's file.
fn full(name: &str) -> String {
    format!("base_model.model.{name}")
}

/// The last part of a module's name, from that of its weight.
fn module(weight: &str) -> &str {
    let name = weight.strip_suffix(".weight").unwrap_or(weight);
    name.rsplit('.').next().unwrap_or(name)
}

/// Whether a folder holds an adapter instead of a model.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).is_file() && !folder.join("config.json").is_file()
}
