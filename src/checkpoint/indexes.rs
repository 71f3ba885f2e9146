//! What the indexes of a checkpoint, and the other files that list its parts, say of its shards.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::{Checkpoint, Kind, SourceFile};
use crate::error::Error;
use crate::format::index::Index;
use crate::format::json::MAX_CONFIG;
use crate::format::listing::{self, MODULES, PIPELINE};
use crate::format::safetensors::Shard;
use crate::place::read_small;
use crate::recognize::loaded::{self, Listing};
use crate::recognize::optimizer;
use crate::shown::Shown;

/// What was found while the shards were checked.
#[derive(Debug, Default)]
pub struct Findings {
    /// Those that loaders do not take when they are given the directory, as positions in
    /// [`Checkpoint::shards`].
    pub not_loaded: BTreeSet<usize>,
    /// Of each shard, the positions of the tensors that are optimizer state.
    pub state: Vec<BTreeSet<usize>>,
    /// Tensors that an index names and no shard has, because loaders make them of another one.
    pub tied: Vec<String>,
}

impl Checkpoint {
    /// Compares what the files that list shards and tensors say with those that are there.
    pub(super) fn check_shards(&mut self) -> Result<(), Error> {
        let stale: Vec<usize> = (0..self.files.len()).filter(|file| self.is_stale(*file)).collect();
        for file in stale {
            self.files[file].kind = Kind::StaleIndex;
        }
        self.findings.tied = self.check_indexes()?;
        self.findings.state =
            self.shards().map(|(file, shard)| state(file.path(), shard)).collect();
        if !self.single_file {
            self.findings.not_loaded = self.listing().not_loaded();
            self.check_numbers()?;
        }
        Ok(())
    }

    fn indexes(&self) -> impl Iterator<Item = (&SourceFile, &Index)> {
        self.files.iter().filter_map(|file| match &file.kind {
            Kind::Index(index) => Some((file, index)),
            _ => None,
        })
    }

    /// Whether a file is an index of shards that are not there, beside the single file that
    /// transformers looks for first. diffusers looks for the index first, so that there a missing
    /// shard means an incomplete download.
    fn is_stale(&self, file: usize) -> bool {
        let file = &self.files[file];
        let Kind::Index(index) = &file.kind else { return false };
        let name = file.path().file_name().unwrap_or_default().to_string_lossy();
        let is_there = |path: &Path| self.shards().any(|(shard, _)| shard.path() == path);
        let single = name.split(".index.").next().unwrap_or_default();
        single == "model.safetensors"
            && is_there(&file.path().with_file_name(single))
            && shards_of(file, index).iter().any(|shard| !is_there(shard))
    }

    /// Every tensor an index names must be in the shard it names; gives those that are in none,
    /// because loaders tie them to another one.
    fn check_indexes(&self) -> Result<Vec<String>, Error> {
        // Made once, because there may be many indexes, and only where there is one.
        let shards: LazyCell<HashMap<&Path, HashSet<&str>>, _> = LazyCell::new(|| {
            let named = self.shards().map(|(file, shard)| (file.path(), shard.names().collect()));
            named.collect()
        });
        let mut tied = Vec::new();
        for (file, index) in self.indexes() {
            // Also made once, and only where a tensor is not where it should be.
            let named: LazyCell<Vec<&HashSet<&str>>, _> = LazyCell::new(|| {
                let named = shards_of(file, index);
                named.iter().filter_map(|shard| shards.get(&**shard)).collect()
            });
            let may_tie = LazyCell::new(|| {
                self.may_tie(file) && loaded::has_embedding(named.iter().copied().flatten())
            });
            for (tensor, shard) in &index.weight_map {
                let held = shards.get(&*file.path().with_file_name(shard));
                if held.is_some_and(|names| names.contains(tensor.as_str())) {
                    continue;
                }
                let is_elsewhere = || named.iter().any(|names| names.contains(tensor.as_str()));
                if held.is_some() && loaded::is_tied(tensor) && *may_tie && !is_elsewhere() {
                    tied.push(tensor.shown());
                    continue;
                }
                let shard = index.stated(shard).to_owned();
                let (index, tensor) = (file.location.clone(), tensor.clone());
                return Err(match held {
                    None => Error::MissingShard { index, shard, tensor },
                    Some(_) => Error::MissingTensor { index, shard, tensor },
                });
            }
        }
        Ok(tied)
    }

    /// Whether no config in the folder of a file or above it says that nothing is tied.
    fn may_tie(&self, file: &SourceFile) -> bool {
        !self.models.iter().any(|model| model.unties && file.path().starts_with(&model.folder))
    }

    /// Of numbered shards that no index lists, every number must be there.
    fn check_numbers(&self) -> Result<(), Error> {
        let listed: BTreeSet<PathBuf> =
            self.indexes().flat_map(|(file, index)| shards_of(file, index)).collect();
        let shards = self.shards().enumerate();
        let shards = shards.filter(|(number, _)| !self.findings.not_loaded.contains(number));
        let paths = shards.map(|(_, (file, _))| file.path()).filter(|path| !listed.contains(*path));
        match loaded::missing_number(paths) {
            Some(path) => {
                let folder = self.place.name(path.parent().unwrap_or(Path::new("")));
                let shard = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Err(Error::MissingNumber { folder, shard })
            }
            None => Ok(()),
        }
    }

    fn listing(&self) -> Listing<'_> {
        let shards = self.shards().map(|(file, _)| file.path()).collect();
        let indexes =
            self.indexes().map(|(file, index)| (file.path(), shards_of(file, index))).collect();
        let mut listing = Listing { shards, indexes, ..Listing::default() };
        for file in &self.files {
            let (path, name) = (file.path(), file.path().file_name().unwrap_or_default());
            let folder = path.parent().unwrap_or(Path::new(""));
            if let Kind::Config(config) = &file.kind {
                let named = config.weights.iter().map(|file| plain(&folder.join(file)));
                listing.named.extend(named.map(|file| (folder.to_owned(), file)));
            }
            if name != PIPELINE && name != MODULES {
                continue;
            }
            // Whatever else is called so lists nothing.
            let bytes = read_small(&*self.place, path, MAX_CONFIG).unwrap_or_default();
            let text = String::from_utf8(bytes).unwrap_or_default();
            let parts = match name == PIPELINE {
                true => listing::components(&text),
                false => listing::modules(&text),
            };
            let mut parts: BTreeSet<PathBuf> =
                parts.iter().map(|part| plain(&folder.join(part))).collect();
            if !parts.is_empty() {
                listing.parts.entry(folder.to_owned()).or_default().append(&mut parts);
            }
        }
        listing
    }
}

/// A path without what names the folder it stands in.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

fn state(file: &Path, shard: &Shard) -> BTreeSet<usize> {
    let names: Vec<&str> = shard.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    optimizer::of(file, &names)
}

/// The paths of the shards that an index names.
fn shards_of(file: &SourceFile, index: &Index) -> BTreeSet<PathBuf> {
    let names: HashSet<&str> = index.weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
    names.into_iter().map(|shard| file.path().with_file_name(shard)).collect()
}
