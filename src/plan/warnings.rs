//! What the user should know of a plan.

use super::quantized::{LeftOver, Parts};
use super::{Action, Content, Plan, Role, tensors};
use crate::checkpoint::{Checkpoint, Kind};
use crate::dtype::{Castable, Float};
use crate::error::causes;
use crate::shown::{Names, Shown};

impl Plan {
    pub(super) fn narrows_wide(&self) -> bool {
        self.tensors().any(|(_, tensor, planned)| {
            let from = tensor.dtype.castable();
            planned.action == Action::Cast && from.is_some_and(|from| from.bytes() >= 4)
        })
    }

    pub(super) fn collect_warnings(
        &self,
        checkpoint: &Checkpoint,
        parts: &Parts<'_>,
        left_over: &LeftOver<'_>,
    ) -> Vec<Warning> {
        let snapshot = checkpoint.snapshot.iter().cloned();
        let mut warnings: Vec<_> = snapshot.map(|choice| Warning::Snapshot { choice }).collect();
        let other = checkpoint.files.iter().filter(|file| matches!(file.kind, Kind::OtherWeights));
        let files = Names::of(other.map(|file| file.path().shown()));
        warnings.extend(files.map(|files| Warning::LeftBehind { files }));
        let stale = checkpoint.files.iter().filter(|file| matches!(file.kind, Kind::StaleIndex));
        let files = Names::of(stale.map(|file| file.path().shown()));
        warnings.extend(files.map(|files| Warning::StaleIndex { files }));
        let tensors = Names::of(checkpoint.findings.tied.iter().cloned());
        warnings.extend(tensors.map(|tensors| Warning::Tied { tensors }));
        let names = Names::of(self.left_out().map(str::to_owned));
        warnings.extend(names.map(|names| Warning::LeftOut { names }));
        let tied = checkpoint.shards().flat_map(|(_, shard)| shard.tied());
        let tensors =
            Names::of(tied.map(|(name, kept)| format!("{} ({})", name.shown(), kept.shown())));
        warnings.extend(tensors.map(|tensors| Warning::Same { tensors }));
        let files = Names::of(checkpoint.not_loaded().map(Shown::shown));
        warnings.extend(files.map(|files| Warning::NotLoaded { files }));
        let Some(to) = self.options.to else { return warnings };
        let kept = self.tensors().filter(|(_, _, planned)| planned.is_kept_in_vain);
        let tensors = Names::of(kept.map(|(_, tensor, _)| tensor.name.shown()));
        warnings.extend(tensors.map(|tensors| Warning::KeptInVain { to: to.name(), tensors }));
        let hashes = self.files.iter().filter(|file| match &file.content {
            Content::Shard { shard, tensors, .. } => {
                shard.other_hashes().next().is_some() && tensors::changes(shard, tensors)
            }
            _ => false,
        });
        let files = Names::of(hashes.map(|file| file.path.shown()));
        warnings.extend(files.map(|files| Warning::Hashes { files }));
        warnings.extend(parts.warnings(left_over));
        let others = self.tensors().filter(|(_, tensor, planned)| {
            let is_cast = tensor.dtype.castable().is_some();
            tensor.dtype.may_be_float() && !is_cast && planned.is_weight()
        });
        let tensors = Names::of(
            others.map(|(_, tensor, _)| format!("{} ({})", tensor.name.shown(), tensor.dtype)),
        );
        warnings.extend(tensors.map(|tensors| Warning::Carried { tensors }));
        let state = self.tensors().filter(|(_, _, planned)| matches!(planned.role, Role::State));
        let tensors = Names::of(state.map(|(_, tensor, _)| tensor.name.shown()));
        warnings.extend(tensors.map(|tensors| Warning::OptimizerState { tensors }));
        let empty = self.tensors().filter(|(_, tensor, planned)| {
            tensor.dtype.is_float() && tensor.bytes == 0 && planned.is_weight()
        });
        let tensors = Names::of(empty.map(|(_, tensor, _)| tensor.name.shown()));
        warnings.extend(tensors.map(|tensors| Warning::Empty { tensors }));
        let misnamed = self.files.iter().filter(|file| {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            file.tensors().any(|(_, planned)| planned.action != Action::Copy)
                && name
                    .split(['.', '-', '_'])
                    .any(|part| names_a_dtype(part) && Float::parse(part) != Some(to))
        });
        let to_name = to.name();
        let files = Names::of(misnamed.map(|file| file.path.shown()));
        warnings.extend(files.map(|files| Warning::Misnamed { to: to_name, files }));
        if self.tensors().all(|(_, _, planned)| planned.action == Action::Copy) {
            let mut floats = self.tensors().filter(|(_, tensor, _)| tensor.dtype.may_be_float());
            let all_are = floats.all(|(_, tensor, _)| tensor.dtype == to.dtype());
            warnings.push(match all_are {
                true => Warning::NothingToCast { to: to_name },
                false => Warning::NothingWasCast,
            });
        }
        warnings
    }
}

/// Whether a part of a file's name names a dtype that is cast.
fn names_a_dtype(part: &str) -> bool {
    Castable::parse(part).is_some() || part.eq_ignore_ascii_case("fp8")
}

causes! {
    /// What the user should know of a plan.
    #[derive(Clone)]
    Warning
    "warning" {
        Snapshot { choice: String = "REVISION, REASON" }
            "converting one snapshot of this Hub cache repository: {choice}";
        LeftBehind { files: Names = Names::example("FILES") }
            "left behind, because they hold weights of the old dtype and are not converted: {files}";
        StaleIndex { files: Names = Names::example("FILES") }
            "left behind, because the shards that they name are not there and loaders take the \
             single file beside them: {files}";
        LeftOut { names: Names = Names::example("NAMES") }
            "left out, because they are no tensors of the model: {names}";
        Same { tensors: Names = Names::example("TENSORS") }
            "written once, because they share memory with another tensor (noted in the metadata): \
             {tensors}";
        Tied { tensors: Names = Names::example("TENSORS") }
            "named in an index, but in no shard; loaders tie them to the embedding: {tensors}";
        NotLoaded { files: Names = Names::example("FILES") }
            "converted too, though transformers, diffusers and peft take other files of this \
             directory: {files}";
        KeptInVain { to: &'static str = "DTYPE", tensors: Names = Names::example("TENSORS") }
            "kept in the result, but transformers casts them to {to} when it loads the model: \
             {tensors}";
        Hashes { files: Names = Names::example("FILES") }
            "the metadata had hashes of the weights, which are others now, so those that recast cannot \
             make again are removed: {files}";
        Carried { tensors: Names = Names::example("TENSORS") }
            "carried in a dtype that recast does not cast: {tensors}";
        OptimizerState { tensors: Names = Names::example("TENSORS") }
            "carried as they are, because they are optimizer state, not part of a model: {tensors}";
        Empty { tensors: Names = Names::example("TENSORS") }
            "have no values, as when DeepSpeed ZeRO-3 saves weights that were not gathered: {tensors}";
        CarriedQuantized { schemes: String = "SCHEMES",
                           tensors: Names = Names::example("TENSORS") }
            "carried as they are, because they belong to quantized weights ({schemes}): {tensors}";
        LeftOver { files: Names = Names::example("FILES") }
            "removed what is said of quantization, because no weight is quantized: {files}";
        Misnamed { to: &'static str = "DTYPE",
                   files: Names = Names::example("FILES") }
            "named after another dtype than the {to} they now hold (names are kept): {files}";
        NothingToCast { to: &'static str = "DTYPE" }
            "no tensor needed a cast: all floating tensors are {to}";
        Nameless
            "no config names the model, so only the names of its tensors tell which ones a loader \
             needs in fp32";
        NothingWasCast
            "no tensor was cast: none that recast casts is of another dtype";
    }
}
