//! Staged files: each is written as a part, sealed, and renamed to its name. Two runs that make the
//! same file are harmless: the first seal is the one, and the second run's bytes are the same or
//! the source changed in between.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::own_files::{part_of, put};
use super::run_folder::RunFolder;
use super::seal::Seal;
use crate::error::Error;
use crate::fs;
use crate::held;
use crate::make::{Made, Sink, Sinks, check};
use crate::place::Access;
use crate::plan::{Plan, PlannedFile};

/// A file of at most so many bytes is written at once, so that nothing is gained by reserving room.
const WRITTEN_AT_ONCE: u64 = 1 << 20;

pub struct Stage<'a> {
    plan: &'a Plan,
    folder: RunFolder,
    sync: bool,
    /// How sources are read again, and whether what is written stays in the system's memory.
    access: Access,
    /// Of each file its seal, once it is known to be there and to be that of the source as it is.
    seals: Mutex<Vec<Option<Arc<Seal>>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Right, as far as they are there.
    Right,
    /// The same, but a source had other marks and was read: what was looked at before it need not
    /// be of the same moment.
    Touched,
    /// Made from a source that was another one, or not all there.
    Stale,
}

impl<'a> Stage<'a> {
    /// The files that a folder holds of a plan, nothing of which is known yet.
    pub fn new(plan: &'a Plan, folder: RunFolder, sync: bool, access: Access) -> Stage<'a> {
        Stage { plan, folder, sync, access, seals: Mutex::new(vec![None; plan.files.len()]) }
    }

    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    pub fn missing(&self) -> Vec<usize> {
        let seals = held(&self.seals);
        (0..seals.len()).filter(|number| seals[*number].is_none()).collect()
    }

    pub fn seals(&self) -> Vec<Arc<Seal>> {
        held(&self.seals).iter().flatten().cloned().collect()
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.new_files().join(&self.plan.files[number].path)
    }

    fn seal_path(&self, number: usize) -> PathBuf {
        self.folder.seals().join(number.to_string())
    }

    /// Looks at what is staged: what of it is whole, and made from the source as it is now. What is
    /// not whole is removed, to be made again. `read` is told of bytes that had to be read for that,
    /// and stops it by returning `false`.
    pub fn look(&self, read: &dyn Fn(u64) -> bool) -> Result<State, Error> {
        self.folder.check()?;
        for folder in self.folders() {
            self.folder.check_below(folder)?;
        }
        let mut state = State::Right;
        for (number, file) in self.plan.files.iter().enumerate() {
            let known = held(&self.seals)[number].clone();
            // In this order: a file is never there without its seal, but a seal without its file.
            let is_whole = self.is_whole(number, file)?;
            let found = match (is_whole, known) {
                (true, None) => match self.read_seal(number)? {
                    Some(seal) => Some(Arc::new(seal)),
                    None => return Ok(State::Stale),
                },
                (true, known) => known,
                (false, _) => None,
            };
            let Some(mut seal) = found else {
                held(&self.seals)[number] = None;
                continue;
            };
            if !self.is_durable(number, &seal)? {
                return Ok(State::Stale);
            }
            for index in 0..seal.sources.len() {
                let (marks, digest) = &seal.sources[index];
                let key = &file.recipe.sources[index].key;
                if self.plan.place.look(key)?.marks == *marks {
                    continue;
                }
                // Other marks need not mean other bytes; only reading tells.
                let (now, is) =
                    check::source(&*self.plan.place, &file.recipe, index, self.access, read)?;
                if is != *digest {
                    return Ok(State::Stale);
                }
                Arc::make_mut(&mut seal).sources[index].0 = now;
                state = State::Touched;
            }
            held(&self.seals)[number] = Some(seal);
        }
        Ok(state)
    }

    fn folders(&self) -> std::collections::BTreeSet<&Path> {
        self.plan.files.iter().map(|file| file.path.parent().unwrap_or(Path::new(""))).collect()
    }

    /// Whether a file is there with the length it must have. One that is there otherwise goes.
    fn is_whole(&self, number: usize, file: &PlannedFile) -> Result<bool, Error> {
        let path = self.path(number);
        match fs::look(&path).map_err(Error::io("read", &path))? {
            None => Ok(false),
            Some(found) if found.is_file() && found.len() == file.bytes => Ok(true),
            Some(_) => {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                Ok(false)
            }
        }
    }

    /// The seal of a file that is there; nothing where a power cut left none that is whole. That is
    /// not repaired, because another process may be about to repair it too.
    fn read_seal(&self, number: usize) -> Result<Option<Seal>, Error> {
        let (file, audited) = (&self.plan.files[number], |file: &PlannedFile| {
            file.recipe.spans.iter().filter(|span| span.is_audited()).count()
        });
        let found = Seal::read(&self.seal_path(number))?.flatten().filter(|seal| {
            seal.sources.len() == file.recipe.sources.len() && seal.audits.len() == audited(file)
        });
        Ok(found)
    }

    /// Whether a file will be there after a power cut, where that is asked for; one that was written
    /// since this start of the machine can still be synced.
    fn is_durable(&self, number: usize, seal: &Seal) -> Result<bool, Error> {
        let Some(boot) = &seal.unsynced else { return Ok(true) };
        if boot.is_empty() || *boot != fs::boot() {
            return Ok(false);
        }
        if self.sync {
            let path = self.path(number);
            let file = fs::open(&path).map_err(Error::io("open", &path))?;
            fs::sync_file(&file, &path, self.plan.files[number].bytes, &|| false)?;
        }
        Ok(true)
    }

    /// Removes parts that no process writes any more, which would need their space twice.
    pub fn remove_dead_parts(&self) {
        for folder in self.folders() {
            let folder = self.folder.new_files().join(folder);
            for (name, kind) in fs::list(&folder).unwrap_or_default() {
                let path = folder.join(&name);
                let is_part = name.as_os_str().as_encoded_bytes().ends_with(b".part");
                let is_planned =
                    || (0..self.plan.files.len()).any(|number| self.path(number) == path);
                if kind.is_file() && is_part && !is_planned() && fs::is_unlocked(&path) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }

    /// Puts a file that describes the others among them, unless an equal run did.
    pub fn put(
        &self,
        name: &str,
        write: &dyn Fn(&mut dyn std::io::Write) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let path = self.folder.new_files().join(name);
        let part = part_of(&path);
        let mut out = Writing { file: fs::create_new(&part, false)?, path: &part, at: 0 };
        let mut buffered = std::io::BufWriter::with_capacity(1 << 20, &mut out);
        let written = write(&mut buffered).and_then(|()| std::io::Write::flush(&mut buffered));
        written.map_err(Error::io("write", &part))?;
        drop(buffered);
        if self.sync {
            fs::sync_file(&out.file, &part, out.at, &|| false)?;
        }
        self.rename(&part, &path)
    }

    /// Gives a part its name, unless an equal run was faster.
    fn rename(&self, part: &Path, path: &Path) -> Result<(), Error> {
        match fs::rename_new(part, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(part).map_err(Error::io("remove", part))?;
                // Whoever put it there need not have made it durable.
                let file = fs::open(path).map_err(Error::io("open", path))?;
                if self.sync { fs::sync_file(&file, path, 0, &|| false) } else { Ok(()) }
            }
            result => result.map(drop).map_err(Error::io("rename into place", path)),
        }
    }

    pub fn sync_names(&self) -> Result<(), Error> {
        if !self.sync {
            return Ok(());
        }
        let new = self.folder.new_files();
        let folders = self.plan.files.iter().flat_map(|file| file.path.ancestors().skip(1));
        let folders: std::collections::BTreeSet<&Path> = folders.collect();
        for folder in folders {
            fs::sync_dir(&new.join(folder))?;
        }
        let own = self.folder.path();
        [Some(own), own.parent()].into_iter().flatten().try_for_each(fs::sync_dir)
    }
}

struct Writing<'a> {
    file: File,
    path: &'a Path,
    at: u64,
}

impl std::io::Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match fs::write_at(&self.file, self.path, bytes, self.at) {
            Err(Error::Io { source, .. } | Error::Full { source, .. }) => return Err(source),
            result => result.map_err(std::io::Error::other)?,
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub struct Part {
    file: File,
    path: PathBuf,
    sync: bool,
    once: bool,
}

impl Sink for Part {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        if self.once {
            return fs::write_once_at(&self.file, &self.path, bytes, offset);
        }
        fs::write_at(&self.file, &self.path, bytes, offset)?;
        if self.sync {
            fs::start_writeback(&self.file, offset, bytes.len() as u64);
        }
        Ok(())
    }
}

impl Sinks for Stage<'_> {
    type Sink = Part;

    fn create(&self, number: usize) -> Result<Part, Error> {
        let planned = &self.plan.files[number];
        let folder = planned.path.parent().unwrap_or(Path::new(""));
        let path = part_of(&self.path(number));
        fs::create_dirs(&self.folder.new_files(), folder).map_err(Error::create(&path))?;
        let file = fs::create_new(&path, planned.executable)?;
        // Tells processes that clean up that this part is being written.
        let _ = file.try_lock();
        if planned.bytes > WRITTEN_AT_ONCE {
            fs::reserve(&file, planned.bytes);
        }
        Ok(Part { file, path, sync: self.sync, once: self.access == Access::Once })
    }

    fn finish(
        &self,
        number: usize,
        part: Part,
        made: Made,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let (planned, path) = (&self.plan.files[number], self.path(number));
        if self.sync {
            fs::sync_file(&part.file, &part.path, planned.bytes, stopped)?;
        }
        if part.once {
            fs::let_go_of(&part.file, 0, planned.bytes);
        }
        let (seal, seal_path) = (Seal::new(made, self.sync), self.seal_path(number));
        if !put(&seal_path, &seal.text(), self.sync)? {
            // Somebody made it of another state of the source, or a power cut left half a seal.
            let agrees = |there: &Seal| there.agrees(&seal);
            if !Seal::read(&seal_path)?.flatten().as_ref().is_some_and(agrees) {
                return Err(Error::Stale);
            }
        }
        self.rename(&part.path, &path)?;
        held(&self.seals)[number] = Some(Arc::new(seal));
        Ok(())
    }
}
