//! Writing the pieces of a file: one worker at a time, because the system lets only one write to a
//! file, and whoever waits for another sleeps. Instead it hands its piece over, and makes the next.

use std::sync::Mutex;

use super::sink::Sink;
use crate::error::Error;
use crate::held;

/// Pieces that wait for the worker that writes. With more, the disk or memory is what they wait for.
const WAITING: usize = 4;

pub struct Writer<S> {
    sink: S,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    is_writing: bool,
    waiting: Vec<Piece>,
    /// The memory of pieces that were written, for those that come.
    spare: Vec<Vec<u8>>,
}

struct Piece {
    /// May be longer than the piece.
    memory: Vec<u8>,
    bytes: usize,
    offset: u64,
}

/// How many pieces a worker wrote, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub pieces: usize,
    pub bytes: u64,
}

impl Written {
    fn add(&mut self, bytes: usize) {
        self.pieces += 1;
        self.bytes += bytes as u64;
    }
}

impl<S: Sink> Writer<S> {
    pub fn new(sink: S) -> Writer<S> {
        Writer { sink, queue: Mutex::default() }
    }

    pub fn into_sink(self) -> S {
        self.sink
    }

    /// Writes the first `bytes` bytes of `memory`, and what others hand over meanwhile. Where another
    /// worker is writing, it is given them instead, and `memory` is other memory then.
    pub fn write(&self, memory: &mut Vec<u8>, bytes: usize, offset: u64) -> Result<Written, Error> {
        let mut written = Written::default();
        {
            let mut queue = held(&self.queue);
            if queue.is_writing && queue.waiting.len() < WAITING {
                let other = queue.spare.pop().unwrap_or_default();
                let memory = std::mem::replace(memory, other);
                queue.waiting.push(Piece { memory, bytes, offset });
                return Ok(written);
            }
            if queue.is_writing {
                drop(queue);
                self.sink.write(&memory[..bytes], offset)?;
                written.add(bytes);
                return Ok(written);
            }
            queue.is_writing = true;
        }
        self.sink.write(&memory[..bytes], offset)?;
        written.add(bytes);
        while let Some(piece) = self.next() {
            self.sink.write(&piece.memory[..piece.bytes], piece.offset)?;
            written.add(piece.bytes);
            held(&self.queue).spare.push(piece.memory);
        }
        Ok(written)
    }

    /// The next piece that waits; with none, nobody is writing any more.
    fn next(&self) -> Option<Piece> {
        let mut queue = held(&self.queue);
        let next = queue.waiting.pop();
        queue.is_writing = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Says what it writes, and waits until it may.
    struct Slow(Mutex<Sender<(u64, usize)>>, Mutex<Receiver<()>>);

    impl Sink for Slow {
        fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
            held(&self.0).send((offset, bytes.len())).expect("heard");
            if offset == 0 {
                held(&self.1).recv().expect("told");
            }
            Ok(())
        }
    }

    #[test]
    fn whoever_writes_also_writes_what_is_handed_over() {
        let ((says, heard), (tell, told)) = (channel(), channel());
        let writer = Writer::new(Slow(Mutex::new(says), Mutex::new(told)));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| writer.write(&mut vec![0; 9], 7, 0).expect("written"));
            assert_eq!(heard.recv(), Ok((0, 7)));
            let mut memory = vec![1; 9];
            for offset in 1..=WAITING as u64 {
                memory.resize(9, 1);
                let none = writer.write(&mut memory, 5, offset).expect("handed over");
                assert_eq!((none, memory.len()), (Written::default(), 0));
            }
            // There is no room for more.
            let own = writer.write(&mut vec![2; 9], 3, 99).expect("written");
            assert_eq!(own, Written { pieces: 1, bytes: 3 });
            assert_eq!(heard.recv(), Ok((99, 3)));
            tell.send(()).expect("heard");
            let all = first.join().expect("no panic");
            let count = 1 + WAITING;
            assert_eq!(all, Written { pieces: count, bytes: 7 + 5 * WAITING as u64 });
            let mut rest: Vec<_> = heard.try_iter().collect();
            rest.sort_unstable();
            assert_eq!(rest, (1..=WAITING as u64).map(|at| (at, 5)).collect::<Vec<_>>());
            // Nobody is writing now, and the memory is used again.
            writer.write(&mut memory, 0, 5).expect("written");
            assert_eq!(held(&writer.queue).spare.len(), WAITING);
        });
    }
}
