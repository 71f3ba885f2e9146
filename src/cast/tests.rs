use super::*;

use crate::dtype::Castable;

const SOURCES: [Castable; 8] = [
    Castable::F64,
    Castable::F32,
    Castable::F16,
    Castable::Bf16,
    Castable::F8E5m2,
    Castable::F8E4m3,
    Castable::F8E4m3Fnuz,
    Castable::F8E5m2Fnuz,
];

fn pairs() -> impl Iterator<Item = (Castable, Float)> {
    let all = SOURCES.into_iter().flat_map(|from| Float::ALL.map(|to| (from, to)));
    all.filter(|(from, to)| *from != to.castable())
}

/// The specification, one element at a time.
fn by_element(from: Castable, src: &[u8], to: Float) -> Vec<u8> {
    src.chunks_exact(from.bytes())
        .flat_map(|src| {
            let bits = match from {
                Castable::F64 => F64::load(src).to_f32(),
                Castable::F32 => F32::load(src).to_f32(),
                Castable::F16 => F16::load(src).to_f32(),
                Castable::Bf16 => Bf16::load(src).to_f32(),
                Castable::F8E5m2 => E5m2::load(src).to_f32(),
                Castable::F8E4m3 => E4m3::load(src).to_f32(),
                Castable::F8E4m3Fnuz => E4m3Fnuz::load(src).to_f32(),
                Castable::F8E5m2Fnuz => E5m2Fnuz::load(src).to_f32(),
            };
            match to {
                Float::F32 => F32::from_f32(bits).0.to_le_bytes().to_vec(),
                Float::F16 => F16::from_f32(bits).0.to_le_bytes().to_vec(),
                Float::Bf16 => Bf16::from_f32(bits).0.to_le_bytes().to_vec(),
            }
        })
        .collect()
}

fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

#[test]
fn every_level_gives_the_specification_at_every_length_and_offset() {
    for level in Level::available_levels() {
        for (from, to) in pairs() {
            for offset in 0..64 {
                let src = noise(offset + 68 * from.bytes(), 7 + offset as u64);
                let mut dst = vec![0xA5; 64 + 68 * to.bytes()];
                for length in 0..68 {
                    let src = &src[offset..offset + length * from.bytes()];
                    let end = 63 - offset + length * to.bytes();
                    dst.fill(0xA5);
                    let out = &mut dst[63 - offset..end];
                    cast(level, (from, src), (to, out), Overflow::Infinity, &mut Audit::default());
                    assert_eq!(out, by_element(from, src, to), "{level:?} {from}->{to} {length}");
                    assert!(dst[end..].iter().all(|&byte| byte == 0xA5), "wrote past the end");
                }
            }
        }
    }
}

#[test]
fn past_the_caches_every_length_at_every_address_gives_the_same_result_and_audit() {
    let most = 2 * kernel::BLOCK + 40;
    let lengths = [0, 1, 15, 16, 31, 32, 33, 63, 64, 65, 100, kernel::BLOCK + 17, most];
    for level in Level::available_levels() {
        for (from, to) in pairs() {
            let src = noise(most * from.bytes() + 1, 11);
            let mut whole = vec![0; 64 + most * to.bytes() + 64];
            let first = whole.as_ptr().align_offset(64);
            for offset in [0, 1, 2, 3, 4, 6, 16, 30, 32, 60, 62, 63] {
                for (length, policy) in lengths.into_iter().flat_map(|length| {
                    [Overflow::Infinity, Overflow::Saturate].map(|policy| (length, policy))
                }) {
                    let src = &src[length % 2..][..length * from.bytes()];
                    let mut plain = vec![0; length * to.bytes()];
                    let mut audits = [Audit::default(); 2];
                    cast(level, (from, src), (to, &mut plain), policy, &mut audits[0]);
                    whole.fill(0xA5);
                    let (start, end) = (first + offset, first + offset + plain.len());
                    let out = &mut whole[start..end];
                    stream(level, (from, src), (to, out), policy, &mut audits[1]);
                    assert!(*out == plain, "{level:?} {from}->{to} {length} at {offset}");
                    assert_eq!(audits[0], audits[1], "{level:?} {from}->{to} {length} at {offset}");
                    let around = whole[..start].iter().chain(&whole[end..]);
                    assert!(around.copied().all(|byte| byte == 0xA5), "wrote beyond the result");
                }
            }
        }
    }
}

#[test]
fn the_audit_and_the_result_do_not_depend_on_the_level_or_on_how_the_input_is_cut() {
    for (from, to) in pairs() {
        let src = noise(10_000 * from.bytes(), 99);
        let mut whole = vec![0; 10_000 * to.bytes()];
        let mut expected = Audit::default();
        cast(Level::Portable, (from, &src), (to, &mut whole), Overflow::Infinity, &mut expected);
        for level in Level::available_levels() {
            for cut in [1, 777, 2048, 9_999] {
                let mut out = vec![0; whole.len()];
                let mut audit = Audit::default();
                for (src, out) in
                    src.chunks(cut * from.bytes()).zip(out.chunks_mut(cut * to.bytes()))
                {
                    cast(level, (from, src), (to, out), Overflow::Infinity, &mut audit);
                }
                assert_eq!(out, whole, "{level:?} {from}->{to} cut at {cut}");
                assert_eq!(audit, expected, "{level:?} {from}->{to} cut at {cut}");
            }
        }
    }
}

#[test]
fn saturate_gives_the_largest_finite_value_with_the_sign_and_leaves_infinities() {
    let values = [65504.0_f32, 65520.0, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0];
    let src: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for level in Level::available_levels() {
        let mut dst = [0; 14];
        let mut audit = Audit::default();
        cast(level, (Float::F32, &src), (Float::F16, &mut dst), Overflow::Saturate, &mut audit);
        let out: Vec<u16> = dst.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(out, [0x7BFF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x3C00]);
        assert_eq!((audit.to_inf, audit.inf, audit.nan), (2, 2, 1));
        assert_eq!(audit.max_abs(), f64::from(1e30_f32));
    }
}

#[test]
fn saturate_gives_the_largest_finite_value_also_where_binary32_overflows() {
    let values = [1e300, -1e300, 65520.0, f64::MAX, f64::NEG_INFINITY, f64::NAN, 1e-320];
    let src: Vec<u8> = values.iter().flat_map(|value: &f64| value.to_le_bytes()).collect();
    for level in Level::available_levels() {
        let mut dst = [0; 14];
        let mut audit = Audit::default();
        cast(level, (Castable::F64, &src), (Float::F16, &mut dst), Overflow::Saturate, &mut audit);
        let out: Vec<u16> = dst.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(out, [0x7BFF, 0xFBFF, 0x7BFF, 0x7BFF, 0xFC00, 0x7E00, 0]);
        assert_eq!((audit.to_inf, audit.inf, audit.nan, audit.to_zero), (4, 1, 1, 1));
        assert_eq!(audit.max_abs(), f64::MAX);
        let mut dst = [0; 28];
        cast(level, (Castable::F64, &src), (Float::F32, &mut dst), Overflow::Saturate, &mut audit);
        assert_eq!(dst[..8], [f32::MAX.to_le_bytes(), f32::MIN.to_le_bytes()].concat());
    }
}

/// Whether the audit says exact of a block of nothing but `value`.
fn is_exact(value: f64, to: Float) -> bool {
    let mut audit = Audit::default();
    let (src, mut dst) = (value.to_le_bytes().repeat(40), vec![0; 40 * to.bytes()]);
    cast(Level::Portable, (Castable::F64, &src), (to, &mut dst), Overflow::Infinity, &mut audit);
    audit.exact
}

#[test]
fn a_double_is_exact_where_the_result_is_the_same_number() {
    let (single, half, brain) = (Float::F32, Float::F16, Float::Bf16);
    for (value, exact) in [
        (1.0, [true, true, true]),
        (1.0 + 2_f64.powi(-23), [true, false, false]),
        (1.0 + 2_f64.powi(-24), [false, false, false]),
        (1.0 + 2_f64.powi(-10), [true, true, false]),
        (2_f64.powi(-24), [true, true, true]),
        (1.5 * 2_f64.powi(-24), [true, false, true]),
        (2_f64.powi(-149), [true, false, false]),
        (2_f64.powi(-150), [false, false, false]),
        (2_f64.powi(-133), [true, false, true]),
        (1.5 * 2_f64.powi(-133), [true, false, false]),
        (1e300, [false, false, false]),
        (f64::INFINITY, [true, true, true]),
        (f64::NAN, [true, true, true]),
    ] {
        assert_eq!([single, half, brain].map(|to| is_exact(value, to)), exact, "{value:e}");
    }
}
