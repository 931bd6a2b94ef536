//! Models made of models: copies, and a vocabulary with more tokens.

use super::Model;
use super::families::{Parameter, Role};
use crate::base::{Error, Result};
use crate::ops::{Tensor, View, ViewMut, elementwise};
use std::sync::Arc;

/// Fills a tensor of a new model (second) from that of an old one (first).
pub(super) type Fill<'a> = dyn Fn(View, ViewMut) -> Result<()> + 'a;

impl Model {
    /// A second model with the same parameters, to the bit. Where an adapter is trained, the frozen weights are shared and
    /// the adapter alone is copied.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn duplicate(&self) -> Result<Model> {
        self.second(&elementwise::copy)
    }

    /// The same with zeros in place of the copied parameters, in the memory that [`Model::duplicate`] takes on its way.
    ///
    /// # Errors
    /// As [`Model::duplicate`].
    pub fn blank_duplicate(&self) -> Result<Model> {
        self.second(&|_, _| Ok(()))
    }

    /// A second model whose parameters `fill` makes from this one's.
    fn second(&self, fill: &Fill) -> Result<Model> {
        if let Some(config) = self.adapter() {
            let mut copy = self.base();
            copy.adapt_with(config.clone(), |index, _, tensor| {
                fill(self.trained()[index].view(), tensor.view_mut())
            })?;
            return Ok(copy);
        }
        let copy =
            Model::assemble(self.config.clone(), &self.device, self.precision(), |index, _, tensor| {
                fill(self.parameters[index].view(), tensor.view_mut())
            })?;
        self.lend_gates(self.lend_projector(copy, fill)?, fill)
    }

    /// A second model of the same sizes, without gates, whose own parameters are zeros: what reading this model from its
    /// folder takes. Where an adapter is trained, the frozen weights are shared.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn blank_twin(&self) -> Result<Model> {
        if let Some(config) = self.adapter() {
            let mut twin = self.base();
            twin.adapt_with(config.clone(), |_, _, _| Ok(()))?;
            return Ok(twin);
        }
        let twin = Model::assemble(self.config.clone(), &self.device, self.precision(), |_, _, _| Ok(()))?;
        match self.projector() {
            None => Ok(twin),
            Some(projector) => twin.with_projector(projector, |_, _, _| Ok(())),
        }
    }

    /// `other` with this model's projector as `fill` makes it, where it has one.
    fn lend_projector(&self, other: Model, fill: &Fill) -> Result<Model> {
        let Some(plan) = &self.projector else { return Ok(other) };
        other.with_projector(plan.projector, |index, _, tensor| {
            fill(self.parameters[plan.first + index].view(), tensor.view_mut())
        })
    }

    /// The same model with a vocabulary of `vocab` tokens and zeros in place of the family's weights.
    ///
    /// # Errors
    /// As [`Model::with_vocabulary`], whose memory it takes: for a moment there are both models.
    pub fn blank_with_vocabulary(&self, vocab: usize) -> Result<Model> {
        let mut config = self.config.clone();
        config.vocab = vocab;
        let grown = Model::assemble(config, &self.device, self.precision(), |_, _, _| Ok(()))?;
        self.lend_gates(self.lend_projector(grown, &elementwise::copy)?, &elementwise::copy)
    }

    /// Takes over the parameters of `other`, which has the same shapes: no memory is allocated. Of a model with an adapter,
    /// the adapter.
    ///
    /// # Errors
    /// Another architecture, precision or base.
    pub fn copy_from(&mut self, other: &Model) -> Result<()> {
        let extras = self.projector() == other.projector() && self.has_gates() == other.has_gates();
        if self.config != other.config || self.precision() != other.precision() || !extras {
            return Err(Error::input(
                "model to copy",
                "another architecture or precision",
                "copy between models of one configuration",
            ));
        }
        let shared = Arc::ptr_eq(&self.parameters, &other.parameters);
        if self.adapter() != other.adapter() || (self.adapter().is_some() && !shared) {
            return Err(Error::input(
                "model to copy",
                "another adapter, or an adapter of another base",
                "copy between a model and its duplicates",
            ));
        }
        if self.adapter().is_none() && shared {
            return Ok(());
        }
        let mut pairs = self.trained_mut().iter_mut().zip(other.trained());
        pairs.try_for_each(|(to, from)| elementwise::copy(from.view(), to.view_mut()))
    }

    /// The same model with a vocabulary of `vocab` tokens. New rows of the token embedding, and of the output head
    /// where it is its own, are copies of row `like` (Coconut A.1 copies the row of `<<`).
    ///
    /// # Errors
    /// A smaller vocabulary, or a row that does not exist.
    pub fn with_vocabulary(&self, vocab: usize, like: u32) -> Result<Model> {
        let old = self.config.vocab;
        if self.adapter().is_some() {
            return Err(Error::input(
                "vocabulary",
                "the model has an adapter",
                "let the vocabulary grow before the adapter is made",
            ));
        }
        if vocab < old || like as usize >= old {
            return Err(Error::input(
                "vocabulary",
                format!("{vocab} tokens with new rows like row {like}; the model has {old}"),
                "a vocabulary only grows, by copies of a row that exists",
            ));
        }
        let head = self.architecture.head;
        let mut config = self.config.clone();
        config.vocab = vocab;
        let grown = Model::assemble(config, &self.device, self.precision(), |index, parameter, tensor| {
            let from = &self.parameters[index];
            if parameter.role != Role::TokenEmbedding && index != head {
                return elementwise::copy(from.view(), tensor.view_mut());
            }
            elementwise::copy(from.view(), tensor.rows_mut(0..old)?)?;
            let row = from.rows(like as usize..like as usize + 1)?;
            (old..vocab).try_for_each(|new| elementwise::copy(row, tensor.rows_mut(new..new + 1)?))
        })?;
        self.lend_gates(self.lend_projector(grown, &elementwise::copy)?, &elementwise::copy)
    }

    /// Makes rows `ids` of the token embedding, and of the output head where it is its own, copies of row `like`: what new
    /// tokens begin with whose ids lie inside a vocabulary that was padded (Coconut A.1).
    ///
    /// # Errors
    /// A row that does not exist, or weights that are frozen beside an adapter.
    pub fn begin_rows_like(&mut self, ids: &[u32], like: u32) -> Result<()> {
        let (vocab, head) = (self.config.vocab, self.architecture.head);
        let outside = ids.iter().chain([&like]).find(|&&id| id as usize >= vocab);
        if outside.is_some() || self.adapter().is_some() {
            return Err(Error::input(
                "vocabulary",
                format!("rows {ids:?} like row {like} of {vocab}; an adapter: {}", self.adapter().is_some()),
                "name rows that exist, before an adapter is made",
            ));
        }
        let device = self.device.clone();
        let is_table =
            |index: usize, parameter: &Parameter| parameter.role == Role::TokenEmbedding || index == head;
        let list = self.architecture.list.iter().enumerate();
        let tables: Vec<usize> =
            list.filter(|(index, of)| is_table(*index, of)).map(|(index, _)| index).collect();
        let parameters = self.parameters_mut();
        for index in tables {
            let table = &mut parameters[index];
            let mut row = Tensor::zeros(&device, [1, table.view().cols()], table.dtype())?;
            elementwise::copy(table.rows(like as usize..like as usize + 1)?, row.view_mut())?;
            for &id in ids {
                elementwise::copy(row.view(), table.rows_mut(id as usize..id as usize + 1)?)?;
            }
        }
        Ok(())
    }
}
