//! The S3 store against moto, over HTTP: with nothing between, or with a proxy that breaks what it is told to.

mod faults;
mod listing;
mod lock;
mod probing;
mod refusals;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use aquifer_store::{
    Bytes, Created, GetRange, Key, Memory, Metered, ObjectStore, Patience, S3, S3Settings, conformance,
};
use aquifer_testkit::{AccessKey, Fault, HttpProxy, Rule, S3Server, TempDir, tempdir};

use crate::Outcome;

/// A bucket of its own on a server, and a proxy in front of that.
struct Rig {
    folder: TempDir,
    /// A server of this test alone, where it needs one.
    own: Option<S3Server>,
    address: SocketAddr,
    bucket: String,
    proxy: HttpProxy,
}

impl Rig {
    /// A bucket on the server that all tests share.
    fn new() -> Result<Rig> {
        static BUCKETS: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("bucket-{}", BUCKETS.fetch_add(1, Ordering::Relaxed));
        let server = S3Server::shared()?;
        server.make_bucket(&bucket)?;
        let (address, proxy) = (server.address(), HttpProxy::start(server.address())?);
        Ok(Rig { folder: tempdir()?, own: None, address, bucket, proxy })
    }

    /// A bucket on a server that only this test changes.
    fn alone() -> Result<Rig> {
        let folder = tempdir()?;
        let server = S3Server::start(folder.path())?;
        server.make_bucket("bucket")?;
        let (address, proxy) = (server.address(), HttpProxy::start(server.address())?);
        Ok(Rig { folder, own: Some(server), address, bucket: "bucket".to_owned(), proxy })
    }

    fn server(&self) -> Result<&S3Server> {
        match &self.own {
            Some(own) => Ok(own),
            None => S3Server::shared(),
        }
    }

    /// Settings for the server at `address`, with short waits and any access key.
    fn settings(&self, address: SocketAddr) -> Result<S3Settings> {
        Ok(S3Settings {
            endpoint: Some(format!("http://{address}")),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(AccessKey::any().file_in(self.folder.path())?),
            patience: Patience {
                attempts: 4,
                backoff: Duration::from_millis(5),
                answer: Duration::from_secs(30),
                ..Patience::default()
            },
            ..S3Settings::new(&self.bucket, "backups/main")
        })
    }

    /// The store, straight at the server.
    async fn store(&self) -> Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(S3::open(self.settings(self.address)?).await?))
    }

    /// The store behind the proxy.
    async fn proxied(&self) -> Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(S3::open(self.settings(self.proxy.address())?).await?))
    }

    /// How many requests of this method came through the proxy.
    fn count(&self, method: &str) -> usize {
        self.proxy.seen().iter().filter(|seen| seen.method == method).count()
    }
}

fn key(name: &str) -> Result<Key> {
    Ok(Key::parse(name)?)
}

fn log(seq: u64) -> Result<Key> {
    key(&format!("log/{seq:016x}"))
}

/// A fault for every such request.
fn always(method: &'static str, target: &str, fault: Fault) -> Rule {
    Rule { method, target: target.to_owned(), after: 0, times: usize::MAX, fault }
}

/// A fault for the next such request.
fn once(method: &'static str, target: &str, fault: Fault) -> Rule {
    Rule { times: 1, ..always(method, target, fault) }
}

/// An answer of the server's kind.
fn told(status: u16, code: &str) -> Fault {
    let body = format!("<Error><Code>{code}</Code><Message>as told</Message></Error>");
    Fault::Answer(status, vec!["Content-Type: application/xml".to_owned()], body)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_bucket_keeps_the_contract_below_a_prefix_and_without_one() -> Outcome {
    let rig = Rig::new()?;
    conformance::check(rig.store().await?).await;
    let other = S3Settings { prefix: "other".into(), ..rig.settings(rig.address)? };
    conformance::check(Arc::new(S3::open(other).await?)).await;
    let whole = Rig::new()?.bucket;
    let whole = S3Settings { bucket: whole, prefix: String::new(), ..rig.settings(rig.address)? };
    conformance::check(Arc::new(S3::open(whole).await?)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn an_object_goes_up_as_one_request_with_its_checksum_in_the_head() -> Outcome {
    let rig = Rig::new()?;
    let mut settings = rig.settings(rig.proxy.address())?;
    settings.storage_classes = vec![("packs".into(), "STANDARD_IA".into())];
    let store = S3::open(settings).await?;
    let pack = key("packs/00112233445566778899aabbccddeeff/00000001")?;
    rig.proxy.arm([]);
    store.put(&pack, Bytes::from(vec![7; 5 << 20])).await?;
    assert_eq!(store.create(&log(1)?, Bytes::from_static(b"entry")).await?, Created::Won);
    let seen = rig.proxy.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    let [put, create] = [&seen[0], &seen[1]];
    assert!(
        put.target.starts_with(&format!("/{}/backups/main/packs/00112233", rig.bucket)),
        "{}",
        put.target
    );
    assert_eq!((put.body_bytes, create.body_bytes), (5 << 20, 5));
    for request in [put, create] {
        assert!(request.head.contains("\r\nx-amz-checksum-crc32: "), "{}", request.head);
        assert!(
            !request.head.contains("aws-chunked") && !request.head.contains("trailer"),
            "{}",
            request.head
        );
    }
    assert!(put.head.contains("\r\nx-amz-storage-class: standard_ia\r\n"), "{}", put.head);
    assert!(!create.head.contains("storage-class"), "{}", create.head);
    assert!(create.head.contains("\r\nif-none-match: *\r\n") && !put.head.contains("if-none-match"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn requests_keep_to_their_cap_and_ranges_are_large_behind_a_counter_too() -> Outcome {
    let rig = Rig::new()?;
    let settings = S3Settings { requests_per_second: Some(20), ..rig.settings(rig.address)? };
    let store = Metered::new(Arc::new(S3::open(settings).await?));
    assert!(store.range_bytes() > Memory::new().range_bytes(), "the counter hides that it is a bucket");
    let start = std::time::Instant::now();
    for seq in 0..10 {
        assert!(store.get(&log(seq)?, GetRange::Whole).await.is_err_and(|error| error.is_not_found()));
    }
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    Ok(())
}
