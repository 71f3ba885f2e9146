//! What a report says of the tensors beside it, for `inspect`. It may be as large as an
//! index, and is anybody's, so that it is read into no more than what is asked of it.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::checkpoint::Checkpoint;
use crate::dtype::Float;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lossless {
    pub tensors: usize,
    pub to: Float,
}

#[derive(Deserialize)]
struct Report<'a> {
    #[serde(borrow)]
    to: Cow<'a, str>,
    audit: Audit<'a>,
}

#[derive(Deserialize)]
struct Audit<'a> {
    #[serde(borrow)]
    tensors: Vec<Row<'a>>,
}

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    file: Cow<'a, str>,
    name: Cow<'a, str>,
    exact: bool,
}

/// Whether the conversion that made `checkpoint` kept every value; nothing where no report that
/// may be read says so of tensors that are there.
pub fn lossless(checkpoint: &Checkpoint) -> Result<Option<Lossless>, serde_json::Error> {
    let Some(bytes) = checkpoint.report() else { return Ok(None) };
    serde_json::from_slice::<IgnoredAny>(&bytes)?;
    let Ok(report) = serde_json::from_slice::<Report>(&bytes) else { return Ok(None) };
    let stored: HashSet<(Option<&str>, &str)> = checkpoint
        .shards()
        .flat_map(|(file, shard)| {
            shard.tensors.iter().map(|tensor| (file.path().to_str(), tensor.name.as_str()))
        })
        .collect();
    let rows = report.audit.tensors;
    let all = rows
        .iter()
        .all(|row| row.exact && stored.contains(&(Some(row.file.as_ref()), row.name.as_ref())));
    let to = Float::parse(&report.to).filter(|_| all && !rows.is_empty());
    Ok(to.map(|to| Lossless { tensors: rows.len(), to }))
}
