//! [`for_each_dataset`]: the only loop over the datasets of a command. It works on several at once,
//! because most of the time of a small dataset is spent waiting for a store.
//!
//! All work runs in one task: text that is printed without an `await` in between stays together.

use crate::cli::context::Context;
use crate::model::DatasetName;
use futures_util::{StreamExt, stream};
use std::collections::BTreeMap;
use tracing::Instrument;

/// Does `work` for each dataset, for at most `parallel_datasets` at once, and passes the results to
/// `finish` in the order of the datasets, each once all earlier ones were passed. After a request
/// to stop no further dataset begins; those that began end by themselves.
pub(crate) async fn for_each_dataset<T, R>(
    context: &Context,
    datasets: &[T],
    name: impl Fn(&T) -> &DatasetName,
    work: impl AsyncFn(&T) -> R,
    mut finish: impl FnMut(&T, R),
) {
    let (work, name) = (&work, &name);
    let begun = datasets.iter().enumerate().map(async |(index, dataset)| {
        if *context.stop.borrow() {
            return (index, None);
        }
        // A span of level ERROR is on at every log level, so every line names the dataset.
        let span = tracing::error_span!("dataset", "{}", name(dataset));
        let result = Box::pin(work(dataset)).instrument(span).await;
        (index, Some(result))
    });
    let mut ended = stream::iter(begun).buffer_unordered(context.parallel_datasets());
    let (mut waiting, mut next) = (BTreeMap::new(), 0);
    while let Some((index, result)) = ended.next().await {
        waiting.insert(index, result);
        while let Some(result) = waiting.remove(&next) {
            match result {
                Some(result) => finish(&datasets[next], result),
                None => context.left_undone(),
            }
            next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Global;
    use crate::cli::failure::{Failure, status};
    use crate::cli::screen::output::Output;
    use crate::run::RunError;
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::watch;

    fn context(parallel_datasets: u32) -> (Context, watch::Sender<bool>) {
        let global = Global {
            parallel_datasets: Some(parallel_datasets),
            quiet: true,
            ..Global::default()
        };
        let output = Arc::new(Output::new(&global));
        let (stopper, stop) = watch::channel(false);
        (Context::new(global, output, stop, Arc::default()), stopper)
    }

    fn names(count: u32) -> Vec<DatasetName> {
        (0..count)
            .map(|n| format!("t/{n}").parse().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn work_is_bounded_and_results_come_in_the_order_of_the_datasets() {
        for parallel in [1, 3, 64] {
            let ((context, _stopper), datasets) = (context(parallel), names(10));
            let (running, most) = (Cell::new(0), Cell::new(0));
            let work = async |dataset: &DatasetName| {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                let number: u64 = dataset.as_str()[2..].parse().unwrap();
                // Later datasets are faster.
                tokio::time::sleep(Duration::from_millis(20 - 2 * number)).await;
                running.set(running.get() - 1);
                dataset.clone()
            };
            let mut results = Vec::new();
            let finish = |_: &DatasetName, result| results.push(result);
            for_each_dataset(&context, &datasets, |name| name, work, finish).await;
            assert_eq!((results, most.get()), (datasets, parallel.min(10)));
            assert!(context.verdict().is_ok());
        }
    }

    #[tokio::test]
    async fn after_a_stop_no_dataset_begins_and_the_command_is_interrupted() {
        let ((context, stopper), datasets) = (context(2), names(10));
        let begun = Cell::new(0);
        let work = async |_: &DatasetName| {
            begun.set(begun.get() + 1);
            tokio::task::yield_now().await;
            stopper.send(true).unwrap();
        };
        let mut finished = 0;
        for_each_dataset(
            &context,
            &datasets,
            |name| name,
            work,
            |_, ()| finished += 1,
        )
        .await;
        assert_eq!((begun.get(), finished), (2, 2));
        let stopped = context.verdict().unwrap_err();
        assert!(matches!(stopped, Failure::Run(RunError::Interrupted)));
        assert_eq!(stopped.status(), status::INTERRUPTED);
    }
}
