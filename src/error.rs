//! One error enum. A variant holds what went wrong; `Display` says what happened and to which
//! file and tensor, `hint` says the way out, `class` says which Python exception it becomes.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error as ThisError;

/// Everything that can go wrong in recast.
#[derive(Clone, Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// `RECAST_SIMD` names no level this CPU runs.
    #[error("{}={name}: no such instruction set on this machine", crate::cast::level::VARIABLE)]
    NoSuchLevel {
        /// What the variable says.
        name: String,
        /// The names that would work.
        available: String,
    },
    /// A dtype recast does not cast to.
    #[error("'{name}' is not a dtype recast casts to")]
    NoSuchDtype {
        /// What was asked for.
        name: String,
    },
    /// An overflow policy that does not exist.
    #[error("'{name}' is not an overflow policy")]
    NoSuchPolicy {
        /// What was asked for.
        name: String,
    },
    /// A way to read files that does not exist.
    #[error("'{name}' is not a way to read files")]
    NoSuchIo {
        /// What was asked for.
        name: String,
    },
    /// A `--keep` pattern that does not parse.
    #[error("--keep '{pattern}': {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What its parser says.
        reason: String,
    },
    /// A `--keep` pattern that matches no tensor.
    #[error("--keep '{pattern}' matches no tensor")]
    UnmatchedPattern {
        /// The pattern.
        pattern: String,
        /// Tensor names that look like it.
        nearest: Vec<String>,
    },
    /// The source does not exist.
    #[error("{}: no such file or directory", path.display())]
    NoSuchPath {
        /// The path given.
        path: PathBuf,
    },
    /// There is nothing to convert.
    #[error("{}: no .safetensors file found", path.display())]
    NoShards {
        /// The path given.
        path: PathBuf,
        /// A file with weights in another format, when there is one.
        other_weights: Option<PathBuf>,
    },
    /// A file that is neither a regular file nor a directory, or a link to a directory.
    #[error("{}: is {what}", path.display())]
    NotRegular {
        /// The entry.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A link that leads out of the source.
    #[error("{}: is a link to {}, which is outside the model", path.display(), target.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it ends.
        target: PathBuf,
    },
    /// A safetensors header that breaks the format's rules.
    #[error("{}: not a valid safetensors file: {}", path.display(), short(reason))]
    Header {
        /// The shard.
        path: PathBuf,
        /// The rule it breaks, with the tensor's name where there is one.
        reason: String,
    },
    /// A config or an index that is not the JSON it should be.
    #[error("{}: {}", path.display(), short(reason))]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An index that sends a tensor to a file outside its own directory.
    #[error("{}: tensor '{}' is mapped to '{}', which is not a plain file name", index.display(), short(tensor), short(shard))]
    ShardPath {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it is mapped to.
        shard: String,
    },
    /// An index that names a shard which is not there.
    #[error("{}: there is no safetensors file '{}', which should hold tensor '{}'", index.display(), short(shard), short(tensor))]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// A tensor it should hold.
        tensor: String,
    },
    /// An index that names a tensor its shard does not hold.
    #[error("{}: shard '{}' does not hold tensor '{}'", index.display(), short(shard), short(tensor))]
    MissingTensor {
        /// The index.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A checkpoint of packed or scaled tensors.
    #[error("{}: the checkpoint is quantised (quantization_config, method '{method}'): its packed tensors and scales belong together, and casting the scales alone would change the model", path.display())]
    Quantised {
        /// The config.
        path: PathBuf,
        /// The quantisation method it names.
        method: String,
    },
    /// A destination that recast will not write into.
    #[error("{}: {reason}", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A destination with another run's result, or what it began.
    #[error("{}: holds {} another conversion:\n  {}", path.display(), if *finished { "the result of" } else { "what was begun of" }, differences.join("\n  "))]
    Mismatch {
        /// The destination.
        path: PathBuf,
        /// Whether that conversion is done.
        finished: bool,
        /// How the two differ, a line each.
        differences: Vec<String>,
    },
    /// A file in the destination that is not part of a model recast knows.
    #[error("{}: is in the destination, and neither the old model's nor the new one's", path.display())]
    Stranger {
        /// The file.
        path: PathBuf,
    },
    /// A finished result that is not what it was.
    #[error("{}: is missing or not as recast left it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Another run is at work on the destination.
    #[error("{}: another recast is writing there (process {pid} on {host})", path.display())]
    Busy {
        /// The destination.
        path: PathBuf,
        /// Its process number.
        pid: u32,
        /// Its machine.
        host: String,
    },
    /// Another run found this one without a sign of life, and took its place.
    #[error("{}: another recast took over, because this one did not move for long", path.display())]
    Displaced {
        /// The staging folder.
        path: PathBuf,
    },
    /// The result does not fit.
    #[error("{}: the result needs {needed} bytes more, and {free} are free", path.display())]
    NoSpace {
        /// The destination.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that may be.
        free: u64,
    },
    /// Finite values would become infinite, and the policy is to stop.
    #[error("{summary}")]
    Overflow {
        /// The worst tensors, with counts and magnitudes.
        summary: String,
    },
    /// The source changed while it was read.
    #[error("{}: changed while it was being converted", path.display())]
    Changed {
        /// The source file.
        path: PathBuf,
    },
    /// A file or directory of the result cannot be made.
    #[error("{}: cannot be created: {source}", path.display())]
    Create {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
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

/// A text with its middle left out where it is too long to be read: names come from the file, and
/// may have a hundred million bytes.
fn short(text: &str) -> Cow<'_, str> {
    const START: usize = 400;
    const END: usize = 160;
    if text.len() <= START + END {
        return text.into();
    }
    let cut = |at: usize| (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let (start, end) = (cut(START), cut(text.len() - END));
    format!("{}[...]{}", &text[..start], &text[end..]).into()
}

impl Error {
    /// For `map_err`: what was tried, on which file.
    pub fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io { path: path.to_owned(), action, source: Arc::new(source) }
    }

    /// For `map_err`: what could not be made.
    pub fn create(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Create { path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether the same run, done again, may get further with what is staged by now.
    pub fn is_resumable(&self) -> bool {
        matches!(
            self,
            Error::Cancelled | Error::Create { .. } | Error::Io { .. } | Error::NoSpace { .. }
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
            | Error::UnmatchedPattern { .. } => "UsageError",
            Error::Header { .. } => "HeaderError",
            Error::ShardPath { .. } | Error::MissingShard { .. } | Error::MissingTensor { .. } => {
                "IndexFileError"
            }
            Error::Quantised { .. } => "QuantizedError",
            Error::NoSuchPath { .. }
            | Error::NoShards { .. }
            | Error::NotRegular { .. }
            | Error::Link { .. }
            | Error::Json { .. }
            | Error::Changed { .. } => "InputError",
            Error::Destination { .. }
            | Error::Mismatch { .. }
            | Error::Stranger { .. }
            | Error::Damaged { .. }
            | Error::Busy { .. }
            | Error::Displaced { .. }
            | Error::NoSpace { .. }
            | Error::Create { .. } => "OutputError",
            Error::Overflow { .. } => "CastOverflowError",
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "OutputError"
            }
            Error::Io { .. } | Error::Panicked | Error::Cancelled => "StorageError",
        }
    }

    /// The way out, for a line of its own.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoSuchLevel { available, .. } => format!(
                "unset {} to let recast choose, or use one of: {available}",
                crate::cast::level::VARIABLE
            ),
            Error::NoSuchDtype { .. } => "use fp32, fp16 or bf16".into(),
            Error::NoSuchPolicy { .. } => "use error, inf or saturate".into(),
            Error::NoSuchIo { .. } => "use auto, mmap or read".into(),
            Error::BadPattern { .. } => {
                "patterns are globs such as 'lm_head.*'; 're:' starts a regular expression".into()
            }
            Error::UnmatchedPattern { nearest, .. } if nearest.is_empty() => {
                "`recast inspect --tensors` lists the names".into()
            }
            Error::UnmatchedPattern { nearest, .. } => {
                format!("the nearest names are: {}", nearest.join(", "))
            }
            Error::NoSuchPath { .. } => {
                "recast converts local files; download the checkpoint first, for example with \
                 `hf download`"
                    .into()
            }
            Error::NoShards { other_weights: Some(file), .. } => format!(
                "'{}' holds weights in another format; load it with its framework and save it \
                 with save_pretrained(..., safe_serialization=True) first",
                file.display()
            ),
            Error::NoShards { .. } => "give a .safetensors file or a directory that has one".into(),
            Error::NotRegular { .. } => {
                "recast reads regular files and links to them; replace it by a copy or remove it"
                    .into()
            }
            Error::Link { .. } => "if it is yours and meant, put a copy of the file in the link's \
                                   place, or convert the directory that it leads to"
                .into(),
            Error::Header { .. } => "the file is damaged or incomplete; download it again".into(),
            Error::Json { .. } => "mend or remove the file; nothing was written".into(),
            Error::ShardPath { .. } => {
                "an index may only name files in its own directory; do not trust this checkpoint"
                    .into()
            }
            Error::MissingShard { .. } => {
                "the download is incomplete; fetch the missing shard".into()
            }
            Error::MissingTensor { .. } => {
                "index and shards are from different versions; download both again".into()
            }
            Error::Quantised { .. } => {
                "convert the unquantised original, or dequantise with the tool that made it".into()
            }
            Error::Destination { hint, .. } => (*hint).into(),
            Error::Mismatch { .. } => {
                "give the same options again, another destination, or --overwrite to replace it"
                    .into()
            }
            Error::Stranger { .. } => "move it away, or give another destination".into(),
            Error::Damaged { .. } => "convert again with --overwrite, which replaces it".into(),
            Error::Busy { .. } => "wait for it to end, or give another destination".into(),
            Error::Displaced { .. } => "let the other run end, then convert again".into(),
            Error::NoSpace { .. } => {
                "free space on that disk, or give a destination on another one".into()
            }
            Error::Overflow { .. } => {
                "keep those tensors with --keep PATTERN, or choose --on-overflow inf or \
                 --on-overflow saturate; bf16 has the range of fp32"
                    .into()
            }
            Error::Create { .. } => {
                "give a destination that can be created, on a disk with room for it".into()
            }
            Error::Changed { .. } => "convert again when nothing writes to the source".into(),
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => {
                    "free space on the destination's disk; the same command then continues".into()
                }
                std::io::ErrorKind::PermissionDenied => "check the permissions".into(),
                _ => return None,
            },
            Error::Panicked => "please report it with the command you ran".into(),
            Error::Cancelled => return None,
        })
    }
}
