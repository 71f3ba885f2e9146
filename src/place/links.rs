//! Which files of a directory are opened: regular ones, and through a link only where it stays
//! inside the model.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::hub_cache::Blobs;
use super::regular::regular;
use crate::error::Error;

/// Where the links of a source may lead: anywhere inside the source, and from a snapshot in a Hub
/// cache to its blobs.
#[derive(Clone, Debug)]
pub struct LinkPolicy {
    /// The source's directory, its own links resolved: naming a directory is trusting it.
    root: PathBuf,
    blobs: Option<Blobs>,
}

impl LinkPolicy {
    pub fn of(directory: &Path) -> Result<LinkPolicy, Error> {
        let root = fs::canonicalize(directory).map_err(Error::io("open", directory))?;
        let blobs = Blobs::of(&root);
        Ok(LinkPolicy { root, blobs })
    }

    /// The metadata of the regular file at `path`, which is in the source or is a link that may be
    /// followed. Opens nothing.
    pub fn check(&self, path: &Path, is_link: bool) -> Result<Metadata, Error> {
        let found = regular(path).map_err(|error| match error {
            Error::Io { ref source, .. }
                if is_link && source.kind() != ErrorKind::PermissionDenied =>
            {
                Error::BrokenLink { path: path.to_owned() }
            }
            error => error,
        })?;
        if is_link {
            // Resolved to the end: what counts is where the bytes are, not the way there.
            let target = fs::canonicalize(path).map_err(Error::io("open", path))?;
            let is_blob = self.blobs.as_ref().is_some_and(|blobs| blobs.hold(&target));
            if !target.starts_with(&self.root) && !is_blob {
                return Err(Error::LinkOutside { path: path.to_owned(), target });
            }
        }
        Ok(found)
    }
}
