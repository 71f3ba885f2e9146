//! One error enum. A variant holds what went wrong; `Display` says what happened and to which
//! file and tensor, `hint` says the way out, `class` says which Python exception it becomes.

use std::path::{Path, PathBuf};

use thiserror::Error as ThisError;

use crate::cast::level::VARIABLE;
use crate::shown::{Shown, shown_all};

/// Everything that can go wrong in recast.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// `RECAST_SIMD` names no level this CPU runs.
    #[error("{VARIABLE}={}: no such instruction set on this machine", name.shown())]
    NoSuchLevel { name: String, available: String },
    /// A dtype recast does not cast to.
    #[error("'{}' is not a dtype recast casts to", name.shown())]
    NoSuchDtype { name: String },
    /// An overflow policy that does not exist.
    #[error("'{}' is not an overflow policy", name.shown())]
    NoSuchPolicy { name: String },
    /// A way to read files that does not exist.
    #[error("'{}' is not a way to read files", name.shown())]
    NoSuchIo { name: String },
    /// A `--keep` pattern that does not parse.
    #[error("--keep '{}': {}", pattern.shown(), shown_all(reason.lines(), "\n"))]
    BadPattern { pattern: String, reason: String },
    /// A `--keep` pattern that matches no tensor.
    #[error("--keep '{}' matches no tensor", pattern.shown())]
    UnmatchedPattern { pattern: String, instead: Option<String>, nearest: Vec<String> },
    /// An address that is not a path on this machine.
    #[error("{}: '{}://' is not supported; recast reads and writes local paths", path.shown(), scheme.shown())]
    NotLocal { path: PathBuf, scheme: String, hint: String },
    /// The source does not exist.
    #[error("{}: no such file or directory", path.shown())]
    NoSuchPath { path: PathBuf, download: Option<String> },
    /// The folder of a repository in a Hub cache that has no snapshot.
    #[error("{}: is a repository of a Hub cache that has no snapshot", path.shown())]
    NoSnapshot { path: PathBuf },
    /// The folder of a repository in a Hub cache with several snapshots.
    #[error("{}: is a repository of a Hub cache with {count} snapshots, and refs/main names none of them: {}{}", path.shown(), shown_all(snapshots, ", "), if *count > snapshots.len() { ", ..." } else { "" })]
    ManySnapshots { path: PathBuf, count: usize, snapshots: Vec<String> },
    /// A whole Hub cache.
    #[error("{}: is a Hub cache, which holds repositories and is not a model itself", path.shown())]
    HubCache { path: PathBuf, repository: String },
    /// There is nothing to convert.
    #[error("{}: no .safetensors file found", path.shown())]
    NoShards { path: PathBuf, other_weights: Option<PathBuf> },
    /// A file that is neither a regular file nor a directory, or a link to a directory.
    #[error("{}: is {what}", path.shown())]
    NotRegular { path: PathBuf, what: &'static str },
    /// A link that leads out of the source.
    #[error("{}: is a link to {}, which is outside the model", path.shown(), target.shown())]
    Link { path: PathBuf, target: PathBuf },
    /// A safetensors header that breaks the format's rules.
    #[error("{}: not a valid safetensors file: {}", path.shown(), reason.shown())]
    Header { path: PathBuf, reason: String },
    /// What `git clone` leaves in the place of weights when Git LFS is not installed.
    #[error("{}: is a Git LFS pointer, a small text that stands for the weights", path.shown())]
    LfsPointer { path: PathBuf },
    /// A config or an index that is not the JSON it should be.
    #[error("{}: {}", path.shown(), reason.shown())]
    Json { path: PathBuf, reason: String },
    /// An index that sends a tensor to a file outside its own directory.
    #[error("{}: tensor '{}' is mapped to '{}', which is not a plain file name", index.shown(), tensor.shown(), shard.shown())]
    ShardPath { index: PathBuf, tensor: String, shard: String },
    /// An index that names a shard which is not there.
    #[error("{}: there is no safetensors file '{}', which should hold tensor '{}'", index.shown(), shard.shown(), tensor.shown())]
    MissingShard { index: PathBuf, shard: String, tensor: String },
    /// An index that names a tensor its shard does not hold.
    #[error("{}: shard '{}' does not hold tensor '{}'", index.shown(), shard.shown(), tensor.shown())]
    MissingTensor { index: PathBuf, shard: String, tensor: String },
    /// A checkpoint of packed or scaled tensors.
    #[error("{}: the checkpoint is quantized (quantization_config, method '{}'): its packed tensors and scales belong together, and casting the scales alone would change the model", path.shown(), method.shown())]
    Quantized { path: PathBuf, method: String },
    /// A destination that recast will not write into.
    #[error("{}: {reason}", path.shown())]
    Destination { path: PathBuf, reason: &'static str, hint: &'static str },
    /// A destination with another run's result, or what it began.
    #[error("{}: holds {} another conversion:\n  {}", path.shown(), if *finished { "the result of" } else { "what was begun of" }, shown_all(differences, "\n  "))]
    Mismatch { path: PathBuf, finished: bool, differences: Vec<String> },
    /// A file in the destination that is not part of a model recast knows.
    #[error("{}: is in the destination, and neither the old model's nor the new one's", path.shown())]
    Stranger { path: PathBuf },
    /// A finished result that is not what it was.
    #[error("{}: is missing or not as recast left it", path.shown())]
    Damaged { path: PathBuf },
    /// Another run is at work on the destination, on a file system where two would do harm.
    #[error("{}: another recast is writing there, and this file system has room for one at a time", path.shown())]
    Busy { path: PathBuf },
    /// Another run put another model there since this one began.
    #[error("{}: was changed by somebody else since this run began", path.shown())]
    Replaced { path: PathBuf },
    /// Others change the destination faster than this run can look at it.
    #[error("{}: other runs keep changing it", path.shown())]
    Contended { path: PathBuf },
    /// Something in recast's own folder that it does not put there.
    #[error("{}: is not what recast leaves there", path.shown())]
    NotOurs { path: PathBuf },
    /// A staged file that was there is there no more.
    #[error("{}: cannot be published, because its staged file is gone", path.shown())]
    Lost { path: PathBuf },
    /// What is staged is of another state of the source; never leaves the crate.
    #[error("what is staged was made from another state of the source")]
    Stale,
    /// A directory that no report says anything of.
    #[error("{}: there is no report of a conversion that can be read", path.shown())]
    NoReport { path: PathBuf },
    /// There is no thread to work on.
    #[error("cannot start a thread: {source}")]
    NoThreads { source: std::io::Error },
    /// The result does not fit.
    #[error("{}: the result needs {needed} bytes more, and {free} are free", path.shown())]
    NoSpace { path: PathBuf, needed: u64, free: u64 },
    /// Finite values would become infinite, and the policy is to stop.
    #[error("{summary}")]
    Overflow { summary: String },
    /// The source changed while it was read.
    #[error("{}: changed while it was being converted", path.shown())]
    Changed { path: PathBuf },
    /// A file or directory of the result cannot be made.
    #[error("{}: cannot be created: {source}", path.shown())]
    Create { path: PathBuf, source: std::io::Error },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.shown())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,
    /// A worker thread panicked: a bug.
    #[error("a worker thread panicked; this is a bug in recast")]
    Panicked,
}

/// How many there are of something, in words that fit the number.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

impl Error {
    /// For `map_err`: what was tried, on which file.
    pub fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { path: path.to_owned(), action, source }
    }

    /// For `map_err`: what could not be made.
    pub fn create(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Create { path: path.to_owned(), source }
    }

    /// Whether the same run, done again, may get further with what is staged by now.
    pub fn is_resumable(&self) -> bool {
        matches!(
            self,
            Error::Cancelled
                | Error::Contended { .. }
                | Error::Stranger { .. }
                | Error::Create { .. }
                | Error::Io { .. }
                | Error::NoSpace { .. }
                | Error::NoThreads { .. }
                | Error::Panicked
        )
    }

    /// The exception in `recast.errors` this becomes.
    pub fn class(&self) -> &'static str {
        match self {
            Error::NoSuchLevel { .. }
            | Error::NoSuchDtype { .. }
            | Error::NoSuchPolicy { .. }
            | Error::NoSuchIo { .. }
            | Error::BadPattern { .. }
            | Error::UnmatchedPattern { .. }
            | Error::NotLocal { .. } => "UsageError",
            Error::Header { .. } | Error::LfsPointer { .. } => "HeaderError",
            Error::ShardPath { .. } | Error::MissingShard { .. } | Error::MissingTensor { .. } => {
                "IndexFileError"
            }
            Error::Quantized { .. } => "QuantizedError",
            Error::NoSuchPath { .. }
            | Error::NoSnapshot { .. }
            | Error::ManySnapshots { .. }
            | Error::HubCache { .. }
            | Error::NoShards { .. }
            | Error::NoReport { .. }
            | Error::NotRegular { .. }
            | Error::Link { .. }
            | Error::Json { .. }
            | Error::Changed { .. } => "InputError",
            Error::Destination { .. }
            | Error::Mismatch { .. }
            | Error::Stranger { .. }
            | Error::Damaged { .. }
            | Error::Busy { .. }
            | Error::Replaced { .. }
            | Error::Contended { .. }
            | Error::NotOurs { .. }
            | Error::Lost { .. }
            | Error::NoSpace { .. }
            | Error::Create { .. } => "OutputError",
            Error::Overflow { .. } => "CastOverflowError",
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "OutputError"
            }
            Error::Io { .. }
            | Error::NoThreads { .. }
            | Error::Panicked
            | Error::Stale
            | Error::Cancelled => "StorageError",
        }
    }

    /// The way out, for a line of its own.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::NoSuchLevel { available, .. } => {
                return Some(format!(
                    "unset {VARIABLE} to let recast choose, or use one of: {available}"
                ));
            }
            Error::UnmatchedPattern { instead: Some(instead), .. } if instead.contains("[[]") => {
                return Some(format!(
                    "try --keep '{instead}': a bracket that is part of a name is written '[[]'"
                ));
            }
            Error::UnmatchedPattern { instead: Some(instead), .. } => {
                return Some(format!("try --keep '{instead}', which names a component"));
            }
            Error::UnmatchedPattern { nearest, .. } if !nearest.is_empty() => {
                return Some(format!("the nearest names are: {}", shown_all(nearest, ", ")));
            }
            Error::NotLocal { hint, .. } => hint,
            Error::NoSuchPath { download: Some(command), .. } => {
                return Some(format!(
                    "recast converts local files; if it is a model on the Hub, download it first: \
                     {command}"
                ));
            }
            Error::NoShards { other_weights: Some(file), .. } => {
                return Some(format!(
                    "'{}' holds weights in another format; load it with its framework and save it \
                     with save_pretrained(..., safe_serialization=True) first",
                    file.shown()
                ));
            }
            Error::ManySnapshots { path, snapshots, .. } => {
                let first = path.join("snapshots").join(&snapshots[0]);
                return Some(format!("give one of them, such as '{}'", first.shown()));
            }
            Error::HubCache { path, repository } => {
                let repository = path.join(repository);
                return Some(format!(
                    "give one of its repositories, such as '{}'",
                    repository.shown()
                ));
            }
            Error::NoSnapshot { .. } => "the download is incomplete; download it again",
            Error::NoSuchDtype { .. } => "use fp32, fp16 or bf16",
            Error::NoSuchPolicy { .. } => "use error, inf or saturate",
            Error::NoSuchIo { .. } => "use auto, mmap or read",
            Error::BadPattern { .. } => {
                "patterns are globs such as 'lm_head.*'; 're:' starts a regular expression"
            }
            Error::UnmatchedPattern { .. } => "`recast inspect --tensors` lists the names",
            Error::NoSuchPath { .. } => {
                "recast converts local files; download the checkpoint first, for example with \
                 `hf download`"
            }
            Error::NoShards { .. } => "give a .safetensors file or a directory that has one",
            Error::NoReport { .. } => {
                "give a directory that this version of `recast convert` wrote, or its source too: \
                 recast verify SOURCE DEST"
            }
            Error::NotRegular { .. } => {
                "recast reads regular files and links to them; replace it by a copy or remove it"
            }
            Error::Link { .. } => {
                "if it is yours and meant, put a copy of the file in the link's place, or convert \
                 the directory that it leads to"
            }
            Error::Header { .. } => "the file is damaged or incomplete; download it again",
            Error::LfsPointer { .. } => {
                "fetch the weights with `git lfs pull` in the clone, or download the checkpoint with \
                 `hf download`"
            }
            Error::Json { .. } => "mend or remove the file; nothing was written",
            Error::ShardPath { .. } => {
                "an index may only name files in its own directory; do not trust this checkpoint"
            }
            Error::MissingShard { .. } => "the download is incomplete; fetch the missing shard",
            Error::MissingTensor { .. } => {
                "index and shards are from different versions; download both again"
            }
            Error::Quantized { .. } => {
                "convert the unquantized original, or dequantize with the tool that made it"
            }
            Error::Destination { hint, .. } => hint,
            Error::Mismatch { .. } => {
                "give the same options again, another destination, or --overwrite to replace it"
            }
            Error::Stranger { .. } => "move it away, or give another destination",
            Error::Damaged { .. } => "convert again with --overwrite, which replaces it",
            Error::Busy { .. } => "wait for it to end, or give another destination",
            Error::Replaced { .. } => "look at what is there, then convert again",
            Error::Contended { .. } => "let the other runs end, then convert again",
            Error::NotOurs { .. } => {
                "it may be of another version of recast; move it away when no run needs it"
            }
            Error::Lost { .. } => {
                "give the command again that was publishing there, which makes the file again; the \
                 old model's files are in .recast/publish"
            }
            Error::NoThreads { .. } => "raise the limit of processes, or give --threads 1",
            Error::NoSpace { .. } => {
                "free space on that disk, or give a destination on another one"
            }
            Error::Overflow { .. } => {
                "keep those tensors with --keep PATTERN, or choose --on-overflow inf or \
                 --on-overflow saturate; bf16 has the range of fp32"
            }
            Error::Create { source, .. } | Error::Io { source, .. } if is_out_of_files(source) => {
                "raise the limit of open files (`ulimit -n`), or give fewer --threads"
            }
            Error::Create { .. } => {
                "give a destination that can be created, on a disk with room for it"
            }
            Error::Io { action: "sync", source, .. } if is_not_known(source) => {
                "this file system cannot make files durable; --no-sync does without"
            }
            Error::Changed { .. } => "convert again when nothing writes to the source",
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => {
                    "free space on the destination's disk; the same command then continues"
                }
                std::io::ErrorKind::PermissionDenied => "check the permissions",
                _ => return None,
            },
            Error::Panicked => "please report it with the command you ran",
            Error::Cancelled | Error::Stale => return None,
        };
        Some(hint.to_owned())
    }
}

/// Whether the process, or the system, has no more room for open files.
fn is_out_of_files(error: &std::io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

/// Whether the file system has no such thing.
fn is_not_known(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::Unsupported)
}
