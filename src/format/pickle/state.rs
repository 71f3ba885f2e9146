//! Which of the values of a pickle are the tensors of the model: a state dict at the top, or under
//! the one key that is called like one.

use std::collections::{HashMap, HashSet};

use super::machine::Pickled;
use super::value::{Id, Tensor, Value};
use crate::error::PickleFault;
use crate::shown::{Shown, shown_all};

/// What training scripts and libraries call the member with the model's state dict.
const KEYS: [&str; 14] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "generator",
    "params",
    "params_ema",
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "weights",
];
/// The most names that a message lists.
const MOST_NAMES: usize = 20;

/// The tensors of a model, each with its name, in the order of the pickle.
pub struct State<'p> {
    pub tensors: Vec<(&'p str, &'p Tensor)>,
    /// What is beside them, and is no tensor of the model.
    pub left_out: Vec<String>,
}

/// A state dict: the keys that lead to it, and its members.
struct Found<'p> {
    path: Vec<&'p str>,
    members: Vec<(Id, Id)>,
}

/// Finds the state dict; `key` is its name at the top, or those that lead to it with dots between
/// them, where it was given.
pub fn find<'p>(pickled: &'p Pickled<'p>, key: Option<&str>) -> Result<State<'p>, PickleFault> {
    let found = match (members(pickled, pickled.root()), key) {
        (None, None) => {
            let found = described(pickled.root()).to_owned();
            return Err(PickleFault::NoDict { found });
        }
        (None, Some(key)) => return Err(no_such_key(pickled, &[], key)),
        (Some(top), Some(key)) => match at_key(pickled, &top, key) {
            Some(path) => path,
            None => return Err(no_such_key(pickled, &top, key)),
        },
        (Some(top), None) => {
            let mut known = known(pickled, &top, &mut HashSet::new(), 0);
            match (known.len(), holds_tensors(pickled, &top)) {
                (0, true) => Found { path: Vec::new(), members: top },
                (0, false) => {
                    let holders = holders(pickled, &top);
                    let found = match holders.is_empty() {
                        true => "a dict without tensors".to_owned(),
                        false => format!("tensors under {}", listed(&holders)),
                    };
                    return Err(PickleFault::NoStateDict { found });
                }
                (1, _) => {
                    let found = known.remove(0);
                    let beside = weights(pickled, &top);
                    if !beside.is_empty() {
                        let (keys, chosen) = (listed(&beside), found.path.join(".").shown());
                        return Err(PickleFault::Beside { keys, chosen });
                    }
                    found
                }
                _ => {
                    let keys: Vec<String> =
                        known.iter().map(|found| found.path.join(".")).collect();
                    return Err(PickleFault::StateDicts { keys: listed(&keys) });
                }
            }
        }
    };
    let mut left_out = beside(pickled, &found.path);
    let (mut tensors, mut nested) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for (key, value) in found.members {
        match (pickled.get(value), pickled.text(key)) {
            (Value::Tensor(tensor), Some(name)) => tensors.push((name, &**tensor)),
            (Value::Tensor(_), None) => {
                let tensor = shown_key(pickled, key);
                let problem = "has no text for a name".to_owned();
                return Err(PickleFault::Tensor { tensor, problem });
            }
            // What a module saves beside its parameters.
            (_, Some(name)) if name.ends_with("_extra_state") => left_out.push(name.shown()),
            _ if holds_any(pickled, value, &mut seen) => nested.push(shown_key(pickled, key)),
            _ => left_out.push(shown_key(pickled, key)),
        }
    }
    if !nested.is_empty() {
        return Err(PickleFault::Nested { keys: listed(&nested) });
    }
    Ok(State { tensors, left_out })
}

/// The state dicts under keys that are called like one, also under several in a row.
/// Each is there once, however often it is mentioned, also in itself.
fn known<'p>(
    pickled: &'p Pickled<'p>,
    top: &[(Id, Id)],
    seen: &mut HashSet<Id>,
    depth: usize,
) -> Vec<Found<'p>> {
    /// Nobody nests them deeper.
    const DEEPEST: usize = 8;
    let mut found = Vec::new();
    for (key, value) in top {
        let Some(name) = pickled.text(*key).filter(|name| KEYS.contains(name)) else { continue };
        if !seen.insert(*value) {
            continue;
        }
        let Some(members) = members(pickled, pickled.get(*value)) else { continue };
        if holds_tensors(pickled, &members) {
            found.push(Found { path: vec![name], members });
        } else if depth < DEEPEST {
            found.extend(known(pickled, &members, seen, depth + 1).into_iter().map(|mut below| {
                below.path.insert(0, name);
                below
            }));
        }
    }
    found
}

/// The state dict at a key, or the only one under it; a key with dots may be several.
fn at_key<'p>(pickled: &'p Pickled<'p>, top: &[(Id, Id)], key: &str) -> Option<Found<'p>> {
    // The whole key before a part of it.
    let whole = |entry: &&(Id, Id)| pickled.text(entry.0) == Some(key);
    let others = top.iter().filter(|entry| !whole(entry));
    for (name, value) in top.iter().filter(whole).chain(others) {
        let Some(name) = pickled.text(*name) else { continue };
        let Some(rest) = key.strip_prefix(name) else { continue };
        let Some(members) = members(pickled, pickled.get(*value)) else { continue };
        let below = match rest.strip_prefix('.') {
            _ if rest.is_empty() && holds_tensors(pickled, &members) => {
                Some(Found { path: Vec::new(), members })
            }
            _ if rest.is_empty() => {
                let mut known = known(pickled, &members, &mut HashSet::new(), 0);
                if known.len() == 1 { known.pop() } else { None }
            }
            Some(rest) => at_key(pickled, &members, rest),
            None => None,
        };
        if let Some(mut below) = below {
            below.path.insert(0, name);
            return Some(below);
        }
    }
    None
}

/// What is beside a state dict, at every level above it.
fn beside(pickled: &Pickled<'_>, path: &[&str]) -> Vec<String> {
    let (mut found, mut above) = (Vec::new(), String::new());
    let mut value = pickled.root();
    for step in path {
        let mut next = value;
        for (key, member) in members(pickled, value).unwrap_or_default() {
            match pickled.text(key) == Some(step) {
                true => next = pickled.get(member),
                false => found.push(format!("{above}{}", shown_key(pickled, key))),
            }
        }
        value = next;
        above = format!("{above}{}.", step.shown());
    }
    found
}

fn no_such_key(pickled: &Pickled<'_>, top: &[(Id, Id)], key: &str) -> PickleFault {
    let holders = holders(pickled, top);
    let keys = if holders.is_empty() { "none".to_owned() } else { listed(&holders) };
    PickleFault::NoSuchKey { key: key.shown(), keys }
}

/// The keys under which there are tensors.
fn holders(pickled: &Pickled<'_>, top: &[(Id, Id)]) -> Vec<String> {
    // Many keys may have the same value.
    let mut known_of: HashMap<Id, bool> = HashMap::new();
    let mut holds = |value: Id| {
        *known_of.entry(value).or_insert_with(|| {
            let members = members(pickled, pickled.get(value));
            members.is_some_and(|members| holds_tensors(pickled, &members))
        })
    };
    let holders = top.iter().filter(|(_, value)| holds(*value));
    let direct = holders.filter_map(|(key, _)| pickled.text(*key)).map(str::to_owned);
    direct
        .chain(
            known(pickled, top, &mut HashSet::new(), 0)
                .iter()
                .filter(|it| it.path.len() > 1)
                .map(|it| it.path.join(".")),
        )
        .collect()
}

/// The members of a dict, of which the last counts where two have the same name, as in Python.
fn members(pickled: &Pickled<'_>, value: &Value) -> Option<Vec<(Id, Id)>> {
    let Value::Dict(members) = value else { return None };
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut found: Vec<(Id, Id)> = Vec::with_capacity(members.len());
    for (key, value) in members {
        let place = pickled.text(*key).map(|name| *places.entry(name).or_insert(found.len()));
        match place {
            Some(place) if place < found.len() => found[place] = (*key, *value),
            _ => found.push((*key, *value)),
        }
    }
    Some(found)
}

fn holds_tensors(pickled: &Pickled<'_>, members: &[(Id, Id)]) -> bool {
    members.iter().any(|(_, value)| matches!(pickled.get(*value), Value::Tensor(_)))
}

/// Whether there are tensors in a value, however deep; each value is looked at once.
fn holds_any(pickled: &Pickled<'_>, value: Id, seen: &mut HashSet<Id>) -> bool {
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        if !seen.insert(value) {
            continue;
        }
        match pickled.get(value) {
            Value::Tensor(_) => return true,
            Value::List(items) | Value::Tuple(items) => rest.extend(items),
            Value::Dict(members) => rest.extend(members.iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    false
}

/// The tensors of floats, with a dimension at least, directly in a dict: no counters, and no states
/// of random numbers.
fn weights(pickled: &Pickled<'_>, members: &[(Id, Id)]) -> Vec<String> {
    let is_weight = |value: Id| match pickled.get(value) {
        Value::Tensor(tensor) => {
            let is_float = tensor.element.dtype().is_some_and(|dtype| dtype.is_float());
            is_float && !tensor.sizes.is_empty()
        }
        _ => false,
    };
    let found = members.iter().filter(|(_, value)| is_weight(*value));
    found.map(|(key, _)| shown_key(pickled, *key)).collect()
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let quoted = names.iter().take(MOST_NAMES).map(|name| format!("'{name}'"));
    let shown = shown_all(quoted, ", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown.to_string() }
}

fn shown_key(pickled: &Pickled<'_>, key: Id) -> String {
    match (pickled.get(key), pickled.text(key)) {
        (_, Some(name)) => name.shown(),
        (Value::Int(number), _) => number.to_string(),
        (other, _) => described(other).to_owned(),
    }
}

fn described(value: &Value) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool(_) => "a bool",
        Value::Int(_) => "a number",
        Value::Text(_) => "a text",
        Value::Tuple(_) => "a tuple",
        Value::List(_) => "a list",
        Value::Dict(_) => "a dict",
        Value::Global(_) => "a name of torch",
        Value::Storage(_) => "a storage",
        Value::Tensor(_) => "a single tensor",
        Value::Inert => "something that is no dict",
    }
}
