//! Tensors of a result alone, or parts of them, for whoever wants them in memory.

use super::{Content, PlannedFile, PlannedTensor};
use crate::format::safetensors::Tensor;
use crate::place::Source;
use crate::recipe::{Extent, Gather, Span};
use crate::view::View;

/// Of each dimension, the first index and the one behind the last.
pub type Slices = [(u64, u64)];

/// A tensor, or a part of one: what it is made from, and which bytes of that.
pub struct Part<'a> {
    pub sources: &'a [Source],
    pub span: Span,
    pub start: u64,
    pub bytes: u64,
}

impl PlannedFile {
    /// The tensor at a position, or a part of it; nothing where a part has to be cut from the whole.
    /// `slices` must be of the tensor's dimensions, and within them.
    pub fn part(&self, position: usize, slices: Option<&Slices>) -> Option<Part<'_>> {
        let Content::Shard { shard, tensors, .. } = &self.content else { return None };
        let planned = tensors.get(position)?;
        let tensor = &shard.tensors[planned.tensor];
        // The first span is the header.
        let span = match &self.recipe.spans[position + 1] {
            // What would become of its values if they were cast is of no interest here.
            Span::Keep { values, .. } => Span::Copy(*values),
            other => other.clone(),
        };
        let sources = self.recipe.sources.as_slice();
        let whole = Part { sources, start: 0, bytes: planned.bytes, span };
        match slices {
            None => Some(whole),
            Some(slices) => whole.cut(slices, tensor, planned),
        }
    }
}

impl<'a> Part<'a> {
    fn cut(self, slices: &Slices, tensor: &Tensor, planned: &PlannedTensor) -> Option<Part<'a>> {
        let shape = planned.shape(tensor);
        let sizes: Vec<u64> = slices.iter().map(|(from, to)| to - from).collect();
        let (count, elements) = (sizes.iter().product::<u64>(), shape.iter().product::<u64>());
        if count == 0 {
            return Some(Part { bytes: 0, ..self });
        }
        let is_whole = |(slice, size): (&(u64, u64), &u64)| *slice == (0, *size);
        let rows = slices.iter().zip(shape).skip(1).all(is_whole);
        let width = planned.bytes / elements;
        if rows {
            let row = elements / shape.first().copied().unwrap_or(1);
            let first = slices.first().map_or(0, |(from, _)| *from);
            let (start, bytes) = (first * row * width, count * width);
            let grain = self.span.grain();
            let is_cut = start.is_multiple_of(grain) && bytes.is_multiple_of(grain);
            return is_cut.then_some(Part { start, bytes, ..self });
        }
        // The steps from an element to the next one of each dimension.
        let strides: Vec<u64> =
            (0..shape.len()).map(|at| shape[at + 1..].iter().product()).collect();
        let first: u64 = slices.iter().zip(&strides).map(|((from, _), step)| from * step).sum();
        let from_width = tensor.bytes / elements;
        let gathered = |values: Extent| Extent { start: 0, bytes: count * from_width, ..values };
        let (base, of) = match self.span {
            Span::Copy(values) => (values.start, Span::Copy(gathered(values))),
            Span::Cast { values, from, to } => {
                (values.start, Span::Cast { values: gathered(values), from, to })
            }
            _ => return None,
        };
        let start = base + first * from_width;
        let view = View::of(from_width, &sizes, &strides)?;
        let span = Span::Gather(Box::new(Gather { view, start, of }));
        Some(Part { span, start: 0, bytes: count * width, ..self })
    }
}
