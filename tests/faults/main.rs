//! Every call to the file system of a whole run, reads too, is made to fail, to be the last one
//! before the process dies, and to last until other runs came and went; and what a run left is
//! spoiled. `-- frozen` does only the runs that come and go.

mod child;
mod every_call;
mod file_systems;
mod frozen;
mod spoiled;
mod trees;

fn main() {
    if child::be_one() {
        return;
    }
    let root = trees::root();
    if !std::env::args().any(|argument| argument == "frozen") {
        file_systems::run(&root);
        spoiled::run(&root);
        every_call::run(&root);
    }
    frozen::run(&root);
    std::fs::remove_dir_all(&root).expect("removed");
}
