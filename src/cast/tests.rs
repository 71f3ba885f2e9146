use super::*;

const PAIRS: [(Float, Float); 6] = [
    (Float::F32, Float::F16),
    (Float::F32, Float::Bf16),
    (Float::F16, Float::F32),
    (Float::F16, Float::Bf16),
    (Float::Bf16, Float::F32),
    (Float::Bf16, Float::F16),
];

/// The specification, one element at a time.
fn by_element(from: Float, src: &[u8], to: Float) -> Vec<u8> {
    src.chunks_exact(from.bytes())
        .flat_map(|src| {
            let bits = match from {
                Float::F32 => F32::load(src).to_f32(),
                Float::F16 => F16::load(src).to_f32(),
                Float::Bf16 => Bf16::load(src).to_f32(),
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
        for (from, to) in PAIRS {
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
fn the_audit_and_the_result_do_not_depend_on_the_level_or_on_how_the_input_is_cut() {
    for (from, to) in PAIRS {
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
        assert_eq!(audit.max_abs(), 1e30);
    }
}
