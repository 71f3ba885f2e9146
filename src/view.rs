//! Elements that do not lie one after the other, as those of a transposed tensor: where each is, and
//! how a range of them is gathered with few reads.

use serde::{Deserialize, Serialize};

/// The most bytes that are read at a time.
const WINDOW: u64 = 1 << 20;
/// Bytes between two elements that are rather read than skipped.
const GAP: u64 = 4096;

/// The elements of a tensor, by where they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Bytes of an element.
    width: u64,
    /// Of each dimension its size and its stride, in elements; no dimension that could be left out or
    /// joined with the next.
    dimensions: Vec<(u64, u64)>,
}

/// A dimension of a block of elements: how many there are, and how far they are from each other,
/// where they are and in what is made of them.
#[derive(Clone, Copy)]
struct Axis {
    size: u64,
    from: u64,
    to: u64,
}

/// Gives bytes of what the elements are in.
pub type Read<'a, E> = dyn FnMut(u64, usize, &mut dyn FnMut(&[u8])) -> Result<(), E> + 'a;

impl View {
    /// That of a tensor with these sizes and strides, in elements of `width` bytes; nothing where the
    /// elements lie one after the other. The product of the sizes must be no overflow.
    pub fn of(width: u64, sizes: &[u64], strides: &[u64]) -> Option<View> {
        let mut dimensions: Vec<(u64, u64)> = Vec::new();
        if sizes.contains(&0) {
            return None;
        }
        for (size, stride) in sizes.iter().copied().zip(strides.iter().copied()) {
            match dimensions.last_mut() {
                _ if size == 1 => {}
                Some(last) if last.1 == size * stride => *last = (last.0 * size, stride),
                _ => dimensions.push((size, stride)),
            }
        }
        let is_plain = matches!(dimensions[..], [] | [(_, 1)]);
        (!is_plain).then_some(View { width, dimensions })
    }

    pub fn elements(&self) -> u64 {
        self.dimensions.iter().map(|(size, _)| size).product()
    }

    /// Bytes from the first element to the end of the last.
    pub fn covered(&self) -> u64 {
        let last: u64 = self.dimensions.iter().map(|(size, stride)| (size - 1) * stride).sum();
        (last + 1) * self.width
    }

    /// Puts the elements from byte `start`, counted as if they lay one after the other, into `out`.
    /// `read` is asked for ranges of what they are in, counted from the first.
    ///
    /// # Errors
    /// What `read` says.
    pub fn gather<E>(&self, start: u64, out: &mut [u8], read: &mut Read<'_, E>) -> Result<(), E> {
        let count = out.len() as u64 / self.width;
        let mut gathering = Gathering { width: self.width, out, read };
        gathering.range(&self.dimensions, start / self.width, count, 0, 0)
    }
}

struct Gathering<'a, 'r, E> {
    width: u64,
    out: &'a mut [u8],
    read: &'a mut Read<'r, E>,
}

impl<E> Gathering<'_, '_, E> {
    /// Elements `first` to `first + count` of a part of the view, which starts at `at`; they go to
    /// `to` and behind.
    fn range(
        &mut self,
        dimensions: &[(u64, u64)],
        first: u64,
        count: u64,
        at: u64,
        to: u64,
    ) -> Result<(), E> {
        let Some(((_, stride), inner)) = dimensions.split_first() else {
            return if count == 0 { Ok(()) } else { self.block(&mut [], at, to) };
        };
        let row: u64 = inner.iter().map(|(size, _)| size).product();
        let (mut first, mut count, mut to) = (first, count, to);
        // What is left of a row, whole rows, and a part of one more.
        if !first.is_multiple_of(row) {
            let head = count.min(row - first % row);
            self.range(inner, first % row, head, at + first / row * stride, to)?;
            (first, count, to) = (first + head, count - head, to + head);
        }
        let rows = count / row;
        if rows > 0 {
            let mut axes = vec![Axis { size: rows, from: *stride, to: row }];
            let mut each = row;
            for (size, stride) in inner {
                each /= size;
                axes.push(Axis { size: *size, from: *stride, to: each });
            }
            // From the farthest apart to the nearest, so that what lies together is read together.
            axes.sort_by_key(|axis| std::cmp::Reverse(axis.from));
            self.block(&mut axes, at + first / row * stride, to)?;
        }
        let tail = count % row;
        if tail > 0 {
            let at = at + (first / row + rows) * stride;
            self.range(inner, 0, tail, at, to + rows * row)?;
        }
        Ok(())
    }

    /// A whole block of elements.
    fn block(&mut self, axes: &mut [Axis], at: u64, to: u64) -> Result<(), E> {
        let Some((first, inner)) = axes.split_first_mut() else {
            return self.scatter(&[], 1, at, to);
        };
        let Axis { size, from, to: step } = *first;
        let inner_covered = covered(inner);
        let is_dense = from <= 2 * inner_covered || from * self.width <= GAP;
        let room = (WINDOW / self.width).saturating_sub(inner_covered);
        let chunk = match (is_dense, room.checked_div(from)) {
            (_, None) => size,
            (true, Some(fits)) => (fits + 1).min(size),
            (false, Some(_)) => 1,
        };
        for start in (0..size).step_by(chunk as usize) {
            let (at, to) = (at + start * from, to + start * step);
            let count = chunk.min(size - start);
            // What is larger than the window is read in parts.
            if (count == 1 || from == 0) && inner_covered * self.width > WINDOW {
                for again in 0..count {
                    self.block(inner, at, to + again * step)?;
                }
            } else if count == 1 {
                self.block(inner, at, to)?;
            } else {
                let mut part = Vec::with_capacity(1 + inner.len());
                part.push(Axis { size: count, from, to: step });
                part.extend_from_slice(inner);
                let elements = covered(&part);
                self.scatter(&part, elements, at, to)?;
            }
        }
        Ok(())
    }

    /// Reads the elements that a block covers, and puts those that belong to it where they go.
    fn scatter(&mut self, axes: &[Axis], covered: u64, at: u64, to: u64) -> Result<(), E> {
        let (width, out) = (self.width as usize, &mut *self.out);
        let to = to as usize * width;
        (self.read)(at * self.width, covered as usize * width, &mut |bytes| {
            put(axes, width, bytes, &mut out[to..]);
        })
    }
}

/// The elements from the first to the last of a block.
fn covered(axes: &[Axis]) -> u64 {
    1 + axes.iter().map(|axis| (axis.size - 1) * axis.from).sum::<u64>()
}

fn put(axes: &[Axis], width: usize, from: &[u8], to: &mut [u8]) {
    match axes {
        [] => to[..width].copy_from_slice(&from[..width]),
        [Axis { size, from: 1, to: 1 }] => {
            let bytes = *size as usize * width;
            to[..bytes].copy_from_slice(&from[..bytes]);
        }
        [axis] => match width {
            1 => elements::<1>(*axis, from, to),
            2 => elements::<2>(*axis, from, to),
            4 => elements::<4>(*axis, from, to),
            _ => elements::<8>(*axis, from, to),
        },
        [axis, inner @ ..] => {
            for index in 0..axis.size as usize {
                let (start, target) =
                    (index * axis.from as usize * width, index * axis.to as usize * width);
                put(inner, width, &from[start..], &mut to[target..]);
            }
        }
    }
}

/// A row of elements of `W` bytes.
fn elements<const W: usize>(axis: Axis, from: &[u8], to: &mut [u8]) {
    let (step, target) = (axis.from as usize * W, axis.to as usize * W);
    for index in 0..axis.size as usize {
        let element: [u8; W] = from[index * step..][..W].try_into().expect("an element");
        to[index * target..][..W].copy_from_slice(&element);
    }
}

#[cfg(test)]
mod tests;
