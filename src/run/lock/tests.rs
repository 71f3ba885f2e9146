//! Whose the lock is.

use super::*;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("recast-{name}-{}", process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

fn acquire(staging: &Path) -> Result<Lock, Error> {
    Lock::acquire(staging, &mut || true)
}

#[test]
fn a_second_run_is_refused_until_the_first_lets_go() {
    let staging = folder("lock-second");
    let first = acquire(&staging).expect("free");
    assert!(matches!(acquire(&staging), Err(Error::Busy { pid, .. }) if pid == process::id()));
    first.check().expect("held");
    drop(first);
    let third = acquire(&staging).expect("released");
    assert_eq!(third.number, 2);
    std::fs::remove_dir_all(staging).expect("removed");
}

#[test]
fn a_dead_process_does_not_block_even_when_its_number_is_used_again() {
    let staging = folder("lock-dead");
    for change in [|owner: &mut Owner| owner.started += 1, |owner: &mut Owner| owner.pid = u32::MAX]
    {
        let mut owner = Owner::this();
        change(&mut owner);
        let number = highest(&staging).expect("listed").unwrap_or(0) + 1;
        std::fs::write(name(&staging, number), content(&owner, 3)).expect("written");
        drop(acquire(&staging).expect("the owner is dead"));
    }
    std::fs::remove_dir_all(staging).expect("removed");
}

#[test]
fn a_run_on_another_machine_lives_as_long_as_its_heart_beats() {
    let staging = folder("lock-far");
    let owner = Owner { world: "elsewhere".to_owned(), ..Owner::this() };
    let path = name(&staging, 1);
    std::fs::write(&path, content(&owner, 0)).expect("written");
    let mut beat = 0;
    let result = Lock::acquire(&staging, &mut || {
        beat += 1;
        std::fs::write(&path, content(&owner, beat)).is_ok()
    });
    assert!(matches!(result, Err(Error::Busy { .. })));
    drop(acquire(&staging).expect("no beat, so dead"));
    std::fs::remove_dir_all(staging).expect("removed");
}

#[test]
fn one_of_many_wins() {
    let staging = folder("lock-many");
    std::fs::write(name(&staging, 1), b"").expect("of a run that died before it wrote");
    let locks: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| acquire(&staging))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(locks.iter().filter(|lock| lock.is_ok()).count(), 1);
    std::fs::remove_dir_all(staging).expect("removed");
}
