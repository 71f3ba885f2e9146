//! Threads that end with the call that started them, while the caller is asked whether to go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::Error;

const TICK: Duration = Duration::from_millis(15);

pub type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Runs each task on a thread of its own and waits for all of them. Where the system gives no more
/// threads than the first `needed`, they do with that. `wanted` is called about every 15 ms on this
/// thread; once it returns `false`, `stop` is set, and the tasks are expected to end.
///
/// # Errors
/// [`Error::Stopped`] when the caller wanted no more, and when there are no threads.
pub fn run(
    tasks: Vec<Task<'_>>,
    needed: usize,
    stop: &AtomicBool,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(), Error> {
    thread::scope(|scope| {
        let (left, leaving) = channel::<()>();
        let mut running = Vec::with_capacity(tasks.len());
        let mut result = Ok(());
        for task in tasks {
            let left = left.clone();
            let task = move || {
                task();
                drop(left);
            };
            match thread::Builder::new().spawn_scoped(scope, task) {
                Ok(thread) => running.push(thread),
                Err(_) if running.len() >= needed => break,
                Err(source) => {
                    result = Err(Error::NoThreads { source });
                    stop.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        drop(left);
        // The channel closes when the last thread is gone, however it went.
        while result.is_ok() {
            let gone = leaving.recv_timeout(TICK) == Err(RecvTimeoutError::Disconnected);
            if !wanted() && !gone {
                stop.store(true, Ordering::Relaxed);
                result = Err(Error::Stopped);
            }
            if gone {
                break;
            }
        }
        for thread in running {
            if thread.join().is_err() && result.is_ok() {
                result = Err(Error::Panicked);
            }
        }
        result
    })
}

/// Threads by default at most. One makes 0.8 (of fp8 codes) to 2 GB of a result a second, so these
/// make more than any one disk takes, and read and write what the memory of a server gives
/// (docs/benchmarks.md): more would only wait for both.
const MOST: usize = 32;

/// How many threads to run when so many are asked for; by default as many as the process may use, up
/// to [`MOST`].
pub fn count(asked: Option<usize>) -> usize {
    let own = || thread::available_parallelism().map_or(1, usize::from).min(MOST);
    asked.unwrap_or_else(own).max(1)
}
