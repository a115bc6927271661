//! Listings: of many objects, with strange names among them, and of a server that does not keep order.

use std::env;

use anyhow::{Result, ensure};
use aquifer_store::{Bytes, Error, Key, ObjectStore, S3, S3Settings};
use aquifer_testkit::{Fault, HttpProxy, S3Server, tempdir};

use super::{Rig, always, log};
use crate::Outcome;

/// Reads a listing to its end; the keys, and the foreign names.
async fn walk(store: &dyn ObjectStore, prefix: &str) -> Result<(Vec<Key>, Vec<String>)> {
    let (mut keys, mut foreign) = (Vec::<Key>::new(), Vec::new());
    loop {
        let page = store.list(prefix, keys.last()).await?;
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        foreign.extend(page.foreign);
        if !page.more {
            return Ok((keys, foreign));
        }
    }
}

/// `AQUIFER_LIST_OBJECTS=1000000` tries more.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_listing_of_many_objects_comes_in_pages_and_misses_none() -> Outcome {
    let many: u64 = env::var("AQUIFER_LIST_OBJECTS").map_or(Ok(20_001), |text| text.parse())?;
    let rig = Rig::new()?;
    let folder = tempdir()?;
    let server = S3Server::start_filled(folder.path(), "many", "backups/main/log/", many)?;
    let proxy = HttpProxy::start(server.address())?;
    let settings = S3Settings { bucket: "many".into(), ..rig.settings(proxy.address())? };
    let store = S3::open(settings).await?;
    proxy.arm([]);
    let (keys, foreign) = walk(&store, "log/").await?;
    for (seq, key) in (0..).zip(&keys) {
        ensure!(*key == log(seq)?, "at {seq} stands {key}");
    }
    assert_eq!((keys.len() as u64, foreign.len()), (many, 0));
    assert_eq!(proxy.seen().len() as u64, many.div_ceil(1000));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn names_outside_of_the_grammar_are_reported_and_passed_over() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.store().await?;
    for seq in [1, 0xff] {
        store.put(&log(seq)?, Bytes::from_static(b"entry")).await?;
    }
    for strange in ["a%20b%2Bc", "log/0000000000000002.tmp", "log/%01%C3%A4", "zz/../etc/passwd"] {
        rig.server()?.put(&rig.bucket, &format!("backups/main/{strange}"), "x")?;
    }
    // Beside the prefix, and so nobody's business.
    rig.server()?.put(&rig.bucket, "backups/main2", "x")?;
    rig.server()?.put(&rig.bucket, "backups/mai", "x")?;
    let (keys, foreign) = walk(store.as_ref(), "").await?;
    assert_eq!(keys, [log(1)?, log(0xff)?]);
    assert_eq!(foreign, ["a b+c", "log/\u{1}ä", "log/0000000000000002.tmp", "zz/../etc/passwd"]);
    Ok(())
}

/// The names of a whole page are foreign, and an object of ours comes after them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn an_object_behind_thousands_of_foreign_names_is_found() -> Outcome {
    let rig = Rig::new()?;
    let folder = tempdir()?;
    let server = S3Server::start_filled(folder.path(), "many", "backups/main/a", 2500)?;
    let settings = S3Settings { bucket: "many".into(), ..rig.settings(server.address())? };
    let store = S3::open(settings).await?;
    store.put(&log(1)?, Bytes::from_static(b"entry")).await?;
    let page = store.list("", None).await?;
    assert_eq!(page.entries.len(), 1);
    assert_eq!((page.foreign.len(), page.more), (1000, false), "the report is bounded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_listing_out_of_order_is_an_error_and_not_an_answer() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    let contents =
        |seq: u64| format!("<Contents><Key>backups/main/log/{seq:016x}</Key><Size>1</Size></Contents>");
    for (body, complaint) in [
        (contents(2) + &contents(1), "not in the order of names"),
        ("<Contents><Key>elsewhere</Key><Size>1</Size></Contents>".to_owned(), "other names than asked for"),
        ("<IsTruncated>true</IsTruncated>".to_owned(), "does not end"),
        (contents(1).replace("<Size>1</Size>", ""), "without sizes"),
    ] {
        let body = format!("<ListBucketResult>{body}</ListBucketResult>");
        rig.proxy.arm([always("GET", "list-type", Fault::Answer(200, Vec::new(), body))]);
        let error = store.list("", None).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { operation: "list", .. }), "{error}");
        assert!(error.to_string().contains(complaint), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn an_answer_that_does_not_end_is_cut_off() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    let endless = format!("<ListBucketResult>{}", "<Contents>".repeat(1 << 20));
    rig.proxy.arm([always("GET", "list-type", Fault::Answer(200, Vec::new(), endless))]);
    let error = store.list("", None).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("length limit exceeded"), "{error}");
    Ok(())
}
