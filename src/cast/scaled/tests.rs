//! Values of codes with scales against a judge of their own: tables of the codes by their
//! definition, products in binary64, and the crate `half`.

use super::*;
use crate::cast::audit::ScaleCounts;
use crate::cast::{Level, Overflow};
use crate::dtype::Float;

/// The number that a code of some bits stands for, by the definition of its format: `special` says
/// which magnitudes are not finite.
fn number(
    code: u8,
    exponents: u32,
    mantissa: u32,
    bias: i32,
    special: &dyn Fn(u8) -> Option<f64>,
) -> f64 {
    let width = exponents + mantissa;
    let magnitude = code & ((1 << width) - 1);
    let sign = if code >> width & 1 == 1 { -1.0 } else { 1.0 };
    if let Some(value) = special(code) {
        return sign * value;
    }
    let (exponent, fraction) =
        (i32::from(magnitude >> mantissa), magnitude & ((1 << mantissa) - 1));
    let fraction = f64::from(fraction) / f64::from(1 << mantissa);
    sign * match exponent {
        0 => fraction * 2_f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2_f64.powi(exponent - bias),
    }
}

fn value(code: Code, bits: u8) -> f64 {
    match code {
        Code::E4m3 => number(bits, 4, 3, 7, &|code| (code & 0x7F == 0x7F).then_some(f64::NAN)),
        Code::E5m2 => number(bits, 5, 2, 15, &|code| match code & 0x7F {
            0x7C => Some(f64::INFINITY),
            0x7D.. => Some(f64::NAN),
            _ => None,
        }),
        Code::E4m3Fnuz => number(bits, 4, 3, 8, &|code| (code == 0x80).then_some(f64::NAN)),
        Code::E5m2Fnuz => number(bits, 5, 2, 16, &|code| (code == 0x80).then_some(f64::NAN)),
        Code::E2m1 => number(bits, 2, 1, 1, &|_| None),
    }
}

/// The value that a product is, in the bits of the target.
fn rounded(product: f64, to: Float, overflow: Overflow, is_finite: bool) -> Option<u32> {
    let single = product as f32;
    let (bits, largest) = match to {
        Float::F32 => (single.to_bits(), f32::MAX.to_bits()),
        Float::F16 => (u32::from(half::f16::from_f32(single).to_bits()), 0x7BFF),
        Float::Bf16 => (u32::from(half::bf16::from_f32(single).to_bits()), 0x7F7F),
    };
    let (infinity, sign) = match to {
        Float::F32 => (0x7F80_0000, 0x8000_0000),
        Float::F16 => (0x7C00, 0x8000),
        Float::Bf16 => (0x7F80, 0x8000),
    };
    let saturates = overflow == Overflow::Saturate && is_finite && bits & !sign == infinity;
    let bits = if saturates { bits & sign | largest } else { bits };
    (!product.is_nan()).then_some(bits)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// An example of a formula: codes, scales and second scales of `planes` planes, and each value as
/// the product in binary64, and whether it is one of finite numbers.
struct Example {
    formula: Formula,
    codes: Vec<u8>,
    scales: Vec<u8>,
    second: Vec<u8>,
    values: Vec<(f64, bool)>,
    counts: ScaleCounts,
    nan_codes: u64,
    /// Whether every product has the bits for it.
    are_short: bool,
}

fn example(formula: Formula, planes: u64, odd: bool, random: &mut Random) -> Example {
    let Grid { rows, columns, .. } = formula.grid;
    let (down, across) = formula.grid.blocks();
    let count = planes * rows * columns;
    let numbers: Vec<u8> = (0..count).map(|_| (random.next() >> 20) as u8).collect();
    let codes: Vec<u8> = match formula.code {
        Code::E2m1 => numbers.chunks(2).map(|two| two[0] & 15 | two[1] << 4).collect(),
        // Without NaN and infinity, where nothing is unusual.
        _ if !odd => numbers.iter().map(|code| code & 0xBB).collect(),
        _ => numbers.clone(),
    };
    let numbers: Vec<u8> = match formula.code {
        Code::E2m1 => numbers.iter().map(|code| code & 15).collect(),
        _ => codes.clone(),
    };
    let (mut scales, mut singles) = (Vec::new(), Vec::new());
    for index in 0..planes * down * across {
        let mut single = (random.next() as u32 & 0x7FFF_FFFF) as f32 * 1e-12 + 1e-6;
        if odd {
            let odd = [0.0, -0.0, -3.5, f32::INFINITY, f32::NAN, 1e-44, 3e38, -1e-38, 1e30];
            single = if index % 3 == 0 { odd[random.next() as usize % odd.len()] } else { single };
        }
        let single = match formula.scale {
            Scale::F32 => {
                scales.extend(single.to_le_bytes());
                single
            }
            Scale::F16 => {
                scales.extend(half::f16::from_f32(single).to_le_bytes());
                half::f16::from_f32(single).to_f32()
            }
            Scale::Bf16 => {
                scales.extend(half::bf16::from_f32(single).to_le_bytes());
                half::bf16::from_f32(single).to_f32()
            }
            Scale::E8m0 => {
                let byte = if odd { random.next() as u8 } else { 100 + (random.next() % 50) as u8 };
                scales.push(byte);
                if byte == 255 { f32::NAN } else { 2_f64.powi(i32::from(byte) - 127) as f32 }
            }
            Scale::E4m3 => {
                let byte = (random.next() >> 9) as u8 & if odd { 0xFF } else { 0x7B } | 8;
                scales.push(byte);
                value(Code::E4m3, byte) as f32
            }
        };
        singles.push(single);
    }
    let second: Vec<f32> = match formula.second {
        None => Vec::new(),
        Some(_) => (0..planes).map(|plane| 0.37 + plane as f32 * 11.1).collect(),
    };
    for (index, single) in singles.iter_mut().enumerate() {
        let plane = index as u64 / (down * across);
        match formula.second {
            None => {}
            Some(Second::Divides) => *single /= second[plane as usize],
            Some(Second::Multiplies) => *single *= second[plane as usize],
        }
    }
    let mut counts = ScaleCounts::default();
    for single in &singles {
        counts.nan += u64::from(single.is_nan());
        counts.inf += u64::from(single.is_infinite());
        counts.zero += u64::from(*single == 0.0);
        counts.negative += u64::from(*single < 0.0);
    }
    let mut values = Vec::new();
    let mut nan_codes = 0;
    for index in 0..count {
        // The position in the result, back to that of the code.
        let (plane, at) = (index / (rows * columns), index % (rows * columns));
        let (row, column) = match formula.transposed {
            true => (at % rows, at / rows),
            false => (at / columns, at % columns),
        };
        let code = value(
            formula.code,
            numbers[(plane * rows * columns + row * columns + column) as usize],
        );
        let block =
            (plane * down + row / formula.grid.block.0) * across + column / formula.grid.block.1;
        let scale = singles[block as usize];
        nan_codes += u64::from(code.is_nan());
        values.push((code * f64::from(scale), code.is_finite() && scale.is_finite()));
    }
    let second = second.iter().flat_map(|value| value.to_le_bytes()).collect();
    let are_short = singles.iter().all(|single| single.to_bits() & 15 == 0);
    Example { formula, codes, scales, second, values, counts, nan_codes, are_short }
}

impl Example {
    /// The bytes and the audit of the values, made in parts that end at `cuts`.
    fn made(&self, how: How, cuts: &[u64]) -> (Vec<u8>, Audit) {
        let Formula { code, scale, grid, .. } = self.formula;
        let (mut out, mut audit, mut start) = (Vec::new(), Audit::default(), 0);
        for end in cuts.iter().copied().chain([self.values.len() as u64]) {
            if start == end {
                continue;
            }
            let made_of = self.formula.made_of(start, end);
            let codes = made_of.codes.0 * code.bits() / 8..made_of.codes.1 * code.bits() / 8;
            let row = grid.blocks().1 * scale.bytes();
            let rows = made_of.scale_rows.0 * row..made_of.scale_rows.1 * row;
            let inputs = Inputs {
                codes: &self.codes[codes.start as usize..codes.end as usize],
                scales: &self.scales[rows.start as usize..rows.end as usize],
                second: &self.second,
            };
            let mut part = vec![0; (end - start) as usize * how.to.bytes()];
            make(&self.formula, how, start, inputs, &mut part, &mut audit);
            out.extend(part);
            start = end;
        }
        (out, audit)
    }

    fn check(&self, how: How, cuts: &[u64]) {
        let (made, audit) = self.made(how, cuts);
        let bits = |bytes: &[u8]| match *bytes {
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("two bytes or four"),
        };
        let (mut to_inf, mut to_zero, mut nan, mut inf, mut exact) = (0, 0, 0, 0, true);
        for (index, (bytes, (product, is_finite))) in
            made.chunks(how.to.bytes()).zip(&self.values).enumerate()
        {
            let expected = rounded(*product, how.to, how.overflow, *is_finite);
            let found = bits(bytes);
            match expected {
                Some(expected) => {
                    assert_eq!(found, expected, "{index}: {product} {:?} {how:?}", self.formula)
                }
                None => {
                    let single = match how.to {
                        Float::F32 => f32::from_bits(found),
                        Float::F16 => half::f16::from_bits(found as u16).to_f32(),
                        Float::Bf16 => half::bf16::from_bits(found as u16).to_f32(),
                    };
                    assert!(single.is_nan(), "{index}");
                }
            }
            let back = rounded(*product, how.to, Overflow::Infinity, *is_finite);
            let back = back.map(|bits| match how.to {
                Float::F32 => f32::from_bits(bits),
                Float::F16 => half::f16::from_bits(bits as u16).to_f32(),
                Float::Bf16 => half::bf16::from_bits(bits as u16).to_f32(),
            });
            nan += u64::from(product.is_nan());
            inf += u64::from(product.is_infinite());
            let overflows = product.is_finite() && back.is_some_and(f32::is_infinite);
            to_inf += u64::from(overflows);
            let vanishes = *product != 0.0 && back == Some(0.0);
            to_zero += u64::from(vanishes);
            exact &= back.is_none_or(|back| back == *product as f32) && !overflows && !vanishes;
        }
        exact &= self.are_short;
        let found = (audit.to_inf, audit.to_zero, audit.nan, audit.inf, audit.exact);
        assert_eq!(found, (to_inf, to_zero, nan, inf, exact), "{:?} {how:?}", self.formula);
        assert_eq!((audit.scales, audit.nan_codes), (self.counts, self.nan_codes));
    }
}

const CODES: [Code; 5] = [Code::E4m3, Code::E5m2, Code::E4m3Fnuz, Code::E5m2Fnuz, Code::E2m1];
const SCALES: [Scale; 5] = [Scale::F32, Scale::F16, Scale::Bf16, Scale::E8m0, Scale::E4m3];

fn hows() -> impl Iterator<Item = How> {
    Level::available_levels().flat_map(|level| {
        [Float::F32, Float::F16, Float::Bf16].into_iter().flat_map(move |to| {
            [Overflow::Infinity, Overflow::Saturate].into_iter().map(move |overflow| How {
                level,
                to,
                overflow,
            })
        })
    })
}

#[test]
fn values_are_products_rounded_to_binary32_and_then_to_the_target() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    for (rows, columns, block, planes) in [
        (300, 260, (128, 128), 1),
        (7, 34, (3, 6), 3),
        (5, 96, (1, 32), 2),
        (70, 48, (1, 16), 1),
        (33, 64, (33, 64), 2),
        (19, 130, (1, 130), 1),
        (6, 10, (6, 1), 2),
    ] {
        for code in CODES {
            for scale in SCALES {
                for odd in [false, true] {
                    let second = match (scale, code) {
                        (Scale::E4m3, Code::E2m1) => Some(Second::Divides),
                        (Scale::E4m3, _) => Some(Second::Multiplies),
                        _ => None,
                    };
                    let grid = Grid { rows, columns, block };
                    let transposed = random.next().is_multiple_of(2);
                    let formula = Formula { code, scale, second, grid, transposed };
                    let example = example(formula, planes, odd, &mut random);
                    let count = example.values.len() as u64;
                    let mut cuts: Vec<u64> =
                        (0..4).map(|_| random.next() % count / 2 * 2).collect();
                    cuts.sort_unstable();
                    hows().for_each(|how| example.check(how, &cuts));
                }
            }
        }
    }
}

#[test]
fn every_code_has_the_value_of_its_definition() {
    for code in CODES {
        let count = 1_u64 << code.bits();
        let bytes: Vec<u8> = match code {
            Code::E2m1 => (0..8).map(|two| (two * 2) | ((two * 2 + 1) << 4)).collect(),
            _ => (0..=255).collect(),
        };
        let grid = Grid { rows: 1, columns: count, block: (1, count) };
        let formula = Formula { code, scale: Scale::F32, second: None, grid, transposed: false };
        let scales = 1_f32.to_le_bytes();
        let inputs = Inputs { codes: &bytes, scales: &scales, second: &[] };
        for level in Level::available_levels() {
            let how = How { level, to: Float::F32, overflow: Overflow::Infinity };
            let mut dst = vec![0; count as usize * 4];
            make(&formula, how, 0, inputs, &mut dst, &mut Audit::default());
            for (bits, made) in dst.chunks(4).enumerate() {
                let made = f32::from_le_bytes(made.try_into().expect("four"));
                let expected = value(code, bits as u8) as f32;
                assert!(
                    made.to_bits() == expected.to_bits() || made.is_nan() && expected.is_nan(),
                    "{code:?} {bits}: {made} {expected}"
                );
            }
        }
    }
}
