//! A seal: what is known of a staged file. It is put before the file itself, and never replaced, so
//! that no file is ever there without what says what it is.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::own_files::read_own;
use crate::cast::Audit;
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::make::Made;
use crate::place::Marks;

/// The most bytes of a seal that are read: an audit for each of a million tensors.
const LIMIT: u64 = 100_000_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub digest: Digest,
    pub sources: Vec<(Marks, Digest)>,
    /// What happened to the values of the tensors that are audited.
    pub audits: Vec<Audit>,
    /// The start of the machine after which the file was written, where it was not synced.
    pub unsynced: Option<String>,
}

impl Seal {
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
