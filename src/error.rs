//! One error enum. A variant holds what went wrong; `Display` says what happened and to which
//! file and tensor, `hint` says the way out, `class` says which Python exception it becomes.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use thiserror::Error as ThisError;

/// Everything that can go wrong in recast.
#[derive(Debug, ThisError)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message above the fields says what they are")]
pub enum Error {
    /// `RECAST_SIMD` names no level this CPU runs.
    #[error("{}={name}: no such instruction set on this machine", crate::cast::level::VARIABLE)]
    NoSuchLevel { name: String, available: String },
    /// A dtype recast does not cast to.
    #[error("'{name}' is not a dtype recast casts to")]
    NoSuchDtype { name: String },
    /// An overflow policy that does not exist.
    #[error("'{name}' is not an overflow policy")]
    NoSuchPolicy { name: String },
    /// A way to read files that does not exist.
    #[error("'{name}' is not a way to read files")]
    NoSuchIo { name: String },
    /// A `--keep` pattern that does not parse.
    #[error("--keep '{pattern}': {reason}")]
    BadPattern { pattern: String, reason: String },
    /// A `--keep` pattern that matches no tensor.
    #[error("--keep '{pattern}' matches no tensor")]
    UnmatchedPattern { pattern: String, nearest: Vec<String> },
    /// The source does not exist.
    #[error("{}: no such file or directory", path.display())]
    NoSuchPath { path: PathBuf },
    /// There is nothing to convert.
    #[error("{}: no .safetensors file found", path.display())]
    NoShards { path: PathBuf, other_weights: Option<PathBuf> },
    /// A file that is neither a regular file nor a directory, or a link to a directory.
    #[error("{}: is {what}", path.display())]
    NotRegular { path: PathBuf, what: &'static str },
    /// A link that leads out of the source.
    #[error("{}: is a link to {}, which is outside the model", path.display(), target.display())]
    Link { path: PathBuf, target: PathBuf },
    /// A safetensors header that breaks the format's rules.
    #[error("{}: not a valid safetensors file: {}", path.display(), short(reason))]
    Header { path: PathBuf, reason: String },
    /// A config or an index that is not the JSON it should be.
    #[error("{}: {}", path.display(), short(reason))]
    Json { path: PathBuf, reason: String },
    /// An index that sends a tensor to a file outside its own directory.
    #[error("{}: tensor '{}' is mapped to '{}', which is not a plain file name", index.display(), short(tensor), short(shard))]
    ShardPath { index: PathBuf, tensor: String, shard: String },
    /// An index that names a shard which is not there.
    #[error("{}: there is no safetensors file '{}', which should hold tensor '{}'", index.display(), short(shard), short(tensor))]
    MissingShard { index: PathBuf, shard: String, tensor: String },
    /// An index that names a tensor its shard does not hold.
    #[error("{}: shard '{}' does not hold tensor '{}'", index.display(), short(shard), short(tensor))]
    MissingTensor { index: PathBuf, shard: String, tensor: String },
    /// A checkpoint of packed or scaled tensors.
    #[error("{}: the checkpoint is quantised (quantization_config, method '{method}'): its packed tensors and scales belong together, and casting the scales alone would change the model", path.display())]
    Quantised { path: PathBuf, method: String },
    /// A destination that recast will not write into.
    #[error("{}: {reason}", path.display())]
    Destination { path: PathBuf, reason: &'static str, hint: &'static str },
    /// A destination with another run's result, or what it began.
    #[error("{}: holds {} another conversion:\n  {}", path.display(), if *finished { "the result of" } else { "what was begun of" }, differences.join("\n  "))]
    Mismatch { path: PathBuf, finished: bool, differences: Vec<String> },
    /// A file in the destination that is not part of a model recast knows.
    #[error("{}: is in the destination, and neither the old model's nor the new one's", path.display())]
    Stranger { path: PathBuf },
    /// A finished result that is not what it was.
    #[error("{}: is missing or not as recast left it", path.display())]
    Damaged { path: PathBuf },
    /// Another run is at work on the destination.
    #[error("{}: another recast is writing there (process {pid} on {host})", path.display())]
    Busy { path: PathBuf, pid: u32, host: String },
    /// Another run found this one without a sign of life, and took its place.
    #[error("{}: another recast took over, because this one did not move for long", path.display())]
    Displaced { path: PathBuf },
    /// The result does not fit.
    #[error("{}: the result needs {needed} bytes more, and {free} are free", path.display())]
    NoSpace { path: PathBuf, needed: u64, free: u64 },
    /// Finite values would become infinite, and the policy is to stop.
    #[error("{summary}")]
    Overflow { summary: String },
    /// The source changed while it was read.
    #[error("{}: changed while it was being converted", path.display())]
    Changed { path: PathBuf },
    /// A file or directory of the result cannot be made.
    #[error("{}: cannot be created: {source}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
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
        let hint = match self {
            Error::NoSuchLevel { available, .. } => {
                let variable = crate::cast::level::VARIABLE;
                return Some(format!(
                    "unset {variable} to let recast choose, or use one of: {available}"
                ));
            }
            Error::UnmatchedPattern { nearest, .. } if !nearest.is_empty() => {
                return Some(format!("the nearest names are: {}", nearest.join(", ")));
            }
            Error::NoShards { other_weights: Some(file), .. } => {
                return Some(format!(
                    "'{}' holds weights in another format; load it with its framework and save it \
                     with save_pretrained(..., safe_serialization=True) first",
                    file.display()
                ));
            }
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
            Error::NotRegular { .. } => {
                "recast reads regular files and links to them; replace it by a copy or remove it"
            }
            Error::Link { .. } => {
                "if it is yours and meant, put a copy of the file in the link's place, or convert \
                 the directory that it leads to"
            }
            Error::Header { .. } => "the file is damaged or incomplete; download it again",
            Error::Json { .. } => "mend or remove the file; nothing was written",
            Error::ShardPath { .. } => {
                "an index may only name files in its own directory; do not trust this checkpoint"
            }
            Error::MissingShard { .. } => "the download is incomplete; fetch the missing shard",
            Error::MissingTensor { .. } => {
                "index and shards are from different versions; download both again"
            }
            Error::Quantised { .. } => {
                "convert the unquantised original, or dequantise with the tool that made it"
            }
            Error::Destination { hint, .. } => hint,
            Error::Mismatch { .. } => {
                "give the same options again, another destination, or --overwrite to replace it"
            }
            Error::Stranger { .. } => "move it away, or give another destination",
            Error::Damaged { .. } => "convert again with --overwrite, which replaces it",
            Error::Busy { .. } => "wait for it to end, or give another destination",
            Error::Displaced { .. } => "let the other run end, then convert again",
            Error::NoSpace { .. } => {
                "free space on that disk, or give a destination on another one"
            }
            Error::Overflow { .. } => {
                "keep those tensors with --keep PATTERN, or choose --on-overflow inf or \
                 --on-overflow saturate; bf16 has the range of fp32"
            }
            Error::Create { .. } => {
                "give a destination that can be created, on a disk with room for it"
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
            Error::Cancelled => return None,
        };
        Some(hint.to_owned())
    }
}
