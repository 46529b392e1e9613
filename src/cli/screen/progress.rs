//! Progress of one upload: a moving line on a terminal, a line every half minute elsewhere.

use crate::cli::screen::bars::Bar;
use crate::cli::screen::meter::{Meter, MeterReading, Rates, progress_line};
use crate::cli::screen::output::Output;
use crate::run::transfer::{Progress, ProgressSink};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(30);
/// The interval on a terminal: short enough to look alive, long enough to cost almost nothing.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// The display of an upload's progress. Clones share the same display.
#[derive(Clone)]
pub(crate) struct UploadProgress {
    name: String,
    /// The kernel's estimate of the stream; 0 while there is none.
    estimate_bytes: Arc<AtomicU64>,
    shown: Shown,
    state: Arc<Mutex<State>>,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nowhere,
    InLog,
    OnTerminal,
}

#[derive(Default)]
struct State {
    meter: Meter,
    /// The moving line, from the first progress on.
    bar: Option<Bar>,
    is_finished: bool,
}

impl UploadProgress {
    /// Makes the display for one dataset.
    pub(crate) fn new(output: &Output, name: &str) -> Self {
        let shown = match output.shows_progress() {
            false => Shown::Nowhere,
            true if std::io::stderr().is_terminal() => Shown::OnTerminal,
            true => Shown::InLog,
        };
        Self {
            name: name.to_owned(),
            estimate_bytes: Arc::default(),
            shown,
            state: Arc::default(),
        }
    }

    /// Sets the kernel's estimate of the stream, once the plan is known.
    pub(crate) fn expect(&self, estimate_bytes: u64) {
        self.estimate_bytes.store(estimate_bytes, Ordering::Relaxed);
    }

    /// Returns the callback that receives the upload's progress.
    pub(crate) fn sink(&self) -> ProgressSink {
        let every = match self.shown {
            Shown::Nowhere => return Arc::new(|_| {}),
            Shown::InLog => LINE_EVERY,
            Shown::OnTerminal => DRAW_EVERY,
        };
        let this = self.clone();
        let began = Instant::now();
        let last = Mutex::new(began);
        Arc::new(move |progress: Progress| {
            if let Some(bytes) = progress.estimate_bytes {
                this.estimate_bytes.store(bytes, Ordering::Relaxed);
            }
            let rates = this
                .lock()
                .meter
                .update(began.elapsed(), progress.sent_bytes);
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= every {
                *last = Instant::now();
                this.show(progress, rates);
            }
        })
    }

    fn show(&self, progress: Progress, rates: Rates) {
        let reading = MeterReading {
            // The compressed bytes are fewer than the bytes that were read of the stream, and the
            // estimate is of the stream.
            sent_bytes: progress.sent_bytes.max(progress.stream_bytes),
            total_bytes: self.estimate_bytes.load(Ordering::Relaxed),
            rates,
            chunk: progress.chunks_confirmed.saturating_add(1),
        };
        let line = progress_line(&self.name, &reading);
        if self.shown == Shown::InLog {
            // The line begins with the dataset already.
            tracing::info!(parent: None, "{line}");
            return;
        }
        let mut state = self.lock();
        if !state.is_finished {
            state.bar.get_or_insert_with(Bar::new).show(line);
        }
    }

    /// Removes the line.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        state.is_finished = true;
        state.bar = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
