//! Codes with scales: a value is the product of a code and the scale of its block, rounded to
//! binary32, and then cast as any other binary32. The products are made tile by tile, and a tile is
//! cast while it is in the first-level cache.

mod formula;
pub(super) mod product;
mod scales;

pub use formula::{Code, Formula, Grid, How, Inputs, Scale, Second};

use super::audit::Audit;
use super::byte::{E2m1, E4m3, E4m3Fnuz, E5m2, E5m2Fnuz};
use super::element::F32;
use super::kernel::{BLOCK, Run};
use super::level::Level;
use super::memory::Cached;
use super::run_any;
#[cfg(target_arch = "x86_64")]
use super::x86;
use formula::Segment;
use product::{Codes, Examined, Products, Single};
use scales::Rows;

/// Columns and rows of a tile of a plane that is transposed.
const TILE: (u64, u64) = (128, BLOCK as u64 / 128);

/// Makes the values of a formula from number `start` on into `dst`, and adds what happened to
/// `audit`: of the products, what a cast says of its values; and of each scale, by the first value
/// of its block.
///
/// # Panics
/// When the inputs are not those of the range, or the CPU does not run the level.
pub fn make(
    formula: &Formula,
    how: How,
    start: u64,
    inputs: Inputs<'_>,
    dst: &mut [u8],
    audit: &mut Audit,
) {
    assert!(how.level.available(), "this CPU does not run {}", how.level.name());
    let end = start + (dst.len() / how.to.bytes()) as u64;
    if start == end {
        return;
    }
    let made_of = formula.made_of(start, end);
    assert_eq!(
        inputs.codes.len() as u64,
        (made_of.codes.1 - made_of.codes.0) * formula.code.bits() / 8
    );
    let rows = Rows::new(formula, inputs, made_of);
    let scratch = Scratch { products: [[0; 4]; BLOCK], made: [[0; 4]; BLOCK] };
    let (codes, first) = (inputs.codes, made_of.codes.0);
    let mut maker = Maker { formula, how, codes, first, rows, scratch, audit };
    match formula.transposed {
        true => maker.columns(start, end, dst),
        false => maker.run(start, end, dst),
    }
    let counts = maker.rows.counts((start, end));
    maker.audit.scales.merge(&counts);
    maker.audit.exact &= !maker.rows.has_long;
}

struct Maker<'a, 'b> {
    formula: &'a Formula,
    how: How,
    codes: &'a [u8],
    /// The number of the first of them.
    first: u64,
    rows: Rows<'a>,
    scratch: Scratch,
    audit: &'b mut Audit,
}

/// What a tile takes.
struct Scratch {
    products: [Single; BLOCK],
    /// Their values in the target.
    made: [Single; BLOCK],
}

impl Maker<'_, '_> {
    /// Values in the order of the codes.
    fn run(&mut self, start: u64, end: u64, dst: &mut [u8]) {
        let columns = self.formula.grid.columns;
        let mut at = start;
        for dst in dst.chunks_mut(BLOCK * self.how.to.bytes()) {
            let next = end.min(at + BLOCK as u64);
            let segments = move || {
                let mut at = at;
                std::iter::from_fn(move || {
                    let (row, column) = (at / columns, at % columns);
                    let columns = (columns - column).min(next - at);
                    at += columns;
                    (columns > 0).then_some(Segment { row, column, columns })
                })
            };
            let examined = self.products(segments);
            let values = &self.scratch.products[..(next - at) as usize];
            cast(self.how, values, dst, self.audit);
            examined.add_to(self.how, self.audit, |number| number, dst);
            at = next;
        }
    }

    /// Values of transposed planes, in which each column of codes is a line. A line that is not
    /// whole in the range is a rectangle of its own.
    fn columns(&mut self, start: u64, end: u64, dst: &mut [u8]) {
        let Grid { rows, columns, .. } = self.formula.grid;
        let bytes = self.how.to.bytes();
        let (mut at, mut dst) = (start, dst);
        while at < end {
            let (line, first) = (at / rows, at % rows);
            let whole = ((end - at) / rows).min(columns - line % columns);
            let (lines, last) = match first == 0 && whole > 0 {
                true => (whole, rows),
                false => (1, rows.min(first + end - at)),
            };
            let count = lines * (last - first);
            let (here, rest) = dst.split_at_mut(count as usize * bytes);
            self.rectangle((line, line + lines), (first, last), here);
            (at, dst) = (at + count, rest);
        }
    }

    /// The lines from `line` to `end`, counted through all planes, of the rows from `first` to
    /// `last` of their plane.
    fn rectangle(&mut self, (line, end): (u64, u64), (first, last): (u64, u64), dst: &mut [u8]) {
        let Grid { rows, columns, .. } = self.formula.grid;
        let (above, bytes) = (line / columns * rows, self.how.to.bytes());
        let mut at = line;
        while at < end {
            let column = at % columns;
            // A code that is the second of its byte stands alone.
            let room = if column % 2 == 1 { 1 } else { TILE.0 - column % TILE.0 };
            let width = room.min(end - at);
            for row in (first..last).step_by(TILE.1 as usize) {
                let tall = TILE.1.min(last - row);
                let segments = move || {
                    let rows = (row..row + tall).map(move |row| above + row);
                    rows.map(move |row| Segment { row, column, columns: width })
                };
                let examined = self.products(segments);
                let place = |number: usize| {
                    let (down, across) = (number as u64 / width, number as u64 % width);
                    ((at - line + across) * (last - first) + row - first + down) as usize
                };
                let Scratch { products, made } = &mut self.scratch;
                let count = (width * tall) as usize;
                let made = &mut made.as_flattened_mut()[..count * bytes];
                cast(self.how, &products[..count], made, self.audit);
                for across in 0..width as usize {
                    let line = &mut dst[place(across) * bytes..][..tall as usize * bytes];
                    match bytes {
                        2 => gather::<2>(made, across, width as usize, line),
                        _ => gather::<4>(made, across, width as usize, line),
                    }
                }
                examined.add_to(self.how, self.audit, place, dst);
            }
            at += width;
        }
    }

    /// Makes the products of a tile; what is unusual in it.
    fn products<I: Iterator<Item = Segment>>(&mut self, segments: impl Fn() -> I) -> Examined {
        let Maker { formula, how, codes, first, rows, scratch, .. } = self;
        let mut all = |make: &mut dyn FnMut(Products<'_>, usize) -> bool| {
            let mut at = 0;
            segments().all(|segment| {
                let Segment { row, column, columns } = segment;
                let start = (row * formula.grid.columns + column - *first) as usize;
                let out = &mut scratch.products[at..at + columns as usize];
                let number = at;
                at += columns as usize;
                make(Products { codes, start, scales: rows.of(segment), out }, number)
            })
        };
        let mut examined = Examined::default();
        let are_plain = all(&mut |products, _| {
            products.scales.are_normal && fill(how.level, formula.code, products)
        });
        if !are_plain {
            all(&mut |products, number| {
                examined.fill(formula.code, products, number);
                true
            });
        }
        examined
    }
}

/// Makes products where all scales are normal, as [`Products::make`] does.
fn fill(level: Level, code: Code, products: Products<'_>) -> bool {
    match code {
        Code::E4m3 => dispatch::<E4m3>(level, products),
        Code::E5m2 => dispatch::<E5m2>(level, products),
        Code::E4m3Fnuz => dispatch::<E4m3Fnuz>(level, products),
        Code::E5m2Fnuz => dispatch::<E5m2Fnuz>(level, products),
        Code::E2m1 => dispatch::<E2m1>(level, products),
    }
}

fn dispatch<C: Codes>(level: Level, products: Products<'_>) -> bool {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `make` asserts, before it makes a tile, that this CPU has every feature that the
        // level enables; asking again for each row would take longer than a short one.
        Level::Avx2 => unsafe { x86::products_avx2::<C>(products) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::products_avx512::<C>(products) },
        _ => products.make::<C>(),
    }
}

/// Casts products, which are binary32.
fn cast(how: How, values: &[Single], dst: &mut [u8], audit: &mut Audit) {
    let run = Run { src: values.as_flattened(), dst, overflow: how.overflow, audit };
    run_any::<Cached, F32>(how.level, how.to, run);
}

/// Puts a column of a tile whose rows have `width` values of `N` bytes into a line.
fn gather<const N: usize>(made: &[u8], column: usize, width: usize, line: &mut [u8]) {
    let values = made.as_chunks::<N>().0[column..].iter().step_by(width);
    for (out, value) in line.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *out = *value;
    }
}

#[cfg(test)]
mod tests;
