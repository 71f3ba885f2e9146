//! A checkpoint is a tree of files: shards, the indexes that name them, configs, weights in
//! other formats, and everything else. Opening reads headers and small JSON files, checks them
//! against each other, and touches no tensor data.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod files;
mod indexes;

use crate::error::Error;
use crate::format::config::Config;
use crate::format::index::Index;
use crate::format::json;
use crate::format::quantization::Quantization;
use crate::format::safetensors::{Pickled, Shard};
use crate::place::hub_cache::Snapshot;
use crate::place::local::Local;
use crate::place::{Place, Source, address, read_small};
use crate::recognize::component;
use crate::recognize::quantized::Quantized;
pub use indexes::Findings;

pub const REPORT: &str = "recast.json";

/// The file of the sums that recast can add to a result. A source's own are of other bytes.
pub const SUMS: &str = "SHA256SUMS";

pub const MAX_REPORT: u64 = json::MAX_INDEX;

#[derive(Debug)]
pub enum Kind {
    Shard(Arc<Shard>),
    Index(Index),
    Config(Config),
    /// Weights in another format, or their index: the old dtype.
    OtherWeights,
    /// An index of shards that are not there, beside the file that loaders take instead of them:
    /// saving a model again in one file leaves the index of an earlier save.
    StaleIndex,
    /// A file that says how weights are quantized, and nothing else.
    Sidecar(Quantization),
    /// The settings of sentence-transformers, which may state a dtype, or Mistral's.
    Settings(Config),
    /// A tokenizer, a readme, code: copied as it is.
    Plain,
}

#[derive(Debug)]
pub struct SourceFile {
    /// What a recipe says of it; the key is its path below the root, or, for a checkpoint of one
    /// file, its name.
    pub source: Source,
    /// What it becomes: a pickle becomes a safetensors file, everything else keeps its path.
    pub result: PathBuf,
    pub location: PathBuf,
    pub executable: bool,
    pub kind: Kind,
}

impl SourceFile {
    /// Where it is in the result.
    pub fn path(&self) -> &Path {
        &self.result
    }
}

#[derive(Debug)]
pub struct Checkpoint {
    /// The path that was opened; where that was the folder of a repository in a Hub cache, the
    /// snapshot in it.
    pub root: PathBuf,
    /// Which snapshot that is, and why it was chosen.
    pub snapshot: Option<String>,
    pub single_file: bool,
    /// Which of the state dicts of a pickle is the model, where that was said.
    pub key: Option<String>,
    pub place: Arc<dyn Place>,
    pub files: Vec<SourceFile>,
    /// What the configs call the models.
    pub models: Vec<Model>,
    /// What files say of quantization.
    pub labels: Vec<Label>,
    /// What the files that list shards and tensors say of them.
    pub findings: Findings,
    /// What the tensors say of quantization; the shards have the order of [`Checkpoint::shards`].
    pub quantized: Quantized,
}

/// What a config calls the model in its folder and below.
#[derive(Debug)]
pub struct Model {
    pub folder: PathBuf,
    pub model_types: Vec<String>,
    pub class_names: Vec<String>,
    /// Whether it says that embeddings are not tied.
    pub unties: bool,
}

/// A file that says that weights are quantized.
#[derive(Debug)]
pub struct Label {
    pub path: PathBuf,
    pub location: PathBuf,
    /// The key or the name that says so, and the method where it names one.
    pub says: String,
    pub quantization: Quantization,
}

impl Label {
    /// Whether it is about a shard: its own, or one in its folder or below.
    pub fn covers(&self, file: &SourceFile) -> bool {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        match self.path.extension() {
            Some(extension) if extension == "safetensors" => self.path == file.path(),
            _ => file.path().starts_with(folder),
        }
    }
}

impl Checkpoint {
    /// Opens a file or a directory; `key` says which state dict of a pickle is the model.
    ///
    /// # Errors
    /// What is missing, damaged, or does not belong together.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Checkpoint, Error> {
        address::check_local(path, address::Use::Read)?;
        let metadata = crate::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => address::missing(path),
            _ => Error::io("open", path)(error),
        })?;
        if !metadata.is_dir() {
            return Checkpoint::open_place(Arc::new(Local::file(path)?), path, true, key);
        }
        let snapshot = Snapshot::of(path)?;
        let path = snapshot.as_ref().map_or(path, |snapshot| &snapshot.path);
        let mut checkpoint =
            Checkpoint::open_place(Arc::new(Local::directory(path)?), path, false, key)?;
        checkpoint.snapshot = snapshot.map(|snapshot| snapshot.choice);
        Ok(checkpoint)
    }

    /// Opens what is in a place; `root` is its name for messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_place(
        place: Arc<dyn Place>,
        root: &Path,
        single_file: bool,
        key: Option<&str>,
    ) -> Result<Checkpoint, Error> {
        let mut checkpoint = Checkpoint {
            root: root.to_owned(),
            snapshot: None,
            single_file,
            key: key.map(str::to_owned),
            place,
            files: Vec::new(),
            models: Vec::new(),
            labels: Vec::new(),
            findings: Findings::default(),
            quantized: Quantized::default(),
        };
        let keys = checkpoint.place.list()?;
        let describes = |key: &PathBuf| [REPORT, SUMS].map(Path::new).contains(&key.as_path());
        let pickles = files::Pickles::of(&*checkpoint.place, &keys, single_file, key)?;
        for key in keys.iter().filter(|key| single_file || !describes(key)) {
            let file = files::read(&*checkpoint.place, key, &pickles)?;
            checkpoint.note_file(&file);
            checkpoint.files.push(file);
        }
        if single_file {
            // The config beside a lone shard is not part of the job, but it still knows the model.
            for name in ["config.json"].iter().chain(&files::SIDECARS) {
                checkpoint.note_beside(Path::new(name), &pickles)?;
            }
        }
        if checkpoint.shards().next().is_none() {
            let mut other = checkpoint.files.iter();
            let other_weights = other.find(|file| matches!(file.kind, Kind::OtherWeights));
            return Err(Error::NoShards {
                path: checkpoint.root.clone(),
                other_weights: other_weights.map(|file| file.path().to_owned()),
            });
        }
        let is_pickled = checkpoint.shards().any(|(_, shard)| shard.pickled.is_some());
        if let (false, Some(key)) = (is_pickled, key) {
            return Err(Error::NoPickle { path: checkpoint.root, key: key.to_owned() });
        }
        let quantized = checkpoint.recognize();
        let has_tied = checkpoint.untie(&quantized);
        checkpoint.quantized = if has_tied { checkpoint.recognize() } else { quantized };
        checkpoint.check_shards()?;
        Ok(checkpoint)
    }

    fn recognize(&self) -> Quantized {
        let shards: Vec<(String, &Shard)> =
            self.shards().map(|(file, shard)| (component(file.path()), &**shard)).collect();
        let shards: Vec<(&str, &Shard)> =
            shards.iter().map(|(component, shard)| (component.as_str(), *shard)).collect();
        Quantized::of(&shards)
    }

    /// Leaves out what is the memory of another tensor in a pickle; whether there was any. Codes and
    /// scales stay: the same codes are other values with other scales, and each weight needs its own.
    fn untie(&mut self, quantized: &Quantized) -> bool {
        let mut number = 0;
        let mut has_any = false;
        for file in &mut self.files {
            let Kind::Shard(shard) = &mut file.kind else { continue };
            let position = number;
            number += 1;
            if shard.pickled.as_ref().is_none_or(|pickled| pickled.tied.is_empty()) {
                continue;
            }
            has_any = true;
            let parts: HashSet<String> = (0..shard.tensors.len())
                .filter(|tensor| quantized.part((position, *tensor)).is_some())
                .map(|tensor| shard.tensors[tensor].name.clone())
                .collect();
            let shard = Arc::make_mut(shard);
            let Shard { tensors, pickled: Some(Pickled { tied, .. }), .. } = shard else {
                continue;
            };
            tied.retain(|(name, kept)| !parts.contains(name) && !parts.contains(kept));
            let is_tied = |name: &String| tied.binary_search_by(|(it, _)| it.cmp(name)).is_ok();
            tensors.retain(|tensor| !is_tied(&tensor.name));
        }
        has_any
    }

    pub fn shards(&self) -> impl Iterator<Item = (&SourceFile, &Arc<Shard>)> {
        self.files.iter().filter_map(|file| match &file.kind {
            Kind::Shard(shard) => Some((file, shard)),
            _ => None,
        })
    }

    /// The shards that loaders do not take when they are given the directory.
    pub fn not_loaded(&self) -> impl Iterator<Item = &Path> {
        let shards = self.shards().enumerate();
        let left = shards.filter(|(number, _)| self.findings.not_loaded.contains(number));
        left.map(|(_, (file, _))| file.path())
    }

    /// Whether a tensor is optimizer state: the number of its shard, and its position there.
    pub fn is_state(&self, (shard, tensor): (usize, usize)) -> bool {
        self.findings.state.get(shard).is_some_and(|state| state.contains(&tensor))
    }

    fn note_beside(&mut self, key: &Path, pickles: &files::Pickles<'_>) -> Result<(), Error> {
        match self.place.look(key) {
            Ok(_) => {}
            // A folder of that name is not a config.
            Err(Error::NoSuchPath { .. } | Error::LinkToDirectory { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let file = files::read(&*self.place, key, pickles)?;
        self.note_file(&file);
        Ok(())
    }

    /// Notes what a file says of models and of quantization.
    fn note_file(&mut self, file: &SourceFile) {
        match &file.kind {
            Kind::Config(config) => self.note(file.path(), &file.location, config),
            Kind::Shard(shard) => {
                let says = shard.quantization().next();
                let says = says.map(|key| format!("{key} in its metadata"));
                let words = shard.quantization().map(str::to_owned).collect();
                let quantization = Quantization { words, ..Quantization::default() };
                self.label(file.path(), &file.location, says, quantization);
            }
            Kind::Settings(config) => {
                let (says, quantization) = (&config.quantized, &config.quantization);
                let (says, quantization) = (says.clone(), quantization.clone());
                self.label(file.path(), &file.location, says, quantization);
            }
            Kind::Sidecar(quantization) => {
                let says = "which is written for quantized weights".to_owned();
                let quantization = quantization.clone();
                self.label(file.path(), &file.location, Some(says), quantization);
            }
            _ => {}
        }
    }

    fn note(&mut self, path: &Path, location: &Path, config: &Config) {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let (model_types, class_names) = (config.model_types.clone(), config.class_names.clone());
        self.models.push(Model { folder, model_types, class_names, unties: config.unties });
        let (says, quantization) = (config.quantized.clone(), config.quantization.clone());
        self.label(path, location, says, quantization);
    }

    fn label(
        &mut self,
        path: &Path,
        location: &Path,
        says: Option<String>,
        quantization: Quantization,
    ) {
        let (path, location) = (path.to_owned(), location.to_owned());
        self.labels.extend(says.map(|says| Label { path, location, says, quantization }));
    }

    /// The report of the conversion that made the checkpoint, as it stands there; nothing where
    /// there is none that may be read.
    pub fn report(&self) -> Option<Vec<u8>> {
        let key = Path::new(REPORT);
        if self.single_file {
            return None;
        }
        self.place.look(key).ok()?;
        read_small(&*self.place, key, MAX_REPORT).ok()
    }
}
