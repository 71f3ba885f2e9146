//! The one place that writes to the file system, and where what is Linux-only has its plain
//! fallback.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::error::Error;
#[cfg(feature = "faults")]
use crate::fault::point;

/// Where a test may make a call fail; without the feature `faults`, nothing.
#[cfg(not(feature = "faults"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it fails")]
#[inline(always)]
fn point(_operation: &'static str) -> io::Result<()> {
    Ok(())
}

/// Bytes waited for at a time while a file is synced, so that a request to stop is seen soon.
const SYNC_STEP: u64 = 8 << 20;

/// What tells a file from another, or from itself after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was last written, in nanoseconds since 1970, where the system knows.
    pub modified: Option<u64>,
    /// Its inode, where there are such.
    pub inode: Option<u64>,
}

impl Identity {
    /// The identity that a file's metadata gives it.
    pub fn of(metadata: &Metadata) -> Identity {
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let inode = Some(std::os::unix::fs::MetadataExt::ino(metadata));
        #[cfg(not(unix))]
        let inode = None;
        let modified = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
        Identity { bytes: metadata.len(), modified, inode }
    }
}

/// Creates a new file at `path` with the mode the umask gives; never opens an existing one.
///
/// # Errors
/// When it exists or the system refuses.
pub fn create_new(path: &Path) -> Result<File, Error> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    point("open").and_then(|()| create()).map_err(Error::create(path))
}

/// Creates a new file at `path` that holds `bytes`.
///
/// # Errors
/// When it exists or the system refuses.
pub fn create_with(path: &Path, bytes: &[u8]) -> Result<File, Error> {
    let file = create_new(path)?;
    write_at(&file, path, bytes, 0)?;
    Ok(file)
}

/// Opens a file of recast's own, below the staging folder, to write more into it.
pub fn open_own(path: &Path) -> Result<File, Error> {
    let open = || OpenOptions::new().write(true).open(path);
    point("open").and_then(|()| open()).map_err(Error::io("open", path))
}

/// Opens a file to read it, without ever waiting for the other end of a pipe.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<File> {
    point("open")?;
    let mut options = OpenOptions::new();
    #[cfg(target_os = "linux")]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    options.read(true).open(path)
}

/// Creates a directory and those above it.
pub fn create_dirs(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    point("mkdir").and_then(|()| fs::create_dir_all(path)).map_err(Error::create(path))
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// When the system refuses; what was written is then unknown.
#[cfg(unix)]
pub fn write_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), Error> {
    use std::os::unix::fs::FileExt;
    #[cfg(feature = "faults")]
    crate::fault::write(|| file.write_all_at(&bytes[..bytes.len() / 2], offset))
        .map_err(Error::io("write", path))?;
    file.write_all_at(bytes, offset).map_err(Error::io("write", path))
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// When the system refuses; what was written is then unknown.
#[cfg(windows)]
pub fn write_at(file: &File, path: &Path, mut bytes: &[u8], mut offset: u64) -> Result<(), Error> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let written = file.seek_write(bytes, offset).map_err(Error::io("write", path))?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Reads exactly `out.len()` bytes from `offset`.
///
/// # Errors
/// What the system says; `UnexpectedEof` when the file ends before.
#[cfg(unix)]
pub fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Reads exactly `out.len()` bytes from `offset`.
///
/// # Errors
/// What the system says; `UnexpectedEof` when the file ends before.
#[cfg(windows)]
pub fn read_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                out = &mut out[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

/// Copies `bytes` bytes inside the kernel: by reference where the file system can, and without a
/// detour through this process everywhere else. `false` where the system cannot, with nothing
/// copied that a plain copy would not write again.
///
/// # Errors
/// What the system says.
#[cfg(target_os = "linux")]
pub fn copy_range(
    (from, mut start): (&File, u64),
    (to, mut offset): (&File, u64),
    mut bytes: usize,
) -> io::Result<bool> {
    use rustix::io::Errno;
    point("write")?;
    while bytes > 0 {
        match rustix::fs::copy_file_range(from, Some(&mut start), to, Some(&mut offset), bytes) {
            // The end of the file, or a file system that only says so: reading tells which.
            Ok(0) => return Ok(false),
            Ok(copied) => bytes -= copied,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Copies inside the kernel: not known how on this system.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn copy_range(_from: (&File, u64), _to: (&File, u64), _bytes: usize) -> io::Result<bool> {
    Ok(false)
}

/// Tells the system that `file` will be read from start to end, so that it reads ahead more.
#[cfg(target_os = "linux")]
pub fn will_read_in_order(file: &File) {
    // Advice: an error changes nothing.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
}

/// Asks the system to start reading a range, without waiting for it.
#[cfg(target_os = "linux")]
pub fn start_reading(file: &File, start: u64, bytes: u64) {
    let bytes = std::num::NonZeroU64::new(bytes);
    let _ = rustix::fs::fadvise(file, start, bytes, rustix::fs::Advice::WillNeed);
}

/// Asks the system to start reading a range: not known how on this one.
#[cfg(not(target_os = "linux"))]
pub fn start_reading(_file: &File, _start: u64, _bytes: u64) {}

/// Tells the system that `file` will be read from start to end: not known how on this one.
#[cfg(not(target_os = "linux"))]
pub fn will_read_in_order(_file: &File) {}

/// Makes a file of `bytes` bytes durable. Looks at `stopped` between steps, because the wait for
/// a disk cannot be interrupted.
///
/// # Errors
/// When the system refuses, which means that the file's content is unknown; or when stopped.
pub fn sync_file(
    file: &File,
    path: &Path,
    bytes: u64,
    stopped: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let mut start = 0;
    while start < bytes {
        if stopped() {
            return Err(Error::Cancelled);
        }
        wait_for_writeback(file, start, SYNC_STEP).map_err(Error::io("sync", path))?;
        start += SYNC_STEP;
    }
    point("sync").and_then(|()| file.sync_all()).map_err(Error::io("sync", path))
}

/// Starts writing a range of `file` to the disk, without waiting. A mere request: what counts is
/// the sync that follows.
#[cfg(target_os = "linux")]
pub fn start_writeback(file: &File, start: u64, bytes: u64) {
    // An error here would be reported by the sync again.
    let _ = sync_range(file, start, bytes, libc::SYNC_FILE_RANGE_WRITE);
}

/// Starts writing a range of `file` to the disk: not known how on this system.
#[cfg(not(target_os = "linux"))]
pub fn start_writeback(_file: &File, _start: u64, _bytes: u64) {}

#[cfg(target_os = "linux")]
fn wait_for_writeback(file: &File, start: u64, bytes: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    match sync_range(file, start, bytes, flags) {
        // Not every file system has it; the fsync that follows does all the work there. Any other
        // error is the disk's, and waiting for it has used it up: the fsync would not see it.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ESPIPE)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(not(target_os = "linux"))]
fn wait_for_writeback(_file: &File, _start: u64, _bytes: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn sync_range(file: &File, start: u64, bytes: u64, flags: libc::c_uint) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (start, bytes) = (start.cast_signed(), bytes.cast_signed());
    // SAFETY: the call takes no pointer, and the descriptor is open for as long as `file` is
    // borrowed.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start, bytes, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Renames `from` to `to`, which must not exist.
///
/// # Errors
/// When it exists or the system refuses.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    point("rename").and_then(|()| rename_new(from, to)).map_err(Error::io("rename into place", to))
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Not every file system can promise it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            result => return Ok(result?),
        }
    }
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    if cfg!(windows) {
        return Ok(()); // A directory cannot be opened there.
    }
    let directory = open(path).map_err(Error::io("open", path))?;
    point("sync").and_then(|()| directory.sync_all()).map_err(Error::io("sync", path))
}

/// Bytes that may be written below the directory `path`, and the unit they are given out in, where
/// the system says.
#[cfg(target_os = "linux")]
pub fn free_space(path: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(path).ok()?;
    // Some file systems have no notion of it and say that there is nothing.
    (found.f_blocks > 0).then_some((found.f_bavail * found.f_frsize, found.f_frsize))
}

/// Bytes that may be written: not known how on this system.
#[cfg(not(target_os = "linux"))]
pub fn free_space(_path: &Path) -> Option<(u64, u64)> {
    None
}

/// Removes a tree if it is there.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    let removed = point("remove").and_then(|()| fs::remove_dir_all(path));
    unless_missing(removed).map_err(Error::io("remove", path))
}

/// Removes a file if it is there.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    let removed = point("remove").and_then(|()| fs::remove_file(path));
    unless_missing(removed).map_err(Error::io("remove", path))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// Removes a directory when it is empty; one that somebody else put something into stays.
pub fn remove_empty_dir(path: &Path) {
    let _ = point("remove").and_then(|()| fs::remove_dir(path));
}
