//! Answers that are lost, cut, late or refused: what is tried again, what is settled by a look, what is given up.

use std::time::{Duration, Instant};

use aquifer_store::{Bytes, Created, Error, GetRange, ObjectStore, S3};
use aquifer_testkit::{Fault, Rule};

use super::{Rig, always, log, once, told};
use crate::Outcome;

fn ours() -> Bytes {
    Bytes::from_static(b"our entry")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_create_whose_answer_was_lost_finds_its_own_object_and_has_won() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy.arm([once("PUT", "/log/", Fault::LoseAnswer)]);
    assert_eq!(store.create(&log(1)?, ours()).await?, Created::Won);
    assert_eq!((rig.count("PUT"), rig.count("GET")), (2, 1));
    assert_eq!(store.get(&log(1)?, GetRange::Whole).await?, ours());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_create_that_was_lost_to_another_after_a_lost_request_says_so() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.store().await?.put(&log(1)?, Bytes::from_static(b"their entry")).await?;
    rig.proxy.arm([once("PUT", "/log/", Fault::Drop)]);
    assert_eq!(store.create(&log(1)?, ours()).await?, Created::Exists);
    assert_eq!(store.get(&log(1)?, GetRange::Whole).await?.as_ref(), b"their entry");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn the_same_bytes_of_somebody_else_are_no_win() -> Outcome {
    let rig = Rig::new()?;
    rig.store().await?.put(&log(1)?, ours()).await?;
    assert_eq!(rig.proxied().await?.create(&log(1)?, ours()).await?, Created::Exists);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_create_that_never_heard_an_answer_looks_once_more_before_it_gives_up() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy.arm([always("PUT", "/log/", Fault::LoseAnswer)]);
    assert_eq!(store.create(&log(1)?, ours()).await?, Created::Won);
    assert_eq!((rig.count("PUT"), rig.count("GET")), (4, 1));

    rig.proxy.arm([always("PUT", "/log/", Fault::Drop)]);
    let error = store.create(&log(2)?, ours()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_conflict_of_two_writes_is_tried_again() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy.arm([once("PUT", "/log/", told(409, "ConditionalRequestConflict"))]);
    assert_eq!(store.create(&log(1)?, ours()).await?, Created::Won);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_storm_of_503_ends_with_an_error_that_names_endpoint_operation_and_attempts() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy.arm([always("PUT", "", told(503, "SlowDown"))]);
    let error = store.put(&log(1)?, ours()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { operation: "put", .. }), "{error}");
    let text = error.to_string();
    let endpoint = rig.proxy.address().to_string();
    for word in [
        endpoint.as_str(),
        &format!("s3://{}/backups/main", rig.bucket),
        "put",
        "log/0000000000000001",
        "4 attempts",
        "503 SlowDown: as told",
    ] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    assert_eq!(rig.count("PUT"), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_short_storm_is_weathered_by_every_operation() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    let storm = |method| Rule { times: 2, ..always(method, "", told(500, "InternalError")) };
    rig.proxy.arm(["PUT", "GET", "HEAD", "DELETE"].map(storm));
    assert_eq!(store.create(&log(1)?, ours()).await?, Created::Won);
    assert_eq!(store.get(&log(1)?, GetRange::Last(5)).await?.as_ref(), b"entry");
    assert_eq!(store.head(&log(1)?).await?, 9);
    store.delete(&log(1)?).await?;
    rig.proxy.arm([storm("GET")]);
    assert!(store.list("", None).await?.entries.is_empty());
    assert_eq!(rig.count("GET"), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_body_that_ends_early_is_read_again_and_never_passed_on() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    let body = Bytes::from(vec![7; 1 << 20]);
    store.put(&log(1)?, body.clone()).await?;
    rig.proxy.arm([once("GET", "/log/", Fault::CutAnswer(1000))]);
    assert_eq!(store.get(&log(1)?, GetRange::Whole).await?, body);
    rig.proxy.arm([once("GET", "/log/", Fault::CutAnswer(1000))]);
    let part = GetRange::From { offset: 10, bytes: 5000 };
    assert_eq!(store.get(&log(1)?, part).await?, body.slice(10..5010));

    rig.proxy.arm([always("GET", "/log/", Fault::CutAnswer(1000))]);
    let error = store.get(&log(1)?, GetRange::Whole).await.unwrap_err().to_string();
    assert!(error.contains("the body ended after 1000 of 1048576 bytes"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_cut_listing_is_asked_for_again() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    for seq in 0..5 {
        store.put(&log(seq)?, ours()).await?;
    }
    rig.proxy.arm([once("GET", "list-type", Fault::CutAnswer(300))]);
    assert_eq!(store.list("log/", None).await?.entries.len(), 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_that_says_nothing_is_given_up_in_time() -> Outcome {
    let rig = Rig::new()?;
    let mut settings = rig.settings(rig.proxy.address())?;
    settings.patience.answer = Duration::from_millis(500);
    settings.patience.attempts = 2;
    rig.store().await?.put(&log(1)?, ours()).await?;
    let store = S3::open(settings).await?;
    rig.proxy.arm([always("GET", "/log/", Fault::Silence)]);
    let start = Instant::now();
    let error = store.get(&log(1)?, GetRange::Whole).await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. }) && start.elapsed() < Duration::from_secs(20),
        "{error}"
    );
    assert_eq!(rig.count("GET"), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn an_object_that_says_to_be_larger_than_any_is_not_read() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    let huge = Fault::Answer(206, vec!["Content-Range: bytes 0-4/999999999999".into()], "12345".into());
    rig.proxy.arm([once("GET", "/log/", huge)]);
    let error = store.get(&log(1)?, GetRange::Whole).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { object_bytes: 999_999_999_999, .. }), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_that_ignores_the_range_still_gives_the_right_bytes() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    store.put(&log(1)?, Bytes::from_static(b"0123456789")).await?;
    rig.proxy.arm([always("GET", "/log/", Fault::Without("range"))]);
    let part = GetRange::From { offset: 3, bytes: 4 };
    assert_eq!(store.get(&log(1)?, part).await?.as_ref(), b"3456");
    assert_eq!(store.get(&log(1)?, GetRange::Last(2)).await?.as_ref(), b"89");
    let error = store.get(&log(1)?, GetRange::Last(11)).await.unwrap_err();
    assert!(matches!(error, Error::Range { object_bytes: 10, .. }), "{error}");
    Ok(())
}
