//! Stage: worker threads take pieces, each from a file of its own while there are enough, cast
//! them in cache, and write them where the plan says, below `DEST/.recast`. Threads of their own
//! make finished files durable, while the workers go on with the next.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::job::{Buffers, Finished, Job};
use super::publish::Staged;
use super::staging::Staging;
use super::{Options, Progress, TensorAudit, held as lock, overflow, threads};
use crate::cast::Level;
use crate::error::Error;
use crate::fs;
use crate::plan::Plan;

/// How often the caller is asked whether to go on.
const TICK: Duration = Duration::from_millis(15);
/// How long a stop waits for workers to leave what they are doing.
const STOP: Duration = Duration::from_millis(60);
/// Finished files that may wait for them; each holds a descriptor.
const UNSYNCED: usize = 64;
/// Threads that only wait for the disk. Several, because file systems commit syncs together.
const SYNCERS: usize = 4;

/// Carries the plan out below `dest`, where it is not a model yet; nothing when that was done
/// before. `progress` is called about every 15 ms on this thread and stops the run by returning
/// `false`.
///
/// # Errors
/// When the destination is refused, the system refuses a read or a write, a value overflows under
/// [`super::OnOverflow::Error`], or the caller stops. What the same run, done again, can go on
/// with then stays; nothing else does.
pub fn stage(
    plan: &Arc<Plan>,
    dest: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Option<Staged>, Error> {
    let level = Level::current()?;
    let total = plan.bytes_written();
    let mut wait = || progress(Progress { done: 0, total });
    let Some(staging) = Staging::enter(plan, dest, options, &mut wait)? else { return Ok(None) };
    let staged = staging.path();
    let result = Job::new(plan, &staging, level, options)
        .and_then(|job| run(&Arc::new(job), &staged, threads(options.threads), progress));
    match result {
        Ok(audits) => Ok(Some(Staged::new(plan, staging, options.sync, audits))),
        Err(error) if error.is_resumable() => Err(error),
        Err(error) => {
            staging.discard()?;
            Err(error)
        }
    }
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
    let pieces = job.files.iter().map(|file| file.pieces.len()).sum();
    for number in 0..SYNCERS + threads.min(pieces).max(1) {
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
        let (path, bytes) = (&job.files[file].staged, job.plan.files[file].bytes);
        let stopped = || job.stop.load(Ordering::Relaxed);
        match fs::sync_file(&out, path, bytes, &stopped) {
            Ok(()) => job.note(file),
            Err(Error::Cancelled) => {}
            Err(error) => job.fail(error),
        }
    }
}
