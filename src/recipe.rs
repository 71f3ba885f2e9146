//! How the bytes of a result file are made: an ordered list of spans, each literal bytes or values
//! computed from ranges of source objects. A recipe names its sources by key and version, never by
//! a path, a handle or a thread; the same recipe makes the same bytes, wherever and whenever, and
//! any range of them alone.

mod gather;
mod scaled;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cast::{self, Audit, Level, Overflow};
use crate::checksum::{BLOCK, Blocks, Digest, Hasher, SHA256_DIGITS};
use crate::dtype::{Castable, Float};
use crate::names;
use crate::place::Source;
use gather::GATHERED;
pub use gather::{Gather, Input};
pub use scaled::Scaled;

/// Changes when the bytes that a recipe makes would, and only then.
pub const FORMAT: u32 = 1;

/// Bytes of the result that are made at a time.
pub const PIECE: u64 = 1 << 20;

/// The most ranges of sources that a range of a span is made from: codes, scales, second scales.
pub const INPUTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub source: usize,
    pub start: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// These bytes.
    Literal(#[serde(with = "names::hex")] Vec<u8>),
    /// These bytes; at each of `at`, the 64 hexadecimal digits of the SHA-256 digest of all that the
    /// recipe makes after this span, which is its first.
    Hashed {
        #[serde(with = "names::hex")]
        text: Vec<u8>,
        at: Vec<usize>,
    },
    /// The bytes of a source.
    Copy(Extent),
    /// The bytes of a source, which are audited as if they were cast.
    Keep { values: Extent, from: Castable, to: Float },
    /// Values, cast.
    Cast {
        values: Extent,
        from: Castable,
        /// What they become.
        to: Float,
    },
    /// Values that are codes with scales.
    Scaled(Box<Scaled>),
    /// What is made of elements that do not lie one after the other.
    Gather(Box<Gather>),
}

/// The recipe of a result file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// What spans refer to.
    pub sources: Vec<Source>,
    /// In the order of the result's bytes.
    pub spans: Vec<Span>,
    pub overflow: Overflow,
}

impl Span {
    /// The bytes it makes.
    pub fn bytes(&self) -> u64 {
        match self {
            Span::Literal(text) | Span::Hashed { text, .. } => text.len() as u64,
            Span::Copy(extent) | Span::Keep { values: extent, .. } => extent.bytes,
            Span::Cast { values, from, to, .. } => {
                values.bytes / from.bytes() as u64 * to.bytes() as u64
            }
            Span::Scaled(scaled) => scaled.bytes(),
            Span::Gather(gather) => gather.of.bytes(),
        }
    }

    /// Bytes of the smallest range that can be made alone.
    pub fn grain(&self) -> u64 {
        match self {
            Span::Literal(_) | Span::Copy(_) => 1,
            Span::Hashed { text, .. } => text.len() as u64,
            Span::Keep { from, .. } => from.bytes() as u64,
            Span::Cast { to, .. } => to.bytes() as u64,
            Span::Scaled(scaled) => scaled.grain(),
            Span::Gather(gather) => gather.of.grain(),
        }
    }

    /// Bytes of the smallest range that is made of whole blocks, itself and most of what it is made
    /// from. What is small beside the rest, as scales are, is read once more for its checksum.
    pub(crate) fn step(&self) -> u64 {
        match self {
            Span::Cast { from, to, .. } => BLOCK * to.bytes().div_ceil(from.bytes()) as u64,
            Span::Hashed { text, .. } => (text.len() as u64).next_multiple_of(BLOCK),
            Span::Scaled(scaled) => scaled.step(),
            Span::Gather(_) => GATHERED,
            _ => BLOCK,
        }
    }

    /// What the range of `bytes` bytes at `start`, whole grains, is made from.
    pub fn inputs(&self, start: u64, bytes: u64) -> impl Iterator<Item = Input<'_>> {
        let (gather, span) = match self {
            Span::Gather(gather) => (Some(gather), &gather.of),
            _ => (None, self),
        };
        span.extents(start, bytes).map(move |extent| match gather {
            Some(gather) => gather.input(extent.into()),
            None => extent.into(),
        })
    }

    fn extents(&self, start: u64, bytes: u64) -> impl Iterator<Item = Extent> + use<> {
        let part = |extent: &Extent, (from, to): (u64, u64)| Extent {
            source: extent.source,
            start: extent.start + start / to * from,
            bytes: bytes / to * from,
        };
        let inputs = match self {
            // One that is made of gathered elements is not made of another such.
            Span::Literal(_) | Span::Hashed { .. } | Span::Gather(_) => [None; INPUTS],
            Span::Copy(extent) | Span::Keep { values: extent, .. } => {
                [Some(part(extent, (1, 1))), None, None]
            }
            Span::Cast { values, from, to, .. } => {
                [Some(part(values, (from.bytes() as u64, to.bytes() as u64))), None, None]
            }
            Span::Scaled(scaled) => scaled.inputs(start, bytes),
        };
        inputs.into_iter().flatten()
    }

    /// Whether what happens to its values is counted.
    pub fn is_audited(&self) -> bool {
        match self {
            Span::Literal(_) | Span::Hashed { .. } | Span::Copy(_) => false,
            Span::Keep { .. } | Span::Cast { .. } | Span::Scaled(_) => true,
            Span::Gather(gather) => gather.of.is_audited(),
        }
    }

    pub fn can_overflow(&self) -> bool {
        match self {
            Span::Cast { from, to, .. } => from.layout().largest() > to.layout().largest(),
            // A product may be beyond every dtype.
            Span::Scaled(_) => true,
            Span::Gather(gather) => gather.of.can_overflow(),
            _ => false,
        }
    }

    /// Makes the range at `start` into `out`, from what [`Span::inputs`] says, or from the digits of
    /// a digest; `scratch` is memory of the caller's for whatever it takes.
    pub fn make(
        &self,
        (level, overflow): (Level, Overflow),
        start: u64,
        inputs: &[&[u8]],
        out: &mut [u8],
        scratch: &mut Vec<u8>,
        audit: &mut Audit,
    ) {
        match self {
            Span::Literal(bytes) => {
                out.copy_from_slice(&bytes[start as usize..start as usize + out.len()]);
            }
            Span::Hashed { text, at } => {
                out.copy_from_slice(text);
                at.iter().for_each(|at| out[*at..at + SHA256_DIGITS].copy_from_slice(inputs[0]));
            }
            Span::Copy(_) => out.copy_from_slice(inputs[0]),
            Span::Keep { from, to, .. } => {
                out.copy_from_slice(inputs[0]);
                let bytes = out.len() / from.bytes() * to.bytes();
                scratch.resize(scratch.len().max(bytes), 0);
                let trial = &mut scratch[..bytes];
                cast::cast(level, (*from, inputs[0]), (*to, trial), Overflow::Infinity, audit);
            }
            Span::Cast { from, to, .. } => {
                cast::cast(level, (*from, inputs[0]), (*to, out), overflow, audit);
            }
            Span::Scaled(scaled) => scaled.make((level, overflow), start, inputs, out, audit),
            Span::Gather(gather) => {
                gather.of.make((level, overflow), start, inputs, out, scratch, audit);
            }
        }
    }
}

/// A part of a span that lies in a range of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The span's position in the recipe.
    pub span: usize,
    /// The first byte, counted from the start of the span.
    pub start: u64,
    pub bytes: u64,
}

/// Where the spans of a recipe lie in its result.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The spans' starts, and the end of the last.
    pub starts: Vec<u64>,
}

impl Recipe {
    /// Where the spans lie.
    pub fn layout(&self) -> Layout {
        let mut end = 0;
        let ends = self.spans.iter().map(|span| {
            end += span.bytes();
            end
        });
        Layout { starts: std::iter::once(0).chain(ends).collect() }
    }

    /// The result's length in bytes.
    pub fn bytes(&self) -> u64 {
        self.spans.iter().map(Span::bytes).sum()
    }

    pub fn blocks(&self) -> Blocks {
        let starts = self.layout().starts;
        Blocks::new(starts[..starts.len() - 1].iter().copied(), starts[starts.len() - 1])
    }

    /// Where the blocks of a source lie: what spans are made from are its segments, and, of the
    /// first source, what lies between them. Of the others, which have recipes of their own, only
    /// the head and what is used counts.
    pub fn source_blocks(&self, source: usize) -> Blocks {
        let Source { head, bytes, .. } = self.sources[source];
        let used = self.spans.iter().flat_map(|span| span.inputs(0, span.bytes()));
        let used = used.map(|input| input.extent).filter(|extent| extent.source == source);
        let ends = used.map(|extent| (extent.start, extent.start + extent.bytes));
        if source > 0 {
            return Blocks::of_ranges(ends.chain([(0, head)]).collect());
        }
        let mut starts: Vec<u64> = ends.flat_map(|(start, end)| [start, end]).collect();
        starts.push(head);
        starts.sort_unstable();
        Blocks::new(starts, bytes)
    }

    /// Cuts the result into pieces of about [`PIECE`] bytes, of whole blocks of every span and of
    /// what it is made from; gives where each ends. Small spans share a piece.
    pub fn pieces(&self) -> Vec<u64> {
        let (mut cuts, mut piece, mut at) = (Vec::new(), 0, 0);
        for span in &self.spans {
            let (mut left, step) = (span.bytes(), span.step());
            while left > 0 {
                let room = PIECE.max(step).saturating_sub(at - piece);
                let fits = if left <= room { left } else { room / step * step };
                at += fits;
                left -= fits;
                if left > 0 {
                    cuts.push(at);
                    piece = at;
                }
            }
        }
        cuts.push(at);
        cuts.dedup();
        cuts
    }

    /// The parts of spans that make the range from `start` to `end`, each of at most one step.
    pub fn parts<'a>(
        &'a self,
        layout: &'a Layout,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = Part> {
        let mut span = layout.starts.partition_point(|from| *from <= start).max(1) - 1;
        let mut at = start;
        std::iter::from_fn(move || {
            while at < end && layout.starts.get(span + 1).is_some_and(|next| *next <= at) {
                span += 1;
            }
            let (first, next) = (*layout.starts.get(span)?, *layout.starts.get(span + 1)?);
            if at >= end {
                return None;
            }
            let (from, step) = (at - first, self.spans[span].step());
            let bytes = (step - from % step).min(next.min(end) - at);
            at += bytes;
            Some(Part { span, start: from, bytes })
        })
    }
}

/// The digest of all that decides about the bytes of some files, but for what becomes of values
/// that overflow: `(path, executable, recipe)` of each.
pub fn hash<'a>(files: impl Iterator<Item = (&'a Path, bool, &'a Recipe)>) -> Digest {
    #[derive(Serialize)]
    struct File<'a> {
        #[serde(with = "names")]
        path: &'a Path,
        executable: bool,
        sources: &'a [Source],
        spans: Vec<Hashed<'a>>,
    }
    /// Long literals by their digests.
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Hashed<'a> {
        Literal { literal: Digest },
        Other(&'a Span),
    }
    let hashed = |span: &'a Span| match span {
        Span::Literal(bytes) => Hashed::Literal { literal: Digest::of(bytes) },
        other => Hashed::Other(other),
    };
    let mut out = std::io::BufWriter::new(Hasher::default());
    let write = || -> serde_json::Result<()> {
        serde_json::to_writer(&mut out, &FORMAT)?;
        for (path, executable, Recipe { sources, spans, .. }) in files {
            let spans = spans.iter().map(hashed).collect();
            serde_json::to_writer(&mut out, &File { path, executable, sources, spans })?;
        }
        Ok(())
    };
    write().expect("a hash takes everything");
    out.into_inner().expect("a hash takes everything").finish()
}
