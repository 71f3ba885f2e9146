//! The user's patterns of tensors that stay as they are.

use std::borrow::Cow;

use globset::Glob;
use regex::{Regex, bytes};

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
    /// Of bytes, as globset writes it.
    Glob(bytes::Regex),
    Regex(Regex),
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, Error> {
        let matcher = match text.strip_prefix("re:") {
            Some(regex) => Regex::new(regex).map(Matcher::Regex).map_err(Reason::from),
            // Compiled here, because globset panics where that takes too much memory.
            None => Glob::new(text).map_err(Reason::from).and_then(|glob| {
                let mut builder = bytes::RegexBuilder::new(glob.regex());
                builder.dot_matches_new_line(true);
                builder.build().map(Matcher::Glob).map_err(Reason::from)
            }),
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
            Matcher::Glob(glob) => name == self.text || glob.is_match(name.as_bytes()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, component: &str, name: &str) -> bool {
        Pattern::parse(pattern).expect("a pattern").matches(component, name)
    }

    #[test]
    fn globs_match_whole_names_and_regular_expressions_any_part() {
        assert!(matches("lm_head.*", "", "lm_head.weight"));
        assert!(matches("lm?head.*", "", "lm\nhead.\nweight"));
        assert!(!matches("head.*", "", "lm_head.weight"));
        assert!(matches("re:head", "", "lm_head.weight"));
        assert!(Pattern::parse("re:(").is_err() && Pattern::parse("[").is_err());
        // What takes too much memory to match is an error, and no panic.
        assert!(Pattern::parse(&"?*".repeat(100_000)).is_err());
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
