//! Stage: worker threads take pieces, each from a file of its own while there are enough, cast
//! them in cache, and write them where the plan says, below `DEST/.recast`. Threads of their own
//! make finished files durable, while the workers go on with the next.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::overflow;
use super::pieces::{Part, Piece, Work, pieces};
use super::publish::Staged;
use super::source::Source;
use super::{Io, OnOverflow, Options, Progress, TensorAudit, destination};
use crate::cast::{self, Audit, Level, Overflow};
use crate::error::Error;
use crate::fs;
use crate::plan::{Content, Plan, PlannedFile};

/// How often the caller is asked whether to go on.
const TICK: Duration = Duration::from_millis(15);
/// How long a stop waits for workers to leave what they are doing.
const STOP: Duration = Duration::from_millis(60);
/// Finished files that may wait for them; each holds a descriptor.
const UNSYNCED: usize = 64;
/// Threads that only wait for the disk. Several, because file systems commit syncs together.
const SYNCERS: usize = 4;

/// Carries the plan out below `dest`, where it is not a model yet. `progress` is called about
/// every 15 ms on this thread and stops the run by returning `false`.
///
/// # Errors
/// When the destination is refused, the system refuses a read or a write, a value overflows under
/// [`OnOverflow::Error`], or the caller stops; nothing is left behind then.
pub fn stage(
    plan: &Arc<Plan>,
    dest: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Staged, Error> {
    let level = Level::current()?;
    destination::check(plan, dest)?;
    let threads = options
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    let mut staged = Staged::create(plan, dest, threads, options.sync)?;
    let job = Job::new(plan, &staged.path(), level, options)?;
    staged.audits = run(&Arc::new(job), &staged.path(), threads, progress)?;
    Ok(staged)
}

/// What all workers share.
struct Job {
    plan: Arc<Plan>,
    pieces: Vec<Piece>,
    /// The next file that no worker has come to.
    next_file: AtomicUsize,
    done: AtomicU64,
    stop: AtomicBool,
    /// Under `OnOverflow::Error`, nothing is written once a value overflowed, only examined.
    overflowed: AtomicBool,
    error: Mutex<Option<Error>>,
    files: Vec<FileState>,
    level: Level,
    sync: bool,
    io: Io,
    on_overflow: OnOverflow,
}

struct FileState {
    staged: PathBuf,
    /// The next of the file's pieces that no worker has taken, and the end of them.
    next: AtomicUsize,
    end: usize,
    remaining: AtomicUsize,
    open: Mutex<Option<Arc<OpenFile>>>,
    audits: Mutex<Vec<Option<Audit>>>,
}

struct OpenFile {
    source: Source,
    out: File,
}

/// A file of the plan whose bytes are all written, and the handle they were written by.
type Finished = (usize, File);

/// A lock on data that every holder leaves whole, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(
    job: &Arc<Job>,
    staged: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Vec<TensorAudit>, Error> {
    let total = job.plan.bytes_written();
    let (left, leaving) = channel();
    let (finished, finishing) = sync_channel(UNSYNCED);
    let finishing = Arc::new(Mutex::new(finishing));
    let mut workers = Vec::new();
    for number in 0..SYNCERS + threads.min(job.pieces.len()).max(1) {
        let (job, left) = (Arc::clone(job), left.clone());
        let (finished, finishing) = (finished.clone(), Arc::clone(&finishing));
        let builder = thread::Builder::new();
        let started = if number < SYNCERS {
            drop(finished);
            builder.spawn(move || sync_files(&job, &finishing, left))
        } else {
            builder.spawn(move || work(&job, finished, left))
        };
        match started {
            Ok(worker) => workers.push(worker),
            // Where the system gives no more threads, those that run do the work.
            Err(_) if workers.len() > SYNCERS => break,
            Err(error) => return Err(Error::io("start a thread for", staged)(error)),
        }
    }
    drop((left, finished, finishing));
    loop {
        // The channel closes when the last worker is gone, however it went.
        let gone = matches!(leaving.recv_timeout(TICK), Err(RecvTimeoutError::Disconnected));
        let wanted = progress(Progress { done: job.done.load(Ordering::Relaxed), total });
        if gone {
            break;
        }
        if !wanted {
            job.stop.store(true, Ordering::Relaxed);
            let deadline = Instant::now() + STOP;
            while !workers.iter().all(thread::JoinHandle::is_finished) && Instant::now() < deadline
            {
                thread::sleep(Duration::from_millis(1));
            }
            return Err(Error::Cancelled);
        }
    }
    for worker in workers {
        worker.join().map_err(|_| Error::Panicked)?;
    }
    if let Some(error) = lock(&job.error).take() {
        return Err(error);
    }
    let audits = job.audits();
    if job.overflowed.load(Ordering::Relaxed) {
        return Err(Error::Overflow { summary: overflow::summary(&job.plan, &audits) });
    }
    Ok(audits)
}

fn work(job: &Job, finished: SyncSender<Finished>, _left: Sender<()>) {
    let (mut buffers, mut file) = (Buffers::default(), None);
    while !job.stop.load(Ordering::Relaxed) {
        let Some(piece) = job.take(&mut file) else { break };
        if let Err(error) = job.piece(piece, &mut buffers, &finished) {
            job.fail(error);
        }
    }
}

/// Makes finished files durable, while workers go on with the next.
fn sync_files(job: &Job, finishing: &Mutex<Receiver<Finished>>, _left: Sender<()>) {
    loop {
        let next = lock(finishing).recv();
        let Ok((file, out)) = next else { break };
        let (state, bytes) = (&job.files[file], job.plan.files[file].bytes);
        let stopped = || job.stop.load(Ordering::Relaxed);
        match fs::sync_file(&out, &state.staged, bytes, &stopped) {
            Ok(()) | Err(Error::Cancelled) => {}
            Err(error) => job.fail(error),
        }
    }
}

/// A worker's memory: the piece it makes, what it is made from where that is not mapped, and room
/// to try a cast that is not kept.
#[derive(Default)]
struct Buffers {
    piece: Vec<u8>,
    source: Vec<u8>,
    trial: Vec<u8>,
}

impl Job {
    fn new(plan: &Arc<Plan>, staged: &Path, level: Level, options: &Options) -> Result<Job, Error> {
        let pieces = pieces(plan);
        let mut files = Vec::with_capacity(plan.files.len());
        let mut end = 0;
        for (index, file) in plan.files.iter().enumerate() {
            let start = end;
            end += pieces[start..].iter().take_while(|piece| piece.file == index).count();
            let path = staged.join(&file.path);
            fs::create_dirs(path.parent().unwrap_or(staged))?;
            files.push(FileState {
                staged: path,
                next: AtomicUsize::new(start),
                end,
                remaining: AtomicUsize::new(end - start),
                open: Mutex::new(None),
                audits: Mutex::new(vec![None; file.tensors().len()]),
            });
        }
        Ok(Job {
            plan: Arc::clone(plan),
            pieces,
            next_file: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            overflowed: AtomicBool::new(false),
            error: Mutex::new(None),
            files,
            level,
            sync: options.sync,
            io: options.io,
            on_overflow: options.on_overflow,
        })
    }

    /// The next piece of the file a worker is at; else of the next file; else of one that others
    /// are at. A worker to a file, because writers of one file wait for each other.
    fn take(&self, current: &mut Option<usize>) -> Option<&Piece> {
        loop {
            if let Some(file) = *current {
                let state = &self.files[file];
                let piece = state.next.fetch_add(1, Ordering::Relaxed);
                if piece < state.end {
                    return Some(&self.pieces[piece]);
                }
            }
            let fresh = self.next_file.fetch_add(1, Ordering::Relaxed);
            *current = Some(if fresh < self.files.len() { fresh } else { self.busiest()? });
        }
    }

    /// The file with the most pieces that no worker has taken.
    fn busiest(&self) -> Option<usize> {
        let left = |state: &FileState| state.end.saturating_sub(state.next.load(Ordering::Relaxed));
        let (file, state) = self.files.iter().enumerate().max_by_key(|(_, state)| left(state))?;
        (left(state) > 0).then_some(file)
    }

    fn fail(&self, error: Error) {
        // In this order, so that nobody who stops because of it is first to say why.
        lock(&self.error).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn piece(
        &self,
        piece: &Piece,
        buffers: &mut Buffers,
        finished: &SyncSender<Finished>,
    ) -> Result<(), Error> {
        let (file, state) = (&self.plan.files[piece.file], &self.files[piece.file]);
        let open = self.open(file, state)?;
        if !self.copied(piece, &open, file)? {
            self.make(piece, &open, (file, state), buffers)?;
        }
        if self.sync {
            fs::start_writeback(&open.out, piece.start, piece.bytes as u64);
        }
        self.done.fetch_add(piece.bytes as u64, Ordering::Relaxed);
        drop(open);
        if state.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(piece.file, finished)?;
        }
        Ok(())
    }

    /// Whether the piece only had to be copied, and the kernel did it.
    fn copied(&self, piece: &Piece, open: &OpenFile, file: &PlannedFile) -> Result<bool, Error> {
        let Some(part) = piece.only_copy() else { return Ok(false) };
        open.source.copy_to(&file.location, part.start, (&open.out, piece.start), part.bytes)
    }

    /// Makes the piece in this worker's memory and writes it.
    fn make(
        &self,
        piece: &Piece,
        open: &OpenFile,
        (file, state): (&PlannedFile, &FileState),
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        buffers.piece.resize(buffers.piece.len().max(piece.bytes), 0);
        let mut filled = 0;
        for part in &piece.parts {
            let out = filled..filled + part.bytes;
            filled = out.end;
            self.part(part, out, open, (file, state), buffers)?;
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
        open: &OpenFile,
        (file, state): (&PlannedFile, &FileState),
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let Buffers { piece, source, trial } = buffers;
        let src = open.source.get(&file.location, part.start, part.source_bytes, source)?;
        let to = self.plan.to;
        let out = &mut piece[out];
        let mut audit = Audit::default();
        let tensor = match part.work {
            Work::Copy => {
                out.copy_from_slice(src);
                return Ok(());
            }
            Work::Cast { from, tensor } => {
                let overflow = match self.on_overflow {
                    OnOverflow::Saturate => Overflow::Saturate,
                    OnOverflow::Error | OnOverflow::Infinity => Overflow::Infinity,
                };
                cast::cast(self.level, (from, src), (to, out), overflow, &mut audit);
                if audit.to_inf > 0 && self.on_overflow == OnOverflow::Error {
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
        let source = Source::open(file, self.io)?;
        let out = fs::create_new(&state.staged)?;
        let prefix = match &file.content {
            Content::Shard { header, .. } => header.as_slice(),
            Content::Text(text) => text.as_bytes(),
            Content::Copy => &[],
        };
        fs::write_at(&out, &state.staged, prefix, 0)?;
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
        if self.sync && !self.overflowed.load(Ordering::Relaxed) {
            // They listen for as long as a worker can finish anything.
            let _ = finished.send((file, open.out));
        }
        Ok(())
    }

    fn audits(&self) -> Vec<TensorAudit> {
        let audits = self.files.iter().flat_map(|file| lock(&file.audits).clone());
        // A cast tensor without elements has no pieces; nothing happened to its values.
        let needed = self.plan.tensors().map(|(_, tensor)| tensor.action.is_audited());
        audits
            .zip(needed)
            .enumerate()
            .filter(|(_, (_, needed))| *needed)
            .map(|(tensor, (audit, _))| TensorAudit { tensor, audit: audit.unwrap_or_default() })
            .collect()
    }
}
