//! What torch wrote before 1.6: five pickles (a magic number, a version, facts of the machine, the
//! object, the keys of its storages), and the storages, each behind its length.

use std::collections::HashMap;

use super::file::File;
use super::machine::{self, Failure, MAX_PICKLE, Pickled};
use super::value::{Id, Value};
use crate::error::{Error, PickleFault};

/// The magic number, and the version that it comes with.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// How a file starts that may be such a one: a protocol, and a number of ten bytes.
pub fn is_one(start: &[u8]) -> bool {
    matches!(start, [0x80, 2 | 3, 0x8a, 10, magic @ ..] if magic.starts_with(&MAGIC))
}

/// Reads the start of the file, more and more of it, until all pickles are in it.
pub fn text(file: &File<'_>) -> Result<Vec<u8>, Error> {
    let mut bytes = 1 << 20;
    loop {
        let text = file.get(0, file.bytes.min(bytes))?;
        match pickles(&text) {
            Err(Failure::Ends { .. }) if bytes < file.bytes && bytes < MAX_PICKLE => {
                bytes = (bytes * 4).min(MAX_PICKLE);
            }
            _ => return Ok(text),
        }
    }
}

/// The pickles of the object and of the storages' keys.
pub fn pickles(text: &[u8]) -> Result<(Pickled<'_>, Pickled<'_>), Failure> {
    let head = |fault| Failure::Fault(Box::new(fault));
    let damaged = |problem: &str, at| {
        let (problem, place) = (problem.to_owned(), "the head".to_owned());
        head(PickleFault::Damaged { problem, at, place })
    };
    // The magic number is longer than what is read as a number; it was compared.
    let magic = machine::read(text, 0, "the head", true)?;
    if magic.end != 5 + MAGIC.len() {
        return Err(damaged("it does not start with a number", 0));
    }
    let version = machine::read(text, magic.end, "the head", true)?;
    if !matches!(version.root(), Value::Int(VERSION)) {
        return Err(damaged("its version is not 1001", magic.end));
    }
    let machine = machine::read(text, version.end, "the head", true)?;
    let Value::Dict(facts) = machine.root() else {
        return Err(damaged("it does not say what machine wrote it", version.end));
    };
    let mut order = facts.iter().filter(|(key, _)| machine.text(*key) == Some("little_endian"));
    if !matches!(order.next_back().map(|(_, value)| machine.get(*value)), Some(Value::Bool(true))) {
        return Err(head(PickleFault::Byteorder { order: "big".to_owned() }));
    }
    let object = machine::read(text, machine.end, "the pickle", true)?;
    let keys = machine::read(text, object.end, "the list of storages", true)?;
    Ok((object, keys))
}

/// Where the data of each storage are, by its key, and how many elements it says to have; `element`
/// gives the bytes of an element of a storage, and how many there are.
pub fn storages<'p>(
    file: &File<'_>,
    keys: &Pickled<'p>,
    element: &HashMap<&str, (u64, u64)>,
) -> Result<HashMap<&'p str, u64>, Error> {
    let storage = |key: &str, problem: &str| {
        file.fault(PickleFault::Storage { key: key.to_owned(), problem: problem.to_owned() })
    };
    let Value::List(list) = keys.root() else {
        let (problem, place) = ("it is no list".to_owned(), "the list of storages".to_owned());
        return Err(file.fault(PickleFault::Damaged { problem, at: 0, place }));
    };
    let (mut at, mut found) = (keys.end as u64, HashMap::with_capacity(list.len()));
    for id in list {
        let key = name(keys, *id);
        let Some(&(bytes, elements)) = element.get(key) else {
            return Err(storage(key, "is not used by any tensor"));
        };
        if at.checked_add(8).is_none_or(|end| end > file.bytes) {
            return Err(storage(key, "is cut short"));
        }
        let count = file.get(at, 8)?;
        let count = u64::from_le_bytes(count.try_into().expect("8 bytes"));
        if count != elements {
            return Err(storage(key, "has another length than its tensors say"));
        }
        let end = count.checked_mul(bytes).and_then(|bytes| (at + 8).checked_add(bytes));
        match end.filter(|end| *end <= file.bytes) {
            Some(end) if found.insert(key, at + 8).is_none() => at = end,
            Some(_) => return Err(storage(key, "is there twice")),
            None => return Err(storage(key, "is cut short")),
        }
    }
    if at != file.bytes {
        let (problem, place) = ("bytes follow the last storage".to_owned(), "the file".to_owned());
        return Err(file.fault(PickleFault::Damaged { problem, at: at as usize, place }));
    }
    Ok(found)
}

fn name<'p>(keys: &Pickled<'p>, id: Id) -> &'p str {
    keys.text(id).unwrap_or_default()
}
