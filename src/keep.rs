//! Which tensors stay as they are: the user's patterns, and the built-in list of tensors that
//! loaders need in fp32 (`keep_list.json`, data with a reason and a source for each entry).

use std::borrow::Cow;

use globset::{Glob, GlobMatcher};
use regex::Regex;
use serde::Deserialize;

use crate::dtype::Float;
use crate::error::{Error, Reason};

const SUGGESTIONS: usize = 3;

/// A `--keep` pattern: a tensor's name as it is, a glob over the whole name, or `re:` and a regular
/// expression that may match anywhere in it. A pattern with a slash may also be about
/// `COMPONENT/NAME`, where a component is a folder of the checkpoint, such as `vae`.
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

enum Matcher {
    Glob(GlobMatcher),
    Regex(Regex),
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, Error> {
        let matcher = match text.strip_prefix("re:") {
            Some(regex) => Regex::new(regex).map(Matcher::Regex).map_err(Reason::from),
            None => Glob::new(text)
                .map(|glob| Matcher::Glob(glob.compile_matcher()))
                .map_err(Reason::from),
        };
        let matcher =
            matcher.map_err(|source| Error::BadPattern { pattern: text.to_owned(), source })?;
        Ok(Pattern { text: text.to_owned(), matcher })
    }

    /// Whether the tensor called `name` in `component` is kept; a component is the folder of the
    /// tensor's file as [`crate::recognize::component`] gives it.
    pub fn matches(&self, component: &str, name: &str) -> bool {
        let matches = |name: &str| match &self.matcher {
            // A name may have characters that mean something in a glob, such as brackets.
            Matcher::Glob(glob) => name == self.text || glob.is_match(name),
            Matcher::Regex(regex) => regex.is_match(name),
        };
        matches(name)
            || (self.names_component() && !component.is_empty())
                && matches(&format!("{component}/{name}"))
    }

    fn names_component(&self) -> bool {
        self.text.contains('/')
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The error for a pattern that matches none of `tensors`, which are components and names.
    pub fn unmatched<'a>(&self, tensors: impl Iterator<Item = (&'a str, &'a str)>) -> Error {
        let tensors: Vec<(&str, &str)> = tensors.collect();
        let instead = self.alternatives().into_iter().find(|text| {
            let pattern = Pattern::parse(text);
            pattern.is_ok_and(|pattern| tensors.iter().any(|&(at, name)| pattern.matches(at, name)))
        });
        let shown = |&(component, name): &(&str, &'a str)| match component {
            "" => Cow::Borrowed(name),
            _ if self.names_component() => Cow::Owned(format!("{component}/{name}")),
            _ => Cow::Borrowed(name),
        };
        let mut near: Vec<(f64, Cow<str>)> = tensors
            .iter()
            .map(shown)
            .map(|name| (strsim::jaro_winkler(&self.text, &name), name))
            .collect();
        near.sort_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
        near.dedup();
        let nearest = near.into_iter().take(SUGGESTIONS).map(|(_, name)| name.into_owned());
        Error::UnmatchedPattern { pattern: self.text.clone(), instead, nearest: nearest.collect() }
    }

    /// What may have been meant by a glob that matches nothing: brackets as they are, or all of a
    /// component.
    fn alternatives(&self) -> Vec<String> {
        match self.matcher {
            Matcher::Glob(_) => {
                let component = self.text.trim_end_matches(['*', '.', '/']);
                vec![self.text.replace('[', "[[]"), format!("{component}/*")]
            }
            Matcher::Regex(_) => Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
pub struct Entry {
    /// Dotted parts of a tensor's name; `gate.weight` matches `mlp.gate.weight`, not
    /// `investigate.weight`.
    pub names: Vec<String>,
    /// The targets, by short name, for which loaders keep the tensor.
    pub targets: Vec<String>,
    pub model_types: Vec<String>,
    pub reason: String,
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

    fn matches(pattern: &str, component: &str, name: &str) -> bool {
        Pattern::parse(pattern).expect("a pattern").matches(component, name)
    }

    #[test]
    fn globs_match_whole_names_and_regular_expressions_any_part() {
        assert!(matches("lm_head.*", "", "lm_head.weight"));
        assert!(!matches("head.*", "", "lm_head.weight"));
        assert!(matches("re:head", "", "lm_head.weight"));
        assert!(Pattern::parse("re:(").is_err() && Pattern::parse("[").is_err());
    }

    #[test]
    fn a_pattern_with_a_slash_names_a_component_and_one_without_does_not() {
        assert!(matches("vae/*", "vae", "decoder.weight"));
        assert!(matches("vae/*.weight", "vae", "decoder.weight"));
        assert!(matches("a/*", "a/b", "w") && matches("a/b/w", "a/b", "w"));
        assert!(!matches("vae/*", "vae_2", "decoder.weight"));
        assert!(!matches("vae/*", "", "decoder.weight"));
        assert!(!matches("vae*", "vae", "decoder.weight"));
        assert!(matches("re:^vae/.*norm", "vae", "mid.norm.weight"));
        assert!(!matches("re:^vae.*norm", "vae", "mid.norm.weight"));
        assert!(matches("block/*", "vae", "block/weight") && matches("block/*", "", "block/w"));
    }

    #[test]
    fn a_pattern_matches_the_name_that_it_is() {
        assert!(matches("blocks[0].weight", "", "blocks[0].weight"));
        assert!(matches("vae/blocks[0].weight", "vae", "blocks[0].weight"));
        assert!(matches("blocks[0].weight", "", "blocks0.weight"));
    }
}
