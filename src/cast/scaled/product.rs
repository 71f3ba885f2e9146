//! The products of codes and scales: the specification of one, and the loop for many of which none
//! is unusual.

use super::formula::{Code, How};
use super::scales::Window;
use crate::cast::audit::Audit;
use crate::cast::byte::{E2m1, E4m3, E4m3Fnuz, E5m2, E5m2Fnuz};
use crate::cast::double::F64;
use crate::cast::element::{F32, INFINITY, MAGNITUDE, QUIET, Source};
use crate::cast::kernel::Overflow;
use crate::cast::lanes::LANES;
use crate::dtype::Float;

/// The largest finite binary32.
const LARGEST: u32 = INFINITY - 1;
/// What zero times infinity is: the NaN that x86 makes.
const INVALID: u32 = !MAGNITUDE | INFINITY | QUIET;

/// The product of two binary32 numbers, rounded to binary32: exact in binary64, and rounded by
/// integers, so that it depends on no mode of the processor.
fn product(code: u32, scale: u32) -> u32 {
    let is_nan = |bits: u32| bits & MAGNITUDE > INFINITY;
    if is_nan(code) || is_nan(scale) {
        return if is_nan(code) { code } else { scale } | QUIET;
    }
    let [code, scale] = [code, scale].map(|bits| f64::from_bits(F64::from_f32(bits).0));
    let value = code * scale;
    if value.is_nan() { INVALID } else { F64(value.to_bits()).to_f32() }
}

/// Codes of a kind, as they lie in memory.
pub trait Codes {
    /// Codes in a byte.
    const EACH: usize;
    /// The binary32 value of the code with that number.
    fn one(bytes: &[u8], number: usize) -> u32;
    /// Those of as many as a register holds, of the bytes that hold them.
    fn many(bytes: &[u8]) -> [u32; LANES];
}

macro_rules! codes {
    ($name:ident) => {
        impl Codes for $name {
            const EACH: usize = 1;

            #[inline(always)]
            fn one(bytes: &[u8], number: usize) -> u32 {
                $name(bytes[number]).to_f32()
            }

            #[inline(always)]
            fn many(bytes: &[u8]) -> [u32; LANES] {
                let mut values = [0; LANES];
                for (value, code) in values.iter_mut().zip(bytes) {
                    *value = $name(*code).to_f32();
                }
                values
            }
        }
    };
}

codes!(E4m3);
codes!(E5m2);
codes!(E4m3Fnuz);
codes!(E5m2Fnuz);

impl Codes for E2m1 {
    const EACH: usize = 2;

    #[inline(always)]
    fn one(bytes: &[u8], number: usize) -> u32 {
        E2m1(bytes[number / 2] >> (number % 2 * 4) & 0xF).to_f32()
    }

    #[inline(always)]
    fn many(bytes: &[u8]) -> [u32; LANES] {
        // Sixteen codes are a number of 64 bits.
        let mut array = [0; LANES / 2];
        array.copy_from_slice(bytes);
        let codes = u64::from_le_bytes(array);
        let mut values = [0; LANES];
        for (number, value) in values.iter_mut().enumerate() {
            *value = E2m1((codes >> (number * 4) & 0xF) as u8).to_f32();
        }
        values
    }
}

/// Where the codes of a segment are, its scales, and where its products go, as binary32.
pub struct Products<'a> {
    pub codes: &'a [u8],
    /// The number of the first code of the segment in `codes`.
    pub start: usize,
    pub scales: Window<'a>,
    pub out: &'a mut [Single],
}

/// The bytes of a binary32.
pub type Single = [u8; 4];

impl Products<'_> {
    /// Makes products where all scales are normal; whether all of them are finite numbers. Where
    /// the segment does not begin and end with whole bytes of codes, it makes none.
    ///
    /// Compiled once for each level.
    #[inline(always)]
    pub fn make<C: Codes>(self) -> bool {
        let Products { codes, start, scales, out } = self;
        let count = out.len();
        if !start.is_multiple_of(C::EACH) || !count.is_multiple_of(C::EACH) {
            return false;
        }
        let mut codes = &codes[start / C::EACH..(start + count) / C::EACH];
        let (mut out, mut largest) = (out, [0; LANES]);
        let (block, missing) = (scales.block as usize, scales.missing as usize);
        let mut bits = scales.bits;
        if missing > 0 && missing.is_multiple_of(C::EACH) {
            // What is left of the first block; the others begin with a scale.
            let first = (block - missing).min(count);
            let (own, rest) = codes.split_at(first / C::EACH);
            let (here, after) = out.split_at_mut(first);
            times::<C>(own, bits[0], here, &mut largest);
            (codes, out, bits) = (rest, after, &bits[1..]);
        } else if missing > 0 {
            return false;
        }
        if !block.is_multiple_of(C::EACH) && bits.len() > 1 {
            return false;
        }
        let codes = codes.chunks((block / C::EACH).max(1));
        for ((codes, out), scale) in codes.zip(out.chunks_mut(block)).zip(bits) {
            times::<C>(codes, *scale, out, &mut largest);
        }
        largest.into_iter().fold(0, u32::max) < INFINITY
    }
}

/// The products of codes and one scale; `largest` are the largest magnitudes so far.
#[inline(always)]
fn times<C: Codes>(codes: &[u8], scale: u32, out: &mut [Single], largest: &mut [u32; LANES]) {
    let scale = f32::from_bits(scale);
    let times = |code: u32| (f32::from_bits(code) * scale).to_bits();
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    let chunks = codes.chunks_exact(LANES / C::EACH);
    let last = chunks.remainder();
    for (codes, out) in chunks.zip(whole) {
        let values = C::many(codes).map(times);
        for ((out, value), largest) in out.iter_mut().zip(values).zip(&mut *largest) {
            *out = value.to_le_bytes();
            *largest = (value & MAGNITUDE).max(*largest);
        }
    }
    for (number, out) in rest.iter_mut().enumerate() {
        let value = times(C::one(last, number));
        *out = value.to_le_bytes();
        largest[0] = (value & MAGNITUDE).max(largest[0]);
    }
}

/// What is unusual in a tile.
#[derive(Default)]
pub struct Examined {
    /// The products of finite numbers that binary32 cannot hold, which are its largest meanwhile.
    overflowed: Vec<usize>,
    /// Products of other numbers than zero that became zero.
    vanished: u64,
    nan_codes: u64,
}

impl Examined {
    /// Makes products one by one, the first of which has number `first` in its tile.
    pub fn fill(&mut self, code: Code, products: Products<'_>, first: usize) {
        match code {
            Code::E4m3 => self.make::<E4m3>(products, first),
            Code::E5m2 => self.make::<E5m2>(products, first),
            Code::E4m3Fnuz => self.make::<E4m3Fnuz>(products, first),
            Code::E5m2Fnuz => self.make::<E5m2Fnuz>(products, first),
            Code::E2m1 => self.make::<E2m1>(products, first),
        }
    }

    fn make<C: Codes>(&mut self, products: Products<'_>, first: usize) {
        let Products { codes, start, scales, out } = products;
        for (number, out) in out.iter_mut().enumerate() {
            let code = C::one(codes, start + number);
            let block = (number as u64 + scales.missing) / scales.block;
            let scale = scales.bits[block as usize];
            let mut value = product(code, scale);
            let is_finite = |bits: u32| bits & MAGNITUDE < INFINITY;
            let is_zero = |bits: u32| bits & MAGNITUDE == 0;
            self.nan_codes += u64::from(code & MAGNITUDE > INFINITY);
            self.vanished += u64::from(is_zero(value) && !is_zero(code) && !is_zero(scale));
            if !is_finite(value) && is_finite(code) && is_finite(scale) {
                self.overflowed.push(first + number);
                value = value & !MAGNITUDE | LARGEST;
            }
            *out = value.to_le_bytes();
        }
    }

    /// Says so, once the tile is cast into `dst`, where `place` says the place of a product.
    pub fn add_to(
        self,
        how: How,
        audit: &mut Audit,
        place: impl Fn(usize) -> usize,
        dst: &mut [u8],
    ) {
        let Examined { overflowed, vanished, nan_codes } = self;
        audit.nan_codes += nan_codes;
        audit.to_zero += vanished;
        audit.exact &= vanished == 0;
        // For 16 bits, the largest binary32 is one that they cannot hold either.
        if how.to == Float::F32 {
            audit.to_inf += overflowed.len() as u64;
            audit.exact &= overflowed.is_empty();
            for number in overflowed.into_iter().filter(|_| how.overflow == Overflow::Infinity) {
                let out = &mut dst[place(number) * 4..][..4];
                let infinite = F32::load(out).0 & !MAGNITUDE | INFINITY;
                out.copy_from_slice(&infinite.to_le_bytes());
            }
        }
    }
}
