//! Publish: an old model makes way, the staged files are renamed into place, the files that make a
//! directory a model last, then comes the report. Killed anywhere, the same run done again goes on
//! from there: every step looks at what is on disk.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::staging::Staging;
use super::{TensorAudit, source};
use crate::checkpoint::{REPORT, index};
use crate::error::Error;
use crate::fs;
use crate::plan::{PIPELINE, Plan};

/// A complete model below `DEST/.recast`, which nobody takes for one yet.
#[derive(Debug)]
pub struct Staged {
    plan: Arc<Plan>,
    /// The folder it is in; gone once the model is published, or given up.
    staging: Option<Staging>,
    sync: bool,
    /// What the cast did to each tensor that is, or could have been, cast.
    pub audits: Vec<TensorAudit>,
    /// Files that an earlier run had staged.
    pub resumed_files: usize,
    /// Whether every file is in its place.
    pub published: bool,
    /// What the run is, as JSON; the report must hold it as `identity`.
    pub identity: String,
}

impl Staged {
    pub(super) fn new(
        plan: &Arc<Plan>,
        staging: Staging,
        sync: bool,
        audits: Vec<TensorAudit>,
    ) -> Staged {
        Staged {
            plan: Arc::clone(plan),
            sync,
            published: false,
            audits,
            resumed_files: staging.resumed_files(),
            identity: serde_json::to_string(&staging.identity).expect("strings and numbers"),
            staging: Some(staging),
        }
    }

    /// The folder that holds the staged model.
    ///
    /// # Panics
    /// When the model is published or given up.
    pub fn path(&self) -> PathBuf {
        self.staging().path()
    }

    /// Whether an earlier run began to publish, so that files are in their place already.
    pub fn is_publishing(&self) -> bool {
        self.staging.as_ref().is_some_and(Staging::is_publishing)
    }

    fn staging(&self) -> &Staging {
        self.staging.as_ref().expect("neither published nor given up")
    }

    /// Renames every file into place. The last one, which makes the directory a model, only after
    /// all other names are durable.
    ///
    /// # Errors
    /// When the source is not what it was, or the system refuses; the same run, done again,
    /// finishes what was begun.
    pub fn publish(&mut self) -> Result<(), Error> {
        let staging = self.staging();
        staging.lock.check()?;
        if !staging.is_publishing() {
            for file in &self.plan.files {
                source::check(file)?;
            }
            staging.journal().publishing(&staging.replaced)?;
        }
        self.move_old_out()?;
        self.move_new_in()?;
        self.published = true;
        Ok(())
    }

    fn move_old_out(&self) -> Result<(), Error> {
        let staging = self.staging();
        let (staged, old) = (staging.path(), staging.old());
        let planned: HashSet<&PathBuf> = self.plan.files.iter().map(|file| &file.path).collect();
        let is_new = |path| planned.contains(path) && !staged.join(path).exists();
        let mut leaving: Vec<&PathBuf> =
            staging.replaced.iter().filter(|path| !is_new(*path)).collect();
        leaving.retain(|path| staging.dest.join(path).symlink_metadata().is_ok());
        // What makes it a model goes first, and each of those for good before anything else does.
        leaving.sort_by_key(|path| (!decides(path), path.components().count()));
        let mut directories = BTreeSet::new();
        for path in leaving {
            let to = old.join(path);
            fs::create_dirs(to.parent().unwrap_or(&old))?;
            // Only after a power cut took a run's unsynced files can there be an older one.
            fs::remove_file(&to)?;
            fs::rename(&staging.dest.join(path), &to)?;
            directories.insert(parent(&staging.dest, path));
            if decides(path) {
                self.sync_dirs(&directories)?;
            }
        }
        self.sync_dirs(&directories)
    }

    fn move_new_in(&self) -> Result<(), Error> {
        let staging = self.staging();
        let (dest, staged) = (&staging.dest, staging.path());
        let mut directories = BTreeSet::from([dest.clone()]);
        directories.extend(dest.parent().map(Path::to_owned));
        directories
            .extend(staging.created.iter().filter_map(|path| path.parent()).map(Path::to_owned));
        for (index, file) in self.plan.files.iter().enumerate() {
            let (from, to) = (staged.join(&file.path), dest.join(&file.path));
            directories.extend(file.path.ancestors().skip(1).map(|parent| dest.join(parent)));
            fs::create_dirs(&parent(dest, &file.path))?;
            if index + 1 == self.plan.files.len() {
                self.sync_dirs(&directories)?;
            }
            // One that is not there any more was renamed before this run went on.
            if from.exists() {
                fs::rename(&from, &to)?;
            }
        }
        self.sync_dirs(&directories)
    }

    /// Leaves the report and removes the staging folder.
    ///
    /// # Errors
    /// When the system refuses; the model is published all the same.
    pub fn finish(&mut self, report: &str) -> Result<(), Error> {
        let staging = self.staging();
        let (dest, temporary) = (staging.dest.clone(), staging.folder.join(REPORT));
        fs::remove_file(&temporary)?;
        let file = fs::create_with(&temporary, report.as_bytes())?;
        if self.sync {
            fs::sync_file(&file, &temporary, report.len() as u64, &|| false)?;
        }
        fs::rename(&temporary, &dest.join(REPORT))?;
        // The model is durable without it; but the staging folder may only go after the report.
        self.sync_dirs(&BTreeSet::from([dest.clone()]))?;
        for path in &staging.replaced {
            for folder in path.ancestors().skip(1).filter(|path| *path != Path::new("")) {
                fs::remove_empty_dir(&dest.join(folder));
            }
        }
        self.staging.take().map_or(Ok(()), Staging::remove)
    }

    /// Gives the staged model up: the destination is as it was before. Once publication has begun
    /// there is only one way, forward, and this leaves everything for the same run done again.
    ///
    /// # Errors
    /// When the system refuses to remove something.
    pub fn discard(&mut self) -> Result<(), Error> {
        self.staging.take().map_or(Ok(()), Staging::discard)
    }

    /// Gives the staged model up but leaves its files, for inspection, where no run takes them for
    /// a staged model; returns where that is.
    ///
    /// # Errors
    /// When the system refuses.
    ///
    /// # Panics
    /// When the model is published or given up.
    pub fn reject(&mut self) -> Result<PathBuf, Error> {
        self.staging.take().expect("neither published nor given up").reject()
    }

    /// Leaves the staged model where it is: the same run, done again, publishes it.
    pub fn leave(&mut self) {
        self.staging = None;
    }

    fn sync_dirs(&self, directories: &BTreeSet<PathBuf>) -> Result<(), Error> {
        if self.sync {
            for directory in directories {
                fs::sync_dir(directory)?;
            }
        }
        Ok(())
    }
}

fn parent(dest: &Path, path: &Path) -> PathBuf {
    path.parent().map_or_else(|| dest.to_owned(), |parent| dest.join(parent))
}

/// Whether a file of an old model is one without which it is none, or its report.
fn decides(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let whole = [REPORT, PIPELINE].map(Path::new).contains(&path);
    whole || name == "config.json" || index::is_index(&name)
}
