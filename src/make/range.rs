//! Any range of a result alone: the same bytes as in the whole, made by anybody, again, anywhere.

use std::ops::Range;

use crate::cast::{Audit, Level};
use crate::error::Error;
use crate::place::{Access, Object, Place};
use crate::recipe::{Input, Recipe, Span};

use super::{check, hashed};

/// The bytes of a range of what a recipe makes from the objects of a place.
///
/// # Panics
/// When the range is not one of the result.
pub fn range(
    recipe: &Recipe,
    place: &dyn Place,
    level: Level,
    range: Range<u64>,
) -> Result<Vec<u8>, Error> {
    let layout = recipe.layout();
    assert!(range.start <= range.end && range.end <= recipe.bytes(), "not a range of the result");
    let mut objects = Objects { recipe, place, open: Vec::new() };
    let (mut out, mut scratch) = (Vec::new(), Vec::new());
    for part in recipe.parts(&layout, range.start, range.end) {
        let span = &recipe.spans[part.span];
        // What cannot be made alone is made with what is beside it.
        let grain = span.grain();
        let start = part.start / grain * grain;
        let end = (part.start + part.bytes).next_multiple_of(grain);
        let mut read: Vec<Vec<u8>> = Vec::new();
        if matches!(span, Span::Hashed { .. }) {
            let digest = hashed::rest(recipe, &layout, level, &mut |input, _, buffer| {
                buffer.clone_from(&objects.read(input)?);
                Ok(())
            })?;
            read.push(digest.into_bytes());
        }
        for input in span.inputs(start, end - start) {
            read.push(objects.read(input)?);
        }
        let inputs: Vec<&[u8]> = read.iter().map(Vec::as_slice).collect();
        let mut made = vec![0; (end - start) as usize];
        let how = (level, recipe.overflow);
        span.make(how, start, &inputs, &mut made, &mut scratch, &mut Audit::default());
        let from = (part.start - start) as usize;
        out.extend(&made[from..from + part.bytes as usize]);
    }
    Ok(out)
}

/// The sources of a recipe, opened when they are first read.
struct Objects<'a> {
    recipe: &'a Recipe,
    place: &'a dyn Place,
    open: Vec<Option<Box<dyn Object>>>,
}

impl Objects<'_> {
    fn read(&mut self, input: Input<'_>) -> Result<Vec<u8>, Error> {
        let source = input.extent.source;
        self.open.resize_with(self.recipe.sources.len(), || None);
        let object = match &mut self.open[source] {
            Some(object) => object,
            slot => {
                let source = &self.recipe.sources[source];
                let object = self.place.open(&source.key, Access::Kept)?;
                check::opened(self.place, source, &*object, |_| ())?;
                slot.insert(object)
            }
        };
        let mut buffer = Vec::new();
        Ok(input.read(&**object, &mut buffer)?.to_vec())
    }
}
