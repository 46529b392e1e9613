//! The moving lines at the bottom of a terminal: one for each upload in flight. Whatever else is
//! printed goes above them.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND))
});
/// The number of lines. Without any, nothing must be cleared before something is printed.
static COUNT: AtomicUsize = AtomicUsize::new(0);
const DRAWS_PER_SECOND: u8 = 4;

/// A moving line, until it is dropped.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Adds a line below the others.
    pub(crate) fn new() -> Self {
        COUNT.fetch_add(1, Ordering::SeqCst);
        let bar = BARS.add(ProgressBar::no_length());
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Replaces the text of the line.
    pub(crate) fn show(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs `print`, whose output goes above the moving lines.
pub(crate) fn above_bars<T>(print: impl FnOnce() -> T) -> T {
    match COUNT.load(Ordering::SeqCst) {
        0 => print(),
        _ => BARS.suspend(print),
    }
}
