//! Carrying recipes out: worker threads take pieces, each from a file of its own while there are
//! enough, make them in cache and hand them to a sink, which says where the bytes go. Threads of
//! their own finish files, so that the workers never wait for a disk. All of them end with the call
//! that started them.

pub mod check;
mod fill;
mod hashed;
mod job;
mod range;
mod sink;
pub mod threads;
mod writer;

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::Error;
use crate::held;
use crate::place::Place;
use crate::recipe::PIECE;
pub use fill::{Wanted, fill};
use job::{Buffers, Finished, Job};
pub use range::range;
pub use sink::{File, Made, Options, Overflowed, Sink, Sinks};

/// Finished files that may wait to be synced; each holds descriptors.
const UNSYNCED: usize = 64;
/// Threads that only wait for the disk. Several, because file systems commit syncs together.
const FINISHERS: usize = 4;

/// Makes `files` from the objects of `place`. `progress` is called about every 15 ms on this
/// thread with the bytes made so far, and stops everything by returning `false`.
pub fn make<S: Sinks>(
    files: &[File<'_>],
    place: &dyn Place,
    sinks: &S,
    options: &Options,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Overflowed, Error> {
    let job = Job::new(files, place, sinks, options);
    let pieces = files.iter().map(|file| file.recipe.bytes().div_ceil(PIECE)).sum::<u64>();
    let wanted = threads::count(options.threads).min(pieces as usize).max(1);
    let sources = files.iter().map(|file| file.recipe.sources.len()).max().unwrap_or_default();
    let (workers, unsynced) = affordable(wanted, sources);
    let (finished, finishing) = sync_channel(unsynced);
    let finishing = Mutex::new(finishing);
    let mut crew: Vec<threads::Task<'_>> = Vec::with_capacity(FINISHERS + workers);
    for _ in 0..FINISHERS {
        crew.push(Box::new(|| finish(&job, &finishing)));
    }
    for _ in 0..workers {
        let (job, finished) = (&job, finished.clone());
        crew.push(Box::new(move || work(job, &finished)));
    }
    // The finishers leave when the last worker has.
    drop(finished);
    threads::run(crew, FINISHERS + 1, &job.stop, &mut || {
        progress(job.done.load(Ordering::Relaxed))
    })?;
    job.end()
}

fn work<S: Sinks>(job: &Job<'_, S>, finished: &SyncSender<Finished<S::Sink>>) {
    let (mut buffers, mut file) = (Buffers::default(), None);
    while !job.stop.load(Ordering::Relaxed) {
        let Some((file, start, end)) = job.take(&mut file) else { break };
        if let Err(error) = job.piece(file, start, end, &mut buffers, finished) {
            job.fail(error);
        }
    }
}

/// Finishes files, while workers go on with the next.
fn finish<S: Sinks>(job: &Job<'_, S>, finishing: &Mutex<Receiver<Finished<S::Sink>>>) {
    let stopped = || job.stop.load(Ordering::Relaxed);
    loop {
        let next = held(finishing).recv();
        let Ok((file, sink, made)) = next else { break };
        match job.sinks.finish(file, sink, made, &stopped) {
            Ok(()) | Err(Error::Stopped) => {}
            Err(error) => job.fail(error),
        }
    }
}

/// So many workers, and files that wait to be finished, that the process has descriptors for them.
fn affordable(workers: usize, sources: usize) -> (usize, usize) {
    /// For the interpreter, the streams and whatever else the process has open.
    const OTHERS: usize = 16;
    /// A source and a result; and a seal beside each file that is being finished.
    const EACH: usize = 2;
    let free = crate::fs::descriptors().saturating_sub(OTHERS + FINISHERS * (EACH + 1));
    let own = EACH.max(sources + 1);
    let workers = workers.min(free / (own + EACH)).max(1);
    (workers, (free.saturating_sub(workers * own) / EACH).min(UNSYNCED))
}

#[cfg(test)]
mod tests;
