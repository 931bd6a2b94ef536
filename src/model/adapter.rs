//! Low-rank adapters (LoRA, Hu et al. 2021), with the names and the meaning that the library PEFT gives them.
//!
//! ```text
//! forward   y = x W + b + u B^T            u = s x A^T        s = alpha / rank, or alpha / sqrt(rank)
//! backward  dB += dy^T u                   du = s dy B        dA += du^T x        dx += du A
//! ```
//! A is `[rank, in]`, B `[out, rank]`; W and b are frozen: they have no gradient and no state of an optimiser. Where a
//! projection is a window of a fused matrix (GPT-2's `c_attn`), the fused matrix has one A, and the window takes its
//! rows of B. u is computed again in backward, so that the tape keeps nothing of it.
//!
//! Weights are shared by a model, the copies of it ([`Model::duplicate`]) and its base ([`Model::base`]): a reference of
//! a KL penalty costs the memory of an adapter.

use super::Model;
use super::architecture::Architecture;
use super::families::{Layout, Role};
use super::parameters::Gradients;
use crate::base::{Dtype, Error, Result, Shape};
use crate::device::Device;
use crate::ops::linear::{self, Accumulate, Projection};
use crate::ops::{Tensor, View, ViewMut, elementwise};

/// What stands in the place of a list of targets: every matrix of every layer.
pub const ALL_LINEAR: &str = "all-linear";

/// Which of token embedding and output head are trained as a whole beside the matrices (PEFT's `modules_to_save`). They
/// are trained as copies: the base keeps its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Embeddings {
    /// Neither.
    #[default]
    Frozen,
    /// The token embedding; a tied head stays that of the base.
    Table,
    /// The output head.
    Head,
    /// Both, each on its own.
    Both,
    /// The matrix that serves as both.
    Tied,
}

/// What an adapter is.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Columns of B and rows of A.
    pub rank: usize,
    /// What the product is scaled by, before it is divided by the rank (or its root).
    pub alpha: f64,
    /// Divides by the root of the rank (rank-stabilised LoRA, Kalajdzievski 2023).
    pub rslora: bool,
    /// Names of the adapted matrices: a module's name, or its end from a dot on; or [`ALL_LINEAR`] alone.
    pub targets: Vec<String>,
    /// What is trained besides.
    pub embeddings: Embeddings,
    /// Folder or name of the base model, for whoever opens the adapter; may be empty.
    pub base: String,
}

impl AdapterConfig {
    /// What u is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether the module called `name` is adapted.
    fn adapts(&self, name: &str) -> bool {
        self.targets.iter().any(|target| target == ALL_LINEAR || is_end(name, target))
    }
}

/// Whether `target` is `name`, or its end from a dot on.
fn is_end(name: &str, target: &str) -> bool {
    name.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// What a tensor of an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `[rank, in]`.
    A,
    /// `[out, rank]`.
    B,
    /// A whole matrix in the place of the base's.
    Whole,
}

/// One tensor of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterParameter {
    /// PEFT's name, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Which parameter of the base it belongs to.
    pub of: usize,
    /// What it is.
    pub part: Part,
}

/// The tensors of a model's adapter.
#[derive(Debug)]
pub(super) struct Adapters {
    config: AdapterConfig,
    list: Vec<AdapterParameter>,
    tensors: Vec<Tensor>,
}

/// Memory for the narrow side of the products, `[rows, rank]` each.
#[derive(Debug)]
pub(super) struct LowRank {
    u: Tensor,
    du: Option<Tensor>,
}

impl LowRank {
    /// Room for `rows` rows; none for a model without an adapter.
    pub fn reserve(
        device: &Device,
        rows: usize,
        rank: usize,
        dtype: Dtype,
        differentiate: bool,
    ) -> Result<Option<LowRank>> {
        let zeros = || Tensor::zeros(device, [rows, rank], dtype);
        let room = || Ok(LowRank { u: zeros()?, du: differentiate.then(zeros).transpose()? });
        (rank > 0).then(room).transpose()
    }
}

/// The list of an adapter's tensors: A and B of each target in the order of the parameters, then whole matrices.
///
/// # Errors
/// A rank or an alpha that is no positive number, a target that names no matrix, or embeddings that the base has not.
pub fn parameters(model: &Model, config: &AdapterConfig) -> Result<Vec<AdapterParameter>> {
    let wrong = |what: &str, found: String, advice: &str| Err(Error::input(what, found, advice));
    if config.rank == 0 {
        return wrong("adapter", "rank 0".into(), "give a rank of at least 1, or no adapter");
    }
    if !(config.alpha.is_finite() && config.alpha > 0.0) {
        return wrong(
            "adapter",
            format!("alpha {}", config.alpha),
            "give a positive number, e.g. twice the rank",
        );
    }
    let Architecture { list: base, head, token_embedding, .. } = &model.architecture;
    let tied = head == token_embedding;
    let matrices: Vec<(usize, &str)> = base
        .iter()
        .enumerate()
        .filter(|(_, p)| matches!(p.role, Role::Layer(..)) && p.layout != Layout::Vector)
        .filter_map(|(index, p)| Some((index, p.name.strip_suffix(".weight")?)))
        .collect();
    for target in &config.targets {
        if target != ALL_LINEAR && !matrices.iter().any(|(_, name)| is_end(name, target)) {
            let mut known: Vec<&str> =
                matrices.iter().filter_map(|(_, name)| name.rsplit('.').next()).collect();
            known.sort_unstable();
            known.dedup();
            return wrong(
                "adapter",
                format!("the target `{target}` is no matrix of a {} model", model.config.family.model_type()),
                &format!("known: {}, or {ALL_LINEAR}", known.join(", ")),
            );
        }
    }
    let adapted = matrices.into_iter().filter(|(_, name)| config.adapts(name));
    let mut list: Vec<AdapterParameter> = Vec::new();
    for (of, name) in adapted {
        let (rows, cols) = base[of].shape.as_matrix();
        let (outputs, inputs) = if base[of].layout == Layout::InOut { (cols, rows) } else { (rows, cols) };
        let low = |part: Part, letter: &str, shape: [usize; 2]| AdapterParameter {
            name: format!("base_model.model.{name}.lora_{letter}.weight"),
            shape: shape.into(),
            of,
            part,
        };
        list.push(low(Part::A, "A", [config.rank, inputs]));
        list.push(low(Part::B, "B", [outputs, config.rank]));
    }
    let whole = |of: usize, name: &str| AdapterParameter {
        name: format!("base_model.model.{name}"),
        shape: base[of].shape,
        of,
        part: Part::Whole,
    };
    let table = || whole(*token_embedding, &base[*token_embedding].name);
    let of_head = || whole(*head, HEAD);
    match config.embeddings {
        Embeddings::Frozen => {}
        Embeddings::Table => list.push(table()),
        Embeddings::Head => list.push(of_head()),
        Embeddings::Both => list.extend([table(), of_head()]),
        Embeddings::Tied if tied => list.push(table()),
        Embeddings::Tied => {
            return wrong(
                "adapter",
                "one matrix as embedding and head; the base has two".into(),
                "train both, or leave them frozen",
            );
        }
    }
    match list.is_empty() {
        true => wrong("adapter", "no targets: nothing would be trained".into(), "name at least one matrix"),
        false => Ok(list),
    }
}

/// Name of the output head, whether the base has one of its own or not.
pub(super) const HEAD: &str = "lm_head.weight";

impl Adapters {
    pub fn new(config: AdapterConfig, list: Vec<AdapterParameter>, tensors: Vec<Tensor>) -> Adapters {
        Adapters { config, list, tensors }
    }

    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    pub fn name_base(&mut self, base: &str) {
        self.config.base = base.into();
    }

    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub fn tensors_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    pub fn list(&self) -> &[AdapterParameter] {
        &self.list
    }

    /// Index of the trained token embedding.
    pub fn table(&self) -> Option<usize> {
        match self.config.embeddings {
            Embeddings::Table | Embeddings::Both | Embeddings::Tied => {
                self.list.iter().position(|p| p.part == Part::Whole)
            }
            Embeddings::Frozen | Embeddings::Head => None,
        }
    }

    /// Index of the trained output head.
    pub fn head(&self) -> Option<usize> {
        match self.config.embeddings {
            Embeddings::Head | Embeddings::Both | Embeddings::Tied => {
                self.list.iter().rposition(|p| p.part == Part::Whole)
            }
            Embeddings::Frozen | Embeddings::Table => None,
        }
    }

    /// A and B of the pair at `at`, and the two maps of which the second ends in `window`.
    fn pair(&self, at: usize, window: &Projection) -> (&Tensor, Projection, &Tensor, Projection) {
        let rank = self.config.rank;
        let layout = linear::Layout::OutIn;
        let down = Projection::whole(layout, window.inputs, rank);
        let up = Projection { layout, inputs: rank, outputs: window.outputs.clone() };
        (&self.tensors[at], down, &self.tensors[at + 1], up)
    }

    /// y += s (x A^T) B^T.
    pub fn forward(
        &self,
        at: usize,
        window: &Projection,
        x: View,
        y: ViewMut,
        work: &mut Option<LowRank>,
    ) -> Result<()> {
        let Some(LowRank { u, .. }) = work else { return Err(not_reserved()) };
        let (a, down, b, up) = self.pair(at, window);
        let run = 0..x.count();
        linear::forward(x, &down, a, None, u.rows_mut(run.clone())?)?;
        elementwise::scale(u.rows_mut(run.clone())?, self.config.scale())?;
        linear::forward_add(u.rows(run)?, &up, b, y)
    }

    /// Adds the gradients of A and B, and the adapter's share of `dx`.
    pub fn backward(
        &self,
        at: usize,
        window: &Projection,
        (dy, x): (View, View),
        dx: ViewMut,
        gradients: &mut Gradients,
        work: &mut Option<LowRank>,
    ) -> Result<()> {
        let Some(LowRank { u, du: Some(du) }) = work else { return Err(not_reserved()) };
        let (a, down, b, up) = self.pair(at, window);
        let run = 0..x.count();
        linear::forward(x, &down, a, None, u.rows_mut(run.clone())?)?;
        elementwise::scale(u.rows_mut(run.clone())?, self.config.scale())?;
        let narrow = Some((du.rows_mut(run.clone())?, Accumulate::Assign));
        let [da, db] = gradients.of_adapter(at, [&down, &up]);
        let wanted = linear::Gradients { dx: narrow, dw: Some(db), dbias: None };
        linear::backward(dy, u.rows(run.clone())?, &up, b, wanted)?;
        elementwise::scale(du.rows_mut(run.clone())?, self.config.scale())?;
        let wanted = linear::Gradients { dx: Some((dx, Accumulate::Add)), dw: Some(da), dbias: None };
        linear::backward(du.rows(run)?, x, &down, a, wanted)
    }
}

fn not_reserved() -> Error {
    Error::input(
        "adapter",
        "these sequences were reserved for a model without one",
        "reserve sequences for the model that runs them",
    )
}
