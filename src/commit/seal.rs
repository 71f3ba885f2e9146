//! A seal: what is known of a staged file. It is put before the file itself, and never replaced, so
//! that no file is ever there without what says what it is.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cast::Audit;
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::make::Made;
use crate::place::Marks;

/// The most bytes of a seal that are read: an audit for each of a million tensors.
const LIMIT: u64 = 100_000_000;

/// What is known of a staged file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub digest: Digest,
    /// The marks and digests of what it was made from.
    pub sources: Vec<(Marks, Digest)>,
    /// What happened to the values of the tensors that are audited.
    pub audits: Vec<Audit>,
    /// The start of the machine after which the file was written, where it was not synced.
    pub unsynced: Option<String>,
}

impl Seal {
    /// Of a file just made.
    pub fn new(made: Made, sync: bool) -> Seal {
        let Made { digest, sources, audits } = made;
        Seal { digest, sources, audits, unsynced: (!sync).then(fs::boot) }
    }

    /// Whether it is of the same bytes, made from the same bytes.
    pub fn agrees(&self, other: &Seal) -> bool {
        let digests = |seal: &Seal| -> Vec<Digest> {
            seal.sources.iter().map(|(_, digest)| *digest).collect()
        };
        self.digest == other.digest && digests(self) == digests(other)
    }

    /// The seal at `path`; nothing where there is none, and none where it is not whole, as after a
    /// power cut.
    pub fn read(path: &Path) -> Result<Option<Option<Seal>>, Error> {
        let text = read_own(path, LIMIT)?;
        Ok(text.map(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers")
    }
}

/// What a file of recast's own says, in a folder that anybody may have prepared; nothing where
/// nothing is.
pub fn read_own(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    Ok(read_own_with_time(path, limit)?.map(|(bytes, _)| bytes))
}

/// What a file says, and when it was written.
pub type Written = (Vec<u8>, Option<SystemTime>);

/// The same, and when it was written.
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
