//! The one place that writes to a local file system, and where what is Linux-only has its plain
//! fallback. Every call is a point at which a test may make it fail, stop or end the process.

mod cache;
#[cfg(feature = "faults")]
pub mod fault;
mod system;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
pub use cache::{is_cached, is_too_large, let_go_of, read_once_at, write_once_at};
#[cfg(feature = "faults")]
use fault::point;
pub use system::{
    boot, check_may_change, descriptors, free_space, is_unlocked, lock, mount, start_reading,
    will_read_in_order,
};

/// Where a test may make a call fail; without the feature `faults`, nothing.
#[cfg(not(feature = "faults"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it fails")]
#[inline(always)]
fn point(_operation: &'static str) -> io::Result<()> {
    Ok(())
}

/// Bytes waited for at a time while a file is synced, so that a request to stop is seen soon.
const SYNC_STEP: u64 = 8 << 20;

/// Creates a new file at `path` with the mode the umask gives; never opens an existing one.
pub fn create_new(path: &Path, executable: bool) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if executable { 0o777 } else { 0o666 });
    #[cfg(not(unix))]
    let _ = executable;
    options.write(true).create_new(true);
    point("open").and_then(|()| options.open(path)).map_err(Error::create(path))
}

pub fn create_with(path: &Path, bytes: &[u8]) -> Result<File, Error> {
    let file = create_new(path, false)?;
    write_at(&file, path, bytes, 0)?;
    Ok(file)
}

/// Opens a file to read it, without ever waiting for the other end of a pipe.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(path, 0)
}

pub fn open_no_link(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    return open_with(path, libc::O_NOFOLLOW);
    #[cfg(not(target_os = "linux"))]
    return open_with(path, 0);
}

fn open_with(path: &Path, flags: i32) -> io::Result<File> {
    point("read")?;
    let mut options = OpenOptions::new();
    #[cfg(target_os = "linux")]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | flags);
    #[cfg(not(target_os = "linux"))]
    let _ = flags;
    options.read(true).open(path)
}

/// What the system says of what is at `path`, links followed.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    point("read")?;
    fs::metadata(path)
}

/// What the system says of what is at `path`, links not followed; nothing where nothing is.
pub fn look(path: &Path) -> io::Result<Option<Metadata>> {
    point("read")?;
    match fs::symlink_metadata(path) {
        #[cfg(feature = "faults")]
        Err(error) if is_missing(&error) && fault::lacks(fault::Lack::Case) => {
            fault::in_other_case(path).map(fs::symlink_metadata).transpose()
        }
        Err(error) if is_missing(&error) => Ok(None),
        found => found.map(Some),
    }
}

pub fn metadata_of(file: &File) -> io::Result<Metadata> {
    point("read")?;
    file.metadata()
}

/// The names in a directory, sorted, and what each is; nothing where there is no directory.
pub fn list(path: &Path) -> io::Result<Vec<(PathBuf, fs::FileType)>> {
    point("read")?;
    let entries = match fs::read_dir(path) {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let named = entries.map(|entry| {
        let entry = entry?;
        Ok((PathBuf::from(entry.file_name()), entry.file_type()?))
    });
    let mut found = named.collect::<io::Result<Vec<_>>>()?;
    found.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(found)
}

/// Whether an error says that there is nothing at a path.
pub fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Creates a directory, unless there is one; a link to one does not count.
pub fn create_dir(path: &Path) -> io::Result<()> {
    match point("mkdir").and_then(|()| fs::create_dir(path)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match look(path)? {
                Some(found) if found.is_dir() => Ok(()),
                // It was removed again: whoever did that knows why.
                None => Err(io::ErrorKind::NotFound.into()),
                Some(_) => Err(error),
            }
        }
        result => result,
    }
}

/// Creates the directories of `below` under `root`, which exists.
///
/// # Errors
/// As [`create_dir`].
pub fn create_dirs(root: &Path, below: &Path) -> io::Result<()> {
    let mut path = root.to_owned();
    for part in below.components() {
        path.push(part);
        create_dir(&path)?;
    }
    Ok(())
}

/// Whether something on the way from `root` to `below` is there and no directory: a link, which
/// would lead elsewhere.
pub fn leads_elsewhere(root: &Path, below: &Path) -> io::Result<bool> {
    let mut path = root.to_owned();
    for part in below.components() {
        path.push(part);
        if look(&path)?.is_some_and(|found| !found.is_dir()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates a directory and those above it, wherever links lead.
pub fn create_dirs_anywhere(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    point("mkdir").and_then(|()| fs::create_dir_all(path)).map_err(Error::create(path))
}

#[cfg(unix)]
pub fn write_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), Error> {
    use std::os::unix::fs::FileExt;
    #[cfg(feature = "faults")]
    fault::write(|| file.write_all_at(&bytes[..bytes.len() / 2], offset))
        .map_err(Error::io("write", path))?;
    file.write_all_at(bytes, offset).map_err(Error::io("write", path))
}

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

/// Reserves the room that `file` will need, which then costs less to write. A mere request: where
/// there is not enough, the write that follows says so.
#[cfg(target_os = "linux")]
pub fn reserve(file: &File, bytes: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    let _ = point("reserve").map(|()| fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes));
}

#[cfg(not(target_os = "linux"))]
pub fn reserve(_file: &File, _bytes: u64) {}

/// Reads exactly `out.len()` bytes from `offset`.
///
/// # Errors
/// What the system says; `UnexpectedEof` when the file ends before.
#[cfg(unix)]
pub fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    point("read")?;
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

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

/// Makes a file of `bytes` bytes durable. Looks at `stopped` between steps, because the wait for
/// a disk cannot be interrupted.
pub fn sync_file(
    file: &File,
    path: &Path,
    bytes: u64,
    stopped: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let mut start = 0;
    while start < bytes {
        if stopped() {
            return Err(Error::Stopped);
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

/// Renames `from` to `to`, which must not exist. Whether the system made sure of that, or can not
/// and it was only looked before.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    point("rename")?;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        let flags = RenameFlags::NOREPLACE;
        #[cfg(feature = "faults")]
        let flags = match fault::lacks(fault::Lack::ExclusiveRename) {
            true => RenameFlags::all(), // Which contradict each other: EINVAL.
            false => flags,
        };
        match renameat_with(CWD, from, CWD, to, flags) {
            // Not every file system can promise it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            result => return Ok(result.map(|()| true)?),
        }
    }
    // In this order, as the system does: what was moved before is missing, whatever is there now.
    fs::symlink_metadata(from)?;
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to).map(|()| false),
    }
}

/// Renames a directory to `to`, where nothing or an empty directory is.
pub fn rename_dir(from: &Path, to: &Path) -> io::Result<()> {
    point("rename").and_then(|()| fs::rename(from, to))
}

pub fn sync_dir(path: &Path) -> Result<(), Error> {
    if cfg!(windows) {
        return Ok(()); // A directory cannot be opened there.
    }
    let directory = open(path).map_err(Error::io("open", path))?;
    point("sync").and_then(|()| directory.sync_all()).map_err(Error::io("sync", path))
}

pub fn remove_tree(path: &Path) -> io::Result<()> {
    unless_missing(point("remove").and_then(|()| fs::remove_dir_all(path)))
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    unless_missing(point("remove").and_then(|()| fs::remove_file(path)))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if is_missing(&error) { Ok(()) } else { Err(error) })
}

/// Removes a directory when it is empty; one that is not empty stays.
pub fn remove_empty_dir(path: &Path) {
    let _ = point("remove").and_then(|()| fs::remove_dir(path));
}
