//! `show --unknown`: counts the objects under the prefix of a store that belong to none of the
//! datasets shown. Only this lists a whole store.

use crate::catalog::CatalogError;
use crate::cli::commands::show::views::DatasetView;
use crate::cli::screen::table::bytes;
use crate::store::key::dataset_prefix;
use crate::store::{ListedObject, StoreRead};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Objects that belong to none of the datasets.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

impl Foreign {
    /// Returns the sentence for the list of what is never deleted.
    pub(crate) fn sentence(&self, place: &str) -> Option<String> {
        let (count, size) = (self.objects, bytes(self.bytes));
        (count > 0).then(|| {
            format!("{count} objects ({size}) in the {place}: they belong to no dataset shown here")
        })
    }
}

/// Counts the objects that belong to none of the datasets. The keyrings are not foreign.
pub(crate) async fn count_foreign(
    store: &dyn StoreRead,
    datasets: &[DatasetView],
) -> Result<Foreign, CatalogError> {
    let ours = datasets.iter().map(|view| dataset_prefix(&view.dataset));
    let ours: BTreeSet<String> = ours.collect();
    let is_foreign = |key: &str| {
        let own = key.find('@').map(|at| &key[..=at]);
        !own.is_some_and(|own| ours.contains(own)) && !key.starts_with("@zfs-backup/")
    };
    let mut foreign = Foreign::default();
    let mut count = |page: Vec<ListedObject>| {
        for object in page.iter().filter(|object| is_foreign(&object.key)) {
            foreign.objects += 1;
            foreign.bytes = foreign.bytes.saturating_add(object.bytes);
        }
        ControlFlow::Continue(())
    };
    store.visit("", &mut count).await?;
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn objects_of_other_datasets_and_loose_keys_are_foreign() {
        let store = MemoryStore::new();
        for key in [
            "@zfs-backup/store-id",
            "tank/@a/x",
            "tank/@odd",
            "tank/b/@a/x",
            "readme",
            "tank/readme",
        ] {
            store.plant(key, vec![0; 10]);
        }
        let datasets = [DatasetView::new("tank".parse().unwrap())];
        let foreign = count_foreign(&store, &datasets).await.unwrap();
        assert_eq!((foreign.objects, foreign.bytes), (3, 30));
    }
}
