//! Times the casts in memory, at every level this CPU runs, beside memcpy and the half crate, and
//! prints one JSON line: `{"name": [GB/s, ...]}`. `benches/cast.py` calls it and adds the rest.
//!
//! Arguments: elements, threads, rounds.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use half::slice::HalfFloatSliceExt;
use recast::cast::{Audit, Level, Overflow, cast};
use recast::checksum::{BLOCK, Digest};
use recast::dtype::Float;

const PAIRS: [(Float, Float); 6] = [
    (Float::F32, Float::F16),
    (Float::F32, Float::Bf16),
    (Float::F16, Float::F32),
    (Float::F16, Float::Bf16),
    (Float::Bf16, Float::F32),
    (Float::Bf16, Float::F16),
];

/// What is timed: it fills the destination from the source.
type Work = Box<dyn Fn(&[u8], &mut [u8]) + Sync>;

/// Trained weights, roughly: normal with deviation 0.02, as `dtype`.
fn weights(elements: usize, dtype: Float) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(elements * dtype.bytes());
    for _ in 0..elements {
        let mut sum = 0_i64;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for part in state.to_le_bytes().chunks_exact(2) {
            sum += i64::from(i16::from_le_bytes([part[0], part[1]]));
        }
        let value = sum as f32 * (0.02 / 37_837.0);
        match dtype {
            Float::F32 => out.extend_from_slice(&value.to_le_bytes()),
            Float::F16 => out.extend_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Float::Bf16 => out.extend_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        }
    }
    out
}

/// Runs `work` on `threads` equal shares and returns GB/s over `bytes`.
fn rate(
    threads: usize,
    (src, src_size): (&[u8], usize),
    (dst, dst_size): (&mut [u8], usize),
    work: &(dyn Fn(&[u8], &mut [u8]) + Sync),
) -> f64 {
    let share = (src.len() / src_size).div_ceil(threads);
    let bytes = (src.len() + dst.len()) as f64;
    let started = Instant::now();
    thread::scope(|scope| {
        for (src, dst) in src.chunks(share * src_size).zip(dst.chunks_mut(share * dst_size)) {
            scope.spawn(move || work(src, dst));
        }
    });
    bytes / started.elapsed().as_secs_f64() / 1e9
}

/// The half crate's slice conversions, for the pairs it has.
fn by_half(from: Float, to: Float) -> Option<Work> {
    fn aligned<T>(bytes: &[u8]) -> &[T] {
        // SAFETY: the buffers are page-aligned, and every bit pattern is valid for the float
        // types this is called with.
        let (before, middle, after) = unsafe { bytes.align_to::<T>() };
        assert!(before.is_empty() && after.is_empty());
        middle
    }
    fn aligned_mut<T>(bytes: &mut [u8]) -> &mut [T] {
        // SAFETY: as above.
        let (before, middle, after) = unsafe { bytes.align_to_mut::<T>() };
        assert!(before.is_empty() && after.is_empty());
        middle
    }
    use half::{bf16, f16};
    Some(match (from, to) {
        (Float::F32, Float::F16) => {
            Box::new(|src, dst| aligned_mut::<f16>(dst).convert_from_f32_slice(aligned(src)))
        }
        (Float::F32, Float::Bf16) => {
            Box::new(|src, dst| aligned_mut::<bf16>(dst).convert_from_f32_slice(aligned(src)))
        }
        (Float::F16, Float::F32) => {
            Box::new(|src, dst| aligned::<f16>(src).convert_to_f32_slice(aligned_mut(dst)))
        }
        (Float::Bf16, Float::F32) => {
            Box::new(|src, dst| aligned::<bf16>(src).convert_to_f32_slice(aligned_mut(dst)))
        }
        _ => return None,
    })
}

/// A cast as a conversion does it: block by block, each hashed before and after.
fn checked(level: Level, (from, src): (Float, &[u8]), (to, dst): (Float, &mut [u8])) {
    let elements = BLOCK as usize / to.bytes();
    let blocks = src.chunks(elements * from.bytes()).zip(dst.chunks_mut(elements * to.bytes()));
    let mut audit = Audit::default();
    for (src, dst) in blocks {
        for block in src.chunks(BLOCK as usize) {
            std::hint::black_box(Digest::of(block));
        }
        cast(level, (from, src), (to, dst), Overflow::Infinity, &mut audit);
        std::hint::black_box(Digest::of(dst));
    }
    assert_eq!(audit.to_inf, 0);
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let [elements, threads, rounds] = numbers[..] else {
        // `cargo test --benches` and the like call it without arguments.
        return;
    };
    let mut rates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut note = |name: String, rate| rates.entry(name).or_default().push(rate);
    for (from, to) in PAIRS {
        let src = weights(elements, from);
        let mut dst = vec![1_u8; elements * to.bytes()];
        let sizes = (from.bytes(), to.bytes());
        for _ in 0..rounds {
            for level in Level::available_levels() {
                let work = |src: &[u8], dst: &mut [u8]| {
                    let mut audit = Audit::default();
                    cast(level, (from, src), (to, dst), Overflow::Infinity, &mut audit);
                    assert_eq!(audit.to_inf, 0);
                };
                let speed = rate(threads, (&src, sizes.0), (&mut dst, sizes.1), &work);
                note(format!("{from}->{to} {}", level.name()), speed);
            }
            let level = Level::available_levels().last().expect("portable runs everywhere");
            let checked = |src: &[u8], dst: &mut [u8]| checked(level, (from, src), (to, dst));
            let speed = rate(threads, (&src, sizes.0), (&mut dst, sizes.1), &checked);
            note(format!("{from}->{to} checked"), speed);
            if let Some(work) = by_half(from, to) {
                let speed = rate(threads, (&src, sizes.0), (&mut dst, sizes.1), &work);
                note(format!("{from}->{to} half"), speed);
            }
            let copy = |src: &[u8], dst: &mut [u8]| dst.copy_from_slice(src);
            let speed = if src.len() >= dst.len() {
                let (left, right) = (&src[..dst.len()], &mut dst[..]);
                rate(threads, (left, 1), (right, 1), &copy)
            } else {
                let (left, right) = (&src[..], &mut dst[..src.len()]);
                rate(threads, (left, 1), (right, 1), &copy)
            };
            note(format!("{from}->{to} memcpy"), speed);
        }
    }
    println!("{}", serde_json::to_string(&rates).expect("numbers serialize"));
}
