//! Which files of a directory are opened: regular ones, and through a link only where it stays
//! inside the model.

use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::hub_cache::Blobs;
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
                let what = "a link that leads nowhere, as an incomplete download leaves";
                Error::NotRegular { path: path.to_owned(), what }
            }
            error => error,
        })?;
        if is_link {
            // Resolved to the end: what counts is where the bytes are, not the way there.
            let target = fs::canonicalize(path).map_err(Error::io("open", path))?;
            let is_blob = self.blobs.as_ref().is_some_and(|blobs| blobs.hold(&target));
            if !target.starts_with(&self.root) && !is_blob {
                return Err(Error::Link { path: path.to_owned(), target });
            }
        }
        Ok(found)
    }
}

/// The files below `root`, sorted, and whether each is a link. Hidden folders are not part of a
/// model, nor is what a fresh file system has.
pub fn list(root: &Path) -> Result<Vec<(PathBuf, bool)>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let folder = root.join(&below);
        let failed = |error| Error::io("list", &folder)(error);
        for (name, kind) in crate::fs::list(&folder).map_err(failed)? {
            let path = below.join(&name);
            if !kind.is_dir() {
                found.push((path, kind.is_symlink()));
            } else if !name.as_os_str().as_encoded_bytes().starts_with(b".")
                && path != Path::new("lost+found")
            {
                folders.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Opens the regular file at `path`, and nothing that only looks like one.
pub fn open(path: &Path) -> Result<(File, Metadata), Error> {
    // Looked at first, because opening a pipe waits for its other end and opening a device can do
    // anything; and again once it is open, because it may have been replaced in between.
    regular(path)?;
    let file = crate::fs::open(path).map_err(Error::io("open", path))?;
    let metadata = crate::fs::metadata_of(&file).map_err(Error::io("read", path))?;
    check_regular(path, &metadata)?;
    Ok((file, metadata))
}

/// What is not a file although a link, or a name that is a file's, leads to it.
pub const DIRECTORY: &str = "a link to a directory";

/// The metadata of the regular file at `path`, links followed. Opens nothing.
pub fn regular(path: &Path) -> Result<Metadata, Error> {
    let found = crate::fs::metadata(path).map_err(Error::io("open", path))?;
    check_regular(path, &found)?;
    Ok(found)
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    if metadata.is_file() {
        return Ok(());
    }
    let what =
        if metadata.is_dir() { DIRECTORY } else { "a special file (a pipe, socket or device)" };
    Err(Error::NotRegular { path: path.to_owned(), what })
}
