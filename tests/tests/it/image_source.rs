//! Backups of a stopped domain's disk images.

use std::process::Command;

use anyhow::ensure;
use aquifer_testkit::{Aquifer, Disk, Format, Guest, GuestOptions, check, tempdir, tools};

use crate::Outcome;
use crate::rig::{DISK_BYTES, SECOND, ensure_same, sample, text};

#[test]
#[ignore = "slow group image_source"]
fn a_raw_image_comes_back_byte_for_byte() -> Outcome {
    let folder = tempdir()?;
    let image = folder.path().join("stopped.raw");
    sample(&image, 9 << 20)?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    aquifer.backup(&["stopped", "--image", &format!("root={}", text(&image))])?;
    let images = aquifer.restore("latest:stopped", &["root"], "restored")?;
    ensure_same(&image, &images[0])
}

#[test]
#[ignore = "slow group image_source"]
fn a_qcow2_image_comes_back_as_the_disk_that_it_is() -> Outcome {
    let folder = tempdir()?;
    let (raw, image) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    sample(&raw, 9 << 20)?;
    let mut convert = Command::new(tools::tool("qemu-img")?);
    tools::run(convert.args(["convert", "-O", "qcow2", "-f", "raw"]).arg(&raw).arg(&image))?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    aquifer.backup(&["stopped", "--image", &format!("root={}", text(&image))])?;
    let images = aquifer.restore("latest:stopped", &["root"], "restored")?;
    ensure_same(&raw, &images[0])
}

#[test]
#[ignore = "slow group image_source"]
fn an_image_in_use_is_refused_and_a_stopped_one_is_backed_up() -> Outcome {
    let folder = tempdir()?;
    let disks = [Disk::create(folder.path(), "vda", Format::Qcow2, DISK_BYTES)?];
    let mut guest = Guest::start(folder.path(), &disks, &GuestOptions::default())?;
    guest.wait_seq(100, 60 * SECOND)?;
    let aquifer = Aquifer::with_repository(folder.path())?;
    let source = format!("vda={}", text(&disks[0].path));
    aquifer.run(&["backup", "vm", "--image", &source])?.refused(5, "conflict", &["vda.qcow2"])?;
    ensure!(aquifer.list()?.is_empty(), "an image in use was backed up");

    guest.quit()?;
    aquifer.backup(&["vm", "--image", &source])?;
    let images = aquifer.restore("latest:vm", &["vda"], "restored")?;
    check(&images, 100..=u64::MAX)?;
    Ok(())
}
