//! Which files of a source are opened: regular ones, of a size that makes sense for what they
//! are, and through a link only where it stays inside the model.

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Where the links of a source may lead: anywhere inside the source, and from a snapshot in a Hub
/// cache (`REPOSITORY/snapshots/REVISION`) to the blobs of the same repository.
#[derive(Debug)]
pub struct Reach {
    /// The source's directory, its own links resolved: whoever names it vouches for it.
    root: PathBuf,
    blobs: Option<PathBuf>,
}

impl Reach {
    /// The reach of the source at `directory`.
    ///
    /// # Errors
    /// When the directory cannot be resolved.
    pub fn of(directory: &Path) -> Result<Reach, Error> {
        // The parent of a bare file name is empty, and means here.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let root = fs::canonicalize(directory).map_err(Error::io("open", directory))?;
        let snapshots = root.ancestors().skip(1).find(|above| above.ends_with("snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
        Ok(Reach { root, blobs })
    }

    /// The metadata of the regular file at `path`, which is in the source or is a link that stays
    /// within reach. Opens nothing.
    ///
    /// # Errors
    /// When it is neither.
    pub fn check(&self, path: &Path, is_link: bool) -> Result<Metadata, Error> {
        let metadata = match fs::metadata(path) {
            Err(error) if is_link && error.kind() != ErrorKind::PermissionDenied => {
                let what = "a link that leads nowhere, as an incomplete download leaves";
                return Err(Error::NotRegular { path: path.to_owned(), what });
            }
            found => found.map_err(Error::io("open", path))?,
        };
        check_regular(path, &metadata)?;
        if is_link {
            // Resolved to the end: what counts is where the bytes are, not the way there.
            let target = fs::canonicalize(path).map_err(Error::io("open", path))?;
            if !target.starts_with(&self.root) && target.parent() != self.blobs.as_deref() {
                return Err(Error::Link { path: path.to_owned(), target });
            }
        }
        Ok(metadata)
    }
}

/// The files below `root`, sorted, and whether each is a link. Hidden folders are not part of a
/// model, nor is what a fresh file system has.
///
/// # Errors
/// When a folder cannot be listed.
pub fn list(root: &Path) -> Result<Vec<(PathBuf, bool)>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let folder = root.join(&below);
        let failed = |error| Error::io("list", &folder)(error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (name, kind) = (entry.file_name(), entry.file_type().map_err(failed)?);
            let path = below.join(&name);
            if !kind.is_dir() {
                found.push((path, kind.is_symlink()));
            } else if !name.as_encoded_bytes().starts_with(b".") && path != Path::new("lost+found")
            {
                folders.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Opens the regular file at `path`, and nothing that only looks like one.
///
/// # Errors
/// When it is not a regular file, or the system refuses.
pub fn open(path: &Path) -> Result<(File, Metadata), Error> {
    // Looked at first, because opening a pipe waits for its other end and opening a device can do
    // anything; and again once it is open, because it may have been replaced in between.
    check_regular(path, &fs::metadata(path).map_err(Error::io("open", path))?)?;
    let file = crate::fs::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    check_regular(path, &metadata)?;
    Ok((file, metadata))
}

/// Reads the small file at `path`: all of it, when that is no more than `limit` bytes.
///
/// # Errors
/// When it is larger, is not a regular file, or the system refuses.
pub fn read(path: &Path, limit: u64) -> Result<(Vec<u8>, Metadata), Error> {
    let (file, metadata) = open(path)?;
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        // The limit holds also where the file grows, or has no length until it is read.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    }
    let found = metadata.len().max(bytes.len() as u64);
    if found > limit {
        let reason =
            format!("it has {found} bytes, and recast reads at most {limit} of such a file");
        return Err(Error::Json { path: path.to_owned(), reason });
    }
    Ok((bytes, metadata))
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = if metadata.is_dir() {
        "a link to a directory"
    } else {
        "a special file (a pipe, socket or device)"
    };
    Err(Error::NotRegular { path: path.to_owned(), what })
}
