//! `DEST/.recast`, where everything is until it is published. A directory's name there says what
//! state it is in, and only a rename changes it:
//!
//! ```text
//! new-ID            being set up
//! run-HASH.ID       the staged files of a run
//! publish           the publication under way, with the HASH.ID it is of
//! rejected-ID       a model that failed its verification, until the next run
//! trash-ID          to be removed by anybody
//! ```

use std::path::{Path, PathBuf};

use super::own_files::{not_ours, unique};
use super::run_folder::RunFolder;
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::report::Identity;

pub const STAGING: &str = ".recast";

const PUBLISH: &str = "publish";
const LOCK: &str = "lock";

#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

#[derive(Debug, Default)]
pub struct Contents {
    pub runs: Vec<RunName>,
    pub publishing: Option<RunName>,
    trash: Vec<PathBuf>,
    /// What the next run removes.
    leftovers: Vec<PathBuf>,
}

/// The name of a run: what it makes, and which of the runs that do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunName {
    pub hash: Digest,
    text: String,
}

impl RunName {
    fn parse(text: &str) -> Option<RunName> {
        let (hash, id) = text.split_once('.')?;
        let hash = hash.parse().ok()?;
        let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| RunName { hash, text: text.to_owned() })
    }
}

/// Whether an error says that what it is about was moved away meanwhile.
pub fn is_gone(result: &Result<(), std::io::Error>) -> bool {
    matches!(result, Err(error) if fs::is_missing(error))
}

impl Folder {
    pub fn of(dest: &Path) -> Folder {
        Folder { path: dest.join(STAGING) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn create(&self) -> Result<(), Error> {
        fs::create_dir(&self.path).map_err(Error::create(&self.path))
    }

    pub fn look(&self) -> Result<Contents, Error> {
        let mut contents = Contents::default();
        match fs::look(&self.path).map_err(Error::io("read", &self.path))? {
            None => return Ok(contents),
            Some(found) if !found.is_dir() => return Err(not_ours(&self.path)),
            Some(_) => {}
        }
        for (name, kind) in fs::list(&self.path).map_err(Error::io("list", &self.path))? {
            let path = self.path.join(&name);
            let name = name.to_str().unwrap_or_default();
            let run = name.strip_prefix("run-").and_then(RunName::parse);
            if name == LOCK && kind.is_file() {
                continue;
            } else if !kind.is_dir() {
                return Err(not_ours(&path));
            } else if let Some(run) = run {
                contents.runs.push(run);
            } else if name == PUBLISH {
                contents.publishing = self.publishing()?;
            } else if name.starts_with("trash-") {
                contents.trash.push(path);
            } else if name.starts_with("new-") || name.starts_with("rejected-") {
                contents.leftovers.push(path);
            } else {
                return Err(not_ours(&path));
            }
        }
        Ok(contents)
    }

    fn publishing(&self) -> Result<Option<RunName>, Error> {
        let path = self.path.join(PUBLISH);
        let found = fs::list(&path).map_err(Error::io("list", &path))?;
        let Some((name, kind)) = found.first() else { return Ok(None) };
        let run = name.to_str().and_then(RunName::parse).filter(|_| kind.is_dir());
        run.map(Some).ok_or_else(|| not_ours(&path.join(name)))
    }

    pub fn run(&self, run: &RunName) -> RunFolder {
        RunFolder::at(self.path.join(format!("run-{}", run.text)).join(&run.text))
    }

    pub fn publication(&self, run: &RunName) -> RunFolder {
        RunFolder::at(self.path.join(PUBLISH).join(&run.text))
    }

    /// Sets a run up; its name, and whether the system makes sure that a rename replaces nothing.
    pub fn set_up(&self, about: &Identity, replaces: Digest) -> Result<(RunName, bool), Error> {
        let name = format!("{}.{}", about.run, unique());
        let outer = self.path.join(format!("new-{name}"));
        let inner = RunFolder::at(outer.join(&name));
        fs::create_dir(&outer).map_err(Error::create(&outer))?;
        inner.create(about, replaces)?;
        let run = self.path.join(format!("run-{name}"));
        let exclusive =
            fs::rename_new(&outer, &run).map_err(Error::io("rename into place", &run))?;
        Ok((RunName { hash: about.run, text: name }, exclusive))
    }

    /// Moves a run out of the way, for any process to remove; nothing when another one did.
    pub fn displace(&self, run: &RunName) -> Result<(), Error> {
        self.move_run(run, &self.path.join(format!("trash-{}", unique())))
    }

    /// Moves the files of a run where no run takes them for staged ones; gives where that is.
    pub fn reject(&self, run: &RunName) -> Result<PathBuf, Error> {
        let to = self.path.join(format!("rejected-{}", unique()));
        self.move_run(run, &to)?;
        Ok(RunFolder::at(to.join(&run.text)).new_files())
    }

    fn move_run(&self, run: &RunName, to: &Path) -> Result<(), Error> {
        let from = self.path.join(format!("run-{}", run.text));
        match fs::rename_new(&from, to) {
            Err(error) if fs::is_missing(&error) => Ok(()),
            result => result.map(drop).map_err(Error::io("move away", &from)),
        }
    }

    /// The one transition: from here on a run's files are being published, by whoever comes.
    ///
    /// # Errors
    /// What the system says: `NotFound` when another process moved the run away, `DirectoryNotEmpty` while
    /// another publication is under way.
    pub fn begin_publication(&self, run: &RunName) -> std::io::Result<()> {
        fs::rename_dir(&self.path.join(format!("run-{}", run.text)), &self.path.join(PUBLISH))
    }

    /// Ends the publication of a run: what is left of it may be removed by anybody.
    pub fn end_publication(&self, run: &RunName) -> Result<(), Error> {
        let trash = self.path.join(format!("trash-{}", unique()));
        fs::create_dir(&trash).map_err(Error::create(&trash))?;
        // By its own name, not by the one that the next publication has too.
        let from = self.publication(run).path().to_owned();
        let moved = fs::rename_new(&from, &trash.join(&run.text)).map(drop);
        fs::remove_empty_dir(&self.path.join(PUBLISH));
        if is_gone(&moved) { Ok(()) } else { moved.map_err(Error::io("move away", &from)) }
    }

    /// Removes what anybody may remove; with `leftovers` also what runs before this one left.
    /// Whoever comes next removes what cannot be removed now.
    pub fn sweep(&self, contents: &Contents, leftovers: bool) {
        for path in &contents.trash {
            let _ = fs::remove_tree(path);
        }
        for path in contents.leftovers.iter().filter(|_| leftovers) {
            // Moved first: one that is being set up would get its name while this removes it.
            let trash = self.path.join(format!("trash-{}", unique()));
            if fs::rename_new(path, &trash).is_ok() {
                let _ = fs::remove_tree(&trash);
            }
        }
    }

    pub fn remove_if_empty(&self) {
        if let Ok(contents) = self.look() {
            self.sweep(&contents, false);
        }
        // Of a run that was killed at its very end.
        fs::remove_empty_dir(&self.path.join(PUBLISH));
        fs::remove_empty_dir(&self.path);
    }

    /// Whether the system makes sure that a rename replaces nothing.
    pub fn renames_exclusively(&self) -> Result<bool, Error> {
        let (new, trash) =
            (self.path.join(format!("new-{}", unique())), format!("trash-{}", unique()));
        fs::create_dir(&new).map_err(Error::create(&new))?;
        let trash = self.path.join(trash);
        let exclusive = fs::rename_new(&new, &trash).map_err(Error::io("move away", &new))?;
        fs::remove_empty_dir(&trash);
        Ok(exclusive)
    }

    pub fn lock(&self) -> PathBuf {
        self.path.join(LOCK)
    }
}
