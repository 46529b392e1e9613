//! `show`: the table, the remarks below it, and with a dataset or `-v` all that is known of each.

pub(crate) mod details;
pub(crate) mod overview;
pub(crate) mod survey;
pub(crate) mod unknown;
pub(crate) mod views;

use crate::cli::args::Show;
use crate::cli::commands::show::survey::{Survey, survey_host, survey_store};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, status};

pub(crate) async fn show(context: &Context, show: &Show) -> Result<(), Failure> {
    let output = &*context.output;
    let deep = !show.datasets.is_empty() || context.global.verbose > 0;
    let bare = show.source.remote.is_some();
    let Survey { overview, failed } = match bare {
        true => survey_store(context, show).await?,
        false => survey_host(context, show, deep).await?,
    };
    if show.reads_remote() && overview.remote.url.is_none() {
        output.always("--include-remote: the configuration names no remote; there is only the intermediate directory");
    }
    for line in overview::lines(&overview) {
        match &line.mark {
            Some((word, mark)) => output.marked_line(&line.text, word, *mark),
            None => output.line(&line.text),
        }
    }
    if deep || bare {
        overview
            .datasets
            .iter()
            .flat_map(|dataset| details::lines(&overview, dataset))
            .for_each(|line| output.line(line));
    }
    output.json(&overview);
    // Stores that could not be read were reported. A program must not read the output as a complete
    // answer either.
    if failed {
        Err(Failure::Reported(status::PARTIAL))
    } else {
        Ok(())
    }
}
