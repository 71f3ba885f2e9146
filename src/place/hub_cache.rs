//! The cache of the Hugging Face Hub, as `huggingface_hub` lays it out: which folders belong to
//! it, and where the links of its snapshots lead.
//!
//! ```text
//! CACHE/models--ORG--NAME/snapshots/REVISION/FILE  -> REPOSITORY/blobs/ETAG
//! CACHE/models--ORG--NAME/blobs/ETAG               a file, or -> CACHE/blobs/xx/HASH
//! CACHE/blobs/xx/HASH                              a file that all repositories share
//! ```

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::regular;
use crate::error::Error;

/// The longest `refs/main` that is read: it holds a revision.
const MAX_REF: u64 = 256;
/// How many names an error lists.
const LISTED: usize = 5;

/// What the name of a repository's folder begins with.
const REPOSITORIES: [&str; 4] = ["models--", "datasets--", "spaces--", "kernels--"];

/// The snapshot that is meant where only its repository was named.
#[derive(Debug)]
pub struct Snapshot {
    pub path: PathBuf,
    /// Its revision, and why it was chosen.
    pub choice: String,
}

impl Snapshot {
    /// The snapshot that the directory `path` stands for; nothing where it is not the folder of a
    /// repository.
    ///
    /// # Errors
    /// When it is not clear which snapshot is meant, or `path` is a whole cache.
    pub fn of(path: &Path) -> Result<Option<Snapshot>, Error> {
        if !is_repository(path) {
            return match folders(path).into_iter().find(|name| is_in_cache(path, name)) {
                Some(repository) => Err(Error::HubCache { path: path.to_owned(), repository }),
                None => Ok(None),
            };
        }
        let below = path.join("snapshots");
        let there = folders(&below);
        let named = main_revision(path).filter(|revision| there.contains(revision));
        let choice = match (named, &there[..]) {
            (Some(revision), _) => (revision, "which refs/main names"),
            (None, [only]) => (only.clone(), "the only one there"),
            (None, []) => return Err(Error::NoSnapshot { path: path.to_owned() }),
            (None, _) => {
                let snapshots = there.iter().take(LISTED).cloned().collect();
                let count = there.len();
                return Err(Error::ManySnapshots { path: path.to_owned(), count, snapshots });
            }
        };
        let (revision, why) = choice;
        let choice = format!("{revision}, {why}");
        Ok(Some(Snapshot { path: below.join(revision), choice }))
    }
}

/// Whether `path` is laid out as the folder of a repository. A model may have folders of the same
/// names, but then it has files beside them.
fn is_repository(path: &Path) -> bool {
    let holds = |name| is_real(&path.join(name), fs::Metadata::is_dir);
    holds("snapshots")
        && (holds("blobs") || holds("refs"))
        && (has_repository_name(path) || !has_visible_file(path))
}

/// Whether the folder `name` in `cache` is that of a repository.
fn is_in_cache(cache: &Path, name: &str) -> bool {
    has_repository_name(Path::new(name)) && is_repository(&cache.join(name))
}

fn has_visible_file(path: &Path) -> bool {
    fs::read_dir(path).into_iter().flatten().flatten().any(|entry| {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        !hidden && !entry.file_type().is_ok_and(|kind| kind.is_dir())
    })
}

/// The names of the folders in `path`, links aside, sorted; none where it cannot be listed, which
/// the caller's own listing then reports.
fn folders(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> =
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The revision that `refs/main` names, if it is a plain name and nothing else.
fn main_revision(repository: &Path) -> Option<String> {
    let path = repository.join("refs").join("main");
    if !is_real(&path, fs::Metadata::is_file) {
        return None;
    }
    let (file, _) = regular::open(&path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_REF + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() as u64 > MAX_REF {
        return None;
    }
    let revision = std::str::from_utf8(&bytes).ok()?.trim_ascii();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = !revision.starts_with('.') && revision.bytes().all(plain);
    (is_name && !revision.is_empty()).then(|| revision.to_owned())
}

/// Whether `path` itself, and not what a link there leads to, is of a kind.
fn is_real(path: &Path, kind: impl Fn(&fs::Metadata) -> bool) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| kind(&found))
}

/// Where the snapshots of a repository keep the bytes of their files.
#[derive(Clone, Debug)]
pub struct Blobs {
    repository: PathBuf,
    /// Only where the repository's folder has the name of one: `CACHE` is then known to be a
    /// cache, and not just any folder above.
    shared: Option<PathBuf>,
}

impl Blobs {
    /// The blobs of the snapshot that `directory` is, or is in; `directory` has no links in it.
    pub fn of(directory: &Path) -> Option<Blobs> {
        let snapshots = directory.ancestors().skip(1).find(|above| above.ends_with("snapshots"))?;
        let repository = snapshots.parent()?;
        let cache = repository.parent().filter(|_| has_repository_name(repository));
        Some(Blobs {
            repository: repository.join("blobs"),
            shared: cache.map(|cache| cache.join("blobs")),
        })
    }

    /// Whether `target`, which has no links in it, is one of them.
    pub fn hold(&self, target: &Path) -> bool {
        let folder = target.parent();
        if folder == Some(&self.repository) {
            return true;
        }
        let shared = folder.and_then(Path::parent);
        shared.is_some() && shared == self.shared.as_deref() && is_shared_blob(target)
    }
}

/// Whether the end of `path` is `xx/HASH`: beside each blob the store has notes of its own.
fn is_shared_blob(path: &Path) -> bool {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let (folder, hash) = (path.parent().and_then(name), name(path));
    folder.zip(hash).is_some_and(|(folder, hash)| {
        folder.len() == 2
            && hash.starts_with(&folder)
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn has_repository_name(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
    REPOSITORIES.iter().any(|start| name.starts_with(start.as_bytes()) && name.len() > start.len())
}
