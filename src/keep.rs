//! Which tensors stay as they are: the user's patterns, and the built-in list of tensors that
//! loaders need in fp32 (`keep_list.json`, data with a reason and a source for each entry).

use globset::{Glob, GlobMatcher};
use regex::Regex;
use serde::Deserialize;

use crate::dtype::Float;
use crate::error::Error;

/// How many near names an unmatched pattern suggests.
const SUGGESTIONS: usize = 3;

/// A `--keep` pattern: a glob over the whole tensor name, or `re:` and a regular expression
/// that may match anywhere in it.
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

enum Matcher {
    Glob(GlobMatcher),
    Regex(Regex),
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// What the glob or regular-expression parser says.
    pub fn parse(text: &str) -> Result<Pattern, Error> {
        let bad = |error: &dyn ToString| {
            let (pattern, reason) = (text.to_owned(), error.to_string());
            Error::BadPattern { pattern, reason }
        };
        let matcher = match text.strip_prefix("re:") {
            Some(regex) => Matcher::Regex(Regex::new(regex).map_err(|error| bad(&error))?),
            None => Matcher::Glob(Glob::new(text).map_err(|error| bad(&error))?.compile_matcher()),
        };
        Ok(Pattern { text: text.to_owned(), matcher })
    }

    /// Whether the tensor called `name` is kept.
    pub fn matches(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Glob(glob) => glob.is_match(name),
            Matcher::Regex(regex) => regex.is_match(name),
        }
    }

    /// As the user wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The error for a pattern that none of `names` matches.
    pub fn unmatched<'a>(&self, names: impl Iterator<Item = &'a str>) -> Error {
        let mut near: Vec<(f64, &str)> =
            names.map(|name| (strsim::jaro_winkler(&self.text, name), name)).collect();
        near.sort_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(right.1)));
        near.dedup();
        let nearest = near.iter().take(SUGGESTIONS).map(|(_, name)| (*name).to_owned()).collect();
        Error::UnmatchedPattern { pattern: self.text.clone(), nearest }
    }
}

/// An entry of the built-in list.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// Dotted parts of a tensor's name; `gate.weight` matches `mlp.gate.weight`, not
    /// `investigate.weight`.
    pub names: Vec<String>,
    /// The targets, by short name, for which loaders keep the tensor.
    pub targets: Vec<String>,
    /// The `model_type`s whose loaders do.
    pub model_types: Vec<String>,
    /// Why.
    pub reason: String,
    /// Where that is known from.
    pub source: String,
}

/// The built-in entries that hold for a target and a model.
pub fn built_in(to: Float, model_types: &[String]) -> Vec<Entry> {
    let mut entries: Vec<Entry> =
        serde_json::from_str(include_str!("keep_list.json")).expect("checked by a test");
    entries.retain(|entry| {
        entry.targets.iter().any(|target| target == to.name())
            && entry.model_types.iter().any(|model| model_types.contains(model))
    });
    entries
}

impl Entry {
    /// Whether the tensor called `name` is on this entry.
    pub fn matches(&self, name: &str) -> bool {
        self.names.iter().any(|part| {
            name.match_indices(part.as_str()).any(|(at, _)| {
                (at == 0 || name[..at].ends_with('.'))
                    && matches!(name.as_bytes().get(at + part.len()), None | Some(b'.'))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_entry_has_a_reason_a_source_and_known_targets() {
        let entries: Vec<Entry> =
            serde_json::from_str(include_str!("keep_list.json")).expect("JSON");
        for entry in &entries {
            assert!(!entry.reason.is_empty() && !entry.source.is_empty());
            assert!(!entry.names.is_empty() && !entry.model_types.is_empty());
            assert!(entry.targets.iter().all(|name| Float::parse(name).is_some()));
        }
    }

    #[test]
    fn built_in_entries_hold_only_for_their_targets_and_models() {
        let t5 = ["t5".to_owned()];
        assert_eq!(built_in(Float::F16, &t5).len(), 1);
        assert_eq!(built_in(Float::Bf16, &t5).len(), 0);
        assert_eq!(built_in(Float::F16, &["llama".to_owned()]).len(), 0);
        let entry = &built_in(Float::F16, &t5)[0];
        assert!(entry.matches("encoder.block.0.layer.1.DenseReluDense.wo.weight"));
        assert!(!entry.matches("encoder.two.weight") && !entry.matches("wonder.weight"));
    }

    #[test]
    fn globs_match_whole_names_and_regular_expressions_any_part() {
        assert!(Pattern::parse("lm_head.*").expect("glob").matches("lm_head.weight"));
        assert!(!Pattern::parse("head.*").expect("glob").matches("lm_head.weight"));
        assert!(Pattern::parse("re:head").expect("regex").matches("lm_head.weight"));
        assert!(Pattern::parse("re:(").is_err() && Pattern::parse("[").is_err());
    }
}
