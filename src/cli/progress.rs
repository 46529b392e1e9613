//! Progress of one upload: a bar on a terminal, a line every half minute elsewhere.

use super::output::{Output, bytes};
use crate::run::transfer::{Progress, ProgressSink};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(30);
const BAR: &str = "{msg} {binary_bytes}/{binary_total_bytes} {percent}% {binary_bytes_per_sec} left {eta} {prefix}";

/// Shows how far an upload is. Clones show the same one.
#[derive(Clone)]
pub(super) struct UploadProgress {
    bar: ProgressBar,
    /// Chunks confirmed, for the last line.
    confirmed: Arc<AtomicU64>,
}

impl UploadProgress {
    /// For one dataset.
    pub(super) fn new(output: &Output, name: &str) -> Self {
        let bar = ProgressBar::new(0);
        let shown = !output.is_quiet() && std::io::stderr().is_terminal();
        bar.set_draw_target(if shown { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() });
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        Self { bar, confirmed: Arc::default() }
    }

    /// The kernel's estimate of the stream, once it is known what is sent.
    pub(super) fn expect(&self, estimate_bytes: u64) {
        self.bar.set_length(estimate_bytes);
    }

    /// What the upload tells.
    pub(super) fn sink(&self) -> ProgressSink {
        let (bar, confirmed) = (self.bar.clone(), Arc::clone(&self.confirmed));
        let last_line = Mutex::new(Instant::now());
        Arc::new(move |progress: Progress| {
            // The estimate is never exact: the bar grows rather than passing its end.
            bar.set_length(bar.length().unwrap_or(0).max(progress.sent_bytes));
            bar.set_position(progress.sent_bytes);
            bar.set_prefix(format!("chunk {}", progress.chunks_confirmed));
            confirmed.store(u64::from(progress.chunks_confirmed), Ordering::Relaxed);
            let mut last = last_line.lock().unwrap_or_else(PoisonError::into_inner);
            if bar.is_hidden() && last.elapsed() >= LINE_EVERY {
                *last = Instant::now();
                let (sent, total) = (bytes(progress.sent_bytes), bytes(bar.length().unwrap_or(0)));
                tracing::info!(
                    "{} {sent} of about {total} sent, {} chunks confirmed",
                    bar.message(),
                    progress.chunks_confirmed
                );
            }
        })
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
