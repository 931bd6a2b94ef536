//! Models with an adapter: what is trained, what is frozen and shared, and how the two become one again.

use super::Model;
use super::adapter::{AdapterConfig, AdapterParameter, Adapters, Embeddings, Part, parameters};
use super::architecture::{Architecture, LinearPlan};
use super::families::Layout;
use super::parameters::Gradients;
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Error, Result};
use crate::device::{Arena, Identity};
use crate::ops::linear::{self, Projection};
use crate::ops::{Tensor, elementwise};
use std::sync::Arc;

impl Model {
    /// Gives the model an adapter that changes nothing yet: A uniform in +-1/sqrt(in), as PEFT draws it, B zero, whole
    /// matrices those of the base. From here on the weights are frozen. Tensor i draws from (seed; 0, i, 1, Init).
    ///
    /// # Errors
    /// Those of [`parameters`], or a model that has an adapter.
    pub fn adapt(&mut self, config: AdapterConfig, seed: u64) -> Result<()> {
        self.adapt_with(config, |index, parameter, tensor| {
            if parameter.part == Part::A {
                let bound = 1.0 / (parameter.shape.as_matrix().1 as f64).sqrt();
                let mut draws = StreamKey::new(seed, 0, index as u32, 1, Purpose::Init).draws(0, 0);
                // The same numbers in f32 and f64.
                let mut draw = || f64::from(((2.0 * draws.uniform() - 1.0) * bound) as f32);
                let values: Vec<f64> = (0..parameter.shape.elements()).map(|_| draw()).collect();
                tensor.upload_numbers(0, &values)?;
            }
            Ok(())
        })
    }

    /// Gives the model an adapter whose tensors `fill(i, parameter, tensor)` writes: into zeros, or into a copy of the
    /// base's matrix.
    ///
    /// # Errors
    /// Those of [`parameters`] and of `fill`, or a model that has an adapter. The model is then as it was.
    pub fn adapt_with(
        &mut self,
        config: AdapterConfig,
        mut fill: impl FnMut(usize, &AdapterParameter, &mut Tensor) -> Result<()>,
    ) -> Result<()> {
        if self.adapters.is_some() {
            return Err(Error::input(
                "adapter",
                "the model has one already",
                "merge it first, or start from its base",
            ));
        }
        let list = parameters(self, &config)?;
        let _arena = Arena::Weights.enter();
        let mut tensors = Vec::with_capacity(list.len());
        for (index, parameter) in list.iter().enumerate() {
            let base = &self.parameters[parameter.of];
            let whole = parameter.part == Part::Whole;
            // A and B are of the activations' dtype: beside bf16 activations products read bf16 alone, and the optimiser's
            // f32 masters are what is trained, as for every other bf16 matrix.
            let dtype = if whole { base.dtype() } else { self.dtype() };
            let mut tensor = Tensor::zeros(&self.device, parameter.shape, dtype)?;
            if whole {
                elementwise::copy(base.view(), tensor.view_mut())?;
            }
            fill(index, parameter, &mut tensor)?;
            tensors.push(tensor);
        }
        let at = |plan: &LinearPlan| list.iter().position(|p| p.of == plan.weight && p.part == Part::A);
        self.architecture.adapt(config.rank, at);
        self.adapters = Some(Adapters::new(config, list, tensors));
        self.identity = Identity::fresh();
        Ok(())
    }

    /// The adapter, where there is one.
    pub fn adapter(&self) -> Option<&AdapterConfig> {
        self.adapters.as_ref().map(Adapters::config)
    }

    /// Says where the base of the adapter is found, for whoever opens it.
    pub fn name_base(&mut self, base: &str) {
        if let Some(adapters) = &mut self.adapters {
            adapters.name_base(base);
        }
    }

    /// The tensors of the adapter; none without one.
    pub fn adapter_list(&self) -> &[AdapterParameter] {
        self.adapters.as_ref().map_or(&[], Adapters::list)
    }

    /// What training changes: the tensors of the adapter, or all parameters.
    pub fn trained(&self) -> &[Tensor] {
        self.adapters.as_ref().map_or(self.parameters(), Adapters::tensors)
    }

    /// The same, for the optimiser. Weights that another model shares are frozen: there are none of them here.
    pub fn trained_mut(&mut self) -> &mut [Tensor] {
        if self.adapters.is_none() {
            return self.parameters_mut();
        }
        self.adapters.as_mut().map_or(&mut [], Adapters::tensors_mut)
    }

    /// The names of [`Model::trained`].
    pub fn trained_names(&self) -> Vec<&str> {
        match &self.adapters {
            Some(adapters) => adapters.list().iter().map(|parameter| parameter.name.as_str()).collect(),
            None => self.architecture.list.iter().map(|parameter| parameter.name.as_str()).collect(),
        }
    }

    /// The model without its adapter; the weights are shared, not copied.
    pub fn base(&self) -> Model {
        let mut architecture = self.architecture.clone();
        architecture.adapt(0, |_| None);
        Model {
            config: self.config.clone(),
            architecture,
            geometry: self.geometry,
            gates: self.gates.clone(),
            parameters: Arc::clone(&self.parameters),
            adapters: None,
            device: self.device.clone(),
            precision: self.precision,
            projector: self.projector.clone(),
            identity: Identity::fresh(),
        }
    }

    /// The token embedding `[vocab, width]` that inputs are looked up in.
    pub fn table(&self) -> &Tensor {
        let own = || &self.parameters[self.architecture.token_embedding];
        self.whole(Adapters::table).unwrap_or_else(own)
    }

    /// The trained matrix that `find` names.
    pub(super) fn whole(&self, find: impl Fn(&Adapters) -> Option<usize>) -> Option<&Tensor> {
        let adapters = self.adapters.as_ref()?;
        find(adapters).map(|index| &adapters.tensors()[index])
    }

    /// The output head `[vocab, width]`: the token embedding when tied.
    pub fn head(&self) -> &Tensor {
        self.whole(Adapters::head).unwrap_or(&self.parameters[self.architecture.head])
    }

    /// Zero gradients of everything that is trained.
    pub fn gradients(&self) -> Result<Gradients> {
        let gradients = Gradients::like(&self.device, self.trained(), self.dtype().accumulation())?;
        let Architecture { token_embedding, head, .. } = self.architecture;
        Ok(match &self.adapters {
            None => gradients.with_embeddings(Some(token_embedding), Some(head)),
            Some(adapters) => {
                gradients.of_adapters_alone().with_embeddings(adapters.table(), adapters.head())
            }
        })
    }
}

/// Merging: W + s B A in the place of W.
impl Model {
    /// The model in which the adapter has become part of the weights.
    ///
    /// # Errors
    /// A tied model whose embedding and head have come apart, or a device without the memory.
    pub fn merge(&self) -> Result<Model> {
        self.check_mergeable()?;
        Model::assemble(self.config.clone(), &self.device, self.precision, |index, _, tensor| {
            match self.merged(index)? {
                Some(merged) => elementwise::copy(merged.view(), tensor.view_mut()),
                None => elementwise::copy(self.parameters[index].view(), tensor.view_mut()),
            }
        })
    }

    /// Fails where one matrix would have to be two.
    pub(super) fn check_mergeable(&self) -> Result<()> {
        let tied = self.architecture.head == self.architecture.token_embedding;
        match self.adapter().map(|adapter| adapter.embeddings) {
            Some(Embeddings::Table | Embeddings::Head | Embeddings::Both) if tied => Err(Error::input(
                "adapter to merge",
                "it trains embedding and head apart, which are one matrix in the base",
                "save the adapter by itself, or train the matrix for both",
            )),
            _ => Ok(()),
        }
    }

    /// Parameter `index` of the merged model; none where the adapter leaves it as it is. The product is computed on the
    /// device, the sum in f64, and rounded once.
    pub(super) fn merged(&self, index: usize) -> Result<Option<Tensor>> {
        let Some(adapters) = &self.adapters else { return Ok(None) };
        let tensors = adapters.tensors();
        let of = |part: Part| adapters.list().iter().position(|p| p.of == index && p.part == part);
        let base = &self.parameters[index];
        let mut merged = Tensor::zeros(&self.device, base.shape(), base.dtype())?;
        if let Some(whole) = of(Part::Whole) {
            elementwise::copy(tensors[whole].view(), merged.view_mut())?;
            return Ok(Some(merged));
        }
        let Some(at) = of(Part::A) else { return Ok(None) };
        let (a, b) = (&tensors[at], &tensors[at + 1]);
        let ((rank, inputs), (outputs, _)) = (a.shape().as_matrix(), b.shape().as_matrix());
        let mut product = Tensor::zeros(&self.device, [outputs, inputs], self.dtype().accumulation())?;
        let rows_of_b = Projection::whole(linear::Layout::InOut, rank, inputs);
        linear::forward(b.view(), &rows_of_b, a, None, product.view_mut())?;
        let (product, mut values) = (product.view().numbers()?, base.view().numbers()?);
        let across = self.architecture.list[index].layout == Layout::InOut;
        let scale = adapters.config().scale();
        for (at, value) in values.iter_mut().enumerate() {
            let place = if across { at % outputs * inputs + at / outputs } else { at };
            *value += scale * product[place];
        }
        merged.upload_numbers(0, &values)?;
        Ok(Some(merged))
    }
}
