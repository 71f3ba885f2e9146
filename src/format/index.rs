//! `*.safetensors.index.json`: which shard holds which tensor, and the sizes it states.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::config::{Stated, dtype_edit};
use super::edit::{self, Member, Object};
use super::json;
use crate::error::{Error, JsonFault};

#[derive(Debug)]
pub struct Index {
    text: String,
    /// Tensor name to shard file name, in the file's order.
    pub weight_map: Vec<(String, String)>,
    /// What the text calls the shards that are called otherwise in the result.
    stated: HashMap<String, String>,
}

/// Whether a file name is an index's. transformers puts a variant's name in the middle:
/// `model.safetensors.index.fp16.json`.
pub fn is_index(name: &str) -> bool {
    name.ends_with(".json") && name.contains(".safetensors.index.")
}

impl Index {
    /// Reads an index's bytes; `path` is for the error message.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Index, Error> {
        let (text, strict) = json::text(path, bytes)?;
        let invalid = |fault| Error::json(path)(fault);
        let object = Object::parse(&strict).map_err(|_| invalid(JsonFault::NotAnObject))?;
        let part = |key| object.get(key).and_then(|value| Object::parse(value.get()).ok());
        let map = part("weight_map").ok_or_else(|| invalid(JsonFault::NoWeightMap))?;
        // Readers differ in which of two they believe.
        let metadata = part("metadata");
        if let Some(key) = object.duplicate().or_else(|| metadata.as_ref()?.duplicate()) {
            return Err(invalid(JsonFault::DuplicateKey { key: key.to_owned() }));
        }
        if let Some(tensor) = map.duplicate() {
            return Err(invalid(JsonFault::DuplicateTensor { tensor: tensor.to_owned() }));
        }
        let mut weight_map = Vec::with_capacity(map.0.len());
        for (tensor, shard) in map.0 {
            let shard: String = serde_json::from_str(shard.get()).map_err(|_| {
                invalid(JsonFault::NotAName { tensor: tensor.clone().into_owned() })
            })?;
            if !shard.split('/').all(is_plain_name) {
                let (index, tensor) = (path.to_owned(), tensor.into_owned());
                return Err(Error::ShardPath { index, tensor, shard });
            }
            weight_map.push((tensor.into_owned(), shard));
        }
        Ok(Index { text, weight_map, stated: HashMap::new() })
    }

    /// Calls the shards what they become.
    pub fn rename_shards(&mut self, becomes: &dyn Fn(&str) -> String) {
        for (_, shard) in &mut self.weight_map {
            let stated = std::mem::replace(shard, becomes(shard));
            self.stated.entry(shard.clone()).or_insert(stated);
        }
    }

    /// What the text calls a shard.
    pub fn stated<'s>(&'s self, shard: &'s str) -> &'s str {
        self.stated.get(shard).map_or(shard, String::as_str)
    }

    /// The text with `metadata.total_size` saying `total_size` bytes, added when missing because
    /// readers look it up, and `metadata.dtype` saying what is `stated` where it names a float.
    /// `becomes` says what becomes of a tensor of a shard: its name in the result, or nothing.
    pub fn updated<'n>(
        &'n self,
        total_size: u64,
        stated: Stated,
        becomes: &dyn Fn(&'n str, &str) -> Option<&'n str>,
    ) -> String {
        let strict = edit::strict(&self.text);
        let object = Object::parse(&strict).expect("parsed before");
        let size = format!("\"total_size\": {total_size}");
        let mut edits = Vec::new();
        let metadata = object.get("metadata");
        match metadata.map(|value| (edit::span(&strict, value), Object::parse(value.get()))) {
            Some((place, Ok(metadata))) => {
                if let Some(stated) = metadata.get("total_size") {
                    edits.push((edit::span(&strict, stated), total_size.to_string()));
                } else {
                    let comma = if metadata.0.is_empty() { "" } else { ", " };
                    edits.push((after_brace(place.start), format!("{size}{comma}")));
                }
                let dtype = metadata.get("dtype");
                edits.extend(dtype.and_then(|dtype| dtype_edit(&strict, dtype, stated)));
            }
            Some((place, Err(_))) => edits.push((place, format!("{{{size}}}"))),
            None => {
                let brace = strict.find('{').expect("an object");
                edits.push((after_brace(brace), format!("\"metadata\": {{{size}}}, ")));
            }
        }
        let changes: HashMap<&str, (Option<&str>, &str)> = self
            .weight_map
            .iter()
            .map(|(tensor, shard)| (tensor.as_str(), (becomes(tensor, shard), shard.as_str())))
            .filter(|(tensor, (name, shard))| {
                self.stated.contains_key(*shard) || *name != Some(tensor)
            })
            .collect();
        if let Some(map) = object.get("weight_map").filter(|_| !changes.is_empty()) {
            edits.extend(edit::members(
                &strict,
                map.get(),
                &|tensor, _| match changes.get(tensor) {
                    None => Member::Stays,
                    Some((None, _)) => Member::Goes,
                    Some((Some(name), shard)) => {
                        let key = (*name != tensor).then_some(*name);
                        let value = self.stated.contains_key(*shard).then_some(*shard);
                        Member::Becomes { key, value }
                    }
                },
            ));
        }
        edit::apply(&self.text, edits)
    }
}

fn after_brace(brace: usize) -> Range<usize> {
    brace + 1..brace + 1
}

/// A part of a path that stays in its directory on every platform.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Float;

    const F16: Stated = Stated { to: Some(Float::F16), with_fp8: false };

    fn index(text: &str) -> Index {
        Index::parse(Path::new("i"), text.into()).expect("valid")
    }

    #[test]
    fn total_size_changes_and_every_other_byte_stays() {
        let text = "{\n  \"metadata\": {\n    \"total_parameters\": 5,\n    \"total_size\": 20.0,\n    \
                    \"dtype\": \"float32\"\n  },\n  \"weight_map\": {\"a\": \"s\"}\n}\n";
        let expected = text.replace("20.0", "10").replace("float32", "float16");
        assert_eq!(index(text).updated(10, F16, &|tensor, _| Some(tensor)), expected);
    }

    #[test]
    fn a_total_size_that_is_missing_or_no_number_of_jsons_is_added_or_replaced_whole() {
        for (before, after) in [
            ("", r#""metadata": {"total_size": 10}, "#),
            (r#""metadata": {}, "#, r#""metadata": {"total_size": 10}, "#),
            (r#""metadata": {"x": 1}, "#, r#""metadata": {"total_size": 10, "x": 1}, "#),
            (r#""metadata": null, "#, r#""metadata": {"total_size": 10}, "#),
            // What Python writes for numbers that JSON does not have.
            (r#""metadata": Infinity, "#, r#""metadata": {"total_size": 10}, "#),
            (
                r#""metadata": {"total_size": NaN, "x": -Infinity}, "#,
                r#""metadata": {"total_size": 10, "x": -Infinity}, "#,
            ),
        ] {
            let text = |metadata: &str| format!(r#"{{{metadata}"weight_map": {{}}}}"#);
            assert_eq!(
                index(&text(before)).updated(10, F16, &|tensor, _| Some(tensor)),
                text(after)
            );
        }
    }

    #[test]
    fn a_duplicate_key_is_refused_where_readers_look() {
        for (text, key) in [
            (r#"{"weight_map": {}, "weight_map": {"a": "s"}}"#, "'weight_map'"),
            (r#"{"weight_map": {}, "metadata": {}, "met\u0061data": {}}"#, "'metadata'"),
            (r#"{"weight_map": {}, "metadata": {"total_size": 1, "total_size": 2}}"#, "'total_"),
            (r#"{"weight_map": {"a": "s", "b": "s", "\u0061": "s"}}"#, "tensor 'a'"),
        ] {
            let error = Index::parse(Path::new("i"), text.into()).expect_err(text);
            assert!(error.to_string().contains(key), "{text}: {error}");
            assert!(error.to_string().contains("duplicate"), "{text}: {error}");
        }
    }

    #[test]
    fn a_shard_path_that_leaves_the_directory_is_refused() {
        for shard in [
            "../x",
            "/etc/passwd",
            "a/../b",
            "a//b",
            "a/",
            "a\\\\b",
            "..",
            ".",
            "",
            "a\\u0000b",
            "C:x",
        ] {
            let text = format!(r#"{{"weight_map": {{"t": "{shard}"}}}}"#);
            let error = Index::parse(Path::new("i"), text.into()).expect_err(shard);
            assert!(matches!(error, Error::ShardPath { .. }), "{shard}: {error}");
        }
    }

    #[test]
    fn the_indexes_of_variants_are_recognized() {
        assert!(is_index("model.safetensors.index.json"));
        assert!(is_index("model.safetensors.index.fp16.json"));
        assert!(!is_index("pytorch_model.bin.index.json"));
    }
}
