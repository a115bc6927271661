//! nbdkit with filters that make a server slow, faulty or particular.

use std::fs;
use std::time::{Duration, Instant};

use aquifer_nbd::{Client, ClientOptions, Error, Stage};

use crate::peers::{connect, extents, folder, nbdkit, noise, qemu_nbd, quick, read_all, sparse_image};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn errors_that_pass_are_read_over() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let args = ["--readonly", "--filter=error", "file", image.to_str().unwrap(), "error-pread-rate=5%"];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = connect(&uri).await;
    // A request fails in one of twenty cases, and one is tried five times before it counts: some reads may still fail,
    // but those that succeed are right.
    let mut good = 0;
    for offset in (0..content.len()).step_by(65536) {
        match client.read(offset as u64, vec![0xee; 65536]).await {
            Ok(mut read) => {
                read.zero_holes();
                assert!(read.buffer == content[offset..offset + 65536]);
                good += 1;
            }
            Err(Error::Failed { bytes: 4096, .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(good > 48, "only {good} of 64 reads succeeded");
}

#[tokio::test]
async fn a_long_line_gets_more_connections_and_a_server_without_room_for_them_is_not_waited_for() {
    let (far, near) = (folder(), folder());
    let image = far.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let (_far, long) =
        nbdkit(far.path(), ["--readonly", "--filter=delay", "file", image.to_str().unwrap(), "rdelay=50ms"]);
    let by_latency = ClientOptions { connections_max: 16, ..quick() };
    let client = Client::connect(&long, &by_latency).await.unwrap();
    assert_eq!(client.info().connections, 16);
    assert!(read_all(&client, 300_000).await.unwrap() == content);
    client.disconnect().await;
    assert_eq!(connect(&long).await.info().connections, 4);

    // QEMU accepts connections beyond its limit and says nothing.
    let socket = format!("nbd+unix:///?socket={}", far.path().join("nbdkit.sock").display());
    let (_near, crowded) = qemu_nbd(near.path(), ["--read-only", "--format=raw", "--shared=6", &socket]);
    let begun = Instant::now();
    let client = Client::connect(&crowded, &by_latency).await.unwrap();
    assert_eq!(client.info().connections, 6);
    assert!(begun.elapsed() < quick().greeting_deadline, "{:?}", begun.elapsed());
    assert!(read_all(&client, 300_000).await.unwrap() == content);
}

#[tokio::test]
async fn a_bad_sector_is_found_by_offset_and_length() {
    let folder = folder();
    let (_peer, uri) = nbdkit(
        folder.path(),
        [
            "eval",
            "get_size=echo 1048576",
            "pread=if [ $4 -le 700000 ] && [ $(($4 + $3)) -gt 700000 ]; then echo EIO bad sector >&2; exit 1; fi; head -c $3 /dev/zero",
        ],
    );
    let client = connect(&uri).await;
    match client.read(0, vec![0; MIB]).await {
        Err(error @ Error::Failed { offset: 696_320, bytes: 4096, .. }) => {
            assert!(
                error.to_string().contains("read of 4096 bytes at 696320 failed: the peer answered EIO (5)"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    client.read(0, vec![0; 696_320]).await.unwrap();
    client.read(700_416, vec![0; MIB - 700_416]).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_always_errors_fails_soon() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, 4 * MIB);
    let args =
        ["--filter=error", "file", image.to_str().unwrap(), "error-pread=EIO", "error-pread-rate=100%"];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = connect(&uri).await;
    let error = read_all(&client, MIB).await.unwrap_err();
    assert!(matches!(error, Error::Failed { bytes: 4096, .. }), "{error}");
}

#[tokio::test]
async fn an_error_on_extents_is_an_error_and_no_hole() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, 4 * MIB);
    let args =
        ["--filter=error", "file", image.to_str().unwrap(), "error-extents=EIO", "error-extents-rate=100%"];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = connect(&uri).await;
    let mut stream = client.extents("base:allocation", 0..4 * MIB as u64).unwrap();
    let error = stream.next().await.unwrap_err();
    assert!(error.to_string().contains("block-status of"), "{error}");
}

#[tokio::test]
async fn a_slow_server_is_waited_for() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let args = ["--filter=delay", "file", image.to_str().unwrap(), "rdelay=20ms", "delay-extents=20ms"];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = connect(&uri).await;
    assert!(read_all(&client, 256 * 1024).await.unwrap() == content);
    assert!(!extents(&client, "base:allocation").await.is_empty());
}

#[tokio::test]
async fn a_server_slower_than_the_deadline_is_left() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, MIB);
    let (_peer, uri) =
        nbdkit(folder.path(), ["--filter=delay", "file", image.to_str().unwrap(), "rdelay=30"]);
    let options = ClientOptions { request_deadline: Duration::from_millis(300), ..quick() };
    let client = Client::connect(&uri, &options).await.unwrap();
    match client.read(0, vec![0; 512]).await {
        Err(Error::Lost { cause, .. }) => {
            assert!(matches!(*cause, Error::Deadline { stage: Stage::Request, .. }), "{cause}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn block_sizes_are_kept_to() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let args = [
        "--filter=blocksize-policy",
        "file",
        image.to_str().unwrap(),
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=65536",
        "blocksize-maximum=131072",
    ];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = connect(&uri).await;
    let blocks = client.info().blocks;
    assert_eq!((blocks.minimum, blocks.preferred, blocks.maximum), (4096, 65536, 131_072));
    assert!(read_all(&client, MIB).await.unwrap() == content);
    let mut odd = client.read(1000, vec![0xee; 300_001]).await.unwrap();
    odd.zero_holes();
    assert!(odd.buffer == content[1000..301_001], "a read beside the blocks");
    let mut stream = client.extents("base:allocation", 5000..4 * MIB as u64 - 5000).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().offset, 5000);
}

#[tokio::test]
async fn writes_beside_the_blocks_are_refused() {
    let folder = folder();
    let args = [
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
    ];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = Client::connect(&uri, &ClientOptions { writable: true, ..quick() }).await.unwrap();
    match client.write(512, vec![0; 4096]).await {
        Err(Error::Unaligned { block_bytes: 4096, offset: 512, .. }) => {}
        other => panic!("{other:?}"),
    }
    client.write(4096, vec![7; 8192]).await.unwrap();
    assert_eq!(client.read(4096, vec![0; 8192]).await.unwrap().buffer, [7; 8192]);
}

#[tokio::test]
async fn a_server_without_extents_shows_data_everywhere() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let (_peer, uri) = nbdkit(folder.path(), ["--filter=noextents", "file", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    let all = extents(&client, "base:allocation").await;
    assert_eq!(all.iter().map(|extent| extent.flags).collect::<Vec<_>>(), [0]);
    assert!(read_all(&client, MIB).await.unwrap() == content);
}

#[tokio::test]
async fn a_server_without_structured_replies_is_read() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let (_peer, uri) = nbdkit(folder.path(), ["--no-sr", "file", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    assert_eq!(client.info().reply_mode, aquifer_nbd::proto::reply::ReplyMode::Simple);
    assert!(client.info().with_go);
    assert!(read_all(&client, MIB).await.unwrap() == content);
}

#[tokio::test]
async fn a_server_without_options_is_opened_by_name() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 4 * MIB);
    let (_peer, uri) = nbdkit(folder.path(), ["--mask-handshake=0", "file", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    assert!(!client.info().with_go);
    assert!(read_all(&client, MIB).await.unwrap() == content);
}

#[tokio::test]
async fn zeros_are_written_where_the_server_cannot_zero() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    fs::write(&image, noise(2 * MIB, 1)).unwrap();
    let args = ["--filter=nozero", "--filter=nofilter", "file", image.to_str().unwrap()];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = Client::connect(&uri, &ClientOptions { writable: true, ..quick() }).await.unwrap();
    client.write_zeroes(512, MIB as u64, true).await.unwrap();
    client.flush().await.unwrap();
    let mut expected = noise(2 * MIB, 1);
    expected[512..512 + MIB].fill(0);
    assert!(read_all(&client, MIB).await.unwrap() == expected);
}

#[tokio::test]
async fn a_failed_write_names_its_bytes() {
    let folder = folder();
    let args = ["--filter=error", "memory", "4M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"];
    let (_peer, uri) = nbdkit(folder.path(), args);
    let client = Client::connect(&uri, &ClientOptions { writable: true, ..quick() }).await.unwrap();
    match client.write(65536, vec![1; 4096]).await {
        Err(error @ Error::Failed { offset: 65536, bytes: 4096, .. }) => {
            assert!(error.to_string().contains("ENOSPC"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_without_multi_conn_gets_one_connection() {
    let folder = folder();
    let args = ["--filter=multi-conn", "memory", "4M", "multi-conn-mode=disable"];
    let (_peer, uri) = nbdkit(folder.path(), args);
    assert_eq!(connect(&uri).await.info().connections, 1);
}
