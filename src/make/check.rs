//! Reading objects again, to see whether they are what they were.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::checksum::{Blocks, Digest, Sums};
use crate::error::Error;
use crate::held;
use crate::place::{Access, Marks, Object, Place, Source};
use crate::recipe::{PIECE, Recipe};

use super::threads;

/// Checks that an object just opened is the one that a recipe names, by its length and its head,
/// which `seen` is given; gives its marks.
///
/// # Errors
/// [`Error::Changed`] when it is not; else what the place says.
pub fn opened(
    place: &dyn Place,
    source: &Source,
    object: &dyn Object,
    seen: impl FnOnce(&[u8]),
) -> Result<Marks, Error> {
    let marks = object.marks()?;
    let changed = || Error::Changed { path: place.name(&source.key) };
    if marks.bytes != source.bytes {
        return Err(changed());
    }
    let mut buffer = Vec::new();
    let head = object.get(0, source.head as usize, &mut buffer)?;
    let is_same = match source.heads[..] {
        [] => Digest::of_head(head) == source.version,
        ref heads => {
            let mut buffer = Vec::new();
            let digests = heads.iter().map(|(start, bytes)| {
                Ok(Digest::of_head(object.get(*start, *bytes as usize, &mut buffer)?))
            });
            Digest::of_blocks(&digests.collect::<Result<Vec<_>, Error>>()?) == source.version
        }
    };
    if !is_same {
        return Err(changed());
    }
    seen(head);
    Ok(marks)
}

/// The digest of an object whose blocks lie so. `read` is told how many bytes were read, and stops
/// it by returning `false`.
pub fn digest(
    object: &dyn Object,
    blocks: &Blocks,
    read: &dyn Fn(u64) -> bool,
) -> Result<Digest, Error> {
    let sums = Sums::new(blocks.clone());
    read_missing(object, &sums, read)?;
    Ok(sums.finish())
}

/// Reads the blocks of an object that were not seen yet.
pub fn complete(object: &dyn Object, sums: &Sums) -> Result<(), Error> {
    read_missing(object, sums, &|_| true)
}

fn read_missing(object: &dyn Object, sums: &Sums, read: &dyn Fn(u64) -> bool) -> Result<(), Error> {
    let mut buffer = Vec::new();
    let mut take = |start: u64, end: u64| -> Result<(), Error> {
        let bytes = (end - start) as usize;
        sums.add(start, object.get(start, bytes, &mut buffer)?);
        object.release(start, bytes);
        if read(bytes as u64) { Ok(()) } else { Err(Error::Stopped) }
    };
    let (mut start, mut end) = (0, 0);
    for (block, bytes) in sums.missing() {
        // Small blocks that follow each other are read together.
        if block != end || end - start + bytes > PIECE {
            take(start, end)?;
            start = block;
        }
        end = block + bytes;
    }
    take(start, end)
}

/// The digest that a source has now, which must still have the length and the head it had, and its
/// marks.
///
/// # Errors
/// [`Error::Changed`] when it has not; else what the place says.
pub fn source(
    place: &dyn Place,
    recipe: &Recipe,
    index: usize,
    access: Access,
    read: &dyn Fn(u64) -> bool,
) -> Result<(Marks, Digest), Error> {
    let source = &recipe.sources[index];
    let object = place.open(&source.key, access)?;
    let marks = opened(place, source, &*object, |_| ())?;
    Ok((marks, digest(&*object, &recipe.source_blocks(index), read)?))
}

/// Something to be read again: it is told how many bytes were read, which may stop it.
pub type Reading<'a, T> = Box<dyn Fn(&dyn Fn(u64) -> bool) -> Result<T, Error> + Send + Sync + 'a>;

/// Carries readings out, a thread to each, and gives what they found in their order. `progress` is
/// called with the bytes read so far, and stops everything by returning `false`.
pub fn all<T: Send>(
    readings: &[Reading<'_, T>],
    threads: Option<usize>,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Vec<T>, Error> {
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let found: Mutex<Vec<(usize, Result<T, Error>)>> = Mutex::new(Vec::new());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(reading) = readings.get(number) else { break };
            let result = reading(&|bytes| {
                done.fetch_add(bytes, Ordering::Relaxed);
                !stop.load(Ordering::Relaxed)
            });
            let failed = result.is_err();
            held(&found).push((number, result));
            if failed {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    let crew = (0..threads::count(threads).min(readings.len()).max(1))
        .map(|_| Box::new(&work) as threads::Task<'_>)
        .collect();
    threads::run(crew, 1, &stop, &mut || progress(done.load(Ordering::Relaxed)))?;
    let mut found = std::mem::take(&mut *held(&found));
    found.sort_by_key(|(number, _)| *number);
    // Whoever was stopped by another's error is not the one that tells.
    let first = found
        .iter()
        .position(|(_, result)| matches!(result, Err(error) if !matches!(error, Error::Stopped)));
    match first {
        Some(at) => Err(found.swap_remove(at).1.err().expect("just seen")),
        None => found.into_iter().map(|(_, result)| result).collect(),
    }
}
