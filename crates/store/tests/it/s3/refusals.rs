//! What a server refuses: keys, rights, buckets, clocks. Each error says what is wrong and what to do.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::{Context, ensure};
use aquifer_store::{Bytes, Created, Error, GetRange, ObjectStore, S3, S3Settings, probe};
use aquifer_testkit::{AccessKey, Fault};

use super::{Rig, always, log, told};
use crate::Outcome;

/// What a host needs that backs up.
const BACKUP_RIGHTS: [&str; 3] = ["s3:PutObject", "s3:GetObject", "s3:ListBucket"];

/// Fails unless the error's text has each word.
fn says(error: &Error, words: &[&str]) -> Outcome {
    let text = error.to_string();
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_host_without_the_right_to_delete_can_do_all_that_a_backup_needs() -> Outcome {
    let rig = Rig::alone()?;
    let writer = rig.server()?.make_user("writer", &BACKUP_RIGHTS)?;
    rig.server()?.guard()?;
    let mut settings = rig.settings(rig.address)?;
    settings.credentials_file = Some(writer.file_in(rig.folder.path())?);
    let store: Arc<dyn ObjectStore> = Arc::new(S3::open(settings).await?);
    assert_eq!(store.create(&log(1)?, Bytes::from_static(b"entry")).await?, Created::Won);
    assert_eq!(store.create(&log(1)?, Bytes::from_static(b"other")).await?, Created::Exists);
    assert_eq!(store.get(&log(1)?, GetRange::Last(3)).await?.as_ref(), b"try");
    assert!(store.head(&log(2)?).await.is_err_and(|error| error.is_not_found()));
    assert_eq!(store.list("", None).await?.entries.len(), 1);

    let error = store.delete(&log(1)?).await.unwrap_err();
    assert!(matches!(error, Error::Denied { operation: "delete", .. }), "{error}");
    says(&error, &["403 AccessDenied", "s3://bucket/backups/main", "log/0000000000000001"])?;
    let report = probe::race(&store, &|out| out.fill(7)).await;
    // The name is the same in each round, and the first round's object stays: a later round has no winner.
    assert_eq!(report?.left_behind, probe::ROUNDS);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn wrong_credentials_are_denied_at_once() -> Outcome {
    let rig = Rig::alone()?;
    let right = rig.server()?.make_user("writer", &BACKUP_RIGHTS)?;
    rig.server()?.guard()?;
    let unknown = AccessKey { id: "AKIAUNKNOWN".into(), secret: right.secret.clone() };
    let wrong = AccessKey { id: right.id, secret: "wrong".into() };
    for (key, code) in [(unknown, "InvalidAccessKeyId"), (wrong, "SignatureDoesNotMatch")] {
        let mut settings = rig.settings(rig.proxy.address())?;
        settings.credentials_file = Some(key.file_in(rig.folder.path())?);
        rig.proxy.arm([]);
        let error = S3::open(settings).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
        says(&error, &["403", code])?;
        assert_eq!(rig.proxy.seen().len(), 1, "a refusal is not tried again");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn missing_credentials_are_told_as_such() -> Outcome {
    let rig = Rig::new()?;
    let mut settings = rig.settings(rig.address)?;
    settings.credentials_file = Some(rig.folder.path().join("nothing"));
    let error = S3::open(settings).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    says(&error, &["no usable credentials"])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_bucket_that_is_not_there_is_told_as_such() -> Outcome {
    let rig = Rig::new()?;
    let settings = S3Settings { bucket: "nowhere".into(), ..rig.settings(rig.address)? };
    let error = S3::open(settings).await.unwrap_err();
    assert!(matches!(error, Error::NoBucket { .. }), "{error}");
    says(&error, &["s3://nowhere/backups/main", "no such bucket"])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_bucket_that_vanished_is_no_missing_object() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy
        .arm([always("GET", "", told(404, "NoSuchBucket")), always("PUT", "", told(404, "NoSuchBucket"))]);
    let error = store.get(&log(1)?, GetRange::Whole).await.unwrap_err();
    assert!(matches!(error, Error::NoBucket { .. }), "{error}");
    let error = store.create(&log(1)?, Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::NoBucket { .. }), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_wrong_clock_is_told_with_its_error() -> Outcome {
    let rig = Rig::new()?;
    let body =
        "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>";
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT".to_owned();
    rig.proxy.arm([always("GET", "", Fault::Answer(403, vec![date], body.to_owned()))]);
    let error = S3::open(rig.settings(rig.proxy.address())?).await.unwrap_err();
    assert!(matches!(error, Error::Clock { .. }), "{error}");
    says(&error, &["this host's clock is ", " s ahead of the server's", "NTP", "RequestTimeTooSkewed"])?;
    let text = error.to_string();
    let seconds =
        text.split("clock is ").nth(1).and_then(|rest| rest.split(' ').next()).context("a figure")?;
    // 30 years at least lie between that date and any run of this test.
    ensure!(seconds.parse::<u64>()? > 30 * 365 * 86_400, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_of_another_kind_is_no_empty_store() -> Outcome {
    let rig = Rig::new()?;
    for (status, page) in [(404, "<html>not here</html>"), (200, "<html>welcome</html>")] {
        rig.proxy.arm([always("GET", "", Fault::Answer(status, Vec::new(), page.to_owned()))]);
        let error = S3::open(rig.settings(rig.proxy.address())?).await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. } | Error::Unavailable { .. }), "{status}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn an_endpoint_where_nobody_listens_is_given_up_soon() -> Outcome {
    let rig = Rig::new()?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let error = S3::open(rig.settings(free)?).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    says(&error, &[&free.to_string(), "3 attempts", "refused"])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_request_that_the_server_will_never_take_is_not_repeated() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy.arm([always("PUT", &rig.bucket, told(400, "InvalidStorageClass"))]);
    let error = store.put(&log(1)?, Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error}");
    says(&error, &["400 InvalidStorageClass"])?;
    assert_eq!(rig.count("PUT"), 1);
    Ok(())
}
