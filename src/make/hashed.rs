//! The header of a file that states the hash of what follows it: that is made first, and forgotten.

use sha2::{Digest as _, Sha256};

use crate::cast::{Audit, Level};
use crate::error::Error;
use crate::names::hex;
use crate::recipe::{INPUTS, Input, Layout, Part, Recipe};

/// Reads an input of a part of a span, which is the one of that number, into the buffer.
pub type Read<'a> = dyn FnMut(Input<'_>, (Part, usize), &mut Vec<u8>) -> Result<(), Error> + 'a;

/// The SHA-256 digest, in hexadecimal digits, of all that a recipe makes after its first span.
pub fn rest(
    recipe: &Recipe,
    layout: &Layout,
    level: Level,
    read: &mut Read<'_>,
) -> Result<String, Error> {
    let (start, end) = (layout.starts[1], layout.starts[recipe.spans.len()]);
    let (mut hasher, mut made, mut scratch) = (Sha256::new(), Vec::new(), Vec::new());
    let mut inputs = [const { Vec::new() }; INPUTS];
    for part in recipe.parts(layout, start, end) {
        let span = &recipe.spans[part.span];
        let wanted = span.inputs(part.start, part.bytes).enumerate();
        for ((number, input), buffer) in wanted.zip(&mut inputs) {
            read(input, (part, number), buffer)?;
        }
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        made.resize(part.bytes as usize, 0);
        let how = (level, recipe.overflow);
        span.make(how, part.start, &inputs, &mut made, &mut scratch, &mut Audit::default());
        hasher.update(&made);
    }
    Ok(hex::encode(&hasher.finalize()))
}
