//! `accept-store`: makes the store that is at its place now the right one.

use crate::cli::args::AcceptStore;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::identity::{place_of, stored_names};
use crate::model::StoreId;
use crate::run::identity::{accept, known_at};
use crate::store::ListedObject;
use serde::Serialize;
use std::ops::ControlFlow;

/// The document of `accept-store`.
#[derive(Serialize)]
pub(crate) struct AcceptedStore {
    pub(crate) store: String,
    pub(crate) before: Option<StoreId>,
    pub(crate) now: StoreId,
}

pub(crate) async fn accept_store(context: &Context, args: &AcceptStore) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let output = &context.output;
    let role = setup.role(args.intermediate);
    let Some(place) = place_of(config, role) else {
        return Err(usage("the configuration names no store", "set main.remote"));
    };
    let store = setup.open_unidentified(role, Access::Read).await?;
    let mut objects = 0;
    let mut count = |page: Vec<ListedObject>| {
        objects += page.len();
        ControlFlow::Continue(())
    };
    store.visit("", &mut count).await?;
    let before = known_at(&config.state_dir, &place)?;
    let holds = match store.is_unused().await? {
        true => "it is empty".to_owned(),
        false => format!("it has {objects} objects"),
    };
    output.line(format!("{}: {holds}", place.url));
    if before.id.is_random() {
        output.line(format!("  until now this host knew it as {}", before.id));
    }
    if context.global.dry_run {
        output.note("nothing was changed");
        return Ok(());
    }
    let (_, now) = accept(&config.state_dir, &place, &store, &stored_names(config)).await?;
    output.line(format!("  from now on {now} is the right store there"));
    output.json(&AcceptedStore {
        store: place.url,
        before: before.id.is_random().then_some(before.id),
        now,
    });
    Ok(())
}
