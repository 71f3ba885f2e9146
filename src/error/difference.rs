use std::path::PathBuf;

use crate::shown::{Shown, counted};

/// How many are listed.
const LISTED: usize = 3;

/// How a conversion that is there differs from the one that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    #[error("{what}: {there} there, {here} here")]
    Setting { what: &'static str, there: String, here: String },
    #[error("{}: only here", path.shown())]
    OnlyHere { path: PathBuf },
    #[error("{}: only there", path.shown())]
    OnlyThere { path: PathBuf },
    #[error("{}: {} there, {} here", path.shown(), counted(*there, "byte"), counted(*here, "byte"))]
    Length { path: PathBuf, there: u64, here: u64 },
    #[error("{}: of another size there", path.shown())]
    ResultLength { path: PathBuf },
    #[error("{}: other content there", path.shown())]
    Content { path: PathBuf },
    #[error("the headers, configs or indexes of the source are different")]
    Heads,
    #[error("nothing more is known of it")]
    Unknown,
}

impl Difference {
    pub fn example() -> Difference {
        Difference::Setting { what: "SETTING", there: "VALUE".into(), here: "VALUE".into() }
    }
}

/// A line each, of files no more than a few.
pub(super) fn listed(differences: &[Difference]) -> String {
    let (settings, files): (Vec<_>, Vec<_>) =
        differences.iter().partition(|it| matches!(it, Difference::Setting { .. }));
    let mut lines: Vec<String> = settings
        .into_iter()
        .chain(files.iter().copied().take(LISTED))
        .map(ToString::to_string)
        .collect();
    if files.len() > LISTED {
        lines.push(format!("and {}", counted((files.len() - LISTED) as u64, "more file")));
    }
    lines.join("\n  ")
}
