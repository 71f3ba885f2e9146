//! Cutting a plan into pieces of work: ranges of a result file of at most 1 MiB (more where bytes
//! are only copied), in file order, each with the parts of the source file it is made from. Small tensors share a piece, so that
//! their cost is not a system call each.

use crate::dtype::Float;
use crate::plan::{Action, Content, Plan, PlannedFile, PlannedTensor};

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

/// All pieces of a plan; at least one for every file, which may have no parts.
pub fn pieces(plan: &Plan) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (file, planned) in plan.files.iter().enumerate() {
        let first = pieces.len();
        let mut cutter = Cutter { pieces: &mut pieces, file, first };
        match &planned.content {
            Content::Shard { tensors, .. } => {
                for (index, tensor) in tensors.iter().enumerate() {
                    cutter.tensor(plan.to, index, tensor);
                }
            }
            Content::Copy => cutter.copy(0, 0, planned.bytes),
            Content::Text(_) => {}
        }
        if pieces.len() == first {
            pieces.push(Piece { file, start: prefix(planned), bytes: 0, parts: Vec::new() });
        }
    }
    pieces
}

/// Bytes that are written when the file is created: a header or a text.
fn prefix(file: &PlannedFile) -> u64 {
    match &file.content {
        Content::Shard { header, .. } => header.len() as u64,
        Content::Text(text) => text.len() as u64,
        Content::Copy => 0,
    }
}

struct Cutter<'a> {
    pieces: &'a mut Vec<Piece>,
    file: usize,
    first: usize,
}

impl Cutter<'_> {
    fn tensor(&mut self, to: Float, index: usize, tensor: &PlannedTensor) {
        let (sizes, work) = match (&tensor.action, tensor.source.dtype.float()) {
            (Action::Cast { from }, _) => (
                (from.bytes() as u64, to.bytes() as u64),
                Work::Cast { from: *from, tensor: index },
            ),
            (Action::Keep, Some(from)) => {
                let size = from.bytes() as u64;
                ((size, size), Work::Keep { from, tensor: index })
            }
            _ => return self.copy(tensor.source.start, tensor.start, tensor.bytes),
        };
        self.add(tensor.source.start, tensor.start, tensor.bytes / sizes.1, sizes, work);
    }

    /// Adds bytes that are copied; many of them as pieces of their own.
    fn copy(&mut self, mut from: u64, mut to: u64, mut bytes: u64) {
        while bytes >= PIECE {
            let count = bytes.min(COPY);
            let (source_bytes, work) = (count as usize, Work::Copy);
            let part = Part { start: from, source_bytes, bytes: source_bytes, work };
            let (file, parts) = (self.file, vec![part]);
            self.pieces.push(Piece { file, start: to, bytes: source_bytes, parts });
            from += count;
            to += count;
            bytes -= count;
        }
        self.add(from, to, bytes, (1, 1), Work::Copy);
    }

    /// Adds `elements` of `sizes` bytes in source and result.
    fn add(&mut self, mut from: u64, mut to: u64, elements: u64, sizes: (u64, u64), work: Work) {
        let mut left = elements;
        while left > 0 {
            let current = self.pieces.len();
            let room = match self.pieces.get(current.wrapping_sub(1)) {
                Some(piece) if current > self.first => {
                    PIECE.saturating_sub(piece.bytes as u64) / sizes.1
                }
                _ => 0,
            };
            if room == 0 {
                let piece = Piece { file: self.file, start: to, bytes: 0, parts: Vec::new() };
                self.pieces.push(piece);
                continue;
            }
            let count = left.min(room);
            let part = Part {
                start: from,
                source_bytes: (count * sizes.0) as usize,
                bytes: (count * sizes.1) as usize,
                work,
            };
            let piece = self.pieces.last_mut().expect("one was just found or pushed");
            piece.bytes += part.bytes;
            piece.parts.push(part);
            from += count * sizes.0;
            to += count * sizes.1;
            left -= count;
        }
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
