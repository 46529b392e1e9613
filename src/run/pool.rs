//! The pool's side: the selected datasets, and their snapshots, holds and bookmarks.

pub mod holds;
pub mod inside;
pub mod pins;
pub mod prune_snapshots;
pub mod select;
pub mod snapshot;
pub mod view;
