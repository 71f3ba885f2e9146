use proptest::prelude::*;

use super::*;

/// Sizes and strides of up to four dimensions, the strides in any order and of any size.
fn shapes() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
    proptest::collection::vec((1_u64..7, 0_u64..40), 1..5).prop_map(|all| all.into_iter().unzip())
}

/// The elements as a definition has them: each index, the last dimension fastest.
fn listed(sizes: &[u64], strides: &[u64]) -> Vec<u64> {
    let (mut all, mut at) = (vec![0], 0);
    while at < sizes.len() {
        all = all
            .iter()
            .flat_map(|before| (0..sizes[at]).map(move |index| before + index * strides[at]))
            .collect();
        at += 1;
    }
    all
}

fn gathered(view: &View, source: &[u8], start: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0xAA; bytes];
    let done: Result<(), ()> = view.gather(start, &mut out, &mut |from, length, take| {
        take(&source[from as usize..from as usize + length]);
        Ok(())
    });
    done.expect("all there");
    out
}

proptest! {
    #[test]
    fn any_range_of_any_view_is_gathered(
        (sizes, strides) in shapes(),
        width in prop::sample::select(vec![1_u64, 2, 4, 8]),
        part in (0.0_f64..1.0, 0.0_f64..1.0),
    ) {
        let elements = listed(&sizes, &strides);
        let Some(view) = View::of(width, &sizes, &strides) else {
            // Then they lie one after the other.
            prop_assert!(elements.iter().copied().eq(0..elements.len() as u64));
            return Ok(());
        };
        prop_assert_eq!(view.elements(), elements.len() as u64);
        let last = elements.iter().max().expect("one");
        prop_assert_eq!(view.covered(), (last + 1) * width);
        let source: Vec<u8> = (0..view.covered()).map(|at| (at * 7 + at / 256) as u8).collect();
        let from = (part.0 * elements.len() as f64) as usize;
        let to = from + (part.1 * (elements.len() - from) as f64).ceil() as usize;
        let expected: Vec<u8> = elements[from..to]
            .iter()
            .flat_map(|at| source[(at * width) as usize..((at + 1) * width) as usize].to_vec())
            .collect();
        let found = gathered(&view, &source, from as u64 * width, expected.len());
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_large_transposed_matrix_is_read_a_few_times_and_never_much_at_once() {
    let (rows, columns) = (3000_u64, 2000_u64);
    let view = View::of(4, &[rows, columns], &[1, rows]).expect("transposed");
    let source: Vec<u8> = (0..rows * columns).flat_map(|at| (at as u32).to_le_bytes()).collect();
    let (mut reads, mut bytes, mut longest) = (0_u64, 0, 0);
    let mut out = vec![0; source.len()];
    // As a conversion does, in steps.
    let step = 4 << 20;
    for (number, out) in out.chunks_mut(step).enumerate() {
        let done: Result<(), ()> =
            view.gather((number * step) as u64, out, &mut |from, length, take| {
                (reads, bytes) = (reads + 1, bytes + length);
                longest = longest.max(length);
                take(&source[from as usize..from as usize + length]);
                Ok(())
            });
        done.expect("all there");
    }
    let expected = (0..rows).flat_map(|row| (0..columns).map(move |column| column * rows + row));
    let expected: Vec<u8> = expected.flat_map(|at| (at as u32).to_le_bytes()).collect();
    assert!(out == expected);
    assert!(longest <= WINDOW as usize, "{longest}");
    assert!(bytes <= 10 * source.len(), "{bytes}");
    assert!(reads <= rows * columns / 50, "{reads}");
}
