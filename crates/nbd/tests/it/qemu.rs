//! qemu-nbd and qemu-storage-daemon: the peers that matter.

use std::fs;
use std::process::Command;

use aquifer_nbd::{Client, ClientOptions, Error, STATE_DIRTY, STATE_HOLE, STATE_ZERO, list};

use crate::peers::{
    Address, Peer, connect, extents, folder, noise, qemu_nbd, quick, read_all, sparse_image, tool, unix_uri,
};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_raw_image_reads_the_same_over_four_connections() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 20 * MIB + 512);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=raw", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    let info = client.info();
    assert_eq!((info.size_bytes, info.connections), (20 * MIB as u64 + 512, 4));
    assert!(info.is_read_only() && info.is_multi_conn() && info.with_go && !info.tls);
    for piece in [64 * 1024, MIB, 7 * MIB + 1] {
        assert!(read_all(&client, piece).await.unwrap() == content, "in pieces of {piece}");
    }
    client.disconnect().await;
}

#[tokio::test]
async fn nbdcopy_sees_what_the_client_sees() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, 5 * MIB);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=raw", image.to_str().unwrap()]);
    let copy = folder.path().join("copy.img");
    tool("nbdcopy", [uri.to_string().as_str(), copy.to_str().unwrap()]);
    let client = connect(&uri).await;
    assert!(read_all(&client, MIB).await.unwrap() == fs::read(&copy).unwrap());
}

#[tokio::test]
async fn allocation_agrees_with_the_image() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 9 * MIB);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=raw", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    let all = extents(&client, "base:allocation").await;
    let found: Vec<_> = all.iter().map(|extent| (extent.offset, extent.bytes, extent.flags)).collect();
    let third = 3 * MIB as u64;
    assert_eq!(found, [(0, third, 0), (third, third, STATE_HOLE | STATE_ZERO), (2 * third, third, 0)]);
    assert!(content[3 * MIB..6 * MIB].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn holes_are_reported_and_not_written_to() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, 3 * MIB);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=raw", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    let read = client.read(MIB as u64 / 2, vec![0xee; 2 * MIB]).await.unwrap();
    assert_eq!(read.holes, [(MIB as u32 / 2, MIB as u32)]);
    assert!(read.buffer[MIB / 2..MIB / 2 + MIB].iter().all(|byte| *byte == 0xee));
}

#[tokio::test]
async fn a_sparse_disk_of_ten_tebibytes_is_told_in_few_answers() {
    let folder = folder();
    let image = folder.path().join("big.qcow2");
    tool("qemu-img", ["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "10T"]);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=qcow2", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    let begun = std::time::Instant::now();
    let all = extents(&client, "base:allocation").await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].bytes, 10 << 40);
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn dirty_bitmaps_and_allocation_depth_are_contexts() {
    let folder = folder();
    let image = folder.path().join("disk.qcow2");
    let path = image.to_str().unwrap();
    tool("qemu-img", ["create", "-q", "-f", "qcow2", path, "4M"]);
    tool("qemu-img", ["bitmap", "--add", "-g", "65536", "-f", "qcow2", path, "delta"]);
    tool("qemu-io", ["-f", "qcow2", "-c", "write -P 5 1M 64k", path]);
    let (_peer, uri) = qemu_nbd(
        folder.path(),
        ["--read-only", "--format=qcow2", "--bitmap=delta", "--allocation-depth", path],
    );
    let contexts =
        ["base:allocation", "qemu:dirty-bitmap:delta", "qemu:allocation-depth", "qemu:dirty-bitmap:other"];
    let options = ClientOptions { contexts: contexts.map(str::to_owned).to_vec(), ..quick() };
    let client = Client::connect(&uri, &options).await.unwrap();
    assert_eq!(
        client.info().contexts,
        ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:delta"]
    );
    let expected = |flags| [(MIB as u64, 0), (65536, flags), (3 * MIB as u64 - 65536, 0)];
    for (context, flags) in [("qemu:dirty-bitmap:delta", STATE_DIRTY), ("qemu:allocation-depth", 1)] {
        let all = extents(&client, context).await;
        let found: Vec<_> = all.iter().map(|extent| (extent.bytes, extent.flags)).collect();
        assert_eq!(found, expected(flags), "{context}");
    }
    match client.extents("qemu:dirty-bitmap:other", 0..1) {
        Err(Error::NoContext { context, offered, .. }) => {
            assert_eq!((context.as_str(), offered.len()), ("qemu:dirty-bitmap:other", 3));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn writes_zeros_and_trims_arrive() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    fs::write(&image, noise(4 * MIB, 3)).unwrap();
    let (peer, uri) = qemu_nbd(folder.path(), ["--format=raw", "--discard=unmap", image.to_str().unwrap()]);
    let options = ClientOptions { writable: true, ..quick() };
    let client = Client::connect(&uri, &options).await.unwrap();
    let mut expected = noise(4 * MIB, 3);
    let written = noise(MIB + 3 * 512, 4);
    let back = client.write(512, written.clone()).await.unwrap();
    assert!(back == written, "the buffer comes back");
    expected[512..512 + written.len()].copy_from_slice(&written);
    client.write_zeroes(2 * MIB as u64, MIB as u64 / 2, true).await.unwrap();
    client.write_zeroes(2 * MIB as u64 + MIB as u64 / 2, MIB as u64 / 2, false).await.unwrap();
    expected[2 * MIB..3 * MIB].fill(0);
    client.trim(3 * MIB as u64, 65536).await.unwrap();
    client.flush().await.unwrap();
    expected[3 * MIB..3 * MIB + 65536].fill(0);
    assert!(read_all(&client, 100_000).await.unwrap() == expected);
    client.disconnect().await;
    peer.kill();
    assert!(fs::read(&image).unwrap() == expected);
}

#[tokio::test]
async fn a_client_for_reading_does_not_write() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, MIB);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--format=raw", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    assert!(matches!(client.write(0, vec![0; 512]).await, Err(Error::ReadOnly { .. })));
    assert!(matches!(client.flush().await, Err(Error::ReadOnly { .. })));
}

#[tokio::test]
async fn requests_outside_the_export_are_not_sent() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, MIB);
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=raw", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    for (offset, bytes) in [(MIB as u64, 1), (u64::MAX, 2), (0, MIB + 1)] {
        match client.read(offset, vec![0; bytes]).await {
            Err(Error::OutOfRange { size_bytes, .. }) => assert_eq!(size_bytes, MIB as u64),
            other => panic!("{other:?}"),
        }
    }
    assert!(client.read(MIB as u64, Vec::new()).await.unwrap().buffer.is_empty());
    assert!(matches!(client.extents("base:allocation", 0..MIB as u64 + 1), Err(Error::OutOfRange { .. })));
}

#[tokio::test]
async fn an_empty_disk_has_no_extents() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    fs::write(&image, []).unwrap();
    let (_peer, uri) = qemu_nbd(folder.path(), ["--read-only", "--format=raw", image.to_str().unwrap()]);
    let client = connect(&uri).await;
    assert_eq!(client.info().size_bytes, 0);
    assert!(extents(&client, "base:allocation").await.is_empty());
}

#[tokio::test]
async fn exports_are_listed_and_an_unknown_one_is_named() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, MIB);
    let (_peer, uri) = qemu_nbd(
        folder.path(),
        [
            "--read-only",
            "--format=raw",
            "--export-name=vda",
            "--description=the first",
            image.to_str().unwrap(),
        ],
    );
    let exports = list(&uri, &quick()).await.unwrap();
    assert_eq!(exports.len(), 1);
    assert_eq!((exports[0].name.as_str(), exports[0].description.as_str()), ("vda", "the first"));
    let mut wrong = uri.clone();
    wrong.export = "vdb".to_owned();
    let error = Client::connect(&wrong, &quick()).await.unwrap_err();
    assert!(error.to_string().contains("\"vdb\": no such export"), "{error}");
}

#[tokio::test]
async fn a_restarted_server_is_read_on() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 8 * MIB);
    let args = ["--read-only", "--format=raw", image.to_str().unwrap()];
    let (first, uri) = qemu_nbd(folder.path(), args);
    let client = connect(&uri).await;
    assert!(read_all(&client, MIB).await.unwrap() == content);
    first.kill();
    let _second = qemu_nbd(folder.path(), args);
    assert!(read_all(&client, MIB).await.unwrap() == content);
}

#[tokio::test]
async fn a_server_restarted_with_another_disk_is_not_read_on() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    sparse_image(&image, 8 * MIB);
    let args = ["--read-only", "--format=raw", image.to_str().unwrap()];
    let (first, uri) = qemu_nbd(folder.path(), args);
    let client = connect(&uri).await;
    first.kill();
    sparse_image(&image, 9 * MIB);
    let _second = qemu_nbd(folder.path(), args);
    assert!(matches!(read_all(&client, MIB).await, Err(Error::Changed { .. })));
}

#[tokio::test]
async fn the_storage_daemon_exports_several_disks() {
    let folder = folder();
    let socket = folder.path().join("qsd.sock");
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
    let mut contents = Vec::new();
    for disk in ["vda", "vdb"] {
        let image = folder.path().join(disk);
        contents.push(sparse_image(&image, (3 + contents.len()) * MIB));
        command.arg("--blockdev").arg(format!("driver=file,node-name={disk},filename={}", image.display()));
        command
            .arg("--export")
            .arg(format!("type=nbd,id=e-{disk},node-name={disk},name={disk},writable=off"));
    }
    let _peer = Peer::start(&mut command, Address::Unix(socket.clone()));
    let listed = list(&unix_uri(&socket, ""), &quick()).await.unwrap();
    let mut names: Vec<_> = listed.into_iter().map(|export| export.name).collect();
    names.sort();
    assert_eq!(names, ["vda", "vdb"]);
    for (disk, content) in ["vda", "vdb"].iter().zip(contents) {
        let client = connect(&unix_uri(&socket, disk)).await;
        assert!(read_all(&client, MIB).await.unwrap() == content, "{disk}");
    }
}
