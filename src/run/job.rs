//! What the workers of a run share: which piece is next, how a piece is made, what a file needs
//! before and after its pieces.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use super::journal::Journal;
use super::pieces::{Part, Piece, Work, pieces};
use super::source::Source;
use super::staging::Staging;
use super::{FileAudits, OnOverflow, Options, TensorAudit, held as lock};
use crate::cast::{self, Audit, Level, Overflow};
use crate::error::Error;
use crate::fs;
use crate::plan::{Action, Plan, PlannedFile};

/// What all workers share.
pub struct Job {
    pub plan: Arc<Plan>,
    /// The next file that no worker has come to.
    next_file: AtomicUsize,
    pub done: AtomicU64,
    pub stop: AtomicBool,
    /// Under `OnOverflow::Error`, nothing is written once a value overflowed, only examined.
    pub overflowed: AtomicBool,
    pub error: Mutex<Option<Error>>,
    pub files: Vec<FileState>,
    journal: Arc<Journal>,
    level: Level,
    options: Options,
}

pub struct FileState {
    pub staged: PathBuf,
    pub pieces: Vec<Piece>,
    /// The next piece that no worker has taken.
    next: AtomicUsize,
    remaining: AtomicUsize,
    open: Mutex<Option<Arc<OpenFile>>>,
    audits: Mutex<FileAudits>,
}

struct OpenFile {
    source: Source,
    out: File,
}

/// A file of the plan whose bytes are all written, and the handle they were written by.
pub type Finished = (usize, File);

/// A worker's memory: the piece it makes, what it is made from where that is not mapped, and room
/// to try a cast that is not kept.
#[derive(Default)]
pub struct Buffers {
    piece: Vec<u8>,
    source: Vec<u8>,
    trial: Vec<u8>,
}

impl Job {
    /// The work that is left of a plan, to be done in a staging folder.
    ///
    /// # Errors
    /// When a folder in it cannot be made.
    pub fn new(
        plan: &Arc<Plan>,
        staging: &Staging,
        level: Level,
        options: &Options,
    ) -> Result<Job, Error> {
        let folder = staging.path();
        let mut files = Vec::with_capacity(plan.files.len());
        let mut done = 0;
        for (index, (file, resumed)) in plan.files.iter().zip(&staging.resumed).enumerate() {
            let (pieces, staged) = (pieces(index, file, plan.to), folder.join(&file.path));
            if resumed.is_some() {
                done += file.bytes;
            } else {
                fs::create_dirs(staged.parent().unwrap_or(&folder))?;
            }
            let nothing = || vec![None; file.tensors().len()];
            files.push(FileState {
                staged,
                next: AtomicUsize::new(if resumed.is_some() { pieces.len() } else { 0 }),
                remaining: AtomicUsize::new(pieces.len()),
                pieces,
                open: Mutex::new(None),
                audits: Mutex::new(resumed.clone().unwrap_or_else(nothing)),
            });
        }
        Ok(Job {
            plan: Arc::clone(plan),
            next_file: AtomicUsize::new(0),
            done: AtomicU64::new(done),
            stop: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            error: Mutex::new(None),
            files,
            journal: Arc::clone(staging.journal()),
            level,
            options: *options,
        })
    }

    /// The next piece of the file a worker is at; else of the next file; else of one that others
    /// are at. A worker to a file, because writers of one file wait for each other.
    pub fn take(&self, current: &mut Option<usize>) -> Option<&Piece> {
        loop {
            if let Some(file) = *current {
                let state = &self.files[file];
                let piece = state.next.fetch_add(1, Ordering::Relaxed);
                if let Some(piece) = state.pieces.get(piece) {
                    return Some(piece);
                }
            }
            let fresh = self.next_file.fetch_add(1, Ordering::Relaxed);
            *current = Some(if fresh < self.files.len() { fresh } else { self.busiest()? });
        }
    }

    /// The file with the most pieces that no worker has taken.
    fn busiest(&self) -> Option<usize> {
        let left = |state: &FileState| {
            state.pieces.len().saturating_sub(state.next.load(Ordering::Relaxed))
        };
        let (file, state) = self.files.iter().enumerate().max_by_key(|(_, state)| left(state))?;
        (left(state) > 0).then_some(file)
    }

    /// Stops the run for the first error.
    pub fn fail(&self, error: Error) {
        // In this order, so that nobody who stops because of it is first to say why.
        lock(&self.error).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Makes a piece, and hands its file on when it was the last.
    ///
    /// # Errors
    /// When the system refuses, or the source is not what was planned.
    pub fn piece(
        &self,
        piece: &Piece,
        buffers: &mut Buffers,
        finished: &SyncSender<Finished>,
    ) -> Result<(), Error> {
        let (file, state) = (&self.plan.files[piece.file], &self.files[piece.file]);
        let open = self.open(file, state)?;
        let copied = match piece.only_copy() {
            Some(part) => open.source.copy_to(part.start, (&open.out, piece.start), part.bytes)?,
            None => false,
        };
        if !copied {
            self.make(piece, &open, state, buffers)?;
        }
        if self.options.sync {
            fs::start_writeback(&open.out, piece.start, piece.bytes as u64);
        }
        self.done.fetch_add(piece.bytes as u64, Ordering::Relaxed);
        drop(open);
        if state.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(piece.file, finished)?;
        }
        Ok(())
    }

    /// Makes the piece in this worker's memory and writes it.
    fn make(
        &self,
        piece: &Piece,
        open: &OpenFile,
        state: &FileState,
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        buffers.piece.resize(buffers.piece.len().max(piece.bytes), 0);
        let mut filled = 0;
        for part in &piece.parts {
            let out = filled..filled + part.bytes;
            filled = out.end;
            self.part(part, out, (open, state), buffers)?;
        }
        if let (Some(first), Some(last)) = (piece.parts.first(), piece.parts.last()) {
            let end = last.start + last.source_bytes as u64;
            open.source.done(first.start, end.saturating_sub(first.start) as usize);
        }
        if !self.overflowed.load(Ordering::Relaxed) {
            fs::write_at(&open.out, &state.staged, &buffers.piece[..piece.bytes], piece.start)?;
        }
        Ok(())
    }

    fn part(
        &self,
        part: &Part,
        out: Range<usize>,
        (open, state): (&OpenFile, &FileState),
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let Buffers { piece, source, trial } = buffers;
        let src = open.source.get(part.start, part.source_bytes, source)?;
        let to = self.plan.to;
        let out = &mut piece[out];
        let mut audit = Audit::default();
        let tensor = match part.work {
            Work::Copy => {
                out.copy_from_slice(src);
                return Ok(());
            }
            Work::Cast { from, tensor } => {
                let policy = self.options.on_overflow;
                cast::cast(self.level, (from, src), (to, out), policy.of_cast(), &mut audit);
                if audit.to_inf > 0 && policy == OnOverflow::Error {
                    self.overflowed.store(true, Ordering::Relaxed);
                }
                tensor
            }
            Work::Keep { from, tensor } => {
                out.copy_from_slice(src);
                let bytes = part.source_bytes / from.bytes() * to.bytes();
                trial.resize(trial.len().max(bytes), 0);
                let trial = &mut trial[..bytes];
                cast::cast(self.level, (from, src), (to, trial), Overflow::Infinity, &mut audit);
                tensor
            }
        };
        lock(&state.audits)[tensor].get_or_insert_default().merge(&audit);
        Ok(())
    }

    /// The file's handles, opened by the first worker that comes to it.
    fn open(&self, file: &PlannedFile, state: &FileState) -> Result<Arc<OpenFile>, Error> {
        let mut slot = lock(&state.open);
        if let Some(open) = &*slot {
            return Ok(Arc::clone(open));
        }
        let source = Source::open(file, self.options.mmap)?;
        let prefix = file.content.prefix();
        let out = fs::create_with(&state.staged, prefix)?;
        self.done.fetch_add(prefix.len() as u64, Ordering::Relaxed);
        let open = Arc::new(OpenFile { source, out });
        *slot = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Hands a file whose bytes are all written to those who make it durable.
    fn finish(&self, file: usize, finished: &SyncSender<Finished>) -> Result<(), Error> {
        // Whoever wrote the last piece is the last to hold the handles.
        let open = lock(&self.files[file].open).take().and_then(Arc::into_inner);
        let Some(open) = open else { return Ok(()) };
        open.source.check(&self.plan.files[file])?;
        if self.overflowed.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.options.sync {
            // They listen for as long as a worker can finish anything.
            let _ = finished.send((file, open.out));
        } else {
            self.note(file);
        }
        Ok(())
    }

    /// Notes that a file is staged.
    pub fn note(&self, file: usize) {
        let audits = lock(&self.files[file].audits).clone();
        if let Err(error) = self.journal.staged(file, &audits) {
            self.fail(error);
        }
    }

    /// What the casts did to every tensor.
    pub fn audits(&self) -> Vec<TensorAudit> {
        let audits = self.files.iter().flat_map(|file| lock(&file.audits).clone());
        // A cast tensor without elements has no pieces; nothing happened to its values.
        let audits = audits.zip(self.plan.tensors()).enumerate();
        audits
            .filter(|(_, (_, (_, planned)))| planned.action != Action::Copy)
            .map(|(tensor, (audit, _))| TensorAudit { tensor, audit: audit.unwrap_or_default() })
            .collect()
    }
}
