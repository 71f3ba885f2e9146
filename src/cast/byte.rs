//! 8-bit floats, plain ones: every value is exact in every dtype that recast casts to.

use super::element::{INFINITY, MAGNITUDE, QUIET, Source, load, select};
use crate::dtype::{Castable, Layout, Special};

/// NaN of the dtypes that have one NaN and no sign of it.
const NAN: u32 = INFINITY | QUIET;

macro_rules! byte {
    ($name:ident, $castable:ident) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub u8);

        impl Source for $name {
            const CASTABLE: Castable = Castable::$castable;
            load!(u8);

            #[inline(always)]
            fn to_f32(self) -> u32 {
                const LAYOUT: Layout = Castable::$castable.layout();
                to_f32(LAYOUT, self.0)
            }
        }
    };
}

byte!(E5m2, F8E5m2);
byte!(E4m3, F8E4m3);
byte!(E4m3Fnuz, F8E4m3Fnuz);
byte!(E5m2Fnuz, F8E5m2Fnuz);

/// 4 bits, of which 2 are the exponent and 1 the mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their
/// negatives. Only ever a code, which has a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E2m1(pub u8);

impl E2m1 {
    #[inline(always)]
    pub fn to_f32(self) -> u32 {
        let bits = u32::from(self.0);
        let (sign, magnitude) = ((bits & 8) << 28, bits & 7);
        let normal = (magnitude << 22) + (126 << 23);
        // The two smallest are zero and a half.
        sign | select(magnitude < 2, (magnitude & 1) * 0x3F00_0000, normal)
    }
}

/// 8 bits of an exponent and nothing else: 2^(bits - 127), or NaN. Only ever a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E8m0(pub u8);

impl E8m0 {
    /// The value of the one byte.
    pub fn to_f32(self) -> u32 {
        match self.0 {
            0xFF => NAN,
            // Subnormal in binary32.
            0 => 0x0040_0000,
            exponent => u32::from(exponent) << 23,
        }
    }
}

/// Always called with a constant layout, of which nothing is left in the loop.
#[inline(always)]
fn to_f32(layout: Layout, code: u8) -> u32 {
    let bits = u32::from(code);
    let (sign, magnitude) = ((bits & 0x80) << 24, bits & 0x7F);
    let shift = 23 - layout.mantissa_bits;
    let normal = (magnitude << shift) + ((127 - layout.bias) << 23);
    // A subnormal is its mantissa times the smallest value, and the product is exact and normal
    // in binary32.
    let smallest = f32::from_bits((128 - layout.bias - layout.mantissa_bits) << 23);
    let subnormal = (magnitude as f32 * smallest).to_bits();
    let finite = sign | select(magnitude >> layout.mantissa_bits == 0, subnormal, normal);
    let special = sign | (magnitude << shift) | INFINITY;
    let infinity = 0x7F >> layout.mantissa_bits << layout.mantissa_bits;
    match layout.special {
        Special::LargestExponent => {
            let special = special | select(magnitude > infinity, QUIET, 0);
            select(magnitude >= infinity, special, finite)
        }
        Special::AllOnes => select(magnitude == 0x7F, special | QUIET, finite),
        // A selection of the whole value would not become vector code.
        Special::NegativeZero => finite ^ select(bits == 0x80, !MAGNITUDE ^ NAN, 0),
        Special::None => finite,
    }
}
