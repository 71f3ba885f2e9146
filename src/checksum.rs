//! Checksums of files whose pieces are made, or read, in any order: XXH3-128 of each block, and of
//! the blocks' digests in file order. Against change, not against attack.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twox_hash::XxHash3_128;

use crate::held;

/// Hexadecimal digits of a SHA-256 digest.
pub const SHA256_DIGITS: usize = 64;

/// Bytes of a block. Small enough that a block and what it becomes stay in the second-level cache.
pub const BLOCK: u64 = 256 << 10;

/// An XXH3-128 value, written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub u128);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(XxHash3_128::oneshot(bytes))
    }

    /// The digest of a segment: what a file has that is nothing else.
    pub fn of_head(bytes: &[u8]) -> Digest {
        let blocks: Vec<Digest> = bytes.chunks(BLOCK as usize).map(Digest::of).collect();
        Digest::of_blocks(&blocks)
    }

    /// The digest of a file with these blocks.
    pub fn of_blocks(blocks: &[Digest]) -> Digest {
        let mut hasher = XxHash3_128::new();
        for block in blocks {
            hasher.write(&block.0.to_le_bytes());
        }
        Digest(hasher.finish_128())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Digest {
    type Err = ();
    fn from_str(text: &str) -> Result<Digest, ()> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
        value.map(Digest).ok_or(())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom("not 32 hexadecimal digits"))
    }
}

/// Hashes what is written to it.
#[derive(Default)]
pub struct Hasher(XxHash3_128);

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// The digest of all that was written.
    pub fn finish(&self) -> Digest {
        Digest(self.0.finish_128())
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where the blocks of a file lie. Each of its segments (the header and each tensor of a
/// safetensors file, all of any other) is cut into blocks from its own start, so that the blocks
/// are the same wherever a tensor lies in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// The segments' starts, the end of the last, and the number of blocks before each. Where that
    /// does not grow, there is no segment.
    segments: Vec<(u64, usize)>,
}

impl Blocks {
    /// Of a file of `bytes` bytes with segments that start at 0 and at `starts`, in order.
    pub fn new(starts: impl IntoIterator<Item = u64>, bytes: u64) -> Blocks {
        let mut segments = vec![(0, 0)];
        for start in starts.into_iter().chain([bytes]) {
            let (before, blocks) = segments.last().copied().unwrap_or_default();
            let count = (start - before).div_ceil(BLOCK) as usize;
            if start == before {
                continue;
            }
            segments.push((start, blocks + count));
        }
        segments.shrink_to_fit();
        Blocks { segments }
    }

    /// Of nothing but these ranges of a file, each from its start to its end. What two of them have
    /// in common counts once.
    pub fn of_ranges(mut ranges: Vec<(u64, u64)>) -> Blocks {
        ranges.sort_unstable();
        let (mut segments, mut blocks, mut at) = (vec![(0, 0)], 0, 0);
        for (start, end) in ranges {
            let start = start.max(at);
            if start >= end {
                continue;
            }
            if start > at {
                // No blocks lie before it.
                segments.push((start, blocks));
            }
            blocks += (end - start).div_ceil(BLOCK) as usize;
            segments.push((end, blocks));
            at = end;
        }
        Blocks { segments }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.segments.last().map_or(0, |(_, count)| *count)
    }

    /// The blocks from the one that `offset` lies in: number, start, bytes.
    fn from(&self, offset: u64) -> impl Iterator<Item = (usize, u64, u64)> {
        let mut segment = self.segments.partition_point(|(start, _)| *start <= offset).max(1) - 1;
        let first = self.segments.get(segment).map_or(0, |(start, _)| *start);
        let mut at = offset - offset.saturating_sub(first) % BLOCK;
        std::iter::from_fn(move || {
            let (mut start, mut before) = *self.segments.get(segment)?;
            let (mut next, mut after) = *self.segments.get(segment + 1)?;
            if after == before {
                segment += 1;
                (start, before) = (next, after);
                (next, after) = *self.segments.get(segment + 1)?;
                at = start;
            }
            debug_assert!(after > before, "two gaps in a row");
            let number = before + ((at - start) / BLOCK) as usize;
            let found = (number, at, (next - at).min(BLOCK));
            at += found.2;
            segment += usize::from(at == next);
            Some(found)
        })
    }

    /// All blocks: number, start, bytes.
    pub fn all(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        self.from(0)
    }
}

/// The digests of a file's blocks, as far as they were seen.
#[derive(Debug)]
pub struct Sums {
    blocks: Blocks,
    /// Zero, which is no block's digest but by a chance of 2^-128, is one that was not seen.
    digests: Mutex<Vec<Digest>>,
    /// Whether a block was not the same when it was seen again.
    differs: AtomicBool,
}

impl Sums {
    /// Of a file with these blocks, none of which was seen.
    pub fn new(blocks: Blocks) -> Sums {
        let digests = Mutex::new(vec![Digest::default(); blocks.count()]);
        Sums { blocks, digests, differs: AtomicBool::new(false) }
    }

    /// Takes in bytes that start at `offset`; what of them is not a whole block is left out. Whether
    /// nothing was.
    pub fn add(&self, offset: u64, bytes: &[u8]) -> bool {
        let end = offset + bytes.len() as u64;
        let mut taken = 0;
        let blocks = self.blocks.from(offset).take_while(|(_, start, _)| *start < end);
        for (number, start, count) in blocks.filter(|(_, start, _)| *start >= offset) {
            if start + count > end {
                break;
            }
            let from = (start - offset) as usize;
            taken += count;
            let digest = Digest::of(&bytes[from..from + count as usize]);
            let before = std::mem::replace(&mut held(&self.digests)[number], digest);
            if before != Digest::default() && before != digest {
                self.differs.store(true, Ordering::Relaxed);
            }
        }
        taken == bytes.len() as u64
    }

    /// The blocks that were not seen: start and bytes.
    pub fn missing(&self) -> Vec<(u64, u64)> {
        let digests = held(&self.digests);
        let blocks = self.blocks.all().zip(digests.iter());
        blocks
            .filter(|(_, digest)| **digest == Digest::default())
            .map(|((_, start, bytes), _)| (start, bytes))
            .collect()
    }

    /// Whether a block was not the same whenever it was seen.
    pub fn differs(&self) -> bool {
        self.differs.load(Ordering::Relaxed)
    }

    /// The file's digest, once all blocks were seen.
    pub fn finish(&self) -> Digest {
        Digest::of_blocks(&held(&self.digests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_from_the_start_of_each_segment() {
        let blocks = Blocks::new([100, 100, 100 + BLOCK + 1], 100 + BLOCK + 1 + 7);
        let found: Vec<_> = blocks.all().collect();
        let expected = [(0, 0, 100), (1, 100, BLOCK), (2, 100 + BLOCK, 1), (3, 101 + BLOCK, 7)];
        assert_eq!(found, expected);
        assert_eq!(blocks.count(), 4);
        assert_eq!(Blocks::new([], 0).all().count(), 0);
        assert_eq!(Blocks::new([], 5).all().collect::<Vec<_>>(), [(0, 0, 5)]);
        assert_eq!(Blocks::new([5, 5], 5).all().collect::<Vec<_>>(), [(0, 0, 5)]);
    }

    #[test]
    fn ranges_have_blocks_of_their_own_and_nothing_between_them() {
        let blocks =
            Blocks::of_ranges(vec![(50, 50 + BLOCK + 3), (0, 8), (60, 70), (20, 30), (8, 9)]);
        let found: Vec<_> = blocks.all().collect();
        assert_eq!(found, [(0, 0, 8), (1, 8, 1), (2, 20, 10), (3, 50, BLOCK), (4, 50 + BLOCK, 3)]);
        assert_eq!(blocks.count(), 5);
        let sums = Sums::new(blocks);
        assert!(sums.add(20, &[1; 10]));
        assert!(!sums.add(9, &[1; 5]));
        assert!(!sums.add(40, &[1; 10]));
        assert!(sums.add(0, &[1; 9]));
        assert_eq!(sums.missing(), [(50, BLOCK), (50 + BLOCK, 3)]);
        assert_eq!(Blocks::of_ranges(vec![(5, 7)]).all().collect::<Vec<_>>(), [(0, 5, 2)]);
    }

    #[test]
    fn the_order_in_which_blocks_are_seen_does_not_matter() {
        let bytes: Vec<u8> = (0..3 * BLOCK + 5).map(|index| (index % 251) as u8).collect();
        let blocks = Blocks::new([10], bytes.len() as u64);
        let digests: Vec<_> = blocks
            .all()
            .map(|(_, start, count)| Digest::of(&bytes[start as usize..(start + count) as usize]))
            .collect();
        let parts = [(10, 10 + 2 * BLOCK), (0, 10), (10 + 2 * BLOCK, 3 * BLOCK + 5)];
        let sums = Sums::new(blocks);
        for (start, end) in parts {
            assert!(!sums.missing().is_empty());
            sums.add(start, &bytes[start as usize..end as usize]);
        }
        assert!(sums.missing().is_empty());
        assert_eq!(sums.finish(), Digest::of_blocks(&digests));
    }

    #[test]
    fn part_of_a_block_is_not_taken_for_all_of_it() {
        let bytes = vec![1; 2 * BLOCK as usize];
        let sums = Sums::new(Blocks::new([], 2 * BLOCK));
        sums.add(1, &bytes[1..]);
        assert_eq!(sums.missing(), [(0, BLOCK)]);
        sums.add(0, &bytes[..BLOCK as usize - 1]);
        assert_eq!(sums.missing(), [(0, BLOCK)]);
        sums.add(0, &bytes);
        assert_eq!(sums.missing(), []);
    }

    #[test]
    fn a_digest_is_written_as_xxhash_does_and_read_again() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "06b05ab6733a618578af5f94892f3950");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("6b05".parse::<Digest>(), Err(()));
        assert_eq!("+6b05ab6733a618578af5f94892f3950".parse::<Digest>(), Err(()));
    }
}
