//! One run at a destination. The holder of the lock with the highest number in the staging folder
//! is the one. A run that died is told from one that lives by its process on the same machine, and
//! by its heartbeat from another one; no lock of the file system is relied on, because network file
//! systems lie about them.
//!
//! Numbers only grow: who finds the holder of N dead creates N + 1, which only one can, and holds
//! when N is still the one found dead. So nobody ever removes a lock that somebody may have taken.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{process, thread};

use serde::{Deserialize, Serialize};

use super::held;
use crate::error::Error;
use crate::fs;

/// How often a run shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long a run on another machine is watched before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// How long a lock may be without content: its run is between two calls, or died there.
const EMPTY: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// The tokens of the locks that this process holds: of itself it need not guess.
static HELD: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    host: String,
    /// Where the process number means something: the machine's start and its process namespace.
    world: String,
    pid: u32,
    /// When the process started, in the machine's ticks: numbers are used again.
    started: u64,
    /// Tells locks of one process apart.
    token: u64,
    released: bool,
}

/// The lock's file holds the owner and the beat; in place, so always of the same length.
#[derive(Serialize, Deserialize)]
struct Content {
    owner: Owner,
    beat: String,
}

/// The lock, held until it is released or dropped.
#[derive(Debug)]
pub struct Lock {
    staging: PathBuf,
    number: u64,
    path: PathBuf,
    owner: Owner,
    heart: Option<(Sender<()>, JoinHandle<()>)>,
    /// Removed, so that what is at its path is somebody else's.
    gone: bool,
}

impl Lock {
    /// Takes the lock of a staging folder, which is made where there is none. `wait` is called while
    /// another machine's run is watched, and gives up by returning `false`.
    ///
    /// # Errors
    /// When another run holds it or the system refuses.
    pub fn acquire(staging: &Path, wait: &mut dyn FnMut() -> bool) -> Result<Lock, Error> {
        loop {
            fs::create_dirs(staging)?;
            let highest = highest(staging)?;
            let before = highest.map(|number| name(staging, number));
            let found = before.as_deref().and_then(read);
            if let Some(before) = &before {
                if let Some(Owner { pid, host, .. }) = alive(before, wait)? {
                    let path = staging.parent().unwrap_or(staging).to_owned();
                    return Err(Error::Busy { path, pid, host });
                }
                if !before.exists() {
                    continue;
                }
            }
            let number = highest.unwrap_or(0) + 1;
            let (path, owner) = (name(staging, number), Owner::this());
            match fs::create_new(&path) {
                Ok(file) => {
                    fs::write_at(&file, &path, &content(&owner, 0), 0)
                        .inspect_err(|_| drop(fs::remove_file(&path)))?;
                }
                // Somebody was faster, or ended and took the folder along.
                Err(Error::Create { source, .. })
                    if matches!(source.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            }
            if before.is_some_and(|before| read(&before) != found || !before.exists()) {
                // Not the one that was found dead: the folder is another run's by now.
                fs::remove_file(&path)?;
                continue;
            }
            held(&HELD).push(owner.token);
            let (staging, heart) = (staging.to_owned(), beat(&path, &owner));
            return Ok(Lock { staging, number, path, owner, heart, gone: false });
        }
    }

    /// Fails when another run took this one, which did not move for long, for dead.
    pub fn check(&self) -> Result<(), Error> {
        let lost = highest(&self.staging)? != Some(self.number)
            || read(&self.path).is_none_or(|owner| owner.token != self.owner.token);
        if lost {
            return Err(Error::Displaced { path: self.staging.clone() });
        }
        Ok(())
    }

    /// Removes the folder, with this lock and those before it, when nothing else is in it. The
    /// lock is then no more.
    pub fn remove_if_alone(&mut self) -> bool {
        self.stop();
        let Ok(found) = list(&self.staging) else { return false };
        if !found.iter().all(|path| number(path).is_some()) {
            return false;
        }
        for path in found {
            let _ = fs::remove_file(&path);
        }
        self.gone = !self.path.exists();
        fs::remove_empty_dir(&self.staging);
        true
    }

    fn stop(&mut self) {
        if let Some((stop, heart)) = self.heart.take() {
            drop(stop);
            let _ = heart.join();
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.stop();
        held(&HELD).retain(|token| *token != self.owner.token);
        if !self.gone {
            // An owner that cannot say so is found dead later.
            self.owner.released = true;
            write(&self.path, &self.owner, 0);
        }
    }
}

impl Owner {
    fn this() -> Owner {
        static TOKENS: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let count = TOKENS.fetch_add(1, Ordering::Relaxed);
        let pid = process::id();
        Owner {
            host: std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_or_else(|_| "this machine".to_owned(), |host| host.trim().to_owned()),
            world: world(),
            pid,
            started: started(pid).unwrap_or(0),
            // Nanoseconds with a counter in the last digits.
            token: (now as u64 & !0xff) | (count & 0xff),
            released: false,
        }
    }
}

/// Names this start of the machine; empty where it has no name.
pub fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Where process numbers mean the same; empty where that is not known.
fn world() -> String {
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    namespace.map_or_else(|_| String::new(), |name| format!("{} {}", boot(), name.display()))
}

/// When a process started, in ticks; nothing when there is no such process, or only its remains.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Whether a process is another user's on a system that shows nobody the others' (`hidepid`).
#[cfg(target_os = "linux")]
fn is_hidden(pid: u32) -> bool {
    use rustix::process::{Pid, test_kill_process};
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let exists = |process| test_kill_process(process) == Err(rustix::io::Errno::PERM);
    started(pid).is_none() && process.is_some_and(exists)
}

/// Whether a process cannot be looked at: only where there is something to look at.
#[cfg(not(target_os = "linux"))]
fn is_hidden(_pid: u32) -> bool {
    true
}

/// The lock's owner, when it lives.
fn alive(path: &Path, wait: &mut dyn FnMut() -> bool) -> Result<Option<Owner>, Error> {
    let (first, begun) = (std::fs::read(path).ok(), Instant::now());
    let Some(owner) = read(path) else {
        // Empty or gone. One between two calls has content soon.
        while begun.elapsed() < EMPTY && path.exists() {
            if let Some(owner) = read(path) {
                return Ok((!owner.released).then_some(owner));
            }
            pause(wait)?;
        }
        return Ok(None);
    };
    if owner.released {
        return Ok(None);
    }
    if !owner.world.is_empty() && owner.world == world() && !is_hidden(owner.pid) {
        let mut lives = started(owner.pid) == Some(owner.started);
        if owner.pid == process::id() {
            lives &= held(&HELD).contains(&owner.token);
        }
        return Ok(lives.then_some(owner));
    }
    while begun.elapsed() < PATIENCE {
        if std::fs::read(path).ok() != first {
            return Ok(Some(owner));
        }
        pause(wait)?;
    }
    Ok(None)
}

fn pause(wait: &mut dyn FnMut() -> bool) -> Result<(), Error> {
    thread::sleep(POLL);
    if wait() { Ok(()) } else { Err(Error::Cancelled) }
}

fn beat(path: &Path, owner: &Owner) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel();
    let (path, owner) = (path.to_owned(), owner.clone());
    let heart = thread::Builder::new().spawn(move || {
        for beat in 1.. {
            if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            write(&path, &owner, beat);
        }
    });
    // Without it, only a run on another machine could take this one for dead.
    heart.ok().map(|heart| (stop, heart))
}

fn write(path: &Path, owner: &Owner, beat: u64) {
    let _ = fs::open_own(path).and_then(|file| fs::write_at(&file, path, &content(owner, beat), 0));
}

fn content(owner: &Owner, beat: u64) -> Vec<u8> {
    let content = Content { owner: owner.clone(), beat: format!("{beat:020}") };
    let mut text = serde_json::to_vec(&content).expect("strings and numbers");
    if owner.released {
        text.push(b' '); // "true" is one shorter than "false".
    }
    text
}

fn read(path: &Path) -> Option<Owner> {
    let bytes = std::fs::read(path).ok()?;
    serde_json::from_slice::<Content>(&bytes).ok().map(|content| content.owner)
}

fn name(staging: &Path, number: u64) -> PathBuf {
    staging.join(format!("lock.{number}"))
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("lock.")?.parse().ok()
}

fn highest(staging: &Path) -> Result<Option<u64>, Error> {
    match list(staging) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => {
            let found = found.map_err(Error::io("list", staging))?;
            Ok(found.iter().filter_map(|path| number(path)).max())
        }
    }
}

fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests;
