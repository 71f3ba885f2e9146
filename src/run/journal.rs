//! The journal of a run, `DEST/.recast/journal`: what the run is, which files are staged whole,
//! and whether publication has begun. A line each, so that a torn last one harms no other.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::lock::boot;
use super::{FileAudits, held as lock};
use crate::error::Error;
use crate::fs;

const NAME: &str = "journal";

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// The first: what the run is.
    Run { identity: Identity },
    /// The file at this position of the plan is staged, whole and durable; or, when `boot` names
    /// this start of the machine, whole until the next.
    Staged { file: usize, boot: Option<String>, audits: FileAudits },
    /// The first rename may have happened; these files of an old model make way.
    /// A name that is not UTF-8 is not told exactly; what is on disk tells it again.
    Publishing { replaced: Vec<String> },
}

/// What a journal says.
#[derive(Debug)]
pub struct Record {
    /// What the run is.
    pub identity: Identity,
    /// For every file of the plan, when it is staged, what the casts did to its tensors.
    pub staged: Vec<Option<FileAudits>>,
    /// When publication has begun, the files of an old model that make way.
    pub publishing: Option<Vec<PathBuf>>,
}

impl Record {
    /// What the journal in a staging folder says; nothing when there is none, or none that could
    /// be written to its first line's end. A run that syncs does not rely on files that an earlier
    /// one did not.
    pub fn read(staging: &Path, sync: bool) -> Result<Option<Record>, Error> {
        let path = staging.join(NAME);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(Error::io("read", &path))?,
        };
        // A line that does not parse was torn when its run died; what it said is done again.
        let mut lines = bytes.split(|byte| *byte == b'\n').map(serde_json::from_slice::<Line>);
        let Some(Ok(Line::Run { identity })) = lines.next() else { return Ok(None) };
        let staged = vec![None; identity.files.len()];
        let mut record = Record { identity, staged, publishing: None };
        let here = boot();
        let holds = |boot: &Option<String>| match boot {
            None => true,
            Some(boot) => !sync && !boot.is_empty() && *boot == here,
        };
        for line in lines.flatten() {
            match line {
                Line::Run { .. } => {}
                Line::Staged { file, boot, audits } => {
                    if let (Some(slot), true) = (record.staged.get_mut(file), holds(&boot)) {
                        *slot = Some(audits);
                    }
                }
                Line::Publishing { replaced } => {
                    record.publishing = Some(replaced.into_iter().map(PathBuf::from).collect());
                }
            }
        }
        Ok(Some(record))
    }
}

/// A journal being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    sync: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Nothing once the run is over.
    file: Option<File>,
    /// The place for the next line.
    end: u64,
    staged: HashSet<usize>,
    publishing: bool,
}

impl Journal {
    /// A new journal in a staging folder that has none.
    pub fn create(staging: &Path, identity: &Identity, sync: bool) -> Result<Journal, Error> {
        let path = staging.join(NAME);
        let first = line(&Line::Run { identity: identity.clone() });
        let file = fs::create_with(&path, &first)?;
        if sync {
            fs::sync_file(&file, &path, 0, &|| false)?;
            fs::sync_dir(staging)?;
        }
        let (file, end) = (Some(file), first.len() as u64);
        let state = State { file, end, staged: HashSet::new(), publishing: false };
        Ok(Journal { path, sync, state: Mutex::new(state) })
    }

    /// The journal in a staging folder, which says `record`, to write more into it. `resumed` is
    /// what of it still holds.
    pub fn open(
        staging: &Path,
        sync: bool,
        record: &Record,
        resumed: &[Option<FileAudits>],
    ) -> Result<Journal, Error> {
        let path = staging.join(NAME);
        let file = fs::open_own(&path)?;
        let bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        // The last line may be torn; what follows starts a new one.
        fs::write_at(&file, &path, b"\n", bytes)?;
        let (file, end) = (Some(file), bytes + 1);
        let staged = (0..resumed.len()).filter(|index| resumed[*index].is_some()).collect();
        let state = State { file, end, staged, publishing: record.publishing.is_some() };
        Ok(Journal { path, sync, state: Mutex::new(state) })
    }

    /// Removes the journal of a staging folder.
    pub fn remove(staging: &Path) -> Result<(), Error> {
        fs::remove_file(&staging.join(NAME))
    }

    /// Whether it notes anything that the same run, done again, would not have to do.
    pub fn has_work(&self) -> bool {
        let state = lock(&self.state);
        state.publishing || !state.staged.is_empty()
    }

    /// Whether it notes that a file is staged.
    pub fn has(&self, file: usize) -> bool {
        lock(&self.state).staged.contains(&file)
    }

    /// Whether publication has begun.
    pub fn is_publishing(&self) -> bool {
        lock(&self.state).publishing
    }

    /// Notes that a file is staged. Not synced: a line that a power cut takes costs work, no more.
    pub fn staged(&self, file: usize, audits: &FileAudits) -> Result<(), Error> {
        let boot = if self.sync { None } else { Some(boot()) };
        let text = line(&Line::Staged { file, boot, audits: audits.clone() });
        let mut state = lock(&self.state);
        if state.append(&self.path, &text)?.is_some() {
            state.staged.insert(file);
        }
        Ok(())
    }

    /// Notes that publication begins.
    pub fn publishing(&self, replaced: &[PathBuf]) -> Result<(), Error> {
        let replaced = replaced.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let text = line(&Line::Publishing { replaced });
        let mut state = lock(&self.state);
        // From here on, also when noting it fails: what the line says may be on the disk.
        state.publishing = true;
        match state.append(&self.path, &text)? {
            Some(file) if self.sync => fs::sync_file(file, &self.path, 0, &|| false),
            _ => Ok(()),
        }
    }

    /// Notes nothing more: threads of a run that was stopped may still come to their end, when the
    /// journal is another run's.
    pub fn close(&self) {
        lock(&self.state).file = None;
    }
}

impl State {
    /// Adds a line and gives the file; nothing, and adds none, once the run is over.
    fn append(&mut self, path: &Path, text: &[u8]) -> Result<Option<&File>, Error> {
        if let Some(file) = &self.file {
            fs::write_at(file, path, text, self.end)?;
            self.end += text.len() as u64;
        }
        Ok(self.file.as_ref())
    }
}

fn line(entry: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(entry).expect("strings, numbers and lists");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Float;
    use crate::plan::Plan;
    use crate::run::OnOverflow;

    #[test]
    fn a_journal_that_is_closed_notes_nothing_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = Plan {
            source: "model".into(),
            single_file: false,
            to: Float::Bf16,
            keep: vec![],
            auto_keep: true,
            files: vec![],
            warnings: vec![],
        };
        let identity = Identity::new(&plan, OnOverflow::Error);
        let journal = Journal::create(folder.path(), &identity, false).expect("created");
        let before = std::fs::read(folder.path().join(NAME)).expect("read");
        journal.close();
        journal.staged(0, &vec![]).expect("ignored");
        assert!(!journal.has(0) && !journal.has_work());
        assert_eq!(std::fs::read(folder.path().join(NAME)).expect("read"), before);
    }
}
