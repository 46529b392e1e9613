//! The store contract and the failures of every day, against a real S3 server. One test, so that one server serves all
//! cases; each case that fails is reported by its name.

use crate::contract::{self, key, pattern};
use crate::weed::Weed;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use zfs_backup::store::{ObjectStore, S3Checksum, S3Settings, S3Store};

const BUCKET: &str = "contract";

type CaseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type Case = (&'static str, fn(Arc<S3Store>) -> CaseFuture);

macro_rules! list_cases {
    ($($case:ident)*) => {
        vec![$((stringify!($case), |store| Box::pin(async move { contract::$case(&*store).await }))),*]
    };
}

/// Runs a case and notes if it failed.
async fn run(name: String, case: CaseFuture, failures: &mut Vec<String>) {
    let begun = std::time::Instant::now();
    let ended = tokio::spawn(case).await;
    println!("{name}: {} in {:.1?}", if ended.is_ok() { "ok" } else { "FAILED" }, begun.elapsed());
    if ended.is_err() {
        failures.push(name);
    }
}

async fn store(settings: S3Settings) -> Arc<S3Store> {
    Arc::new(S3Store::connect(settings).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract_on_seaweedfs() {
    let weed = Weed::start(BUCKET).await;
    let mut failures = Vec::new();
    let cases: Vec<Case> = contract::all_contract_cases!(list_cases);
    for (name, case) in cases {
        let settings = S3Settings { prefix: format!("all/{name}"), ..weed.settings(BUCKET) };
        run(name.to_owned(), case(store(settings).await), &mut failures).await;
    }
    for checksum in [S3Checksum::Sha256, S3Checksum::Md5] {
        let settings = S3Settings { prefix: format!("{checksum:?}"), checksum, ..weed.settings(BUCKET) };
        let store = store(settings).await;
        let case = async move { contract::large_objects_of_every_shape_come_back(&*store).await };
        run(format!("large objects by {checksum:?}"), Box::pin(case), &mut failures).await;
    }
    assert!(failures.is_empty(), "failed: {failures:?}");
}
