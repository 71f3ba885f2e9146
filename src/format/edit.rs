//! Edits to a JSON text that replace single values and leave every other byte as it stands:
//! key order, indentation and number spelling belong to whoever wrote the file.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A replacement for a range of bytes of a text; an empty range inserts.
pub type Edit = (Range<usize>, String);

/// The members of one JSON object, as they stand in the text.
pub struct Object<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    pub fn parse(text: &'a str) -> Result<Object<'a>, serde_json::Error> {
        serde_json::from_str(text)
    }

    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    pub fn duplicate(&self) -> Option<&str> {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().map(|(key, _)| key.as_ref()).find(|key| !seen.insert(*key))
    }
}

/// `text` with what Python reads and serde_json does not (`Infinity`, `NaN`, numbers beyond binary64,
/// halves of surrogate pairs) replaced by something of the same length, so that places in the one
/// are places in the other.
pub fn strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let taken = match next {
            '\\' if in_string => escape(rest, &mut out),
            'I' | 'N' | '0'..='9' if !in_string && starts_value(&out) => number(rest, &mut out),
            _ => 0,
        };
        if taken == 0 {
            in_string ^= next == '"';
            out.push(next);
        }
        rest = &rest[taken.max(next.len_utf8())..];
    }
    out
}

/// Puts the escape that `text` starts with, and gives its length. A surrogate that is not one of a
/// pair becomes U+FFFD.
fn escape(text: &str, out: &mut String) -> usize {
    let unit = |text: &str| {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let is_low = |text: &str| unit(text).is_some_and(|unit| (0xDC00..0xE000).contains(&unit));
    let length = match unit(text) {
        Some(0xD800..0xDC00) if is_low(&text[6..]) => 12,
        Some(0xD800..0xE000) => {
            out.push_str("\\ufffd");
            return 6;
        }
        _ => 1 + text[1..].chars().next().map_or(0, char::len_utf8),
    };
    out.push_str(&text[..length]);
    length
}

/// Puts the number that `text` starts with, and gives its length; zero where it is none that
/// has to be replaced.
fn number(text: &str, out: &mut String) -> usize {
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    let word = ["Infinity", "NaN"].into_iter().find(|word| text.starts_with(word));
    if let Some(word) = word {
        // What would go on in the number that replaces it, and a sign that Python does not allow.
        if text[word.len()..].starts_with(is_part) || (word == "NaN" && out.ends_with('-')) {
            return 0;
        }
        out.push('1');
        out.extend(std::iter::repeat_n('0', word.len() - 1));
        return word.len();
    }
    let length = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let number = &text[..length];
    // From here on serde_json may find a number too large that is not.
    let is_large = number.parse::<f64>().is_ok_and(|number| number >= 1e300);
    let is_digit = |at| number.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let has_zero = number.starts_with('0') && is_digit(1);
    let has_bare_point = number.find('.').is_some_and(|point| !is_digit(point + 1));
    if !is_large || has_zero || has_bare_point {
        return 0;
    }
    out.push_str("1e");
    out.extend(std::iter::repeat_n('0', length - 2));
    length
}

/// Whether a number may start after `before`, or has started with its sign.
fn starts_value(before: &str) -> bool {
    let before = before.strip_suffix('-').unwrap_or(before);
    before.is_empty() || before.ends_with([' ', '\t', '\n', '\r', ':', ',', '['])
}

/// The range of `value`, which must be a part of `text`.
pub fn span(text: &str, value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - text.as_ptr().addr();
    start..start + value.get().len()
}

/// What becomes of a member of an object.
pub enum Member<'a> {
    Stays,
    Goes,
    /// Another key, another text, or both.
    Becomes {
        key: Option<&'a str>,
        value: Option<&'a str>,
    },
}

/// The edits of the members of `object`, which must be a part of `whole`.
pub fn members<'n>(
    whole: &str,
    object: &str,
    becomes: &dyn Fn(&str, &RawValue) -> Member<'n>,
) -> Vec<Edit> {
    let Ok(members) = Object::parse(object) else { return Vec::new() };
    let begin = object.as_ptr().addr() - whole.as_ptr().addr();
    let mut before = begin + object.find('{').map_or(0, |brace| brace + 1);
    let mut edits =
        removals_of(whole, object, &|key, value| matches!(becomes(key, value), Member::Goes));
    for (key, value) in &members.0 {
        let place = span(whole, value);
        if let Member::Becomes { key, value } = becomes(key, value) {
            let quoted = |text: &str| serde_json::to_string(text).expect("a text");
            // Nothing but the key has quotation marks there.
            let between = &whole[before..place.start];
            let quotes = between.find('"').zip(between.rfind('"'));
            if let Some((key, (start, end))) = key.zip(quotes) {
                edits.push((before + start..before + end + 1, quoted(key)));
            }
            edits.extend(value.map(|value| (place.clone(), quoted(value))));
        }
        before = place.end;
    }
    edits.sort_by_key(|(range, _)| range.start);
    edits
}

/// The edits that remove every member of every nested object for which `goes` is true.
pub fn removals(text: &str, goes: &dyn Fn(&str, &RawValue) -> bool) -> Vec<Edit> {
    let mut edits = Vec::new();
    remove_from(text, text, goes, &mut edits);
    edits
}

fn remove_from(
    whole: &str,
    object: &str,
    goes: &dyn Fn(&str, &RawValue) -> bool,
    edits: &mut Vec<Edit>,
) {
    let items = serde_json::from_str::<Vec<&RawValue>>(object).unwrap_or_default();
    items.iter().for_each(|item| remove_from(whole, item.get(), goes, edits));
    let Ok(members) = Object::parse(object) else { return };
    edits.extend(removals_of(whole, object, goes));
    for (_, value) in members.0.iter().filter(|(key, value)| !goes(key, value)) {
        remove_from(whole, value.get(), goes, edits);
    }
}

/// The edits that remove members of one object.
fn removals_of(whole: &str, object: &str, goes: &dyn Fn(&str, &RawValue) -> bool) -> Vec<Edit> {
    let mut edits = Vec::new();
    let Ok(members) = Object::parse(object) else { return edits };
    let begin = object.as_ptr().addr() - whole.as_ptr().addr();
    let mut end = begin + object.find('{').map_or(0, |brace| brace + 1);
    // A member goes with the comma before it, or, where all before it went, the one after it.
    let mut is_first = true;
    for (number, (key, value)) in members.0.iter().enumerate() {
        let place = span(whole, value);
        if goes(key, value) {
            let is_last = number + 1 == members.0.len();
            let comma = whole[place.end..].find(',').filter(|_| is_first && !is_last);
            let stop = comma.map_or(place.end, |comma| place.end + comma + 1);
            edits.push((end..stop, String::new()));
            end = stop;
        } else {
            (end, is_first) = (place.end, false);
        }
    }
    edits
}

/// `text` with all `edits`, which must not overlap, made.
pub fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = String::with_capacity(text.len() + 64);
    let mut done = 0;
    for (range, replacement) in edits {
        out.push_str(&text[done..range.start]);
        out.push_str(&replacement);
        done = range.end;
    }
    out.push_str(&text[done..]);
    out
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_number_of_pythons_becomes_one_of_jsons() {
        for (python, json) in [
            ("NaN", "100"),
            ("[NaN,-Infinity, Infinity]", "[100,-10000000, 10000000]"),
            (r#"{"a":NaN, "NaN": "Infinity \" NaN"}"#, r#"{"a":100, "NaN": "Infinity \" NaN"}"#),
            ("1NaN", "1NaN"),
            ("[0.Infinity]", "[0.Infinity]"),
            ("1e-Infinity", "1e-Infinity"),
            ("[-NaN]", "[-NaN]"),
            ("[Infinity1]", "[Infinity1]"),
            ("[1e999, -12.5E+400,1e9]", "[1e000, -1e0000000,1e9]"),
            ("[1.7976931348623157e+308]", "[1e000000000000000000000]"),
            ("[01e999, 1.e999]", "[01e999, 1.e999]"),
            (
                r#"["\ud800", "a\udc00", "\ud83d\ude00", "\\ud800"]"#,
                r#"["\ufffd", "a\ufffd", "\ud83d\ude00", "\\ud800"]"#,
            ),
        ] {
            assert_eq!(strict(python), json);
        }
    }
}
