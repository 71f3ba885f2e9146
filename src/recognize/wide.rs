//! Tensors that are wide on purpose, and why. Four things say so: the loaders of the model
//! (`libraries.json`, which `tools/keep_lists.py` writes), the name of a tensor, the family that a
//! set of names is the mark of (both in `rules.rs`), and the checkpoint itself.

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::rules::{RULES, Rule};
use crate::dtype::Float;

/// At most one in this many elements is wide where the wide ones are taken for deliberate.
///
/// What publishers leave in fp32 (router biases, norms, recurrent decays, time embeddings) is below
/// 1 % of a model. What is fp32 by accident is whole: a component, an adapter, an embedding that was
/// resized, half of a merge. And whatever the cause, keeping them adds at most 5 % to the result.
pub const ONE_IN: u64 = 20;

/// A floating tensor of a component.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Bits per element.
    pub bits: u64,
    /// How many elements it has.
    pub elements: u64,
}

impl Tensor<'_> {
    fn is_wide(&self) -> bool {
        self.bits >= 32
    }

    /// Whether it is of 8 bits, or of fewer, which are never plain.
    fn is_fp8(&self) -> bool {
        self.bits <= 8
    }
}

/// Why a tensor stays wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// For people.
    pub text: &'static str,
    /// Where that is known from.
    pub source: &'static str,
}

/// What the checkpoint says by itself.
const ITSELF: Reason = Reason {
    text: "fp32 in a checkpoint that is otherwise 16-bit",
    source: "vllm-project/vllm#47777, huggingface/transformers#46167",
};
const ITSELF_DOUBLE: Reason =
    Reason { text: "fp64 in a checkpoint that is otherwise 16-bit", ..ITSELF };

/// An entry of `libraries.json`.
#[derive(Debug, Deserialize)]
struct Entry {
    names: Vec<String>,
    targets: Vec<String>,
    #[serde(default)]
    model_types: Vec<String>,
    #[serde(default)]
    class_names: Vec<String>,
    reason: String,
    source: String,
}

/// What the loaders of models keep wide, as `tools/keep_lists.py` writes it.
pub const LISTS: &str = include_str!("libraries.json");

static LIBRARIES: LazyLock<Vec<Entry>> =
    LazyLock::new(|| serde_json::from_str(LISTS).expect("a test parses the file"));

/// The tensors of one component (a folder of the checkpoint) that are wide on purpose.
#[derive(Debug)]
pub struct Wide {
    names: Vec<Name>,
    /// Finds any of `names`: most tensors have none, and this is one pass over theirs.
    any: Option<Regex>,
    itself: bool,
    family: Option<&'static str>,
    is_named: bool,
    /// Whether transformers loads it.
    is_of_transformers: bool,
}

#[derive(Debug)]
struct Name {
    /// Whether a loader keeps it.
    listed: bool,
    piece: &'static str,
    scalar: bool,
    reason: Reason,
}

impl Wide {
    /// Looks at a component of a checkpoint that is to be cast to `to`: the model types and class
    /// names that its configs name, nested ones too, the names of all its tensors, and those that
    /// are plain floats.
    pub fn new<'a>(
        to: Float,
        model_types: &[String],
        class_names: &[String],
        names: &[&str],
        tensors: impl Iterator<Item = Tensor<'a>>,
    ) -> Wide {
        if to == Float::F32 {
            return Wide {
                names: Vec::new(),
                any: None,
                itself: false,
                family: None,
                is_named: true,
                is_of_transformers: false,
            };
        }
        let listed = LIBRARIES.iter().filter(|entry| {
            let named = |owners: &[String], found: &[String]| {
                owners.iter().any(|owner| found.contains(owner))
            };
            entry.targets.iter().any(|target| target == to.name())
                && (named(&entry.model_types, model_types)
                    || named(&entry.class_names, class_names))
        });
        let present = Present::of(names);
        let mut names: Vec<Name> = Vec::new();
        for entry in listed {
            let reason = Reason { text: &entry.reason, source: &entry.source };
            names.extend(entry.names.iter().map(|piece| Name {
                listed: true,
                piece,
                scalar: false,
                reason,
            }));
        }
        let rules = || RULES.iter().filter(|rule| present.all_of(rule));
        for rule in rules().filter(|rule| rule.targets.contains(&to)) {
            let reason = Reason { text: rule.reason, source: rule.source };
            let scalar = rule.scalar;
            names.extend(rule.names.iter().map(|piece| Name {
                listed: rule.family.is_some(),
                piece,
                scalar,
                reason,
            }));
        }
        let any = finder(names.iter().map(|name| name.piece));
        let family = rules().find_map(|rule| rule.family);
        let is_named = !model_types.is_empty() || !class_names.is_empty();
        let is_of_transformers = !model_types.is_empty();
        let itself = deliberate(tensors);
        Wide { names, any, itself, family, is_named, is_of_transformers }
    }

    /// Why `tensor`, a floating one of the component, stays as it is; `None` when it is cast.
    pub fn why(&self, tensor: Tensor) -> Option<Reason> {
        // Plain fp8 is exact in every other dtype, and no loader computes with it.
        if tensor.is_fp8() {
            return None;
        }
        let own = if tensor.bits > 32 { ITSELF_DOUBLE } else { ITSELF };
        let itself = || (self.itself && tensor.is_wide()).then_some(own);
        let dotted = format!(".{}.", tensor.name);
        if !self.any.as_ref().is_some_and(|any| any.is_match(&dotted)) {
            return itself();
        }
        let mut names = self.names.iter();
        let name = names.find(|name| {
            // Where the loader widens a tensor, the other 16 bits would only lose something.
            let is_meant = tensor.is_wide() || name.listed;
            is_meant && dotted.contains(name.piece) && (!name.scalar || tensor.elements == 1)
        });
        name.map(|name| name.reason).or_else(itself)
    }

    /// Whether the loader casts `tensor` whatever dtype it is stored in. That of transformers casts
    /// what is not on its lists to the dtype that the config states.
    pub fn is_cast_by_loader(&self, tensor: Tensor) -> bool {
        let dotted = format!(".{}.", tensor.name);
        let mut listed = self.names.iter().filter(|name| name.listed);
        self.is_of_transformers && !listed.any(|name| dotted.contains(name.piece))
    }

    /// Whether nothing tells what model this is: neither a config nor the names of its tensors.
    pub fn is_nameless(&self) -> bool {
        !self.is_named && self.family.is_none()
    }
}

/// Whether the few wide tensors of a component are wide on purpose: all others are 16-bit, and far
/// more. Where weights are stored in fp8, the rest is merely what was not made so.
fn deliberate<'a>(tensors: impl Iterator<Item = Tensor<'a>>) -> bool {
    let (mut wide, mut all) = (0_u64, 0_u64);
    for tensor in tensors.filter(|tensor| !tensor.is_fp8()) {
        wide = wide.saturating_add(if tensor.is_wide() { tensor.elements } else { 0 });
        all = all.saturating_add(tensor.elements);
    }
    wide > 0 && wide <= all / ONE_IN
}

/// Which companions of [`RULES`] a component has.
struct Present(Vec<&'static str>);

impl Present {
    fn of(names: &[&str]) -> Present {
        let mut missing: Vec<&str> = RULES.iter().flat_map(|rule| rule.with).copied().collect();
        missing.sort_unstable();
        missing.dedup();
        let any = finder(missing.iter().copied()).expect("rules with companions");
        let mut found = Vec::new();
        for name in names {
            let dotted = format!(".{name}.");
            if any.is_match(&dotted) {
                found.extend(missing.extract_if(.., |piece| dotted.contains(*piece)));
            }
        }
        Present(found)
    }

    fn all_of(&self, rule: &Rule) -> bool {
        rule.with.iter().all(|piece| self.0.contains(piece))
    }
}

/// An expression that finds any of `pieces`; `None` when there are none.
fn finder<'a>(pieces: impl Iterator<Item = &'a str>) -> Option<Regex> {
    let pieces: Vec<String> = pieces.map(regex::escape).collect();
    let found = || Regex::new(&pieces.join("|")).expect("escaped text");
    (!pieces.is_empty()).then(found)
}

#[cfg(test)]
mod tests;
