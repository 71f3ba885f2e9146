//! Regular files, and nothing that only looks like one.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

use crate::error::Error;

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

/// The metadata of the regular file at `path`, links followed. Opens nothing.
pub fn regular(path: &Path) -> Result<Metadata, Error> {
    let found = crate::fs::metadata(path).map_err(Error::io("open", path))?;
    check_regular(path, &found)?;
    Ok(found)
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let path = || path.to_owned();
    match metadata {
        _ if metadata.is_file() => Ok(()),
        _ if metadata.is_dir() => Err(Error::LinkToDirectory { path: path() }),
        _ => Err(Error::SpecialFile { path: path() }),
    }
}
