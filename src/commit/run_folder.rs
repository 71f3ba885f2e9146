//! The folder of one run, wherever it is in `DEST/.recast`: the files, and notes about them.

use std::path::{Path, PathBuf};

use super::own_files::{not_ours, put, read_own};
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::report::Identity;

/// The most bytes of a note about a run that are read.
const LIMIT: u64 = 100_000_000;

const REPLACES: &str = "replaces";
const ABOUT: &str = "about.json";
const VERIFIED: &str = "verified.json";

#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    pub fn at(path: PathBuf) -> RunFolder {
        RunFolder { path }
    }

    /// Makes it, with all its folders and what must be known of the run.
    pub fn create(&self, about: &Identity, replaces: Digest) -> Result<(), Error> {
        let folders = [self.path.clone(), self.new_files(), self.seals(), self.old_files()];
        let made = folders.iter().try_for_each(|path| fs::create_dir(path));
        made.map_err(Error::create(&self.path))?;
        fs::create_with(&self.path.join(REPLACES), replaces.to_string().as_bytes())?;
        let text = serde_json::to_vec(about).expect("strings and numbers");
        fs::create_with(&self.path.join(ABOUT), &text).map(drop)
    }

    pub fn exists(&self) -> bool {
        matches!(fs::look(&self.path), Ok(Some(_)))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn new_files(&self) -> PathBuf {
        self.path.join("new")
    }

    pub fn seals(&self) -> PathBuf {
        self.path.join("seal")
    }

    pub fn old_files(&self) -> PathBuf {
        self.path.join("old")
    }

    /// What makes way, once that is decided.
    pub fn old_list(&self) -> PathBuf {
        self.path.join("old.list")
    }

    /// Makes sure that its folders are there, also where those that were empty were removed.
    pub fn check(&self) -> Result<(), Error> {
        match fs::look(&self.path).map_err(Error::io("read", &self.path))? {
            None => return Ok(()),
            Some(found) if !found.is_dir() => return Err(not_ours(&self.path)),
            Some(_) => {}
        }
        for path in [self.new_files(), self.seals(), self.old_files()] {
            match fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(not_ours(&path));
                }
                Err(error) if fs::is_missing(&error) => {}
                result => result.map_err(Error::create(&path))?,
            }
        }
        Ok(())
    }

    /// Fails when the way to the folder `below` the new model, or what of it is there, is a link.
    pub fn check_below(&self, below: &Path) -> Result<(), Error> {
        let path = self.new_files().join(below);
        match fs::leads_elsewhere(&self.new_files(), below).map_err(Error::io("read", &path))? {
            true => Err(not_ours(&path)),
            false => Ok(()),
        }
    }

    /// What the destination held when the run was set up, which is what it may replace; nothing
    /// where that is not whole.
    pub fn replaces(&self) -> Result<Option<Digest>, Error> {
        let text = read_own(&self.path.join(REPLACES), 64)?;
        Ok(text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
    }

    pub fn about(&self) -> Result<Option<Identity>, Error> {
        let text = read_own(&self.path.join(ABOUT), LIMIT)?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    pub fn verified(&self) -> Result<Option<String>, Error> {
        let text = read_own(&self.path.join(VERIFIED), LIMIT)?;
        let text = text.and_then(|text| String::from_utf8(text).ok());
        Ok(text.filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()))
    }

    pub fn note_verified(&self, found: &str) -> Result<(), Error> {
        put(&self.path.join(VERIFIED), found.as_bytes(), false).map(drop)
    }
}
