//! Values straight into memory: tensors of results, or parts of them, without a file between.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{check, threads};
use crate::cast::{Audit, Level, Overflow};
use crate::error::Error;
use crate::held;
use crate::place::{Access, Marks, Object, Place, Source};
use crate::recipe::{Extent, INPUTS, Span};

/// Bytes from a span of a recipe with these sources, from the one at `start`, to where they go.
pub struct Wanted<'a> {
    pub sources: &'a [Source],
    pub span: Span,
    pub start: u64,
    pub out: &'a mut [u8],
}

/// What is still to be made of a span: its number, where it starts, and where it goes.
type Rest<'a> = (usize, u64, &'a mut [u8]);

/// Makes all that is wanted, and gives what happened to the values of each. `progress` is called
/// with the bytes made so far, and stops everything by returning `false`.
///
/// # Errors
/// [`Error::Changed`] for a source that is not the one that was planned; else what the place says.
///
/// # Panics
/// When a range is not one of its span.
pub fn fill(
    wanted: Vec<Wanted<'_>>,
    place: &dyn Place,
    (level, overflow): (Level, Overflow),
    threads: Option<usize>,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Vec<Audit>, Error> {
    let mut spans = Vec::with_capacity(wanted.len());
    // Taken from the end, so in the order in which they are wanted.
    let mut rest: Vec<Rest<'_>> = Vec::with_capacity(wanted.len());
    for (number, Wanted { sources, span, start, out }) in wanted.into_iter().enumerate() {
        spans.push((sources, span));
        rest.push((number, start, out));
    }
    rest.reverse();
    let filling = Filling {
        objects: Objects { place, open: Mutex::default() },
        audits: Mutex::new(vec![Audit::default(); spans.len()]),
        spans,
        rest: Mutex::new(rest),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    let workers = threads::count(threads).max(1);
    let crew = (0..workers).map(|_| {
        Box::new(|| {
            if let Err(error) = filling.work((level, overflow)) {
                held(&filling.error).get_or_insert(error);
                filling.stop.store(true, Ordering::Relaxed);
            }
        }) as threads::Task<'_>
    });
    threads::run(crew.collect(), 1, &filling.stop, &mut || {
        progress(filling.done.load(Ordering::Relaxed))
    })?;
    if let Some(error) = held(&filling.error).take() {
        return Err(error);
    }
    filling.objects.confirm()?;
    Ok(std::mem::take(&mut *held(&filling.audits)))
}

struct Filling<'a> {
    objects: Objects<'a>,
    spans: Vec<(&'a [Source], Span)>,
    rest: Mutex<Vec<Rest<'a>>>,
    audits: Mutex<Vec<Audit>>,
    done: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl<'a> Filling<'a> {
    fn work(&self, how: (Level, Overflow)) -> Result<(), Error> {
        let (mut buffers, mut scratch) = ([const { Vec::new() }; INPUTS], Vec::new());
        while !self.stop.load(Ordering::Relaxed) {
            let Some((number, start, out)) = self.take() else { break };
            let (sources, span) = &self.spans[number];
            if let Span::Copy(Extent { source, start: base, .. }) = span {
                self.objects.get(&sources[*source])?.fill(base + start, out)?;
            } else {
                let mut inputs: [&[u8]; INPUTS] = [&[]; INPUTS];
                let wanted: Vec<_> = span.inputs(start, out.len() as u64).collect();
                let objects = wanted.iter().map(|it| self.objects.get(&sources[it.extent.source]));
                let objects = objects.collect::<Result<Vec<_>, _>>()?;
                let read = wanted.iter().zip(&objects).zip(&mut inputs).zip(&mut buffers);
                for (((input, object), slot), buffer) in read {
                    *slot = input.read(&***object, buffer)?;
                }
                let mut audit = Audit::default();
                span.make(how, start, &inputs, out, &mut scratch, &mut audit);
                held(&self.audits)[number].merge(&audit);
            }
            self.done.fetch_add(out.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next part that nobody has taken.
    fn take(&self) -> Option<Rest<'a>> {
        let mut rest = held(&self.rest);
        loop {
            let (number, start, out) = rest.pop()?;
            if out.is_empty() {
                continue;
            }
            let step = self.spans[number].1.step() as usize;
            let (part, more) = out.split_at_mut(step.min(out.len()));
            if !more.is_empty() {
                rest.push((number, start + part.len() as u64, more));
            }
            return Some((number, start, part));
        }
    }
}

/// The sources, opened when they are first read.
struct Objects<'a> {
    place: &'a dyn Place,
    open: Mutex<HashMap<PathBuf, Opened>>,
}

struct Opened {
    object: Arc<Box<dyn Object>>,
    source: Source,
    marks: Marks,
}

impl Objects<'_> {
    fn get(&self, source: &Source) -> Result<Arc<Box<dyn Object>>, Error> {
        let mut open = held(&self.open);
        if let Some(known) = open.get(&source.key) {
            return Ok(Arc::clone(&known.object));
        }
        let object = self.place.open(&source.key, Access::Kept)?;
        let marks = check::opened(self.place, source, &*object, |_| ())?;
        let object = Arc::new(object);
        let opened = Opened { object: Arc::clone(&object), source: source.clone(), marks };
        open.insert(source.key.clone(), opened);
        Ok(object)
    }

    /// Whether all are still what they were. There is no result that could be compared again, so
    /// where a place does not say that nothing changed, the head has to.
    fn confirm(&self) -> Result<(), Error> {
        for Opened { object, source, marks } in held(&self.open).values() {
            if object.marks()? != *marks {
                check::opened(self.place, source, &***object, |_| ())?;
            }
        }
        Ok(())
    }
}
