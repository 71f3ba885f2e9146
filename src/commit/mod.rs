//! How a result becomes visible: all of it or nothing, what makes it a model last. Without a lock:
//! whoever is stopped before any call to the system, and goes on after anybody else has finished
//! anything, loses no data and spoils no result. docs/architecture.md tells the protocol and why.

mod conversion;
mod destination;
mod folder;
mod own_files;
mod publish;
mod published;
mod run_folder;
mod seal;
mod stage;
mod sums;
mod terms;
mod work;

use std::path::Path;

use destination::Destination;
pub use folder::STAGING;
use work::Conversion;

use crate::error::Error;
use crate::plan::Plan;

pub use published::{Checked, Damage, check_published};
pub use terms::{DestinationState, Hooks, Left, OnOverflow, Options, Outcome};

/// Finds what is at `dest`, and whether the plan may be carried out there. Writes nothing.
///
/// # Errors
/// When `dest` is the source or inside it, holds something else, or what another run began.
pub fn look(plan: &Plan, dest: &Path, options: &Options) -> Result<DestinationState, Error> {
    let conversion = Conversion::new(plan, dest, options)?;
    destination::check_place(plan, dest)?;
    let contents = conversion.folder.look()?;
    let there = Destination::look(&conversion.dest)?;
    if let Some(report) = &there.report
        && conversion.is_mine(report)
    {
        match destination::check_lengths(plan, &conversion.dest, report) {
            Err(Error::Damaged { .. }) if options.overwrite => {}
            result => return result.map(|()| DestinationState::Done),
        }
    }
    let publishing = contents.publishing.as_ref().is_some_and(|run| run.hash == conversion.run);
    if publishing {
        return Ok(DestinationState::Started);
    }
    conversion.check_first(&there, &contents.runs)?;
    let started = contents.runs.iter().any(|run| run.hash == conversion.run);
    Ok(if started { DestinationState::Started } else { DestinationState::Free })
}

/// Carries the plan out into `dest`: all of it becomes visible, or nothing.
///
/// # Errors
/// When the destination is refused, the system refuses, a value overflows under
/// [`OnOverflow::Error`], the source changes, or the caller stops; with what is left of it.
pub fn convert(
    plan: &Plan,
    dest: &Path,
    options: &Options,
    hooks: &mut dyn Hooks,
) -> Result<Outcome, (Error, Left)> {
    let mut conversion = match Conversion::new(plan, dest, options) {
        Ok(conversion) => conversion,
        Err(error) => return Err((error, Left::Nothing)),
    };
    let result = conversion.carry_out(hooks);
    let left = conversion.clear_up(result.as_ref().err());
    result.map_err(|error| (error, left))
}
