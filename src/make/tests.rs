//! A recipe makes the same bytes whole, in pieces, in any range and anywhere; what it says is
//! written down and read again. The judge of the values is the crate `half`.

mod changing;
mod memory;

use std::path::Path;

use super::{File, Made, Sink, Sinks, make};
use crate::cast::scaled::{Code, Formula, Grid, Scale};
use crate::cast::{Level, Overflow};
use crate::checksum::{BLOCK, Digest, SHA256_DIGITS};
use crate::dtype::{Castable, Float};
use crate::error::Error;
use crate::make;
use crate::place::{Access, Source};
use crate::recipe::{self, Extent, Gather, PIECE, Recipe, Scaled, Span};
use crate::view::View;
use changing::{Changing, Rewritten};
use memory::{Memory, MemorySinks};

const LEVEL: Level = Level::Portable;

fn floats(count: u32) -> Vec<u8> {
    (0..count).flat_map(|index| (index as f32 * 0.37 - 1000.0).to_le_bytes()).collect()
}

fn source(key: &str, bytes: &[u8]) -> Source {
    let (key, bytes) = (key.into(), bytes.len() as u64);
    Source { key, bytes, head: 0, heads: Vec::new(), version: Digest::of_head(&[]) }
}

fn extent(source: usize, start: u64, bytes: u64) -> Extent {
    Extent { source, start, bytes }
}

/// A scale for each 128 codes of a row.
const FORMULA: Formula = Formula {
    code: Code::E4m3,
    scale: Scale::F32,
    second: None,
    grid: Grid { rows: 2_900, columns: 128, block: (1, 128) },
    transposed: false,
};

/// The number that a positive code stands for.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
    let leading = if exponent > 0 { 8.0 } else { 0.0 };
    (leading + mantissa) * 2_f32.powi(exponent.max(1) - 10)
}

/// A matrix of 1,500 rows and 700 columns, column by column from the tenth value.
fn transposed(source: usize, to: Float) -> Span {
    let view = View::of(4, &[1_500, 700], &[1, 1_500]).expect("not one after the other");
    let values = extent(source, 0, 4 * 1_500 * 700);
    let of = Span::Cast { values, from: Castable::F32, to };
    Span::Gather(Box::new(Gather { view, start: 40, of }))
}

/// What [`plain`] has, and gathered values.
fn example() -> (Memory, Recipe, Vec<u8>) {
    let (place, mut recipe, mut expected) = plain();
    let values = floats(1_100_000);
    place.put("matrix", values.clone());
    recipe.sources.push(source("matrix", &values));
    recipe.spans.push(transposed(4, Float::Bf16));
    for row in 0..1_500 {
        let value = |column: usize| values[40 + 4 * (column * 1_500 + row)..][..4].try_into();
        let values = (0..700).map(|column| f32::from_le_bytes(value(column).expect("four")));
        expected.extend(values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()));
    }
    (place, recipe, expected)
}

/// Literal bytes, a copy, casts and scaled values from several objects, of several pieces; and what
/// it makes.
fn plain() -> (Memory, Recipe, Vec<u8>) {
    let (values, scales) = (floats(900_000), floats(3_000));
    let place = Memory::default();
    place.put("values", values.clone());
    place.put("scales", scales.clone());
    let doubles: Vec<u8> =
        (0..300_000).flat_map(|index| (f64::from(index) * 0.37 - 1000.0).to_le_bytes()).collect();
    let codes: Vec<u8> = (0..1_071_200).map(|index| (index % 127) as u8).collect();
    place.put("doubles", doubles.clone());
    place.put("codes", codes.clone());
    let cast = 1_200_000;
    let spans = vec![
        Span::Literal(b"header".to_vec()),
        Span::Cast { values: extent(0, 0, cast), from: Castable::F32, to: Float::Bf16 },
        Span::Copy(extent(0, cast, 7)),
        Span::Literal(Vec::new()),
        Span::Cast { values: extent(1, 0, 8_000), from: Castable::F16, to: Float::F32 },
        Span::Scaled(Box::new(Scaled {
            codes: extent(3, 700_000, 128 * 2_900),
            scales: extent(1, 8, 4 * 2_900),
            second: None,
            formula: FORMULA,
            to: Float::F32,
        })),
        Span::Cast { values: extent(2, 0, 2_400_000), from: Castable::F64, to: Float::F16 },
        Span::Cast { values: extent(3, 0, 700_000), from: Castable::F8E4m3, to: Float::F32 },
    ];
    let sources = vec![
        source("values", &values),
        source("scales", &scales),
        source("doubles", &doubles),
        source("codes", &codes),
    ];
    let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four"));
    let mut expected = b"header".to_vec();
    let narrow = |bytes: &[u8]| half::bf16::from_f32(float(bytes)).to_le_bytes();
    expected.extend(values[..cast as usize].chunks(4).flat_map(narrow));
    expected.extend(&values[cast as usize..][..7]);
    let widen =
        |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32().to_le_bytes();
    expected.extend(scales[..8_000].chunks(2).flat_map(widen));
    for (index, code) in codes[700_000..].iter().enumerate() {
        let scale = &scales[8 + index / 128 * 4..][..4];
        expected.extend((e4m3(*code) * float(scale)).to_le_bytes());
    }
    expected.extend(doubles.chunks(8).flat_map(|bytes| {
        let value = f64::from_le_bytes(bytes.try_into().expect("eight"));
        half::f16::from_f32(value as f32).to_le_bytes()
    }));
    expected.extend(codes[..700_000].iter().flat_map(|code| e4m3(*code).to_le_bytes()));
    (place, Recipe { sources, spans, overflow: Overflow::Infinity }, expected)
}

const OPTIONS: make::Options =
    make::Options { level: LEVEL, threads: None, access: Access::Kept, stop_at_overflow: false };

fn made(place: &Memory, recipe: &Recipe, threads: usize) -> (Vec<u8>, make::Made) {
    let sink = MemorySinks::default();
    let options = make::Options { threads: Some(threads), ..OPTIONS };
    let files = [File { number: 7, recipe }];
    make(&files, place, &sink, &options, &mut |_| true).expect("made");
    let (number, bytes, made) = sink.files().pop().expect("a file");
    assert_eq!(number, 7);
    (bytes, made)
}

/// NaN aside, whose payload the judge keeps otherwise.
fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let different = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(different, None);
}

#[test]
fn a_recipe_is_made_into_memory_from_several_objects_of_a_place() {
    let (place, recipe, expected) = example();
    let (one, _) = made(&place, &recipe, 1);
    assert_same(&one, &expected);
    let (three, _) = made(&place, &recipe, 3);
    assert_same(&three, &expected);
}

#[test]
fn any_range_of_a_result_can_be_made_alone() {
    let (place, recipe, expected) = example();
    let end = expected.len() as u64;
    let cuts =
        [0, 1, 5, 6, 9, 600_005, 600_006, 600_013, 600_017, 616_100, end - 2_900_001, end - 3, end];
    for (index, start) in cuts.into_iter().enumerate() {
        for stop in cuts.into_iter().skip(index) {
            let found = make::range(&recipe, &place, LEVEL, start..stop).expect("made");
            assert_same(&found, &expected[start as usize..stop as usize]);
        }
    }
}

#[test]
fn a_header_states_the_hash_of_what_follows_it() {
    use sha2::Digest as _;
    let (place, mut recipe, mut expected) = example();
    let text = [b'_'; SHA256_DIGITS + 10].to_vec();
    let rest = expected.split_off(b"header".len());
    recipe.spans[0] = Span::Hashed { text: text.clone(), at: vec![3] };
    let digest: String =
        sha2::Sha256::digest(&rest).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [&text[..3], digest.as_bytes(), &text[..7], &rest].concat();
    let (found, _) = made(&place, &recipe, 2);
    assert_same(&found, &expected);
    for (start, stop) in [(0, 10), (5, 90), (70, 80)] {
        let found = make::range(&recipe, &place, LEVEL, start..stop).expect("made");
        assert_same(&found, &expected[start as usize..stop as usize]);
    }
}

#[test]
fn pieces_are_whole_blocks_of_the_result_and_of_what_it_is_made_from() {
    let (_, recipe, expected) = plain();
    let (layout, pieces) = (recipe.layout(), recipe.pieces());
    assert_eq!(pieces.last(), Some(&(expected.len() as u64)));
    assert!(pieces.is_sorted() && pieces.len() > 1);
    let blocks = recipe.blocks();
    let starts: Vec<u64> = blocks.all().map(|(_, start, _)| start).collect();
    let inputs: Vec<Vec<u64>> = (0..recipe.sources.len())
        .map(|source| recipe.source_blocks(source).all().map(|(_, start, _)| start).collect())
        .collect();
    let mut before = 0;
    for end in pieces {
        assert!(end - before <= PIECE + BLOCK);
        for part in recipe.parts(&layout, before, end) {
            let span = &recipe.spans[part.span];
            assert!(starts.contains(&(layout.starts[part.span] + part.start)));
            // Scales are small beside the codes.
            let wanted = span.inputs(part.start, part.bytes).take(1);
            for extent in wanted.map(|input| input.extent) {
                assert!(inputs[extent.source].contains(&extent.start), "{extent:?}");
            }
        }
        before = end;
    }
}

#[test]
fn what_a_recipe_says_is_written_down_and_read_again() {
    let (_, recipe, _) = example();
    let text = serde_json::to_string(&recipe).expect("written");
    assert_eq!(serde_json::from_str::<Recipe>(&text).expect("read"), recipe);
    let odd = Source { key: std::ffi::OsStr::new("a/é").into(), ..source("x", &[]) };
    let text = serde_json::to_string(&odd).expect("written");
    assert_eq!(serde_json::from_str::<Source>(&text).expect("read"), odd);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let odd = Source { key: std::ffi::OsStr::from_bytes(b"a/\xff").into(), ..odd };
        let text = serde_json::to_string(&odd).expect("written");
        assert_eq!(serde_json::from_str::<Source>(&text).expect("read"), odd);
    }
    for out in ["../x", "/x", "a/../../x", ""] {
        let text = serde_json::to_string(&Source { key: out.into(), ..source("x", &[]) });
        assert!(serde_json::from_str::<Source>(&text.expect("written")).is_err(), "{out}");
    }
}

#[test]
fn the_hash_is_of_all_that_decides_about_the_bytes_and_of_nothing_else() {
    let (_, recipe, _) = example();
    let hash = |recipe: &Recipe| recipe::hash([(Path::new("a"), false, recipe)].into_iter());
    // Another value here means that all recipes are other ones: then FORMAT must change too.
    let (spans, sources) = (recipe.spans[..5].to_vec(), recipe.sources[..2].to_vec());
    let pinned = Recipe { spans, sources, ..recipe.clone() };
    assert_eq!(hash(&pinned).to_string(), "043f8a504e4295e3f5ab22ad455e7aa7");
    let mut others = vec![recipe.clone(); 5];
    others[0].sources[0].key = "b".into();
    others[1].sources[0].version = Digest(1);
    others[2].spans[0] = Span::Literal(b"Header".to_vec());
    others[3].spans[1] =
        Span::Cast { values: extent(0, 0, 1_200_000), from: Castable::F32, to: Float::F16 };
    others[4].spans.swap(2, 3);
    for other in &others {
        assert_ne!(hash(other), hash(&recipe));
    }
    assert_ne!(recipe::hash([(Path::new("b"), false, &recipe)].into_iter()), hash(&recipe));
    assert_ne!(recipe::hash([(Path::new("a"), true, &recipe)].into_iter()), hash(&recipe));
}

#[test]
fn checksums_do_not_depend_on_threads_and_are_those_of_the_blocks() {
    let (place, recipe, expected) = example();
    let (_, one) = made(&place, &recipe, 1);
    let (_, three) = made(&place, &recipe, 3);
    assert_eq!(one.digest, three.digest);
    let blocks: Vec<Digest> = recipe
        .blocks()
        .all()
        .map(|(_, start, bytes)| Digest::of(&expected[start as usize..(start + bytes) as usize]))
        .collect();
    assert_eq!(one.digest, Digest::of_blocks(&blocks));
    let digests = |made: &make::Made| made.sources.iter().map(|it| it.1).collect::<Vec<_>>();
    assert_eq!(digests(&one), digests(&three));
}

#[test]
fn a_source_that_is_not_the_one_that_was_planned_is_refused() {
    let (place, mut recipe, _) = example();
    recipe.sources[0].head = 8;
    let error = make::range(&recipe, &place, LEVEL, 0..100).expect_err("another head");
    assert!(matches!(error, crate::error::Error::Changed { .. }), "{error}");
    recipe.sources[0].head = 0;
    place.put("values", floats(1_000));
    let error = make::range(&recipe, &place, LEVEL, 0..100).expect_err("another length");
    assert!(matches!(error, crate::error::Error::Changed { .. }), "{error}");
}

#[test]
fn every_range_that_a_version_is_of_is_compared() {
    let (place, mut recipe, _) = example();
    let values = floats(900_000);
    recipe.sources[0].heads = vec![(100, 8), (4_000, 4)];
    let digests = [&values[100..108], &values[4_000..4_004]].map(Digest::of_head);
    recipe.sources[0].version = Digest::of_blocks(&digests);
    let from = recipe.layout().starts[1];
    make::range(&recipe, &place, LEVEL, from..from + 100).expect("the same ranges");
    recipe.sources[0].heads[1].0 += 4;
    let error = make::range(&recipe, &place, LEVEL, from..from + 100).expect_err("another");
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn gathered_elements_that_change_after_they_were_read_are_refused() {
    let (place, mut recipe, _) = example();
    recipe.spans = vec![transposed(0, Float::F32)];
    // The one that is rewritten is called so.
    recipe.sources = vec![source("scales", &floats(1_100_000))];
    place.put("scales", floats(1_100_000));
    let (options, sinks) = (make::Options { threads: Some(1), ..OPTIONS }, MemorySinks::default());
    let files = [File { number: 7, recipe: &recipe }];
    make(&files, &Rewritten(place, usize::MAX), &sinks, &options, &mut |_| true).expect("the same");
    let place = example().0;
    place.put("scales", floats(1_100_000));
    let error = make(&files, &Rewritten(place, 3), &sinks, &options, &mut |_| true);
    let error = error.expect_err("other values");
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn a_source_that_changes_after_it_was_hashed_is_refused() {
    let (place, mut recipe, _) = example();
    recipe.spans[0] = Span::Hashed { text: [b'_'; SHA256_DIGITS].to_vec(), at: vec![0] };
    let (options, sinks) = (make::Options { threads: Some(1), ..OPTIONS }, MemorySinks::default());
    let files = [File { number: 7, recipe: &recipe }];
    make(&files, &place, &sinks, &options, &mut |_| true).expect("the same each time");
    let error = make(&files, &Changing(place), &sinks, &options, &mut |_| true);
    let error = error.expect_err("another when it is read again");
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn scales_that_change_after_they_were_read_are_refused() {
    let (place, mut recipe, _) = example();
    let Span::Scaled(scaled) = recipe.spans.swap_remove(5) else { panic!("the scaled span") };
    let mut scaled = *scaled;
    (scaled.codes.source, scaled.scales.source) = (0, 1);
    recipe.spans = vec![Span::Scaled(Box::new(scaled))];
    recipe.sources = vec![recipe.sources.swap_remove(3), recipe.sources.swap_remove(1)];
    let (options, sinks) = (make::Options { threads: Some(1), ..OPTIONS }, MemorySinks::default());
    let files = [File { number: 7, recipe: &recipe }];
    make(&files, &Rewritten(place, 100), &sinks, &options, &mut |_| true).expect("the same");
    let Rewritten(place, _) = Rewritten(example().0, 0);
    // The head, and the scales of two parts, are read before it changes.
    let error = make(&files, &Rewritten(place, 3), &sinks, &options, &mut |_| true);
    let error = error.expect_err("other scales");
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}
