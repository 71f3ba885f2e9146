//! Cutting a file into pieces of work: ranges of the result of at most 1 MiB (more where bytes
//! are only copied), in file order, each with the parts of the source file it is made from. Small
//! tensors share a piece, so that their cost is not a system call each.

use crate::dtype::Float;
use crate::plan::{Action, Content, PlannedFile, PlannedTensor};

/// Bytes of the result in a full piece: it stays in the second-level cache between cast and write.
pub const PIECE: u64 = 1 << 20;

/// Bytes of a piece that is only copied: the kernel does that without a buffer.
const COPY: u64 = 8 << 20;

/// What is done with a part's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Copied.
    Copy,
    /// Cast, and audited for the tensor at this position in its file.
    Cast { from: Float, tensor: usize },
    /// Copied, and audited as if it were cast.
    Keep { from: Float, tensor: usize },
}

/// A range of a source file and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub start: u64,
    pub source_bytes: usize,
    pub bytes: usize,
    pub work: Work,
}

/// A range of a result file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file's position in the plan.
    pub file: usize,
    pub start: u64,
    pub bytes: usize,
    pub parts: Vec<Part>,
}

/// The pieces of the file at a position in the plan; at least one, which may have no parts.
pub fn pieces(file: usize, planned: &PlannedFile, to: Float) -> Vec<Piece> {
    let mut cutter = Cutter { file, pieces: Vec::new() };
    match &planned.content {
        Content::Shard { tensors, .. } => {
            for (index, tensor) in tensors.iter().enumerate() {
                cutter.tensor(to, index, tensor);
            }
        }
        Content::Copy => cutter.copy(0, 0, planned.bytes),
        Content::Text(_) => {}
    }
    if cutter.pieces.is_empty() {
        cutter.start(planned.content.prefix().len() as u64);
    }
    cutter.pieces
}

struct Cutter {
    file: usize,
    pieces: Vec<Piece>,
}

impl Cutter {
    fn tensor(&mut self, to: Float, index: usize, tensor: &PlannedTensor) {
        let (start, bytes) = (tensor.source.start, tensor.bytes);
        let (from, work, size) = match (tensor.action, tensor.source.dtype.float()) {
            (Action::Cast, Some(from)) => (from, Work::Cast { from, tensor: index }, to.bytes()),
            (Action::Keep, Some(from)) => (from, Work::Keep { from, tensor: index }, from.bytes()),
            _ => return self.copy(start, tensor.start, bytes),
        };
        let sizes = (from.bytes() as u64, size as u64);
        self.add(start, tensor.start, bytes / sizes.1, sizes, work);
    }

    /// Adds bytes that are copied; many of them as pieces of their own.
    fn copy(&mut self, mut from: u64, mut to: u64, mut bytes: u64) {
        while bytes >= PIECE {
            let count = bytes.min(COPY);
            self.start(to);
            self.extend(Part {
                start: from,
                source_bytes: count as usize,
                bytes: count as usize,
                work: Work::Copy,
            });
            from += count;
            to += count;
            bytes -= count;
        }
        self.add(from, to, bytes, (1, 1), Work::Copy);
    }

    /// Adds elements of `sizes` bytes in source and result.
    fn add(
        &mut self,
        mut from: u64,
        mut to: u64,
        mut elements: u64,
        sizes: (u64, u64),
        work: Work,
    ) {
        while elements > 0 {
            let last = self.pieces.last();
            let room = last.map_or(0, |piece| PIECE.saturating_sub(piece.bytes as u64) / sizes.1);
            if room == 0 {
                self.start(to);
                continue;
            }
            let count = elements.min(room);
            self.extend(Part {
                start: from,
                source_bytes: (count * sizes.0) as usize,
                bytes: (count * sizes.1) as usize,
                work,
            });
            from += count * sizes.0;
            to += count * sizes.1;
            elements -= count;
        }
    }

    fn start(&mut self, start: u64) {
        self.pieces.push(Piece { file: self.file, start, bytes: 0, parts: Vec::new() });
    }

    fn extend(&mut self, part: Part) {
        let piece = self.pieces.last_mut().expect("one was started");
        piece.bytes += part.bytes;
        piece.parts.push(part);
    }
}

impl Piece {
    /// The one part of a piece that is only copied.
    pub fn only_copy(&self) -> Option<&Part> {
        match &self.parts[..] {
            [part] if part.work == Work::Copy => Some(part),
            _ => None,
        }
    }
}
