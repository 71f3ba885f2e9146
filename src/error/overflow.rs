use std::fmt;
use std::path::PathBuf;

use crate::shown::{Shown, counted};

/// How many tensors are named.
const NAMED: usize = 5;

/// Finite values that would become infinite.
#[derive(Debug)]
pub struct Overflow {
    pub to: &'static str,
    /// Whether all of them can stay as they are: what is dequantized cannot.
    pub can_be_kept: bool,
    /// The worst first.
    pub tensors: Vec<OverflowedTensor>,
}

#[derive(Debug)]
pub struct OverflowedTensor {
    pub name: String,
    pub file: PathBuf,
    pub overflowed: u64,
    pub elements: u64,
    pub max_abs: f64,
}

impl Overflow {
    pub fn example() -> Overflow {
        let tensor = |_| OverflowedTensor {
            name: "TENSOR".into(),
            file: "FILE".into(),
            overflowed: 2,
            elements: 3,
            max_abs: 70000.0,
        };
        Overflow { to: "DTYPE", can_be_kept: true, tensors: (0..=NAMED).map(tensor).collect() }
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u64 = self.tensors.iter().map(|tensor| tensor.overflowed).sum();
        write!(
            f,
            "{} in {} {} too large for {} and would become infinite:",
            counted(count, "finite value"),
            counted(self.tensors.len() as u64, "tensor"),
            if count == 1 { "is" } else { "are" },
            self.to
        )?;
        for OverflowedTensor { name, file, overflowed, elements, max_abs } in
            self.tensors.iter().take(NAMED)
        {
            let (name, file, elements) = (name.shown(), file.shown(), counted(*elements, "value"));
            write!(f, "\n  {name} in {file}: {overflowed} of {elements}, max_abs ")?;
            // Of a number that binary32 holds, its shortest name there.
            match *max_abs as f32 {
                short if f64::from(short) == *max_abs => write!(f, "{short:e}")?,
                _ => write!(f, "{max_abs:e}")?,
            }
        }
        match self.tensors.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}
