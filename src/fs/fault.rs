//! For tests: makes the N-th call to the file system fail, or stop or end the process there. Only
//! built with the feature `faults`, which no release has.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What happens at the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at once, as if it were killed; a write is half done by then.
    Abort,
    /// The process stands still until it is told to go on.
    Freeze,
    /// The one call fails with an I/O error.
    Eio,
    /// The call and every later one that needs room fail, as on a full disk.
    Enospc,
}

#[derive(Debug)]
struct State {
    count: usize,
    armed: Option<(usize, Fault)>,
}

static STATE: Mutex<State> = Mutex::new(State { count: 0, armed: None });

/// Starts counting anew, with `fault` at the point number `at`, counted from 1.
pub fn arm(at: usize, fault: Fault) {
    *lock() = State { count: 0, armed: Some((at, fault)) };
}

/// Stops faults; gives how many points were passed.
pub fn disarm() -> usize {
    let mut state = lock();
    state.armed = None;
    state.count
}

fn lock() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call to the file system that is about to happen.
pub(crate) fn point(operation: &'static str) -> io::Result<()> {
    pass(operation, || Ok(()))
}

/// A write that is about to happen; `half` does half of it.
pub(crate) fn write(half: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    pass("write", half)
}

fn pass(operation: &'static str, half: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut state = lock();
    state.count += 1;
    let count = state.count;
    let needs_room = !matches!(operation, "remove" | "read");
    match state.armed {
        Some((at, Fault::Abort)) if at == count => {
            // No other thread passes a point while the lock is held: nothing runs after this.
            half()?;
            std::process::abort()
        }
        Some((at, Fault::Freeze)) if at == count => {
            drop(state);
            let this = rustix::process::getpid();
            let _ = rustix::process::kill_process(this, rustix::process::Signal::STOP);
            Ok(())
        }
        Some((at, Fault::Eio)) if at == count => {
            half()?;
            Err(io::Error::from_raw_os_error(5))
        }
        Some((at, Fault::Enospc)) if needs_room && at <= count => {
            half()?;
            Err(io::ErrorKind::StorageFull.into())
        }
        _ => Ok(()),
    }
}
