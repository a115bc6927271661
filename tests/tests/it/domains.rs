//! Domains by their definitions: defined, kept with each backup, undefined, and a second one made out of a backup, which
//! libvirt boots and which goes on with the first one's history.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{Aquifer, Disk, Format, Libvirt, check_grown, process, tempdir};

use crate::Outcome;
use crate::rig::{DISK_BYTES, Rig, SECOND, ensure_same, sample, text};

/// A stopped domain `web` with one disk, and a repository.
fn stopped(folder: &Path) -> Result<Aquifer> {
    sample(&folder.join("web.raw"), 3 << 20)?;
    Aquifer::with_repository(folder)
}

fn back_up(aquifer: &Aquifer, folder: &Path) -> Result<String> {
    let image = format!("vda={}", text(&folder.join("web.raw")));
    let done = aquifer.backup(&["web", "--image", &image])?;
    Ok(done["uuid"].as_str().context("no uuid")?.to_owned())
}

/// Writes a file into the folder, and gives its path as text.
fn file(folder: &Path, name: &str, content: &str) -> Result<String> {
    fs::write(folder.join(name), content)?;
    Ok(text(&folder.join(name)))
}

/// What stands between two words.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Result<&'t str> {
    let rest = text.split_once(before).with_context(|| format!("no {before} in {text}"))?.1;
    Ok(rest.split_once(after).with_context(|| format!("no {after} after {before}"))?.0)
}

#[test]
#[ignore = "slow group domains"]
fn a_second_domain_made_of_a_backup_boots_in_libvirt_and_goes_on_with_the_history() -> Outcome {
    let mut rig = Rig::start_raw()?;
    let folder = rig.folder.path().to_owned();
    // Another user's libvirt reads below it.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let libvirt = Libvirt::new(&folder.join("libvirt"))?;
    let first = libvirt.define(&libvirt.written("vm", &rig.disks, 1)?)?;
    rig.aquifer.run(&["domain", "define", &file(&folder, "vm.xml", &first)?])?.ok()?;
    let taken = rig.backup(&[])?;
    let described = rig.aquifer.run(&["dumpxml", &taken.uuid])?.ok()?.output.clone();
    ensure!(
        described.contains(between(&first, "<uuid>", "</uuid>")?),
        "the backup has no definition: {described}"
    );

    let disk = |name: &str, format: Format| Disk {
        name: name.to_owned(),
        path: folder.join(format!("new-{name}.{}", format.name())),
        format,
        bytes: DISK_BYTES,
    };
    let disks = [disk("vda", Format::Raw), disk("vdb", Format::Qcow2)];
    let volumes =
        disks.each_ref().map(|disk| format!("{}={}:{}", disk.name, disk.format.name(), text(&disk.path)));
    let definition = folder.join("second.xml");
    let arguments = ["restore", &taken.uuid, "--new-domain", "second", "--definition", &text(&definition)];
    let restore = |rig: &Rig| {
        let disks = ["--disk", &volumes[0], "--disk", &volumes[1]];
        rig.aquifer.run(&[&arguments[..], &disks[..]].concat())
    };
    restore(&rig)?.ok()?;
    restore(&rig)?.refused(5, "conflict", &["second"])?;

    let second = fs::read_to_string(&definition)?;
    for (before, after) in [("<uuid>", "</uuid>"), ("<mac address='", "'"), ("<name>", "</name>")] {
        let (old, new) = (between(&first, before, after)?, between(&second, before, after)?);
        ensure!(old != new, "both have {before}{old}");
    }
    ensure!(
        rig.disks.iter().all(|disk| !second.contains(&text(&disk.path))),
        "a disk of the first is in {second}"
    );
    let known = rig.aquifer.run(&["domain", "show", "second"])?.ok()?.document()?;
    ensure!(known["defined"]["uuid"] == between(&second, "<uuid>", "</uuid>")?, "{known}");
    rig.guest.pause()?;

    let history = [DISK_BYTES; 2];
    let moment = check_grown(&raw(&folder, "restored", &disks)?, &history, taken.window.clone())?;
    let next = moment.last + 1;
    // What the guest's program writes first is its kernel's argument.
    fs::write(&definition, second.replace(" rig.first=1 ", &format!(" rig.first={next} ")))?;
    disks.iter().try_for_each(|disk| libvirt.give(&disk.path))?;
    let mut domain = libvirt.start(&definition)?;
    let restored = fs::metadata(&disks[0].path)?.modified()?;
    let mut began = None;
    process::wait_for("the second domain to write for three seconds", 90 * SECOND, || {
        domain.ensure_running()?;
        let written = fs::metadata(&disks[0].path)?.modified()?;
        if written == restored {
            return Ok(None);
        }
        Ok((written > *began.get_or_insert(written) + 3 * SECOND).then_some(()))
    })?;
    domain.terminate()?;
    let later = check_grown(&raw(&folder, "continued", &disks)?, &history, next..=u64::MAX)?;
    ensure!(later.write >= next, "it has not gone on from {next}: {later:?}");
    Ok(())
}

/// The disks as raw files.
fn raw(folder: &Path, name: &str, disks: &[Disk]) -> Result<Vec<std::path::PathBuf>> {
    let raw = |disk: &Disk| {
        let target = folder.join(format!("{name}-{}.img", disk.name));
        disk.export_raw(&target)?;
        Ok(target)
    };
    disks.iter().map(raw).collect()
}

#[test]
#[ignore = "slow group domains"]
fn a_domain_adopts_the_backups_of_its_name_and_is_undefined_with_them_on_request_only() -> Outcome {
    let folder = tempdir()?;
    let aquifer = stopped(folder.path())?;
    let before = back_up(&aquifer, folder.path())?;
    let xml = "<domain type='kvm'><name>web</name><uuid>54c70d40-26bb-48cd-9639-b3a1e9adf650</uuid>\
               <devices><graphics type='vnc' passwd='s3cret'/></devices></domain>";
    aquifer.run(&["domain", "define", &file(folder.path(), "web.xml", xml)?])?.ok()?;
    let list = aquifer.run(&["domain", "list"])?.ok()?.document()?;
    ensure!(list[0]["domain"] == "web" && list[0]["defined"] == true && list[0]["backups"] == 1, "{list}");
    let after = back_up(&aquifer, folder.path())?;
    let kept = |uuid: &str| {
        Ok::<_, anyhow::Error>(aquifer.run(&["dumpxml", uuid])?.ok()?.output.contains("54c70d40"))
    };
    ensure!(!kept(&before)? && kept(&after)?, "the definition is kept with what is backed up after it");
    ensure!(
        !aquifer.run(&["dumpxml", "--no-domain", &after])?.ok()?.output.contains("54c70d40"),
        "--no-domain"
    );
    for (further, shown) in [(vec![], false), (vec!["--secure"], true)] {
        let described =
            aquifer.run(&[vec!["dumpxml", &after], further].concat())?.ok()?.output.contains("s3cret");
        ensure!(described == shown, "the password is shown: {described}, with --secure: {shown}");
    }
    let children = aquifer.run(&["children", &before])?.ok()?.document()?;
    ensure!(children[0]["uuid"] == after.as_str(), "{children}");

    aquifer.run(&["domain", "undefine", "web"])?.refused(5, "conflict", &["web", "2"])?;
    aquifer.run(&["domain", "undefine", "web", "--backups"])?.ok()?;
    ensure!(aquifer.list()?.is_empty(), "backups are left");
    aquifer.run(&["domain", "undefine", "web"])?.refused(4, "not_found", &["web"])?;
    aquifer.run(&["undelete", &after])?.ok()?;
    ensure!(aquifer.list()?.len() == 1, "what was deleted with its domain can be brought back");
    Ok(())
}

#[test]
#[ignore = "slow group domains"]
fn a_default_target_is_kept_and_written_into_each_description() -> Outcome {
    let folder = tempdir()?;
    let aquifer = stopped(folder.path())?;
    let store = text(&aquifer.repository());
    let target = |store: &str| {
        format!("<domainbackup><target type='chunkstore' store='{store}' namespace='prod'/></domainbackup>")
    };
    let set = |xml: &str, further: &[&str]| {
        let xml = file(folder.path(), "target.xml", xml)?;
        aquifer.run(&[&["domain", "set-default-target", "web", "--xml", &xml], further].concat())
    };
    set(&target(&store), &[])?.refused(4, "not_found", &["web"])?;
    back_up(&aquifer, folder.path())?;
    set(&target("elsewhere"), &[])?.refused(4, "not_found", &["elsewhere"])?;
    set(&target(&store), &[])?.ok()?;
    let shown = aquifer.run(&["domain", "show", "web"])?.ok()?.document()?;
    for kind in ["backup", "snapshot", "managed_save"] {
        ensure!(
            shown["defined"]["targets"][kind].as_str().is_some_and(|xml| xml.contains("prod")),
            "{kind}: {shown}"
        );
    }
    let next = back_up(&aquifer, folder.path())?;
    let described = aquifer.run(&["dumpxml", &next])?.ok()?.output.clone();
    ensure!(described.contains("prod"), "the target is not in {described}");
    aquifer.run(&["domain", "set-default-target", "web", "--clear"])?.ok()?;
    let last = back_up(&aquifer, folder.path())?;
    ensure!(!aquifer.run(&["dumpxml", &last])?.ok()?.output.contains("prod"), "the target is not cleared");
    Ok(())
}

#[test]
#[ignore = "slow group domains"]
fn a_document_says_what_is_restored_and_where_and_a_description_is_one() -> Outcome {
    let folder = tempdir()?;
    let aquifer = stopped(folder.path())?;
    let image = folder.path().join("web.raw");
    let xml = format!(
        "<domain type='kvm'><name>web</name><devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>\
         <source file='{}'/><target dev='vda' bus='virtio'/></disk></devices></domain>",
        text(&image)
    );
    aquifer.run(&["domain", "define", &file(folder.path(), "web.xml", &xml)?])?.ok()?;
    let uuid = back_up(&aquifer, folder.path())?;
    let original = folder.path().join("original.raw");
    fs::copy(&image, &original)?;

    let copy = folder.path().join("copy.raw");
    let document = format!(
        "<domainbackup><uuid>{uuid}</uuid><disks><disk name='vda'><target type='file'><source file='{}'/></target>\
         </disk></disks></domainbackup>",
        text(&copy)
    );
    let document = file(folder.path(), "restore.xml", &document)?;
    aquifer.run(&["restore", "--xml", &document, "--verify"])?.ok()?;
    ensure_same(&original, &copy)?;

    let described = aquifer.run(&["dumpxml", &uuid])?.ok()?.output.clone();
    let described = file(folder.path(), "described.xml", &described)?;
    aquifer.run(&["restore", "--xml", &described])?.refused(5, "conflict", &["vda"])?;
    let spoilt = vec![7_u8; 1 << 20];
    fs::write(&image, [&spoilt[..], &fs::read(&original)?[1 << 20..]].concat())?;
    aquifer.run(&["restore", "--xml", &described, "--rewrite-existing"])?.ok()?;
    ensure_same(&original, &image)?;

    let volume = "<domainbackup><uuid>U</uuid><disks><disk name='vda'><target type='volume'>\
                  <source pool='none' volume='web'/></target></disk></disks></domainbackup>";
    let volume = file(folder.path(), "volume.xml", &volume.replace('U', &uuid))?;
    aquifer.run(&["restore", "--xml", &volume])?.refused(9, "unsupported", &["pool none", "qemu-nbd"])?;
    let unclosed = file(folder.path(), "unclosed.xml", "<domainbackup><uuid>x</uuid><disk/></domainbackup>")?;
    aquifer.run(&["restore", "--xml", &unclosed])?.refused(3, "invalid", &["line 1"])?;
    Ok(())
}
