//! Untrusted JSON, checked as a whole before anything is built from it.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::edit;
use crate::error::{Error, JsonFault};

/// The most bytes of a config that are read. The largest in use have about one million.
pub const MAX_CONFIG: u64 = 10_000_000;
/// The most bytes of an index that are read: as many as of a header, which says more.
pub const MAX_INDEX: u64 = 100_000_000;
/// How deep a config or an index may be nested. Python reads somewhat more, and none in use has more
/// than ten levels.
const MAX_NESTING: usize = 500;

/// The text of a config or an index, checked to be JSON as Python writes it, and the same text as
/// strict JSON.
pub fn text(path: &Path, bytes: Vec<u8>) -> Result<(String, String), Error> {
    let text = String::from_utf8(bytes).map_err(|error| JsonFault::Utf8 { source: error.into() });
    let text = text.map_err(Error::json(path))?;
    let levels = nesting(text.as_bytes());
    if levels > MAX_NESTING {
        return Err(Error::json(path)(JsonFault::TooDeep { levels, limit: MAX_NESTING }));
    }
    let strict = edit::strict(&text);
    let mut reader = serde_json::Deserializer::from_str(&strict);
    reader.disable_recursion_limit();
    let checked = Anything::deserialize(&mut reader).and_then(|_| reader.end());
    checked.map_err(|error| Error::json(path)(JsonFault::Syntax { source: error.into() }))?;
    Ok((text, strict))
}

/// How deep the brackets of a text are nested, whether or not it is JSON: a reader that calls itself
/// for each of them can run out of stack.
pub fn nesting(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Checks that `text` is JSON to the last number and escape and nested no deeper than serde_json
/// allows (127 levels). What only skips a value, as an unknown field or a raw value does, looks at
/// neither.
pub fn check(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<Anything>(text).map(drop)
}

/// Any JSON value, looked at and forgotten.
struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

impl<'de> Visitor<'de> for Anything {
    type Value = Anything;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Anything, E> {
        Ok(Anything)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Anything, E> {
        Ok(Anything)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Anything, E> {
        Ok(Anything)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Anything, E> {
        Ok(Anything)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Anything, E> {
        Ok(Anything)
    }

    fn visit_str<E>(self, _: &str) -> Result<Anything, E> {
        Ok(Anything)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Anything, A::Error> {
        while items.next_element::<Anything>()?.is_some() {}
        Ok(Anything)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Anything, A::Error> {
        while members.next_entry::<Anything, Anything>()?.is_some() {}
        Ok(Anything)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_counted_where_they_open_something() {
        for (text, depth) in
            [("", 0), ("[[]][]", 2), (r#"{"[[[": ["\"[{"]}"#, 2), ("]]]][", 1), ("[[[", 3)]
        {
            assert_eq!(nesting(text.as_bytes()), depth, "{text}");
        }
    }

    #[test]
    fn what_python_reads_is_read() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let long = format!("[{}.5, 1.7976931348623158e308]", "1".repeat(400));
        for good in ["[1e999, -1E+400, NaN]", &long, r#"{"\ud800": "\udc00 \ud83d\ude00"}"#, &deep]
        {
            text(Path::new("c"), good.into()).expect(good);
        }
        let deeper = format!("[{deep}]");
        let open = "[".repeat(1 << 20);
        for bad in
            ["[01e999]", "[1.e999]", "[-NaN]", "[NaN1]", r#"["\ud80"]"#, "[1e999", &deeper, &open]
        {
            text(Path::new("c"), bad.into()).expect_err(bad);
        }
    }

    #[test]
    fn what_a_parser_would_skip_is_checked_too() {
        for good in ["{}", "[1, -2, 0.5e3, true, null, \"\\u00e9\"]", r#"{"a": {"b": [[]]}}"#] {
            check(good).expect(good);
        }
        for bad in ["", "{", "[1e999]", r#"{"a": "\ud800"}"#, r#"{"\ud800": 1}"#, "[01]", "{}{}"] {
            check(bad).expect_err(bad);
        }
        check(&format!("{}{}", "[".repeat(127), "]".repeat(127))).expect("127 levels");
        check(&format!("{}{}", "[".repeat(128), "]".repeat(128))).expect_err("128 levels");
        check(&"[".repeat(1 << 20)).expect_err("a million levels");
    }
}
