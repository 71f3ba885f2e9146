//! The loop, compiled for x86-64 levels above the portable one, with their instructions for
//! binary16. Those round to nearest even by their operand, keep subnormals whatever the mode of
//! the thread, and quiet NaN with its top payload, as the specification asks.

use std::arch::x86_64::{
    __m256i, __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm256_cvtph_ps,
    _mm256_cvtps_ph, _mm512_cvtph_ps, _mm512_cvtps_ph,
};
use std::mem::transmute;

use super::element::{Element, Source};
use super::kernel::Run;
use super::lanes::{Binary16, LANES};
use super::run_blocks;
use super::scaled::product::{Codes, Products};

#[target_feature(enable = "avx,avx2,f16c,bmi1,bmi2")]
pub fn run_avx2<S: Source, D: Element>(run: Run<'_>) {
    run_blocks::<F16c, S, D>(run);
}

#[target_feature(enable = "avx,avx2,f16c,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn run_avx512<S: Source, D: Element>(run: Run<'_>) {
    run_blocks::<Avx512, S, D>(run);
}

#[target_feature(enable = "avx,avx2,f16c,bmi1,bmi2")]
pub fn products_avx2<C: Codes>(products: Products<'_>) -> bool {
    products.make::<C>()
}

#[target_feature(enable = "avx,avx2,f16c,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn products_avx512<C: Codes>(products: Products<'_>) -> bool {
    products.make::<C>()
}

/// Only named by `run_avx2`, which runs where F16C is.
struct F16c;

impl Binary16 for F16c {
    #[inline(always)]
    fn widen(bits: [u16; LANES]) -> [u32; LANES] {
        // SAFETY: this is only ever inlined into `run_avx2`, which enables F16C; arrays and
        // vectors have the same size, and every bit pattern is valid for both.
        unsafe {
            let halves: [_; 2] = transmute(bits);
            transmute(halves.map(|half| _mm256_cvtph_ps(half)))
        }
    }
    #[inline(always)]
    fn narrow(bits: [u32; LANES]) -> [u16; LANES] {
        // SAFETY: as above.
        unsafe {
            let halves: [_; 2] = transmute(bits);
            transmute(halves.map(|half| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(half)))
        }
    }
}

/// Only named by `run_avx512`, which runs where AVX-512 F is.
struct Avx512;

impl Binary16 for Avx512 {
    #[inline(always)]
    fn widen(bits: [u16; LANES]) -> [u32; LANES] {
        // SAFETY: this is only ever inlined into `run_avx512`, which enables AVX-512 F; arrays
        // and vectors have the same size, and every bit pattern is valid for both.
        unsafe { transmute(_mm512_cvtph_ps(transmute::<[u16; LANES], __m256i>(bits))) }
    }
    #[inline(always)]
    fn narrow(bits: [u32; LANES]) -> [u16; LANES] {
        // SAFETY: as above.
        unsafe {
            transmute(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                transmute::<[u32; LANES], __m512>(bits),
            ))
        }
    }
}
