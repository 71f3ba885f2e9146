//! Small files of recast's own, in a folder that anybody may have prepared.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;

/// A name that nothing had before and nothing will have.
pub fn unique() -> String {
    let mut text = String::new();
    for _ in 0..2 {
        // Its keys are random; a fork has the same ones, but another number and time.
        let mut hasher = RandomState::new().build_hasher();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        hasher.write_u128(now.as_nanos());
        hasher.write_u32(std::process::id());
        text.push_str(&format!("{:016x}", hasher.finish()));
    }
    text
}

/// Puts a small file at `path`, whole or not at all. Whether it was put; not, when one is there.
pub fn put(path: &Path, bytes: &[u8], sync: bool) -> Result<bool, Error> {
    let part = part_of(path);
    let file = fs::create_with(&part, bytes)?;
    if sync {
        fs::sync_file(&file, &part, 0, &|| false)?;
    }
    match fs::rename_new(&part, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::remove_file(&part).map_err(Error::io("remove", &part))?;
            Ok(false)
        }
        result => result.map(|_| true).map_err(Error::io("rename into place", path)),
    }
}

/// What a file is called while it is written.
pub fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // A name of the longest length has no room for more.
    if name.len() > 200 {
        name = format!("{:016x}", Digest::of(name.as_encoded_bytes()).0).into();
    }
    name.push(format!(".{}.part", unique()));
    path.with_file_name(name)
}

/// What a file of recast's own says, in a folder that anybody may have prepared; nothing where
/// nothing is.
pub fn read_own(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    Ok(read_own_with_time(path, limit)?.map(|(bytes, _)| bytes))
}

pub type Written = (Vec<u8>, Option<SystemTime>);

pub fn read_own_with_time(path: &Path, limit: u64) -> Result<Option<Written>, Error> {
    match fs::look(path).map_err(Error::io("read", path))? {
        None => return Ok(None),
        // Never opened, because opening a device can do anything.
        Some(found) if !found.is_file() => return Err(not_ours(path)),
        Some(_) => {}
    }
    let read = || -> std::io::Result<Option<Written>> {
        // What is open stays what it is, whatever is put in its place.
        let file = fs::open_no_link(path)?;
        let found = fs::metadata_of(&file)?;
        if !found.is_file() || found.len() > limit {
            return Ok(None);
        }
        let mut bytes = vec![0; found.len() as usize];
        fs::read_at(&file, &mut bytes, 0)?;
        Ok(Some((bytes, found.modified().ok())))
    };
    match read() {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) => Err(not_ours(path)),
        Err(error) if fs::is_missing(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// The error for something in recast's folder that recast does not put there.
pub fn not_ours(path: &Path) -> Error {
    Error::NotOurs { path: PathBuf::from(path) }
}
