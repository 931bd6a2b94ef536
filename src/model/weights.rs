//! Opening a model and reading its weights, tensor by tensor, from a Hugging Face folder or a GGUF file.
//!
//! Opening checks everything that can be checked without reading the numbers: config, names, shapes, element types.
//! Reading converts to the wanted type on the way and refuses NaN and infinity. Files stay mapped, so a model is never
//! in memory twice.

use super::config::{Config, Family, read_json};
use super::families::{self, FEWEST_PER_LAYER, Found, LayerRole, Names, Parameter, Role};
use super::folder;
use super::generation_config;
use super::gguf::GgufFile;
use super::gguf_model::{self, Arrangement};
use super::peft;
use super::safetensors_file::{SafetensorsFile, StoredTensor};
use super::save::Companions;
use super::stored::{Stored, Target};
use crate::base::{Error, Result};
use crate::text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An open model: what it is, and where each parameter lies.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    config: Config,
    parameters: Vec<Parameter>,
    places: Vec<Place>,
    container: Container,
}

#[derive(Debug)]
enum Container {
    Folder(Vec<SafetensorsFile>),
    Gguf(GgufFile),
}

/// Where a parameter lies.
#[derive(Clone, Debug)]
struct Place {
    /// Which file of a folder, or which tensor of a GGUF file.
    index: usize,
    /// The name in that file.
    name: String,
    arrangement: Arrangement,
}

impl Container {
    fn tensor(&self, place: &Place) -> Result<StoredTensor<'_>> {
        match self {
            Container::Folder(files) => files[place.index].tensor(&place.name),
            Container::Gguf(file) => Ok(file.tensor(place.index)),
        }
    }

    fn path(&self, place: &Place) -> &Path {
        match self {
            Container::Folder(files) => files[place.index].path(),
            Container::Gguf(file) => file.path(),
        }
    }

    /// Every tensor with its Hugging Face name.
    fn tensors(&self, config: &Config) -> Vec<(String, Place)> {
        let mut all = Vec::new();
        match self {
            Container::Folder(files) => {
                for (index, file) in files.iter().enumerate() {
                    for name in file.names() {
                        all.push((name.clone(), Place { index, name, arrangement: Arrangement::Same }));
                    }
                }
            }
            Container::Gguf(file) => {
                for (index, tensor) in file.tensors().iter().enumerate() {
                    // GPT-2's tied head may be there a second time.
                    if config.tied && tensor.name == "output.weight" {
                        continue;
                    }
                    let architecture = config.family.model_type();
                    let found = gguf_model::hugging_face_name(architecture, &tensor.name, config.head_dim);
                    if let Some((hf_name, arrangement)) = found {
                        all.push((hf_name, Place { index, name: tensor.name.clone(), arrangement }));
                    }
                }
            }
        }
        all
    }
}

impl Source {
    /// Opens a Hugging Face folder or a `.gguf` file.
    ///
    /// # Errors
    /// Anything that is missing, damaged, contradictory or not supported; the message names it.
    pub fn open(path: &Path) -> Result<Source> {
        let metadata = match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let advice = "expected a Hugging Face model folder, or a .gguf file, on this machine (model.path, --model): \
                              nothing is downloaded";
                return Err(Error::file(path, "there is no such file or folder", advice));
            }
            metadata => metadata.map_err(Error::io(path, "cannot open"))?,
        };
        if peft::is_adapter(path) {
            let advice = "name the base model instead, and this folder with --adapter";
            return Err(Error::file(path, "is an adapter, not a model", advice));
        }
        if metadata.is_dir() {
            let config = Config::from_folder(path)?;
            return Source::bind(path, config, Container::Folder(folder::open(path)?));
        }
        if path.extension().is_none_or(|extension| extension != "gguf") {
            let advice = "expected a Hugging Face model folder, or a .gguf file";
            return Err(Error::file(path, "is neither a folder nor a .gguf file", advice));
        }
        let file = GgufFile::open(path)?;
        let config = Config::from_json(gguf_model::config_json(&file)?, path)?;
        Source::bind(path, config, Container::Gguf(file))
    }

    /// Matches the tensors of the files with the parameters of the config.
    fn bind(path: &Path, config: Config, container: Container) -> Result<Source> {
        let tensors = container.tensors(&config);
        // Before a list of that length is made.
        if config.layers > tensors.len() / FEWEST_PER_LAYER {
            return Err(Error::file(
                path,
                format!(
                    "the config says {} layers, the weights are only {} tensors",
                    config.layers,
                    tensors.len()
                ),
                "config and weights belong to different models, or the download is incomplete",
            ));
        }
        let parameters = families::parameters(&config);
        let names = Names::new(&config, &parameters);
        let mut places: Vec<Option<Place>> = vec![None; parameters.len()];
        let mut tied_head = None;
        for (name, place) in tensors {
            match names.resolve(&name) {
                Found::Parameter(i) => {
                    if let Some(other) = &places[i] {
                        return Err(Error::file(
                            container.path(&place),
                            format!(
                                "tensors \"{}\" and \"{}\" are the same parameter",
                                other.name, place.name
                            ),
                            "keep one of them",
                        ));
                    }
                    check_tensor(&config, &parameters[i], &container, &place)?;
                    places[i] = Some(place);
                }
                Found::TiedHead => tied_head = Some(place),
                Found::Buffer => {}
                Found::Unknown => {
                    return Err(Error::file(
                        container.path(&place),
                        format!("unexpected tensor \"{}\"", place.name),
                        &format!(
                            "a {} model of {} layers with this config has none of that name",
                            config.family.model_type(),
                            config.layers
                        )[..],
                    ));
                }
            }
        }
        let mut found = Vec::with_capacity(places.len());
        for (place, parameter) in places.into_iter().zip(&parameters) {
            let missing = || {
                let advice = match parameter.role {
                    Role::OutputHead => {
                        "if the head is the token embedding, set tie_word_embeddings in config.json"
                    }
                    _ => "config and weights belong to different models, or the download is incomplete",
                };
                Error::file(path, format!("tensor \"{}\" is missing", parameter.name), advice)
            };
            found.push(place.ok_or_else(missing)?);
        }
        let source = Source { path: path.to_path_buf(), config, parameters, places: found, container };
        if let Some(place) = tied_head {
            source.check_tied_head(&place)?;
        }
        Ok(source)
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All parameters, in the order of [`families::parameters`]; the other functions take indices into this list.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// How parameter `index` is stored.
    ///
    /// # Errors
    /// None in practice: opening has looked at every parameter.
    pub fn stored(&self, index: usize) -> Result<Stored> {
        Ok(self.container.tensor(&self.places[index])?.stored)
    }

    /// Reads all of parameter `index` into `out`, row-major in Hugging Face's shape.
    ///
    /// # Errors
    /// `out` has another length, or a number is NaN or infinite.
    pub fn load<T: Target>(&self, index: usize, out: &mut [T]) -> Result<()> {
        let (rows, _) = self.parameters[index].shape.as_matrix();
        self.load_rows(index, 0..rows, out)
    }

    /// Reads `rows` of parameter `index` (a vector is one row), for piecewise upload.
    ///
    /// # Errors
    /// As [`Source::load`]; or `rows` outside the parameter.
    pub fn load_rows<T: Target>(&self, index: usize, rows: Range<usize>, out: &mut [T]) -> Result<()> {
        let (parameter, place) = (&self.parameters[index], &self.places[index]);
        let (all_rows, cols) = parameter.shape.as_matrix();
        if rows.start > rows.end || rows.end > all_rows || out.len() != rows.len() * cols {
            return Err(Error::shape(
                format!("rows of {} to read", parameter.name),
                format!("{rows:?} into {} elements", out.len()),
                format!("inside 0..{all_rows} of {cols}"),
            ));
        }
        let tensor = self.container.tensor(place)?;
        read_rows(&tensor, place.arrangement, (all_rows, cols), rows.clone(), out);
        if let Some(at) = first_not_finite(out) {
            return Err(Error::NotFinite {
                what: format!("{}: tensor \"{}\"", self.container.path(place).display(), place.name),
                found: match parameter.shape.dims().len() {
                    1 => format!("{} at index {at}", out[at].to_f64()),
                    _ => format!("{} at [{}, {}]", out[at].to_f64(), rows.start + at / cols, at % cols),
                },
                advice: "the checkpoint is damaged, comes from a run that diverged, or needs a wider type"
                    .into(),
            });
        }
        Ok(())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.container {
            Container::Folder(_) => Tokenizer::from_file(&self.path.join("tokenizer.json")),
            Container::Gguf(file) => Tokenizer::from_gguf(&gguf_model::vocabulary(file)?),
        }
    }

    /// The chat template, if the model has one.
    ///
    /// # Errors
    /// The template or tokenizer_config.json is damaged.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.container {
            Container::Folder(_) => {
                let config = self.optional_json("tokenizer_config.json")?;
                let path = self.path.join("chat_template.jinja");
                let file = match path.exists() {
                    true => Some(std::fs::read_to_string(&path).map_err(Error::io(&path, "cannot read"))?),
                    false => None,
                };
                ChatTemplate::from_parts(file.as_deref(), &config)
            }
            Container::Gguf(file) => {
                let vocabulary = gguf_model::vocabulary(file)?;
                let token = |id: Option<u32>| id.and_then(|id| vocabulary.tokens.get(id as usize));
                let special = json!({"bos_token": token(vocabulary.bos), "eos_token": token(vocabulary.eos),
                    "pad_token": token(vocabulary.padding), "unk_token": token(vocabulary.unknown)});
                ChatTemplate::from_parts(gguf_model::chat_template(file)?, &special)
            }
        }
    }

    /// The tokens that end generation: those of generation_config.json, which may be none; of config.json where there is no
    /// such file.
    ///
    /// # Errors
    /// generation_config.json is damaged.
    pub fn stop_tokens(&self) -> Result<Vec<u32>> {
        let said = generation_config::stop_tokens(
            &self.generation_config()?,
            &self.path.join(generation_config::FILE),
        )?;
        Ok(said.unwrap_or_else(|| self.config.eos.clone()))
    }

    /// What generation_config.json asks for and latch does not do (`repetition_penalty = 1.1`): transformers' text would
    /// differ.
    ///
    /// # Errors
    /// generation_config.json is damaged.
    pub fn settings_not_followed(&self) -> Result<Vec<String>> {
        Ok(generation_config::not_followed(&self.generation_config()?))
    }

    /// generation_config.json, or null.
    fn generation_config(&self) -> Result<Value> {
        match &self.container {
            Container::Folder(_) => self.optional_json(generation_config::FILE),
            Container::Gguf(_) => Ok(Value::Null),
        }
    }

    /// The files that belong beside the weights when the model is saved.
    ///
    /// # Errors
    /// The folder cannot be listed, or the GGUF file has no usable tokenizer.
    pub fn companions(&self) -> Result<Companions> {
        match &self.container {
            Container::Folder(_) => Companions::of_folder(&self.path),
            Container::Gguf(file) => Ok(Companions::of_contents(gguf_model::companion_files(file)?)),
        }
    }

    fn optional_json(&self, name: &str) -> Result<Value> {
        let path = self.path.join(name);
        if path.exists() { read_json(&path) } else { Ok(Value::Null) }
    }

    /// A tied model's file may hold the head again, but then it must be the embedding.
    fn check_tied_head(&self, place: &Place) -> Result<()> {
        let embedding = self.parameters.iter().position(|p| p.role == Role::TokenEmbedding).unwrap_or(0);
        let (head, table) = (self.container.tensor(place)?, self.container.tensor(&self.places[embedding])?);
        if head.shape != table.shape || head.stored != table.stored || head.bytes != table.bytes {
            return Err(Error::file(
                self.container.path(place),
                format!("tensor \"{}\" is not the token embedding", place.name),
                "config.json says tie_word_embeddings = true; set it to false if the head has weights of its own",
            ));
        }
        Ok(())
    }
}

/// Shape and element type of a tensor against the config.
fn check_tensor(config: &Config, parameter: &Parameter, container: &Container, place: &Place) -> Result<()> {
    let tensor = container.tensor(place)?;
    let wrong = |problem: String, advice: &str| Error::file(container.path(place), problem, advice);
    let expected = parameter.shape.dims();
    let fits = match place.arrangement {
        Arrangement::Transposed => tensor.shape.iter().rev().eq(expected),
        _ => tensor.shape == expected,
    };
    if !fits {
        let mut shape = tensor.shape.to_vec();
        if place.arrangement == Arrangement::Transposed {
            shape.reverse();
        }
        let reasons = axes(config, parameter.role);
        let reasons: Vec<String> = reasons
            .into_iter()
            .zip(expected)
            .enumerate()
            .filter(|(i, (_, length))| shape.len() != expected.len() || shape[*i] != **length)
            .map(|(_, (name, length))| format!("{name} = {length}"))
            .collect();
        return Err(wrong(
            format!("tensor \"{}\" has shape {shape:?}, config.json says {}", place.name, reasons.join(", ")),
            "config and weights belong to different models",
        ));
    }
    if !tensor.stored.is_real() {
        return Err(wrong(
            format!("tensor \"{}\" has element type {:?}, expected real numbers", place.name, tensor.stored),
            "known: F32, F16, BF16, F64",
        ));
    }
    if let Arrangement::Interleaved { head_dim } = place.arrangement {
        let rows = expected[0];
        let one_by_one = expected.len() == 2 || tensor.stored.block_elements() == 1;
        if !rows.is_multiple_of(head_dim) || !one_by_one {
            return Err(wrong(
                format!("the rows of tensor \"{}\" cannot be reordered", place.name),
                "use another file",
            ));
        }
    }
    Ok(())
}

/// The keys of config.json that give the axes of a parameter.
fn axes(config: &Config, role: Role) -> Vec<&'static str> {
    use LayerRole::*;
    let gpt2 = config.family == Family::Gpt2;
    let width = config.width_key();
    let mlp = if gpt2 { "n_inner" } else { "intermediate_size" };
    let query = "num_attention_heads * head_dim";
    let kv = "num_key_value_heads * head_dim";
    match role {
        Role::TokenEmbedding | Role::OutputHead => vec!["vocab_size", width],
        Role::PositionEmbedding => vec!["n_positions", width],
        Role::FinalNormGain | Role::FinalNormBias => vec![width],
        // Kept in a file of its own (gate_file.rs).
        Role::Gate(_) => Vec::new(),
        // Kept in a file of its own (projector_file.rs).
        Role::Projector(_) => Vec::new(),
        Role::Layer(_, part) => match part {
            Norm1Gain | Norm1Bias | Norm2Gain | Norm2Bias | OutputBias | DownBias => vec![width],
            QkvWeight => vec![width, "3 * n_embd"],
            QkvBias => vec!["3 * n_embd"],
            QueryWeight => vec![query, width],
            QueryBias => vec![query],
            KeyWeight | ValueWeight => vec![kv, width],
            KeyBias | ValueBias => vec![kv],
            QueryNorm | KeyNorm => vec!["head_dim"],
            OutputWeight if gpt2 => vec![width, width],
            OutputWeight => vec![width, query],
            UpWeight if gpt2 => vec![width, mlp],
            GateWeight | UpWeight => vec![mlp, width],
            GateBias | UpBias => vec![mlp],
            DownWeight if gpt2 => vec![mlp, width],
            DownWeight => vec![width, mlp],
        },
    }
}

/// Decodes `rows` of a parameter of `shape` from how it lies in its file. Sizes have been checked.
fn read_rows<T: Target>(
    tensor: &StoredTensor,
    arrangement: Arrangement,
    shape: (usize, usize),
    rows: Range<usize>,
    out: &mut [T],
) {
    let stored = tensor.stored;
    match arrangement {
        Arrangement::Same => {
            // Checked when opening: whole rows are whole blocks.
            let at = |row: usize| stored.bytes(row * shape.1).unwrap_or(0);
            stored.decode(&tensor.bytes[at(rows.start)..at(rows.end)], out);
        }
        Arrangement::Interleaved { head_dim } => {
            let vector = tensor.shape.len() == 1;
            // A vector is one row of ours, but its elements change places.
            let (first, cols) = if vector { (0, 1) } else { (rows.start, shape.1) };
            let bytes = stored.bytes(cols).unwrap_or(0);
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                let row = first + i;
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, j) = (within / (head_dim / 2), within % (head_dim / 2));
                let from = head * head_dim + 2 * j + half;
                stored.decode(&tensor.bytes[from * bytes..(from + 1) * bytes], out);
            }
        }
        Arrangement::Transposed => {
            let (inputs, outputs) = shape;
            let bytes = stored.bytes(inputs).unwrap_or(0);
            let mut line = vec![T::default(); inputs];
            for output in 0..outputs {
                stored.decode(&tensor.bytes[output * bytes..(output + 1) * bytes], &mut line);
                for (i, value) in line[rows.clone()].iter().enumerate() {
                    out[i * outputs + output] = *value;
                }
            }
        }
    }
}

/// Index of the first NaN or infinity.
fn first_not_finite<T: Target>(values: &[T]) -> Option<usize> {
    // Whole chunks without a branch an element, so that the common case runs at the speed of memory.
    const CHUNK: usize = 4096;
    let bad =
        values.chunks(CHUNK).position(|chunk| !chunk.iter().fold(true, |ok, value| ok & value.finite()))?;
    let within = values[bad * CHUNK..].iter().position(|value| !value.finite())?;
    Some(bad * CHUNK + within)
}
