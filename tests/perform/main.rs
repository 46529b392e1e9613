//! `perform`, `lock`, `unlock` and the hooks as people and timers meet them: the real program, on a
//! host where the configured dataset does not exist, so that `snapshot` always fails and everything
//! around it can be seen.

#![expect(clippy::unwrap_used, reason = "all of this is test code")]

mod hooks;
mod locks;
mod scene;
mod sequence;
mod systemd;
