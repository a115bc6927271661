//! Backups of exports that somebody else serves.

use std::fs;

use anyhow::ensure;
use aquifer_testkit::{Aquifer, Server, tempdir};

use crate::Outcome;
use crate::rig::{ensure_same, sample, text};

const BYTES: usize = 20_000_256;

#[test]
#[ignore = "slow group nbd_source"]
fn an_export_comes_back_byte_for_byte() -> Outcome {
    let folder = tempdir()?;
    let image = folder.path().join("source.raw");
    sample(&image, BYTES)?;
    let server = Server::qemu_nbd(folder.path(), &image, &["--read-only", "--format=raw"])?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let done = aquifer.backup(&["files", "--nbd", &format!("root={}", server.uri(""))])?;
    let zero = done["disks"][0]["zero_bytes"].as_u64().unwrap_or_default();
    ensure!(zero > 4 << 20, "a quarter of the disk is zero, and {zero} bytes were found to be: {done}");

    let images = aquifer.restore("latest:files", &["root"], "restored")?;
    // QEMU serves whole sectors: the last one is filled up with zeroes.
    fs::File::options().write(true).open(&image)?.set_len(images[0].metadata()?.len())?;
    ensure_same(&image, &images[0])
}

#[test]
#[ignore = "slow group nbd_source"]
fn an_export_of_any_size_from_a_server_that_tells_no_extents_comes_back() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    for bytes in [1, 511, 513, 131_071, 131_072, 131_073, 1_000_003] {
        let image = folder.path().join(format!("{bytes}.raw"));
        sample(&image, bytes)?;
        let file = text(&image);
        let server = Server::nbdkit(folder.path(), &["--readonly", "--filter=noextents", "file", &file])?;
        aquifer.backup(&["odd", "--nbd", &format!("disk={}", server.uri(""))])?;
        let images = aquifer.restore("latest:odd", &["disk"], &bytes.to_string())?;
        ensure_same(&image, &images[0])?;
    }
    Ok(())
}

#[test]
#[ignore = "slow group nbd_source"]
fn several_exports_are_one_backup() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let (first, second) = (folder.path().join("first.raw"), folder.path().join("second.raw"));
    sample(&first, 3_000_000)?;
    sample(&second, 5_000_000)?;
    let servers = [
        Server::nbdkit(folder.path(), &["--readonly", "file", &text(&first)])?,
        Server::nbdkit(folder.path(), &["--readonly", "file", &text(&second)])?,
    ];
    let (one, two) = (format!("a={}", servers[0].uri("")), format!("b={}", servers[1].uri("")));
    aquifer.backup(&["both", "--nbd", &one, "--nbd", &two])?;
    let images = aquifer.restore("latest:both", &["a", "b"], "restored")?;
    ensure_same(&first, &images[0])?;
    ensure_same(&second, &images[1])
}

#[test]
#[ignore = "slow group nbd_source"]
fn the_same_content_is_stored_once() -> Outcome {
    let folder = tempdir()?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let image = folder.path().join("source.raw");
    sample(&image, BYTES)?;
    let server = Server::nbdkit(folder.path(), &["--readonly", "file", &text(&image)])?;
    let source = format!("disk={}", server.uri(""));
    aquifer.backup(&["one", "--nbd", &source])?;
    let again = aquifer.backup(&["other", "--nbd", &source])?;
    let disk = &again["disks"][0];
    ensure!(disk["new_bytes"] == 0 && disk["deduplicated_bytes"].as_u64() > Some(0), "{again}");
    let rescan = aquifer.backup(&["one", "--nbd", &source])?;
    let disk = &rescan["disks"][0];
    ensure!(
        disk["mode"] == "rescan" && disk["new_bytes"] == 0 && disk["kept_bytes"].as_u64() > Some(0),
        "{rescan}"
    );
    Ok(())
}
