//! Everything that can go wrong, as data: a cause is one entry of a table, which holds its fields
//! (each with an example), its message and its hint. Tests and the documentation loop over
//! [`examples`], so that a new cause is one entry here and one row in docs/troubleshooting.md.

mod causes;
mod destination;
mod difference;
mod examples;
mod header;
mod hub;
mod json;
mod overflow;
mod pickle;
mod scales;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

pub use causes::Reason;
pub(crate) use causes::causes;
pub use destination::DestinationFault;
pub use difference::Difference;
pub use examples::examples;
pub use header::HeaderFault;
pub use hub::HubModel;
pub use json::JsonFault;
pub use overflow::{Overflow, OverflowedTensor};
pub use pickle::PickleFault;
pub use scales::{ScaleFault, Shape};

use crate::shown::{Names, Shown, counted, shown_all};

causes! {
    /// Everything that can go wrong in recast.
    Error

    "UsageError" {
        NoSuchLevel { variable: &'static str = "RECAST_SIMD", name: String = "NAME",
                      available: String = "NAMES" }
            "{variable}={}: no such instruction set on this machine", name.shown()
            => format!("unset {variable} to let recast choose, or use one of: {available}");
        NoSuchDtype { name: String = "NAME" }
            "'{}' is not a dtype recast casts to", name.shown()
            => "use fp32, fp16 or bf16";
        NoSuchPolicy { name: String = "NAME" }
            "'{}' is not an overflow policy", name.shown()
            => "use error, inf or saturate";
        NoSuchIo { name: String = "NAME" }
            "'{}' is not a way to read files", name.shown()
            => "use auto, mmap or read";
        BadPattern { pattern: String = "PATTERN", source: Reason = "REASON" }
            "--keep '{}': {}", pattern.shown(), shown_all(source.to_string().lines(), "\n")
            => "patterns are globs such as 'lm_head.*'; 're:' starts a regular expression";
        UnmatchedPattern { pattern: String = "PATTERN", instead: Option<String> = None,
                           nearest: Vec<String> = Vec::new() }
            "--keep '{}' matches no tensor", pattern.shown()
            => match instead {
                Some(instead) if instead.contains("[[]") => format!(
                    "try --keep '{instead}': a bracket that is part of a name is written '[[]'"
                ),
                Some(instead) => format!("try --keep '{instead}', which names a component"),
                None if nearest.is_empty() => "`recast inspect --tensors` lists the names".into(),
                None => format!("the nearest names are: {}", shown_all(nearest, ", ")),
            };
        NoPickle { path: PathBuf = "PATH", key: String = "KEY" }
            "{}: --key '{}' chooses a state dict of a pickle, and this is none",
            path.shown(), key.shown()
            => "leave out --key";
        FileAddress { path: PathBuf = "PLACE", plain: PathBuf = "/PATH" }
            "{}: 'file://' is not supported; recast reads and writes local paths", path.shown()
            => format!("give the plain path: {}", plain.shown());
        SourceAddress { path: PathBuf = "PLACE", scheme: String = "SCHEME",
                        model: Option<HubModel> = None }
            "{}: '{}://' is not supported; recast reads and writes local paths",
            path.shown(), scheme.shown()
            => match model {
                Some(model) => format!("download it first: {}", model.download()),
                None => "download it first, and give the local path".into(),
            };
        DestinationAddress { path: PathBuf = "PLACE", scheme: String = "SCHEME",
                             model: Option<HubModel> = None }
            "{}: '{}://' is not supported; recast reads and writes local paths",
            path.shown(), scheme.shown()
            => {
                let upload = model.as_ref().map(|model| format!(": {}", model.upload()));
                let upload = upload.unwrap_or_default();
                format!("give a local directory, and upload it when it is complete{upload}")
            };
    }

    "InputError" {
        NoSuchPath { path: PathBuf = "PATH", model: Option<HubModel> = None }
            "{}: no such file or directory", path.shown()
            => match model {
                Some(model) => format!(
                    "recast converts local files; if it is a model on the Hub, download it first: \
                     {}", model.download()
                ),
                None => "recast converts local files; download the checkpoint first, for example \
                         with `hf download`".into(),
            };
        NoSnapshot { path: PathBuf = "PATH" }
            "{}: is a Hub cache repository without a snapshot", path.shown()
            => "the download is incomplete; download it again";
        ManySnapshots { path: PathBuf = "PATH", count: usize = 2_usize,
                        snapshots: Vec<String> = ["REVISIONS".to_owned()] }
            "{}: is a Hub cache repository with {count} snapshots, and refs/main names none of \
             them: {}{}",
            path.shown(), shown_all(snapshots, ", "),
            if *count > snapshots.len() { ", ..." } else { "" }
            => {
                let first = snapshots.first().map(|name| path.join("snapshots").join(name));
                first.map(|path| format!("give one of them, such as '{}'", path.shown()))
            };
        HubCache { path: PathBuf = "PATH", repository: String = "NAME" }
            "{}: is a whole Hub cache, not a model", path.shown()
            => format!("give one of its repositories, such as '{}'", path.join(repository).shown());
        NoShards { path: PathBuf = "PATH", other_weights: Option<PathBuf> = None }
            "{}: no .safetensors file and no PyTorch pickle found", path.shown()
            => match other_weights {
                Some(file) => format!(
                    "'{}' holds weights in another format; load it with its framework and save it \
                     with save_pretrained(..., safe_serialization=True) first", file.shown()
                ),
                None => "give a .safetensors or pickled file, or a directory that has one".into(),
            };
        LinkToDirectory { path: PathBuf = "PATH" }
            "{}: is a link to a directory", path.shown()
            => NOT_REGULAR;
        SpecialFile { path: PathBuf = "PATH" }
            "{}: is a special file (a pipe, socket or device)", path.shown()
            => NOT_REGULAR;
        BrokenLink { path: PathBuf = "PATH" }
            "{}: is a broken link, as an incomplete download leaves", path.shown()
            => NOT_REGULAR;
        LinkOutside { path: PathBuf = "PATH", target: PathBuf = "TARGET" }
            "{}: is a link to {}, which is outside the model", path.shown(), target.shown()
            => "if that is intended, replace the link with a copy of the file, or convert the \
                directory that it leads to";
        Json { path: PathBuf = "PATH", fault: JsonFault = JsonFault::NoWeightMap }
            "{}: {}", path.shown(), fault.to_string().shown()
            => "fix or remove the file; nothing was written";
        NoReport { path: PathBuf = "PATH" }
            "{}: no conversion report that recast can read", path.shown()
            => "give a directory that this version of `recast convert` wrote, or its source too: \
                recast verify SOURCE DEST";
        Changed { path: PathBuf = "PATH" }
            "{}: changed while it was being converted", path.shown()
            => "convert again when nothing writes to the source";
    }

    "HeaderError" {
        Header { path: PathBuf = "PATH", fault: HeaderFault = HeaderFault::TooShort { bytes: 2 } }
            "{}: not a valid safetensors file: {}", path.shown(), fault.to_string().shown()
            => "the file is damaged or incomplete; download it again";
        LfsPointer { path: PathBuf = "PATH" }
            "{}: is a Git LFS pointer, not the weights themselves", path.shown()
            => "fetch the weights with `git lfs pull` in the clone, or download the checkpoint \
                with `hf download`";
    }

    "PickleError" {
        Pickle { path: PathBuf = "PATH", fault: PickleFault = PickleFault::NotOne }
            "{}: {}", path.shown(), fault.to_string().shown()
            => fault.hint();
    }

    "IndexFileError" {
        ShardPath { index: PathBuf = "PATH", tensor: String = "NAME", shard: String = "PATH" }
            "{}: tensor '{}' is mapped to '{}', which is not a path below the index's directory",
            index.shown(), tensor.shown(), shard.shown()
            => "an index may only name files in its own directory or below it; do not trust this \
                checkpoint";
        MissingShard { index: PathBuf = "PATH", shard: String = "NAME", tensor: String = "NAME" }
            "{}: there is no file '{}', which should hold tensor '{}'",
            index.shown(), shard.shown(), tensor.shown()
            => "the download is incomplete; fetch the missing shard";
        MissingNumber { folder: PathBuf = "PATH", shard: String = "NAME" }
            "{}: shard '{}' is missing, and no index lists the shards",
            folder.shown(), shard.shown()
            => "the download is incomplete; fetch the missing shard and the index, or convert the \
                files one by one";
        MissingTensor { index: PathBuf = "PATH", shard: String = "NAME", tensor: String = "NAME" }
            "{}: shard '{}' does not hold tensor '{}'",
            index.shown(), shard.shown(), tensor.shown()
            => "index and shards are from different versions; download both again";
    }

    "QuantizedError" {
        Quantized { path: PathBuf = "PATH", schemes: String = "SCHEMES",
                    said: Option<Names> = None, tensors: Names = Names::example("TENSORS") }
            "{}: has quantized weights ({schemes}{}): {tensors}; casting a scale or a code would \
             change every weight that is made of it",
            path.shown(), said.as_ref().map(|said| format!("; {said}")).unwrap_or_default()
            => "convert the unquantized original, or dequantize with the tool that made it; \
                --skip-quantized carries these tensors as they are and casts the rest";
        UnknownQuantization { path: PathBuf = "PATH", says: String = "NAME",
                              tensors: Names = Names::example("TENSORS") }
            "{}: says that weights are quantized ({}), and recast does not recognize how: \
             {tensors} hold integers", path.shown(), says.shown()
            => "convert the unquantized original, or dequantize with the tool that made it; \
                --skip-quantized carries what is not a float and casts the rest";
        Scales { path: PathBuf = "PATH", tensor: String = "TENSOR", scheme: String = "SCHEME",
                 fault: Box<ScaleFault> = ScaleFault::ZeroPoints, more: usize = 0_usize }
            "{}: cannot dequantize '{}' ({scheme}): {fault}{}", path.shown(), tensor.shown(),
            match more {
                0 => String::new(),
                more => format!("; nor can {}", counted(*more as u64, "other weight")),
            }
            => "--skip-quantized carries all quantized weights as they are and casts the rest";
        KeptQuantized { pattern: String = "PATTERN", path: PathBuf = "PATH",
                        tensor: String = "TENSOR" }
            "--keep '{}' matches '{}' in {}, which belongs to a weight that is dequantized",
            pattern.shown(), tensor.shown(), path.shown()
            => "give a pattern that matches no quantized weight; --skip-quantized carries all of \
                them as they are";
        LostScales { path: PathBuf = "PATH", said: Option<Names> = None,
                     tensors: Names = Names::example("TENSORS") }
            "{}: has codes of quantized weights without their scales{}: {tensors}", path.shown(),
            said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default()
            => "download the checkpoint again, with all its files; --skip-quantized carries these \
                tensors as they are and casts the rest";
        LostCodes { path: PathBuf = "PATH", tensors: Names = Names::example("TENSORS") }
            "{}: has scales of quantized weights without their codes: {tensors}", path.shown()
            => "download the checkpoint again, with all its files; --skip-quantized carries these \
                tensors as they are and casts the rest";
        UnscaledFp8 { path: PathBuf = "PATH", tensors: Names = Names::example("TENSORS") }
            "{}: has fp8 tensors without scales: {tensors}; nothing tells whether these are the \
             values or codes whose scales are lost", path.shown()
            => "--unscaled-fp8 says that they are the values and casts them; --skip-quantized \
                carries these tensors as they are and casts the rest";
    }

    "OutputError" {
        Destination { path: PathBuf = "DEST",
                      fault: DestinationFault = DestinationFault::NotEmpty }
            "{}: {fault}", path.shown()
            => fault.hint();
        OtherResult { path: PathBuf = "DEST", differences: Vec<Difference> = [Difference::example()] }
            "{}: contains the result of another conversion:\n  {}",
            path.shown(), difference::listed(differences)
            => OTHER;
        OtherRun { path: PathBuf = "DEST", differences: Vec<Difference> = [Difference::example()] }
            "{}: contains another unfinished conversion:\n  {}",
            path.shown(), difference::listed(differences)
            => OTHER;
        UnexpectedFile { path: PathBuf = "PATH" }
            "{}: unexpected file, not part of the old or the new model", path.shown()
            => "move it away, or give another destination";
        Damaged { path: PathBuf = "PATH" }
            "{}: is missing, or was changed since recast wrote it", path.shown()
            => "convert again with --overwrite, which replaces it";
        Busy { path: PathBuf = "DEST" }
            "{}: another recast process is writing there, and this file system supports only one",
            path.shown()
            => "wait for it to end, or give another destination";
        Replaced { path: PathBuf = "DEST" }
            "{}: was changed by another process since this run started", path.shown()
            => "look at what is there, then convert again";
        Contended { path: PathBuf = "PATH" }
            "{}: other processes keep changing it", path.shown()
            => "wait for them to end, then convert again";
        NotOurs { path: PathBuf = "PATH" }
            "{}: is not something that recast creates there", path.shown()
            => "another version of recast may have left it; move it away when no run needs it";
        LostFile { path: PathBuf = "PATH", old: PathBuf = "FOLDER",
                   command: Option<String> = "OPTIONS".to_owned() }
            "{}: cannot be published, because its staged file is gone", path.shown()
            => {
                let command = command.as_ref().map(|options| format!(" ({options})"));
                format!(
                    "repeat the conversion that was being published{}: it makes the file again; \
                     the old model's files are in '{}'",
                    command.unwrap_or_default(), old.shown()
                )
            };
        NoSpace { path: PathBuf = "DEST", needed: u64 = 2_u64, free: u64 = 1_u64 }
            "{}: the result needs {needed} more bytes, but only {free} are free", path.shown()
            => "free space on that disk, or give a destination on another one";
        Create { path: PathBuf = "PATH", source: io::Error = io::Error::other("REASON") }
            "{}: cannot be created: {source}", path.shown()
            => if is_out_of_files(source) {
                OUT_OF_FILES
            } else {
                "give a destination that can be created, on a disk with room for it"
            };
        Full { path: PathBuf = "PATH", action: &'static str = "ACTION",
               source: io::Error = io::Error::other("No space left on device") }
            "{}: cannot {action}: {source}", path.shown()
            => "free space there, or raise the quota; the same command then continues";
    }

    "CastOverflowError" {
        Overflow { overflow: Overflow = Overflow::example() }
            "{overflow}"
            => format!(
                "{}choose --on-overflow=inf or --on-overflow=saturate{}",
                if overflow.can_be_kept { "keep those tensors with --keep PATTERN, or " } else { "" },
                if overflow.to == "fp16" { "; bf16 has the range of fp32" } else { "" }
            );
    }

    "StorageError" {
        Io { path: PathBuf = "PATH", action: &'static str = "ACTION",
             source: io::Error = io::Error::other("REASON") }
            "{}: cannot {action}: {source}", path.shown()
            => match source.kind() {
                _ if is_out_of_files(source) => Some(OUT_OF_FILES.into()),
                ErrorKind::PermissionDenied => Some("check the permissions".into()),
                ErrorKind::InvalidInput | ErrorKind::Unsupported if *action == "sync" => Some(
                    "this file system cannot make files durable; use --no-sync".into()
                ),
                _ => None,
            };
        NoThreads { source: io::Error = io::Error::other("REASON") }
            "cannot start a thread: {source}"
            => "raise the limit of processes, or give --threads 1";
        Stopped
            "stopped";
        Panicked
            "a worker thread panicked; this is a bug in recast"
            => "please report it with the command you ran";
        Stale
            "the staged files were made from another state of the source";
    }
}

const NOT_REGULAR: &str =
    "recast reads regular files and links to them; replace it with a copy or remove it";
const OTHER: &str =
    "give the same options again, another destination, or --overwrite to replace it";
const OUT_OF_FILES: &str =
    "raise the limit of open files (`ulimit -n`), or give a smaller --threads N";

/// Whether the process, or the system, has no more room for open files.
fn is_out_of_files(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

impl Error {
    /// For `map_err`: what was tried, on which file.
    pub fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Error::Full { path: path.to_owned(), action, source }
            }
            _ => Error::Io { path: path.to_owned(), action, source },
        }
    }

    /// For `map_err`: what could not be made.
    pub fn create(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::Create { path: path.to_owned(), source }
    }

    /// For `map_err`: what is wrong with a config or an index.
    pub fn json<T: Into<JsonFault>>(path: &Path) -> impl FnOnce(T) -> Error + '_ {
        move |fault| Error::Json { path: path.to_owned(), fault: fault.into() }
    }

    /// Whether the same run, done again, may get further with what is staged by now.
    pub fn is_resumable(&self) -> bool {
        matches!(
            self,
            Error::Stopped
                | Error::Contended { .. }
                | Error::UnexpectedFile { .. }
                | Error::Create { .. }
                | Error::Full { .. }
                | Error::Io { .. }
                | Error::NoSpace { .. }
                | Error::NoThreads { .. }
                | Error::Panicked
        )
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_full_disk() {
        for (number, is_full) in [(28, true), (122, true), (5, false)] {
            let error = Error::io("write", Path::new("x"))(io::Error::from_raw_os_error(number));
            assert_eq!(matches!(error, Error::Full { .. }), is_full, "{error}");
        }
    }
}
