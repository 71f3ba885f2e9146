//! Every call to the file system of a whole run, reads too, is made to fail, to be the last one
//! before the process dies, and to last until other runs came and went; and what a run left is
//! spoiled. `-- frozen` does only the runs that come and go. With `RECAST_FAULTS=quick`, as
//! `make test` has it, a new model, an old one that is replaced, and one that another conversion
//! replaces meanwhile are tried at every call, and the other combinations left out.

mod child;
mod every_call;
mod file_systems;
mod frozen;
mod spoiled;
mod trees;

#[expect(clippy::disallowed_methods, reason = "of this test only")]
fn main() {
    if child::be_one() {
        return;
    }
    let root = trees::root();
    let quick = std::env::var_os("RECAST_FAULTS").is_some_and(|value| value == "quick");
    if !std::env::args().any(|argument| argument == "frozen") {
        file_systems::run(&root);
        spoiled::run(&root);
        every_call::run(&root, quick);
    }
    frozen::run(&root, quick);
    std::fs::remove_dir_all(&root).expect("removed");
}
