//! The loop, compiled for x86-64 levels above the portable one, with their instructions. Those for
//! binary16 round to nearest even by their operand, keep subnormals whatever the mode of the thread,
//! and quiet NaN with its top payload, as the specification asks.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::LINE;
use super::element::{Element, MAGNITUDE, Source};
use super::kernel::Run;
use super::lanes::{Instructions, LANES, Summaries, Summary};
use super::memory::{Cached, Memory};
use super::run_blocks;
use super::scaled::product::{Codes, Products};

#[target_feature(enable = "avx,avx2,f16c,bmi1,bmi2")]
pub fn run_avx2<M: Memory, S: Source, D: Element>(run: Run<'_>) {
    run_blocks::<F16c, M, S, D>(run);
}

#[target_feature(enable = "avx,avx2,f16c,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn run_avx512<M: Memory, S: Source, D: Element>(run: Run<'_>) {
    run_blocks::<Avx512, M, S, D>(run);
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

impl Instructions for F16c {
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
            // In one register, because `put` stores it as one: from two, it was made lane by lane.
            let [low, high] = halves.map(|half| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(half));
            transmute(_mm256_set_m128i(high, low))
        }
    }
    #[inline(always)]
    fn add(summaries: &mut Summaries, bits: [u32; LANES]) {
        // SAFETY: as above, and for AVX2.
        unsafe {
            let bits: [__m256i; 2] = transmute(bits);
            let mut largest: [__m256i; 2] = transmute(summaries.largest);
            let mut smallest: [__m256i; 2] = transmute(summaries.smallest_less_one);
            let mut union: [__m256i; 2] = transmute(summaries.union);
            for half in 0..2 {
                let magnitudes = _mm256_and_si256(bits[half], _mm256_set1_epi32(MAGNITUDE as i32));
                let less_one = _mm256_sub_epi32(magnitudes, _mm256_set1_epi32(1));
                largest[half] = _mm256_max_epu32(largest[half], magnitudes);
                smallest[half] = _mm256_min_epu32(smallest[half], less_one);
                union[half] = _mm256_or_si256(union[half], bits[half]);
            }
            summaries.largest = transmute::<[__m256i; 2], [u32; LANES]>(largest);
            summaries.smallest_less_one = transmute::<[__m256i; 2], [u32; LANES]>(smallest);
            summaries.union = transmute::<[__m256i; 2], [u32; LANES]>(union);
        }
    }
}

/// Only named by `run_avx512`, which runs where AVX-512 F is.
struct Avx512;

impl Instructions for Avx512 {
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
    #[inline(always)]
    fn add(summaries: &mut Summaries, bits: [u32; LANES]) {
        // SAFETY: as above.
        unsafe {
            let bits: __m512i = transmute(bits);
            let largest: __m512i = transmute(summaries.largest);
            let smallest: __m512i = transmute(summaries.smallest_less_one);
            let union: __m512i = transmute(summaries.union);
            let magnitudes = _mm512_and_si512(bits, _mm512_set1_epi32(MAGNITUDE as i32));
            let less_one = _mm512_sub_epi32(magnitudes, _mm512_set1_epi32(1));
            let largest = _mm512_max_epu32(largest, magnitudes);
            let smallest = _mm512_min_epu32(smallest, less_one);
            let union = _mm512_or_si512(union, bits);
            summaries.largest = transmute::<__m512i, [u32; LANES]>(largest);
            summaries.smallest_less_one = transmute::<__m512i, [u32; LANES]>(smallest);
            summaries.union = transmute::<__m512i, [u32; LANES]>(union);
        }
    }
    #[inline(always)]
    fn join(summaries: Summaries) -> Summary {
        // SAFETY: as above.
        unsafe {
            let lanes = |lanes| transmute::<[u32; LANES], __m512i>(lanes);
            Summary {
                largest: _mm512_reduce_max_epu32(lanes(summaries.largest)),
                smallest_less_one: _mm512_reduce_min_epu32(lanes(summaries.smallest_less_one)),
                union: _mm512_reduce_or_epi32(lanes(summaries.union)).cast_unsigned(),
            }
        }
    }
}

/// Past the caches: storing whole vectors there saves reading each line before it is overwritten,
/// and drives nothing out. Only named where AVX is.
pub struct Streaming;

/// Bytes that are stored at once.
const VECTOR: usize = size_of::<__m256i>();

/// How far ahead of a step its source is fetched. What the CPU fetches by itself ends with the page,
/// and one thread of a Xeon ran at up to 1.4 times the speed with this.
const AHEAD: usize = 4096;

impl Memory for Streaming {
    #[inline(always)]
    fn reads(src: &[u8]) {
        let ahead = src.as_ptr().wrapping_add(AHEAD).cast();
        // What narrows waits for what it reads: the second level takes more lines at once, and two
        // threads of a Xeon were 1.1 times as fast with it. What reads less was a little slower.
        // SAFETY: this only fetches into the caches, and where there is no memory it does nothing.
        unsafe {
            if src.len() >= LINE {
                _mm_prefetch::<_MM_HINT_T1>(ahead);
            } else {
                _mm_prefetch::<_MM_HINT_T0>(ahead);
            }
        }
    }
    #[inline(always)]
    fn put<D: Element>(values: [D; LANES], dst: &mut [u8]) {
        if !dst.as_ptr().addr().is_multiple_of(VECTOR) || dst.len() != LANES * D::BYTES {
            return Cached::put(values, dst);
        }
        let mut made = [[0; VECTOR]; 2];
        Cached::put(values, &mut made.as_flattened_mut()[..dst.len()]);
        for (dst, made) in dst.chunks_exact_mut(VECTOR).zip(&made) {
            // SAFETY: this is only ever inlined into `run_avx2` and `run_avx512`, which enable AVX.
            // Both sides have the bytes of a vector, and `dst` starts at a multiple of as many,
            // which was just looked at. The loop calls `settle` before it does more with `dst`.
            unsafe {
                let made = _mm256_loadu_si256(made.as_ptr().cast());
                _mm256_stream_si256(dst.as_mut_ptr().cast(), made);
            }
        }
    }
    #[inline(always)]
    fn settle() {
        // SAFETY: every x86-64 CPU has SSE.
        unsafe { _mm_sfence() }
    }
}
