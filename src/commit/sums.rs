//! SHA-256 sums of a result's files, in the format that `sha256sum -c` reads.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::make::check::{self, Reading};
use crate::names::hex;
use crate::place::local::Local;
use crate::place::{Access, Place};
use crate::recipe::PIECE;
use crate::report::File;

/// The text of the sums of `files`, which are in `folder`.
pub fn of(
    files: &[File],
    folder: &Path,
    threads: Option<usize>,
    access: Access,
) -> Result<Vec<u8>, Error> {
    let place = Local::directory(folder)?;
    let place = &place;
    let readings: Vec<Reading<'_, String>> = files
        .iter()
        .map(|file| -> Reading<'_, String> {
            Box::new(move |_| {
                let (object, mut buffer) = (place.open(&file.path, access)?, Vec::new());
                let (mut hasher, mut at) = (Sha256::new(), 0);
                while at < file.bytes {
                    let bytes = (file.bytes - at).min(PIECE);
                    hasher.update(object.get(at, bytes as usize, &mut buffer)?);
                    at += bytes;
                }
                Ok(hex::encode(&hasher.finalize()))
            })
        })
        .collect();
    let sums = check::all(&readings, threads, &mut |_| true)?;
    let mut text = Vec::new();
    for (file, sum) in files.iter().zip(sums) {
        // Such a name is escaped, and the line begins with a sign that says so.
        let name = file.path.as_os_str().as_encoded_bytes();
        if name.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r')) {
            text.push(b'\\');
        }
        text.extend(sum.as_bytes());
        text.extend(b"  ");
        for byte in name {
            match byte {
                b'\\' => text.extend(b"\\\\"),
                b'\n' => text.extend(b"\\n"),
                b'\r' => text.extend(b"\\r"),
                byte => text.push(*byte),
            }
        }
        text.push(b'\n');
    }
    Ok(text)
}
