//! What a directory store does beyond the common contract: errors of the medium, foreign names, many processes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use super::*;
use crate::{LIST_PAGE_ENTRIES, OBJECT_BYTES_MAX, conformance, probe};

fn log_key(seq: u64) -> Key {
    Key::parse(&format!("log/{seq:016x}")).unwrap()
}

fn store() -> (tempfile::TempDir, Local) {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::create(folder.path().join("a/b/store")).unwrap();
    (folder, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_the_contract() {
    let (_folder, store) = store();
    conformance::check(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_passes_the_race() {
    let (folder, store) = store();
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    let seed = std::sync::atomic::AtomicU8::new(1);
    let names = move |out: &mut [u8]| out.fill(seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let report = probe::race(&store, &names).await.unwrap();
    assert!(report.passed(), "{report:?}");
    drop(folder);
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing");
    let error = Local::open(&path).unwrap_err();
    assert!(matches!(&error, Error::Directory { path: named, .. } if *named == path), "{error}");
    std::fs::write(&path, b"a file").unwrap();
    assert!(matches!(Local::open(&path), Err(Error::Directory { .. })));
    assert!(matches!(Local::create(path.join("below")), Err(Error::Directory { .. })));
}

#[tokio::test]
async fn foreign_names_are_reported_and_never_followed() {
    let (folder, store) = store();
    store.put(&log_key(1), Bytes::from_static(b"one")).await.unwrap();
    let root = store.path().to_owned();
    std::fs::write(root.join("log/README"), b"").unwrap();
    std::fs::write(root.join("log/.unfinished-1-1"), b"").unwrap();
    std::fs::create_dir(root.join("lost+found")).unwrap();
    std::fs::write(root.join("lost+found/0000000000000001"), b"").unwrap();
    std::fs::create_dir(root.join("log/0000000000000002")).unwrap();
    symlink("/etc/hostname", root.join("log/0000000000000003")).unwrap();
    symlink("/etc", root.join("packs")).unwrap();
    let page = store.list("", None).await.unwrap();
    let names: Vec<_> = page.entries.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(names, ["log/0000000000000001"]);
    let foreign = [
        "log/.unfinished-1-1",
        "log/0000000000000002",
        "log/0000000000000003",
        "log/README",
        "lost+found",
        "packs",
    ];
    assert_eq!(page.foreign, foreign);
    drop(folder);
}

#[tokio::test]
async fn a_listing_longer_than_a_page_comes_in_order_and_once() {
    let (_folder, store) = store();
    let count = LIST_PAGE_ENTRIES + 7;
    std::fs::create_dir(store.path().join("log")).unwrap();
    for seq in (1..=count).rev() {
        std::fs::write(store.path().join(format!("log/{seq:016x}")), b"x").unwrap();
    }
    let first = store.list("log/", None).await.unwrap();
    assert!(first.more);
    let second = store.list("log/", Some(&first.entries[LIST_PAGE_ENTRIES - 1].key)).await.unwrap();
    assert!(!second.more);
    let all: Vec<_> = first.entries.iter().chain(&second.entries).map(|entry| entry.key.clone()).collect();
    let expected: Vec<_> = (1..=u64::try_from(count).unwrap()).map(log_key).collect();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn an_object_beyond_the_limit_is_refused_before_memory_is_taken() {
    let (_folder, store) = store();
    std::fs::create_dir(store.path().join("log")).unwrap();
    let file = File::create(store.path().join(log_key(1).as_str())).unwrap();
    file.set_len(OBJECT_BYTES_MAX + 1).unwrap();
    let error = store.get(&log_key(1), GetRange::Whole).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { object_bytes, .. } if object_bytes == OBJECT_BYTES_MAX + 1));
    let range = GetRange::From { offset: OBJECT_BYTES_MAX, bytes: 1 };
    assert_eq!(store.get(&log_key(1), range).await.unwrap().as_ref(), [0]);
}

#[tokio::test]
async fn errors_of_the_system_get_their_own_names() {
    let (_folder, store) = store();
    let name = |errno: Errno| match store.error("write", "format", errno.into()) {
        Error::NoSpace { .. } => "no space",
        Error::Denied { .. } => "denied",
        Error::NotFound { .. } => "not found",
        _ => "other",
    };
    assert_eq!(
        [Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::ROFS, Errno::NOENT, Errno::IO].map(name),
        ["no space", "no space", "denied", "denied", "not found", "other"]
    );
}

/// A full medium, without mounting one: /dev/full is a file whose writes always lack space.
#[tokio::test]
async fn no_space_left_says_so() {
    let source = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .and_then(|mut full| std::io::Write::write_all(&mut full, b"x"))
        .unwrap_err();
    let (_folder, store) = store();
    let message = store.error("write", "format", source).to_string();
    assert!(message.starts_with("no space left in the directory "), "{message}");
}

#[tokio::test]
async fn a_write_below_a_file_fails_as_a_medium_not_as_a_missing_object() {
    let (_folder, store) = store();
    std::fs::write(store.path().join("log"), b"in the way").unwrap();
    let error = store.put(&log_key(1), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(!error.is_not_found(), "{error}");
}

#[tokio::test]
async fn files_and_folders_are_not_for_everybody() {
    let (_folder, store) = store();
    store.put(&log_key(1), Bytes::from_static(b"x")).await.unwrap();
    let mode = |name: &str| std::fs::metadata(store.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("log/0000000000000001") & 0o007, 0);
    assert_eq!(mode("log") & 0o007, 0);
}
