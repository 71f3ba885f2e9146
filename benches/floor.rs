//! The floor: what it takes to write the output and nothing more. The same number of threads write
//! the same bytes into files of the same sizes, from a hot buffer, in pieces of 1 MiB, after the room
//! for a file was reserved; with `sync`, whoever finishes a file calls fsync. Prints the seconds.
//!
//! Arguments: a directory with the files whose sizes count, the new directory to write, threads,
//! `sync` or `no-sync`, and `in-order` (all threads take the next piece, file after file) or
//! `spread` (a file belongs to one thread, so that none waits for another's lock on it). It shares
//! no code with recast.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const PIECE: u64 = 1 << 20;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().filter(|text| text != "--bench").collect();
    let [_, like, dest, threads, sync, order] = &arguments[..] else {
        return Ok(());
    };
    let (dest, sync) = (PathBuf::from(dest), sync == "sync");
    let threads: usize = threads.parse().expect("a number of threads");
    let mut files = Vec::new();
    for entry in fs::read_dir(like)? {
        let entry = entry?;
        if entry.metadata()?.is_file() {
            files.push((entry.file_name(), entry.metadata()?.len()));
        }
    }
    files.sort();
    let buffer: Vec<u8> = (0..PIECE).map(|n| (n * 31 % 251) as u8).collect();

    let started = Instant::now();
    fs::create_dir(&dest)?;
    let mut open = Vec::new();
    let mut pieces = Vec::new();
    for (index, (name, bytes)) in files.iter().enumerate() {
        let count = bytes.div_ceil(PIECE) as usize;
        let file = File::create_new(dest.join(name))?;
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, *bytes);
        open.push((file, AtomicUsize::new(count)));
        pieces.extend((0..count as u64).map(|n| (index, n * PIECE, PIECE.min(bytes - n * PIECE))));
    }
    // Whose turn it is, for each queue of pieces: one for all threads, or one for each of them.
    let queues = if order == "spread" { threads } else { 1 };
    let next: Vec<AtomicUsize> = (0..queues).map(|_| AtomicUsize::new(0)).collect();
    let mut parts: Vec<Vec<(usize, u64, u64)>> = vec![Vec::new(); queues];
    for piece in pieces {
        parts[piece.0 % queues].push(piece);
    }
    let (next, parts, open, buffer) = (&next, &parts, &open, &buffer);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let queue = thread % queues;
                while let Some(&(index, start, bytes)) =
                    parts[queue].get(next[queue].fetch_add(1, Ordering::Relaxed))
                {
                    let (file, left) = &open[index];
                    file.write_all_at(&buffer[..bytes as usize], start).expect("write");
                    if left.fetch_sub(1, Ordering::AcqRel) == 1 && sync {
                        file.sync_all().expect("fsync");
                    }
                }
            });
        }
    });
    if sync {
        File::open(&dest)?.sync_all()?;
    }
    println!("{}", started.elapsed().as_secs_f64());
    Ok(())
}
