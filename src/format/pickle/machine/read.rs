//! Bytes of a pickle, and what is said of them where they are wrong.

use super::{Failure, Machine, Result, fault};
use crate::error::PickleFault;

impl<'p> Machine<'p> {
    pub(super) fn damaged<T>(&self, problem: impl Into<String>) -> Result<T> {
        let (problem, at, place) = (problem.into(), self.opcode, self.place.to_owned());
        Err(fault(PickleFault::Damaged { problem, at, place }))
    }

    pub(super) fn call<T>(&self, problem: impl Into<String>) -> Result<T> {
        let (problem, at, place) = (problem.into(), self.opcode, self.place.to_owned());
        Err(fault(PickleFault::Call { problem, at, place }))
    }

    pub(super) fn too_much<T>(&self, what: &str, limit: usize) -> Result<T> {
        let (what, place) = (what.to_owned(), self.place.to_owned());
        Err(fault(PickleFault::TooMuch { what, limit: limit as u64, place }))
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'p [u8]> {
        let ends = Failure::Ends { at: self.opcode };
        let end = self.at.checked_add(bytes).ok_or(Failure::Ends { at: self.opcode })?;
        let taken = self.pickle.get(self.at..end).ok_or(ends)?;
        self.at = end;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes"))
    }

    pub(super) fn line(&mut self) -> Result<&'p str> {
        /// No name is longer.
        const LONGEST: usize = 1000;
        let rest = &self.pickle[self.at..];
        match rest.iter().take(LONGEST).position(|byte| *byte == b'\n') {
            Some(bytes) => {
                let line = self.take(bytes + 1)?;
                match std::str::from_utf8(&line[..bytes]) {
                    Ok(line) => Ok(line),
                    Err(_) => self.damaged("a name is not UTF-8"),
                }
            }
            None if rest.len() < LONGEST => Err(Failure::Ends { at: self.opcode }),
            None => self.damaged("a name does not end"),
        }
    }
}
