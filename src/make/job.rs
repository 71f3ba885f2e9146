//! What the workers share: which piece is next, how a piece is made, what a file needs before and
//! after its pieces.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use super::sink::{File, Made, Options, Overflowed, Sinks};
use super::writer::{Writer, Written};
use super::{check, hashed};
use crate::cast::Audit;
use crate::checksum::{Digest, Sums};
use crate::error::Error;
use crate::held;
use crate::place::{Access, Marks, Object, Place};
use crate::recipe::{Extent, INPUTS, Input, Layout, Part, Recipe, Span};

/// A file whose bytes are all written.
pub type Finished<S> = (usize, S, Made);

/// What all workers share.
pub struct Job<'a, S: Sinks> {
    pub sinks: &'a S,
    place: &'a dyn Place,
    options: &'a Options,
    files: Vec<State<'a, S::Sink>>,
    /// The next file that no worker has come to.
    next_file: AtomicUsize,
    pub done: AtomicU64,
    pub stop: AtomicBool,
    /// Under `stop_at_overflow`, nothing is written once a value overflowed, only examined.
    overflowed: AtomicBool,
    error: Mutex<Option<Error>>,
}

struct State<'a, S> {
    file: File<'a>,
    /// Where the pieces end.
    pieces: Vec<u64>,
    /// The next piece that no worker has taken.
    next: AtomicUsize,
    /// Pieces that are not made yet, and those that are not written yet.
    remaining: AtomicUsize,
    open: Mutex<Option<Arc<Open<S>>>>,
    /// Of a file that was only examined.
    examined: Mutex<Option<Vec<Audit>>>,
}

struct Open<S> {
    sources: Vec<OpenSource>,
    layout: Layout,
    writer: Writer<S>,
    sums: Sums,
    /// Of the spans that are audited; `rank` says which of them is whose.
    audits: Mutex<Vec<Audit>>,
    rank: Vec<u32>,
}

/// A source file being read.
struct OpenSource {
    object: Box<dyn Object>,
    marks: Marks,
    sums: Sums,
    /// What was read that is not whole blocks, as scales and gathered elements are, and its digest.
    scraps: Mutex<Vec<(Scrap, Digest)>>,
}

/// What was read for a part of a span: one of its inputs.
type Scrap = (Part, usize);

/// A worker's memory: the piece it makes, what it is made from where that has to be read, and room
/// to try a cast that is not kept.
#[derive(Default)]
pub struct Buffers {
    piece: Vec<u8>,
    inputs: [Vec<u8>; INPUTS],
    scratch: Vec<u8>,
}

impl<'a, S: Sinks> Job<'a, S> {
    pub fn new(
        files: &[File<'a>],
        place: &'a dyn Place,
        sinks: &'a S,
        options: &'a Options,
    ) -> Job<'a, S> {
        let states = files.iter().map(|file| {
            let pieces = file.recipe.pieces();
            State {
                file: *file,
                next: AtomicUsize::new(0),
                remaining: AtomicUsize::new(2 * pieces.len()),
                pieces,
                open: Mutex::new(None),
                examined: Mutex::new(None),
            }
        });
        Job {
            sinks,
            place,
            options,
            files: states.collect(),
            next_file: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            error: Mutex::new(None),
        }
    }

    /// The next piece of the file a worker is at; else of the next file; else of one that others
    /// are at: the file, and where the piece starts and ends. A worker to a file, because only one
    /// writes to a file at a time.
    pub fn take(&self, current: &mut Option<usize>) -> Option<(usize, u64, u64)> {
        loop {
            if let Some(file) = *current {
                let state = &self.files[file];
                let piece = state.next.fetch_add(1, Ordering::Relaxed);
                if let Some(end) = state.pieces.get(piece) {
                    let start = if piece == 0 { 0 } else { state.pieces[piece - 1] };
                    return Some((file, start, *end));
                }
            }
            let fresh = self.next_file.fetch_add(1, Ordering::Relaxed);
            *current = Some(if fresh < self.files.len() { fresh } else { self.busiest()? });
        }
    }

    /// The file with the most pieces that no worker has taken.
    fn busiest(&self) -> Option<usize> {
        let left = |state: &State<'_, _>| {
            state.pieces.len().saturating_sub(state.next.load(Ordering::Relaxed))
        };
        let (file, state) = self.files.iter().enumerate().max_by_key(|(_, state)| left(state))?;
        (left(state) > 0).then_some(file)
    }

    /// Stops everything for the first error.
    pub fn fail(&self, error: Error) {
        // In this order, so that nobody who stops because of it is first to say why.
        held(&self.error).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How it ended.
    pub fn end(self) -> Result<Overflowed, Error> {
        if let Some(error) = held(&self.error).take() {
            return Err(error);
        }
        let examined = self.files.iter().filter_map(|state| {
            held(&state.examined).take().map(|audits| (state.file.number, audits))
        });
        Ok(if self.overflowed.load(Ordering::Relaxed) { examined.collect() } else { Vec::new() })
    }

    /// Makes a piece, and hands its file on when it was the last.
    pub fn piece(
        &self,
        file: usize,
        start: u64,
        end: u64,
        buffers: &mut Buffers,
        finished: &SyncSender<Finished<S::Sink>>,
    ) -> Result<(), Error> {
        let state = &self.files[file];
        let open = self.open(state)?;
        let written = self.make(state.file.recipe, &open, (start, end), buffers)?;
        self.done.fetch_add(written.bytes, Ordering::Relaxed);
        drop(open);
        let steps = 1 + written.pieces;
        if state.remaining.fetch_sub(steps, Ordering::AcqRel) == steps {
            self.finish(state, finished)?;
        }
        Ok(())
    }

    /// Makes the piece in this worker's memory, and writes it, or has it written.
    fn make(
        &self,
        recipe: &Recipe,
        open: &Open<S::Sink>,
        (start, end): (u64, u64),
        buffers: &mut Buffers,
    ) -> Result<Written, Error> {
        let bytes = (end - start) as usize;
        buffers.piece.resize(buffers.piece.len().max(bytes), 0);
        let mut at = 0;
        for part in recipe.parts(&open.layout, start, end) {
            let next = at + part.bytes as usize;
            self.part(recipe, open, part, start, at..next, buffers)?;
            at = next;
        }
        if self.overflowed.load(Ordering::Relaxed) {
            return Ok(Written { pieces: 1, bytes: end - start });
        }
        open.writer.write(&mut buffers.piece, bytes, start)
    }

    fn part(
        &self,
        recipe: &Recipe,
        open: &Open<S::Sink>,
        part: Part,
        piece: u64,
        range: std::ops::Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let span = &recipe.spans[part.span];
        let Buffers { piece: made, inputs, scratch } = buffers;
        let mut read: [&[u8]; INPUTS] = [&[]; INPUTS];
        let wanted = span.inputs(part.start, part.bytes).enumerate();
        for (((number, input), slot), buffer) in wanted.zip(&mut read).zip(inputs) {
            let source = &open.sources[input.extent.source];
            *slot = input.read(&*source.object, buffer)?;
            source.add(input, slot, (part, number));
        }
        let digest;
        if matches!(span, Span::Hashed { .. }) {
            digest = self.digest(recipe, open)?;
            read[0] = digest.as_bytes();
        }
        let (at, mut audit) = (piece + range.start as u64, Audit::default());
        let how = (self.options.level, recipe.overflow);
        span.make(how, part.start, &read, &mut made[range.clone()], scratch, &mut audit);
        open.sums.add(at, &made[range]);
        for input in span.inputs(part.start, part.bytes).filter(|input| !input.is_gathered()) {
            let Extent { source, start, bytes } = input.extent;
            open.sources[source].object.release(start, bytes as usize);
        }
        if span.is_audited() {
            if self.options.stop_at_overflow && span.can_overflow() && audit.to_inf > 0 {
                self.overflowed.store(true, Ordering::Relaxed);
            }
            held(&open.audits)[open.rank[part.span] as usize].merge(&audit);
        }
        Ok(())
    }

    /// What a header states that holds the digest of what follows it.
    fn digest(&self, recipe: &Recipe, open: &Open<S::Sink>) -> Result<String, Error> {
        hashed::rest(recipe, &open.layout, self.options.level, &mut |input, scrap, buffer| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let source = &open.sources[input.extent.source];
            let mut own = Vec::new();
            let read = input.read(&*source.object, &mut own)?;
            // What changes between this and when its values are made is seen by its checksum.
            source.add(input, read, scrap);
            buffer.clear();
            buffer.extend_from_slice(read);
            source.object.release(input.extent.start, input.extent.bytes as usize);
            Ok(())
        })
    }

    /// The file's handles, opened by the first worker that comes to it.
    fn open(&self, state: &State<'_, S::Sink>) -> Result<Arc<Open<S::Sink>>, Error> {
        let mut slot = held(&state.open);
        if let Some(open) = &*slot {
            return Ok(Arc::clone(open));
        }
        let recipe = state.file.recipe;
        let sources = (0..recipe.sources.len())
            .map(|at| OpenSource::open(self.place, recipe, at, self.options.access))
            .collect::<Result<_, _>>()?;
        let mut audited = 0;
        let mut rank = Vec::with_capacity(recipe.spans.len());
        for span in &recipe.spans {
            rank.push(audited);
            audited += u32::from(span.is_audited());
        }
        let open = Arc::new(Open {
            sources,
            layout: recipe.layout(),
            writer: Writer::new(self.sinks.create(state.file.number)?),
            sums: Sums::new(recipe.blocks()),
            audits: Mutex::new(vec![Audit::default(); audited as usize]),
            rank,
        });
        *slot = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Hands a file whose bytes are all written to those who finish it.
    fn finish(
        &self,
        state: &State<'_, S::Sink>,
        finished: &SyncSender<Finished<S::Sink>>,
    ) -> Result<(), Error> {
        // Whoever wrote the last piece is the last to hold the handles.
        let Some(open) = held(&state.open).take().and_then(Arc::into_inner) else { return Ok(()) };
        let audits = std::mem::take(&mut *held(&open.audits));
        let recipe = state.file.recipe;
        let mut sources = Vec::with_capacity(open.sources.len());
        for (index, source) in open.sources.iter().enumerate() {
            sources.push(source.confirm(self.place, recipe, index)?);
        }
        if self.overflowed.load(Ordering::Relaxed) {
            *held(&state.examined) = Some(audits);
            return Ok(());
        }
        let digest = open.sums.finish();
        // They listen for as long as a worker can finish anything.
        let made = Made { digest, sources, audits };
        let _ = finished.send((state.file.number, open.writer.into_sink(), made));
        Ok(())
    }
}

impl OpenSource {
    /// Opens a source, which must be the one that was planned.
    fn open(
        place: &dyn Place,
        recipe: &Recipe,
        index: usize,
        access: Access,
    ) -> Result<OpenSource, Error> {
        let source = &recipe.sources[index];
        let object = place.open(&source.key, access)?;
        let sums = Sums::new(recipe.source_blocks(index));
        let marks = check::opened(place, source, &*object, |head| {
            sums.add(0, head);
        })?;
        Ok(OpenSource { object, marks, sums, scraps: Mutex::new(Vec::new()) })
    }

    /// Takes in what was read.
    fn add(&self, input: Input<'_>, bytes: &[u8], scrap: Scrap) {
        if input.is_gathered() || !self.sums.add(input.extent.start, bytes) {
            held(&self.scraps).push((scrap, Digest::of(bytes)));
        }
    }

    /// The marks and the digest of what was read, which is what is there still.
    fn confirm(
        &self,
        place: &dyn Place,
        recipe: &Recipe,
        index: usize,
    ) -> Result<(Marks, Digest), Error> {
        // What no span, or more than one, is made from was not seen as whole blocks.
        check::complete(&*self.object, &self.sums)?;
        let (marks, seen) = (self.object.marks()?, self.sums.finish());
        let changed = || Error::Changed { path: place.name(&recipe.sources[index].key) };
        if self.sums.differs() {
            return Err(changed());
        }
        if marks == self.marks {
            return Ok((marks, seen));
        }
        // Other marks need not mean other bytes; only reading tells.
        let digest = check::digest(&*self.object, &recipe.source_blocks(index), &|_| true)?;
        if seen != digest {
            return Err(changed());
        }
        let mut buffer = Vec::new();
        for ((part, number), digest) in std::mem::take(&mut *held(&self.scraps)) {
            let inputs = recipe.spans[part.span].inputs(part.start, part.bytes);
            for input in inputs.skip(number).take(1) {
                if Digest::of(input.read(&*self.object, &mut buffer)?) != digest {
                    return Err(changed());
                }
            }
        }
        Ok((self.object.marks()?, digest))
    }
}
