//! Progress of one upload: a moving line on a terminal, a line every half minute elsewhere.

use crate::cli::screen::meter::{Meter, MeterReading, progress_line};
use crate::cli::screen::output::Output;
use crate::run::transfer::{Progress, ProgressSink};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(30);
/// The interval on a terminal: short enough to look alive, long enough to cost almost nothing.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// The display of an upload's progress. Clones share the same display.
#[derive(Clone)]
pub(crate) struct UploadProgress {
    bar: ProgressBar,
    name: String,
    /// The kernel's estimate of the stream; 0 while there is none.
    estimate_bytes: Arc<AtomicU64>,
    shown: bool,
}

impl UploadProgress {
    /// Makes the display for one dataset.
    pub(crate) fn new(output: &Output, name: &str) -> Self {
        let bar = ProgressBar::no_length();
        let shown = output.shows_progress();
        let moving = shown && std::io::stderr().is_terminal();
        bar.set_draw_target(if moving {
            ProgressDrawTarget::stderr_with_hz(4)
        } else {
            ProgressDrawTarget::hidden()
        });
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            name: name.to_owned(),
            estimate_bytes: Arc::default(),
            shown,
        }
    }

    /// Sets the kernel's estimate of the stream, once the plan is known.
    pub(crate) fn expect(&self, estimate_bytes: u64) {
        self.estimate_bytes.store(estimate_bytes, Ordering::Relaxed);
    }

    /// Returns the callback that receives the upload's progress.
    pub(crate) fn sink(&self) -> ProgressSink {
        if !self.shown {
            return Arc::new(|_| {});
        }
        let bar = self.bar.clone();
        let name = self.name.clone();
        let estimate = Arc::clone(&self.estimate_bytes);
        let every = if bar.is_hidden() {
            LINE_EVERY
        } else {
            DRAW_EVERY
        };
        let began = Instant::now();
        let state = Mutex::new((Meter::default(), began));
        Arc::new(move |progress: Progress| {
            if let Some(bytes) = progress.estimate_bytes {
                estimate.store(bytes, Ordering::Relaxed);
            }
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let (meter, last) = &mut *state;
            // The compressed bytes are fewer than the bytes that were read of the stream, and the
            // estimate is of the stream.
            let sent_bytes = progress.sent_bytes.max(progress.stream_bytes);
            let rates = meter.update(began.elapsed(), progress.sent_bytes);
            if last.elapsed() < every {
                return;
            }
            *last = Instant::now();
            let chunk = progress.chunks_confirmed.saturating_add(1);
            let total_bytes = estimate.load(Ordering::Relaxed);
            let line = progress_line(
                &name,
                &MeterReading {
                    sent_bytes,
                    total_bytes,
                    rates,
                    chunk,
                },
            );
            match bar.is_hidden() {
                true => tracing::info!("{line}"),
                false => bar.set_message(line),
            }
        })
    }

    /// Removes the line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
