//! What the tensors of the shards become, as the indexes that name them have to say it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::{PlannedFile, PlannedTensor, Role};
use crate::checkpoint::SourceFile;
use crate::error::{Error, ScaleFault};
use crate::format::index::Index;
use crate::format::safetensors::Tensor;

/// What becomes of the tensors of a shard, by their names in the source; nothing for one that is not
/// in the result.
pub type Results<'a> = HashMap<&'a str, Option<(&'a Tensor, &'a PlannedTensor)>>;

/// Those of each planned shard, by its path.
pub fn results(shards: &[PlannedFile]) -> HashMap<&Path, Results<'_>> {
    let sized = shards.iter().map(|shard| {
        let made = shard
            .tensors()
            .map(|(tensor, planned)| (tensor.name.as_str(), Some((tensor, planned))));
        let dropped = shard.dropped().map(|tensor| tensor.name.as_str());
        let dropped = dropped.chain(shard.tied().map(|(name, _)| name)).map(|name| (name, None));
        (shard.path.as_path(), made.chain(dropped).collect())
    });
    sized.collect()
}

/// The tensor bytes an index's shards hold, which is what `total_size` means.
pub fn total_size(file: &SourceFile, index: &Index, results: &HashMap<&Path, Results<'_>>) -> u64 {
    let bytes = |(tensor, shard): &(String, String)| {
        // Of those that are not there, loaders make the bytes of others.
        let shard = &results[&*file.path().with_file_name(shard)];
        shard.get(tensor.as_str()).copied().flatten().map_or(0, |(_, planned)| planned.bytes)
    };
    index.weight_map.iter().map(bytes).sum()
}

/// Two tensors of the result that an index names must not have the same name: a loader would take
/// either.
pub fn check_index(
    file: &SourceFile,
    index: &Index,
    results: &HashMap<&Path, Results<'_>>,
) -> Result<(), Error> {
    let (mut taken, mut renamed) = (HashSet::new(), Vec::new());
    for (tensor, shard) in &index.weight_map {
        let of = results.get(&*file.path().with_file_name(shard));
        match of.and_then(|of| of.get(tensor.as_str())) {
            Some(None) => {}
            Some(Some((source, planned))) if planned.name(source) != tensor => {
                renamed.push((tensor, *planned, planned.name(source)));
            }
            _ => {
                taken.insert(tensor.as_str());
            }
        }
    }
    for (tensor, planned, name) in renamed {
        if let (false, Role::Codes(scaled)) = (taken.insert(name), &planned.role) {
            let (path, tensor, scheme) =
                (file.location.clone(), tensor.clone(), scaled.scheme.clone());
            let fault = Box::new(ScaleFault::Taken { name: name.to_owned() });
            return Err(Error::Scales { path, tensor, scheme, fault, more: 0 });
        }
    }
    Ok(())
}
