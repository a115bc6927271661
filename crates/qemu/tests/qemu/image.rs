//! Images of stopped domains through qemu-nbd.

use aquifer_qemu::{Error, ErrorKind, ImageExport, ImageRequest};

use crate::support::{MIB, Machine, eventually, pull, qcow2, run, tool};

fn request(folder: &std::path::Path, name: &str) -> ImageRequest {
    ImageRequest { path: folder.join(name), format: None, sockets: folder.to_owned(), writable: false }
}

async fn image(folder: &std::path::Path, name: &str, format: &str) {
    let path = folder.join(name).display().to_string();
    run(tool("qemu-img"), &["create", "-q", "-f", format, &path, "3M"]).await;
    run(tool("qemu-io"), &["-f", format, "-c", "write -P 7 1M 1M", &path]).await;
}

#[tokio::test]
async fn a_stopped_image_is_served_whole_and_freed_after() {
    let folder = tempfile::tempdir().unwrap();
    for (name, format) in [("disk, 1.qcow2", "qcow2"), ("disk.img", "raw")] {
        image(folder.path(), name, format).await;
        let export = ImageExport::open(&request(folder.path(), name)).await.unwrap();
        assert_eq!((export.size_bytes(), export.format()), (3 * MIB, format));
        assert!(export.warnings()[0].contains(&format!("{format}, as detected")), "{:?}", export.warnings());
        let bytes = pull(&export.uri(), folder.path()).await;
        assert!(
            bytes.len() as u64 == 3 * MIB && bytes[MIB as usize..2 * MIB as usize].iter().all(|&b| b == 7)
        );
        export.close().await.unwrap();
        // The lock is gone with it.
        run(
            tool("qemu-io"),
            &["-f", format, "-c", "write 0 1M", &folder.path().join(name).display().to_string()],
        )
        .await;
    }
    let sockets = std::fs::read_dir(folder.path()).unwrap();
    assert!(sockets.flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".nbd")));
}

#[tokio::test]
async fn the_image_of_a_running_domain_is_refused() {
    let machine = Machine::start(&[qcow2("n0", 1)]).await;
    for format in [None, Some("qcow2".to_owned())] {
        let request = ImageRequest { format, ..request(machine.folder.path(), "n0.qcow2") };
        let error = ImageExport::open(&request).await.unwrap_err();
        assert!(matches!(error, Error::ImageInUse { .. }) && error.kind() == ErrorKind::Conflict, "{error}");
    }
}

#[tokio::test]
async fn a_raw_disk_that_begins_like_qcow2_is_refused_without_a_format() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path(), "guest.qcow2", "qcow2").await;
    std::fs::rename(folder.path().join("guest.qcow2"), folder.path().join("guest.raw")).unwrap();
    let error = ImageExport::open(&request(folder.path(), "guest.raw")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("give the format"), "{error}");
    let told = ImageRequest { format: Some("raw".to_owned()), ..request(folder.path(), "guest.raw") };
    let export = ImageExport::open(&told).await.unwrap();
    let bytes = std::fs::metadata(folder.path().join("guest.raw")).unwrap().len();
    assert_eq!(export.size_bytes(), bytes.div_ceil(512) * 512);
    export.close().await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_missing_or_broken_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let error = ImageExport::open(&request(folder.path(), "nothing.qcow2")).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSuchImage { .. }) && error.to_string().contains("nothing.qcow2"),
        "{error}"
    );
    std::fs::write(folder.path().join("broken.qcow2"), b"QFI\xfb\0\0\0\x03 and then nothing").unwrap();
    let error = ImageExport::open(&request(folder.path(), "broken.qcow2")).await.unwrap_err();
    assert!(matches!(error, Error::Image { .. }) && error.to_string().contains("broken.qcow2"), "{error}");
}

#[tokio::test]
async fn the_server_ends_with_whoever_started_it() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path(), "disk.raw", "raw").await;
    let export = ImageExport::open(&request(folder.path(), "disk.raw")).await.unwrap();
    let busy = ImageExport::open(&request(folder.path(), "disk.raw")).await.unwrap_err();
    assert!(matches!(busy, Error::ImageInUse { .. }), "{busy}");
    drop(export);
    eventually("a second export can be made", || async {
        match ImageExport::open(&request(folder.path(), "disk.raw")).await {
            Ok(export) => export.close().await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_qcow2_image_is_made_of_whole_sectors_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a:new one.qcow2");
    aquifer_qemu::create_qcow2(&path, 1000).await.unwrap();
    let writable = ImageRequest { writable: true, ..request(folder.path(), "a:new one.qcow2") };
    let export = ImageExport::open(&writable).await.unwrap();
    assert_eq!((export.size_bytes(), export.format()), (1024, "qcow2"));
    export.close().await.unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = aquifer_qemu::create_qcow2(&path, 4096).await.unwrap_err();
    assert!(matches!(error, Error::Image { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
