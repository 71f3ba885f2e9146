//! What the machine makes of small pickles. Whole files, torch's verdict on them, and hostile ones
//! are the tests' in Python.

use super::value::{Element, Global, Value};
use super::*;

fn pickle(opcodes: &[u8]) -> Vec<u8> {
    [&[0x80, 2], opcodes, b"."].concat()
}

fn root(opcodes: &[u8]) -> Result<Value, String> {
    let text = pickle(opcodes);
    match machine::read(&text, 0, "x", false) {
        Ok(pickled) => Ok(pickled.root().clone()),
        Err(Failure::Fault(fault)) => Err(fault.to_string()),
        Err(Failure::Ends { at }) => Err(format!("ends at {at}")),
    }
}

fn number(opcodes: &[u8]) -> i64 {
    match root(opcodes) {
        Ok(Value::Int(number)) => number,
        other => panic!("{opcodes:?}: {other:?}"),
    }
}

#[test]
fn numbers_of_every_length_are_what_python_writes() {
    for (opcodes, expected) in [
        (&b"K\xff"[..], 255),
        (b"M\x00\x80", 0x8000),
        (b"J\xff\xff\xff\xff", -1),
        (b"\x8a\x00", 0),
        (b"\x8a\x01\x80", -128),
        (b"\x8a\x02\x80\x00", 128),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", i64::MAX),
        (b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80", i64::MIN),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff", -1),
    ] {
        assert_eq!(number(opcodes), expected);
    }
    // More than 64 bits: it may be stored, and is no size.
    let long = b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00";
    assert!(matches!(root(long), Ok(Value::Inert)));
}

#[test]
fn a_value_that_is_recalled_is_the_same_value() {
    // A list that is put into itself: nothing follows it.
    let Ok(Value::List(items)) = root(b"]q\x00h\x00a") else { panic!("a list") };
    assert_eq!(items.len(), 1);
    assert!(root(b"h\x07").expect_err("never noted").contains("7"));
}

#[test]
fn what_is_below_a_mark_is_out_of_reach() {
    for opcodes in [&b"N(\x85"[..], b"N(s", b"]N(a", b"(", b"N(q\x00", b"t", b"N(N"] {
        root(opcodes).expect_err("taken from below the mark");
    }
    assert!(matches!(root(b"(NNt"), Ok(Value::Tuple(items)) if items.len() == 2));
}

#[test]
fn no_name_is_known_but_those_on_the_list() {
    for (module, name) in [
        ("os", "system"),
        ("torch", "serialization.os.system"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "load"),
        ("torch", "FloatStorage "),
        ("Torch", "FloatStorage"),
        ("torch", "\u{ff26}loatStorage"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("", ""),
    ] {
        assert_eq!(Global::find(module, name), None, "{module}.{name}");
    }
    let float = Some(Element("float32"));
    assert_eq!(Global::find("torch", "FloatStorage"), Some(Global::Storage(float)));
    assert_eq!(Global::find("torch", "float8_e4m3fn").map(|_| ()), Some(()));
}

#[test]
fn what_would_be_called_is_refused_and_named() {
    let refused = root(b"cos\nsystem\n(X\x02\x00\x00\x00lstR").expect_err("a command");
    assert!(refused.contains("os.system") && refused.contains("byte 2"), "{refused}");
    for opcodes in [
        &b"NN\x85R"[..],
        b"ctorch\nTensor\n)R",
        b"ctorch\nfloat32\n)R",
        b"ctorch\nTensor\n)\x81",
        b"}]b",
        b"]}b",
        b"N}b",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    ] {
        root(opcodes).expect_err("called");
    }
}
