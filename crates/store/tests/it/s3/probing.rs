//! The race of creates over HTTP: a right server passes, a careless one is caught with its figures.

use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_store::probe;
use aquifer_testkit::{Fault, Rule};

use super::{Rig, always};
use crate::Outcome;

/// Names that differ from call to call.
fn names() -> impl Fn(&mut [u8]) + Send + Sync {
    let next = AtomicU64::new(1);
    move |out: &mut [u8]| {
        let number = next.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let start = out.len() - number.len();
        out[start..].copy_from_slice(&number);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_that_keeps_the_condition_passes_every_round_and_is_left_clean() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.store().await?;
    let report = probe::race(&store, &names()).await?;
    assert!(report.passed(), "{report:?}");
    assert_eq!((report.winners().as_str(), report.left_behind), ("1 1 1 1", 0));
    assert!(store.list("", None).await?.entries.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_that_ignores_the_condition_is_caught_with_all_sixteen() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    rig.proxy.arm([always("PUT", "/probe/", Fault::Without("if-none-match"))]);
    let report = probe::race(&store, &names()).await?;
    assert!(!report.passed());
    assert_eq!(report.winners(), "16 16 16 16");
    Ok(())
}

/// The condition is lost for two racers of the third round only: both then win, whoever else does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn a_server_where_two_of_sixteen_win_once_is_caught() -> Outcome {
    let rig = Rig::new()?;
    let store = rig.proxied().await?;
    let two = Rule {
        after: 2 * usize::from(probe::RACERS),
        times: 2,
        ..always("PUT", "/probe/", Fault::Without("if-none-match"))
    };
    rig.proxy.arm([two]);
    let report = probe::race(&store, &names()).await?;
    assert!(!report.passed(), "{report:?}");
    let winners: Vec<usize> = report.rounds.iter().map(|round| round.winners).collect();
    assert!(matches!(winners[..], [1, 1, 2 | 3, 1]), "{winners:?}");
    Ok(())
}
