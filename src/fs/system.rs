//! What the system says of a place and of this process, where it says anything.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// Bytes that may be written below the directory `path`, and the unit they are given out in, where
/// the system says. A file system that takes no writes at all says so better itself.
#[cfg(target_os = "linux")]
pub fn free_space(path: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(path).ok()?;
    let is_written = !found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    // Some file systems have no notion of it and say that there is nothing.
    (found.f_blocks > 0 && is_written).then_some((found.f_bavail * found.f_frsize, found.f_frsize))
}

#[cfg(not(target_os = "linux"))]
pub fn free_space(_path: &Path) -> Option<(u64, u64)> {
    None
}

/// Names the mount that `path` is on, links not followed; nothing where that is not known. What is
/// on another one cannot be renamed to here.
#[cfg(target_os = "linux")]
pub fn mount(path: &Path) -> Option<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
    (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
}

#[cfg(not(target_os = "linux"))]
pub fn mount(_path: &Path) -> Option<u64> {
    None
}

/// Fails when this process may not change the names in a directory.
#[cfg(target_os = "linux")]
pub fn check_may_change(directory: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};
    Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
}

#[cfg(not(target_os = "linux"))]
pub fn check_may_change(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// How many more files this process may open.
#[cfg(target_os = "linux")]
pub fn descriptors() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = std::fs::read_dir("/proc/self/fd").map_or(32, Iterator::count);
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(open)
}

#[cfg(not(target_os = "linux"))]
pub fn descriptors() -> usize {
    usize::MAX
}

/// Names this start of the machine; empty where it has no name.
pub fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Takes the lock of the file at `path`, which is created. Nothing where the file system has no
/// such thing.
///
/// # Errors
/// `WouldBlock` when another process has it; else what the system says of the file.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    #[cfg(target_os = "linux")]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOFOLLOW,
    );
    options.write(true).create(true).truncate(false);
    loop {
        let file = options.open(path)?;
        match file.try_lock() {
            // Unless it was removed in between by the one who had it.
            Ok(()) if is_at(&file, path) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Whether nobody holds the lock of a file that is there.
pub fn is_unlocked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let at = std::fs::symlink_metadata(path).map(|found| found.ino());
    at.is_ok_and(|at| file.metadata().is_ok_and(|found| found.ino() == at))
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
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

#[cfg(not(target_os = "linux"))]
pub fn start_reading(_file: &File, _start: u64, _bytes: u64) {}

#[cfg(not(target_os = "linux"))]
pub fn will_read_in_order(_file: &File) {}
