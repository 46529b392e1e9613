//! Endpoints with a path, as gateways have them.

use super::{PART, connect, story};
use crate::contract::{key, pattern, upload};
use crate::proxy::{Action, Proxy};
use crate::weed::Weed;
use std::sync::Arc;
use zfs_backup::store::{S3Settings, StoreDelete, StoreRead, StoreWrite};

pub(super) async fn endpoint_with_a_path_serves_all_requests(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let proxy = Proxy::start(&weed.endpoint(), |_| Action::Below("/storage/v1/s3"));
    let endpoint = Some(format!("{}/storage/v1/s3", proxy.endpoint()));
    let store = connect(S3Settings {
        endpoint,
        ..settings
    })
    .await;
    store
        .check_bucket()
        .await
        .unwrap_or_else(|error| panic!("{}", story(&error)));
    let bytes = pattern(PART + 5, 1);
    store.put_new(&key("small"), pattern(9, 1)).await.unwrap();
    upload(&store, &key("large"), &bytes).await.unwrap();
    assert!(store.get(&key("large"), None, 1 << 30).await.unwrap() == bytes);
    assert_eq!(store.list("").await.unwrap().len(), 2);
    store.delete(&key("large")).await.unwrap();
    assert_eq!(proxy.requests(" /storage/v1/s3/"), proxy.requests(""));
}
