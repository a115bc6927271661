//! Object lock: what is stored stays until its time, whoever deletes; then the space comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_store::{
    Bytes, Error, GetRange, Key, LockMode, ObjectLock, ObjectStore, Retained, S3, S3Settings,
};

use super::{Rig, key, log};
use crate::Outcome;

/// Long enough for a busy machine to do a few requests in half of it.
const SHORT: Duration = Duration::from_secs(8);

/// A store in a bucket that heeds locks of this period.
async fn locking(rig: &Rig, period: Duration) -> Result<S3> {
    let object_lock = Some(ObjectLock { mode: LockMode::Compliance, period });
    Ok(S3::open(S3Settings { object_lock, ..rig.settings(rig.proxy.address())? }).await?)
}

fn rig() -> Result<Rig> {
    let mut rig = Rig::new()?;
    rig.bucket += "-locking";
    rig.server()?.make_locking_bucket(&rig.bucket)?;
    Ok(rig)
}

fn pack() -> Result<Key> {
    key("packs/00112233445566778899aabbccddeeff/00000001")
}

/// Deletes as soon as the bucket lets us, which is not before `until_ms`.
async fn delete_when_allowed(store: &S3, key: &Key, until_ms: u64) -> Outcome {
    let mut every = tokio::time::interval(Duration::from_millis(200));
    loop {
        every.tick().await;
        let before = u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_millis())?;
        match store.delete(key).await {
            Err(Error::Denied { .. }) => ensure!(before < until_ms + 60_000, "still locked"),
            Ok(()) => {
                let now = u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_millis())?;
                ensure!(now >= until_ms, "deleted at {now}, locked until {until_ms}");
                let left = store.head(key).await;
                ensure!(left.is_err_and(|error| error.is_not_found()), "a version is left");
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_locked_object_stays_until_its_time_and_then_gives_its_space_back() -> Outcome {
    let rig = rig()?;
    let store = locking(&rig, SHORT).await?;
    let (pack, entry) = (pack()?, log(1)?);
    store.put(&pack, Bytes::from_static(b"pack")).await?;
    store.create(&entry, Bytes::from_static(b"entry")).await?;
    for key in [&pack, &entry] {
        let denied = store.delete(key).await;
        assert!(matches!(denied, Err(Error::Denied { operation: "delete", .. })), "{denied:?}");
        assert_eq!(store.get(key, GetRange::Last(2)).await?.len(), 2);
    }
    let Retained::Locked(until_ms) = store.retain(&pack).await? else { panic!("no lock, or a short one") };
    delete_when_allowed(&store, &pack, until_ms).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_lock_is_extended_when_half_of_it_is_over_and_not_before() -> Outcome {
    let rig = rig()?;
    let pack = pack()?;
    locking(&rig, Duration::from_secs(3600)).await?.put(&pack, Bytes::from_static(b"pack")).await?;
    // For a period of three hours, one hour is less than half.
    let longer = locking(&rig, Duration::from_secs(3 * 3600)).await?;
    let Retained::Extended(until_ms) = longer.retain(&pack).await? else { panic!("was not extended") };
    assert_eq!(longer.retain(&pack).await?, Retained::Locked(until_ms));
    // And a shorter period never shortens it.
    let shorter = locking(&rig, Duration::from_secs(60)).await?;
    assert_eq!(shorter.retain(&pack).await?, Retained::Locked(until_ms));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn every_version_of_a_repeated_put_is_removed() -> Outcome {
    let rig = rig()?;
    let store = locking(&rig, Duration::from_secs(1)).await?;
    let pack = pack()?;
    store.put(&pack, Bytes::from_static(b"pack")).await?;
    store.put(&pack, Bytes::from_static(b"pack")).await?;
    let (Retained::Locked(until_ms) | Retained::Extended(until_ms)) = store.retain(&pack).await? else {
        panic!("no lock")
    };
    delete_when_allowed(&store, &pack, until_ms).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_that_has_ever_more_versions_is_not_followed_for_ever() -> Outcome {
    let rig = rig()?;
    let pack = pack()?;
    let plain = S3::open(rig.settings(rig.address)?).await?;
    for _ in 0..20 {
        plain.put(&pack, Bytes::from_static(b"pack")).await?;
    }
    let store = locking(&rig, SHORT).await?;
    let Err(Error::Unavailable { reason, .. }) = store.delete(&pack).await else { panic!("all are gone") };
    assert!(reason.contains("16 versions"), "{reason}");
    // The next attempt goes on where this one ended.
    store.delete(&pack).await?;
    assert!(plain.head(&pack).await.is_err_and(|error| error.is_not_found()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn heartbeats_are_not_locked() -> Outcome {
    let rig = rig()?;
    let store = locking(&rig, Duration::from_secs(3600)).await?;
    let heartbeat = key("hb/00112233445566778899aabbccddeeff")?;
    store.put(&heartbeat, Bytes::from_static(b"1")).await?;
    assert_eq!(store.retain(&heartbeat).await?, Retained::NoLock);
    store.delete(&heartbeat).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_bucket_without_object_lock_refuses_to_store_with_its_own_words() -> Outcome {
    let rig = Rig::new()?;
    let store = locking(&rig, SHORT).await?;
    let refused = store.put(&pack()?, Bytes::from_static(b"pack")).await;
    let Err(Error::Rejected { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("ObjectLock"), "{reason}");
    Ok(())
}
