//! What a range of a span is made from: a range of a source, or elements of one that do not lie one
//! after the other.

use serde::{Deserialize, Serialize};

use super::{Extent, Span};
use crate::checksum::BLOCK;
use crate::error::Error;
use crate::place::Object;
use crate::view::View;

/// Bytes of a result that are made at a time of gathered elements: many, so that of what lies
/// together much is read together.
pub(super) const GATHERED: u64 = 32 * BLOCK;

/// A span that is made of gathered elements, as if they lay one after the other from byte 0 of its
/// source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gather {
    pub view: View,
    /// Where the first element is.
    pub start: u64,
    pub of: Span,
}

/// What has to be read for a range of a span.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Where it lies; of elements that are gathered, from the first to the last of all.
    pub extent: Extent,
    /// Those, and which bytes of them.
    gathered: Option<(&'a View, u64, u64)>,
}

impl Gather {
    /// `input` is one of the span that this is made of.
    pub(super) fn input(&self, input: Input<'_>) -> Input<'_> {
        let Extent { source, start, bytes } = input.extent;
        let extent = Extent { source, start: self.start, bytes: self.view.covered() };
        Input { extent, gathered: Some((&self.view, start, bytes)) }
    }
}

impl From<Extent> for Input<'_> {
    fn from(extent: Extent) -> Self {
        Input { extent, gathered: None }
    }
}

impl Input<'_> {
    pub fn is_gathered(&self) -> bool {
        self.gathered.is_some()
    }

    /// Its bytes, in the buffer where they have to be read first.
    ///
    /// # Errors
    /// What the object says.
    pub fn read<'a>(
        &self,
        object: &'a dyn Object,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        let Extent { start: base, bytes, .. } = self.extent;
        let Some((view, start, bytes)) = self.gathered else {
            return object.get(base, bytes as usize, buffer);
        };
        buffer.resize(buffer.len().max(bytes as usize), 0);
        let mut window = Vec::new();
        view.gather(start, &mut buffer[..bytes as usize], &mut |at, bytes, take| {
            take(object.get(base + at, bytes, &mut window)?);
            Ok(())
        })?;
        Ok(&buffer[..bytes as usize])
    }
}
