//! For tests: makes the N-th call to the file system fail, or stop or end the process there. Only
//! built with the feature `faults`, which no release has.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at once, as if it were killed; a write is half done by then.
    Abort,
    /// The process stands still until it is told to go on.
    Freeze,
    Eio,
    /// The call and every later one that needs room fail, as on a full disk.
    Enospc,
}

/// What a file system may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    Nothing,
    /// A rename that replaces nothing, as on some network and FUSE mounts.
    ExclusiveRename,
    /// Names that differ only in case.
    Case,
}

#[derive(Debug)]
struct State {
    count: usize,
    armed: Option<(usize, Fault)>,
    lack: Lack,
}

static STATE: Mutex<State> = Mutex::new(State { count: 0, armed: None, lack: Lack::Nothing });

/// Makes all calls behave as on a file system that lacks something.
pub fn pretend(lack: Lack) {
    lock().lack = lack;
}

pub(crate) fn lacks(lack: Lack) -> bool {
    lock().lack == lack
}

/// Where the only name is that differs from `path` in the case of its last part.
pub(crate) fn in_other_case(path: &Path) -> Option<PathBuf> {
    let folded = |name: &OsStr| name.to_string_lossy().to_lowercase();
    let name = folded(path.file_name()?);
    let entries = std::fs::read_dir(path.parent()?).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().map(folded).as_ref() == Some(&name))
}

/// Starts counting anew, with `fault` at the point number `at`, counted from 1.
pub fn arm(at: usize, fault: Fault) {
    let mut state = lock();
    (state.count, state.armed) = (0, Some((at, fault)));
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
