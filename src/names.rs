//! File names and bytes in JSON: every name must come back as it was, also one that is not UTF-8.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// What stands before the bytes, in hexadecimal, of a name that is not UTF-8: no name begins so.
const NOT_UTF8: char = '\0';

/// A name as text: itself, or, where it is not UTF-8, U+0000 and its bytes in hexadecimal.
pub fn encode(path: &Path) -> Cow<'_, str> {
    match path.to_str() {
        Some(text) => text.into(),
        None => format!("{NOT_UTF8}{}", hex::encode(path.as_os_str().as_encoded_bytes())).into(),
    }
}

pub fn decode(text: &str) -> Option<PathBuf> {
    match text.strip_prefix(NOT_UTF8) {
        None => Some(text.into()),
        #[cfg(unix)]
        Some(digits) => {
            let bytes = hex::decode(digits)?;
            Some(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&bytes).into())
        }
        #[cfg(not(unix))]
        Some(_) => None,
    }
}

/// Whether a path leads to something below where it starts, whoever wrote it.
pub fn stays_below(path: &Path) -> bool {
    path.components().next().is_some()
        && path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// For serde: a path as [`encode`] gives it.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(path))
}

/// For serde: a path that [`stays_below`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = <Cow<'_, str>>::deserialize(deserializer)?;
    let path = decode(&text).filter(|path| stays_below(path));
    path.ok_or_else(|| D::Error::custom("not a path below the model"))
}

pub mod hex {
    use super::{Cow, Deserialize, Deserializer, Error, Serializer};

    pub fn encode(bytes: &[u8]) -> String {
        let digit = |value: u8| char::from_digit(value.into(), 16).expect("below 16");
        bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// The bytes that such a text stands for.
    pub fn decode(text: &str) -> Option<Vec<u8>> {
        let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
        Some(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
    }

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = <Cow<'_, str>>::deserialize(deserializer)?;
        decode(&text).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}
