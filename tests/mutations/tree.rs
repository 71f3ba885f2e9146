//! JSON in which nothing is lost.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

/// A JSON value in which nothing is lost: keys may stand twice.
pub enum Tree {
    Object(Vec<(String, Tree)>),
    List(Vec<Tree>),
    Text(String),
    Other(Value),
}

/// What Python reads and JSON does not have, as JSON: numbers beyond binary64 become others, and
/// halves of surrogate pairs U+FFFD.
pub fn of_python(text: &str) -> String {
    let number = regex::Regex::new(r"^[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+").expect("a pattern");
    let escape = regex::Regex::new(r"^\\u(?i:d[89a-f])[0-9a-fA-F]{2}").expect("a pattern");
    let pair = r"^\\u(?i:d[89ab])[0-9a-fA-F]{2}\\u(?i:d[c-f])[0-9a-fA-F]{2}";
    let pair = regex::Regex::new(pair).expect("a pattern");
    let (mut out, mut rest, mut in_string) = (String::new(), text, false);
    while let Some(next) = rest.chars().next() {
        let after_number = out.ends_with(|c: char| c.is_ascii_digit() || c == '.');
        let (taken, put) = if let Some(found) = pair.find(rest) {
            (found.len(), found.as_str().to_owned())
        } else if let Some(found) = escape.find(rest) {
            (found.len(), "\\ufffd".to_owned())
        } else if in_string && next == '\\' {
            let length = rest.chars().take(2).map(char::len_utf8).sum();
            (length, rest[..length].to_owned())
        } else if let (Some(found), false, false) = (number.find(rest), in_string, after_number) {
            let is_infinite = found.as_str().parse::<f64>().is_ok_and(f64::is_infinite);
            (found.len(), if is_infinite { "1e1".to_owned() } else { found.as_str().to_owned() })
        } else {
            in_string ^= next == '"';
            (next.len_utf8(), next.to_string())
        };
        out.push_str(&put);
        rest = &rest[taken..];
    }
    out
}

impl Tree {
    pub fn parse(bytes: &[u8]) -> Option<Tree> {
        serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
    }

    pub fn parse_as_python(bytes: &[u8]) -> Option<Tree> {
        Tree::parse(of_python(std::str::from_utf8(bytes).ok()?).as_bytes())
    }

    pub fn members(&self) -> &[(String, Tree)] {
        if let Tree::Object(members) = self { members } else { &[] }
    }

    pub fn get(&self, key: &str) -> Option<&Tree> {
        self.members().iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub fn has_a_key_twice(&self) -> bool {
        let mut keys: Vec<&String> = self.members().iter().map(|(key, _)| key).collect();
        keys.sort();
        keys.windows(2).any(|pair| pair[0] == pair[1])
    }

    pub fn value(&self) -> Value {
        match self {
            Tree::Object(members) => {
                members.iter().map(|(key, value)| (key.clone(), value.value())).collect()
            }
            Tree::List(items) => items.iter().map(Tree::value).collect(),
            Tree::Text(text) => json!(text),
            Tree::Other(value) => value.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        struct TreeVisitor;
        impl<'de> Visitor<'de> for TreeVisitor {
            type Value = Tree;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Tree::Object(members))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::Text(text.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Other(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Other(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Other(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Other(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Other(value.into()))
            }
        }
        deserializer.deserialize_any(TreeVisitor)
    }
}
