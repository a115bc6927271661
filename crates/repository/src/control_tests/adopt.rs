//! A log store that is lost, and the one that takes its place.

use aquifer_store::GetRange;

use super::faults::{Fault, Faulty};
use super::*;
use crate::rig::run;

async fn adopt(host: &Host) -> Result<Arc<Repository>> {
    Repository::adopt_log(OpenOptions {
        stores: host.stores.clone(),
        world: Arc::clone(&host.world) as Arc<dyn World>,
        state_dir: host.state_dir.clone(),
        secret: host.secret.clone(),
        access: Access::Write,
        settings: settings(),
    })
    .await
}

/// A repository of one backup, with a log store of its own.
async fn with_backup(packs: &Memory, log: &Memory) -> Host {
    let host = Host::new(1, packs).with_log(log);
    let repository = host.init().await.unwrap();
    backup(&repository, begin(1, "vm"), &vec![7; 3 << 16]).await.unwrap();
    host
}

#[test]
fn a_new_log_store_goes_on_where_the_lost_one_ended() {
    run(async {
        let (packs, lost, fresh) = (Memory::new(), Memory::new(), Memory::new());
        with_backup(&packs, &lost).await;
        let host = Host::new(2, &packs).with_log(&fresh);
        let before = host.open(Access::Write).await.unwrap_err();
        assert!(matches!(before, Error::NotARepository { .. }), "{before}");
        let adopted = adopt(&host).await.unwrap();
        assert_eq!(listed(&adopted), [uuid(1)]);
        backup(&adopted, begin(2, "vm"), &vec![8; 3 << 16]).await.unwrap();
        let stranger = Host::new(3, &packs).with_log(&fresh).open(Access::Write).await.unwrap();
        assert_eq!(listed(&stranger), [uuid(1), uuid(2)]);
        assert_eq!(restore(&stranger, 1).await.unwrap(), vec![7; 3 << 16]);
        let again = adopt(&host).await.unwrap_err();
        assert!(matches!(again, Error::AlreadyInitialised { .. }), "{again}");
    });
}

#[test]
fn a_host_that_still_uses_the_old_store_is_refused_at_its_start_and_at_its_next_entry() {
    run(async {
        let (packs, old, fresh) = (Memory::new(), Memory::new(), Memory::new());
        let host = with_backup(&packs, &old).await;
        let running = host.open(Access::Write).await.unwrap();
        adopt(&Host::new(2, &packs).with_log(&fresh)).await.unwrap();
        let error = host.open(Access::Write).await.unwrap_err();
        assert!(matches!(error, Error::LogReplaced { .. }), "{error}");
        let error = backup(&running, begin(2, "vm"), &[9; 1 << 16]).await.unwrap_err();
        assert!(matches!(cause(&error), Error::LogReplaced { .. }), "{error}");
        // The copies are the new store's still.
        for listed in fresh.list("log/", None).await.unwrap().entries {
            let copy = packs.get(&listed.key, GetRange::Whole).await.unwrap();
            assert_eq!(copy, fresh.get(&listed.key, GetRange::Whole).await.unwrap(), "{}", listed.key);
        }
    });
}

#[test]
fn an_adoption_that_was_cut_short_is_completed_by_the_next() {
    run(async {
        let (packs, lost) = (Memory::new(), Memory::new());
        with_backup(&packs, &lost).await;
        let mut cut = 0;
        for call in 1.. {
            let fresh = Memory::new();
            let mut stopped = Host::new(2, &packs);
            stopped.stores.log = Some(Arc::new(Faulty::new(&fresh, Fault::StopBefore(call))));
            if adopt(&stopped).await.is_ok() {
                break;
            }
            cut += 1;
            let host = Host::new(3, &packs).with_log(&fresh);
            let repository = match adopt(&host).await {
                // The mark was there: it opens like any other.
                Err(Error::AlreadyInitialised { .. }) => host.open(Access::Write).await.unwrap(),
                adopted => adopted.unwrap(),
            };
            assert_eq!(listed(&repository), [uuid(1)], "cut before call {call}");
            assert_eq!(restore(&repository, 1).await.unwrap(), vec![7; 3 << 16]);
            // The next round begins with the log as it was.
            for entry in packs.list("log/", None).await.unwrap().entries {
                if lost.head(&entry.key).await.is_err() {
                    packs.delete(&entry.key).await.unwrap();
                }
            }
        }
        assert!(cut > 10, "{cut}");
    });
}

#[test]
fn only_a_place_that_is_empty_and_creates_atomically_is_adopted() {
    run(async {
        let (packs, lost) = (Memory::new(), Memory::new());
        let host = with_backup(&packs, &lost).await;
        let error =
            adopt(&Host { stores: Stores { log: None, ..host.stores.clone() }, ..host.clone() }).await;
        assert!(matches!(error.unwrap_err(), Error::NoNewLogStore { .. }));
        let other = Memory::new();
        Host::new(9, &other).init().await.unwrap();
        let error = adopt(&Host::new(2, &packs).with_log(&other)).await.unwrap_err();
        assert!(matches!(error, Error::StoresDiffer { .. }), "{error}");
        let mut stranger = Host::new(2, &packs).with_log(&Memory::new());
        stranger.secret = Some(secret("wrong"));
        let error = adopt(&stranger).await.unwrap_err();
        assert!(matches!(error, Error::WrongSecret { .. }), "{error}");
    });
}
