//! Names as messages show them. They come from untrusted files, and must neither forge a
//! line of a message, nor steer a terminal, nor make a message too long to read.

use std::fmt::{self, Write};
use std::path::Path;

/// Characters that are shown of a text that is too long, from its start and from its end.
const START: usize = 400;
const END: usize = 160;

pub trait Shown {
    /// It on one line, with its middle left out where it is too long (a name may have a hundred
    /// million bytes), and every character escaped that is not for printing.
    fn shown(&self) -> String;
}

impl Shown for str {
    fn shown(&self) -> String {
        let start = self.char_indices().nth(START);
        let end = self.char_indices().nth_back(END - 1);
        match (start, end) {
            (Some((start, _)), Some((end, _))) if start < end => {
                format!("{}[...]{}", printable(&self[..start]), printable(&self[end..]))
            }
            _ => printable(self),
        }
    }
}

impl Shown for Path {
    /// A byte that is not UTF-8 is shown as `\xff`.
    fn shown(&self) -> String {
        let mut text = String::new();
        for chunk in self.as_os_str().as_encoded_bytes().utf8_chunks() {
            text.push_str(&printable(chunk.valid()));
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        text.shown()
    }
}

/// How many there are of something, in words that fit the number.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// How many names a list has before it counts the rest.
const LISTED: usize = 4;

/// The first of some names, and how many more there are.
#[derive(Clone, Debug)]
pub struct Names {
    first: Box<[String]>,
    more: usize,
}

impl Names {
    /// Nothing where there is none.
    pub fn of(mut names: impl Iterator<Item = String>) -> Option<Names> {
        let first: Box<[String]> = names.by_ref().take(LISTED).collect();
        (!first.is_empty()).then(|| Names { first, more: names.count() })
    }
}

impl Names {
    /// One that stands for others.
    pub fn example(name: &str) -> Names {
        Names { first: [name.to_owned()].into(), more: 0 }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// Each of several texts as it is shown.
pub fn shown_all<T: AsRef<str>>(texts: impl IntoIterator<Item = T>, between: &str) -> String {
    texts.into_iter().map(|text| text.as_ref().shown()).collect::<Vec<_>>().join(between)
}

/// `text` with Python's escapes for what does not print: control characters, separators of lines,
/// and marks that turn the direction of a text around.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let _ = match (character, u32::from(character)) {
            _ if is_printable(character) => write!(out, "{character}"),
            ('\n', _) => write!(out, "\\n"),
            ('\r', _) => write!(out, "\\r"),
            ('\t', _) => write!(out, "\\t"),
            (_, code @ ..=0xff) => write!(out, "\\x{code:02x}"),
            (_, code @ ..=0xffff) => write!(out, "\\u{code:04x}"),
            (_, code) => write!(out, "\\U{code:08x}"),
        };
    }
    out
}

fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    // What the standard library escapes. Behind a letter, because an accent alone is escaped too.
    let mut letter = [b'a'; 5];
    let end = 1 + character.encode_utf8(&mut letter[1..]).len();
    std::str::from_utf8(&letter[..end])
        .is_ok_and(|text| text.escape_debug().nth(1) == Some(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped_and_all_else_stays() {
        for (text, expected) in [
            ("layers.0.'x' \\ \"y\"", "layers.0.'x' \\ \"y\""),
            ("Gewicht-größe-重み-वज़न-e\u{301}", "Gewicht-größe-重み-वज़न-e\u{301}"),
            ("a\nhint: b\r\t", "a\\nhint: b\\r\\t"),
            ("\0\x0b\x1b[2J\x7f", "\\x00\\x0b\\x1b[2J\\x7f"),
            ("\u{85}\u{a0}\u{2028}\u{2029}\u{202e}", "\\x85\\xa0\\u2028\\u2029\\u202e"),
            ("\u{e0001}", "\\U000e0001"),
        ] {
            assert_eq!(text.shown(), expected);
        }
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        let text = format!("{}{}{}", "a".repeat(399), "ü".repeat(1000), "b".repeat(159));
        let expected = format!("{}ü[...]ü{}", "a".repeat(399), "b".repeat(159));
        assert_eq!(text.shown(), expected);
        assert_eq!("ü".repeat(560).shown(), "ü".repeat(560));
        assert!("\n".repeat(1_000_000).shown().len() < 2000);
        assert_eq!("a".repeat(560).shown(), "a".repeat(560));
    }

    #[test]
    #[cfg(unix)]
    fn a_path_shows_the_bytes_that_are_no_text() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(b"caf\xe9/\xc3\xbc\n\xff\xfe.x");
        assert_eq!(Path::new(path).shown(), "caf\\xe9/ü\\n\\xff\\xfe.x");
    }

    #[test]
    fn each_of_several_is_shown_by_itself() {
        assert_eq!(shown_all(["a\nb", "c"], "\n  "), "a\\nb\n  c");
    }
}
