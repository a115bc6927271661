//! Guests on other hosts, as the command line reaches them: through ssh, and with the disks served over TLS.
//!
//! The other host is this one behind a real ssh server, and behind QEMU's own TLS.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::Result;
use aquifer_testkit::{Ended, Format, GuestOptions, Sshd, TempDir, make_certificates, tempdir, tools};

use crate::Outcome;
use crate::rig::{DISK_BYTES, Rig, as_strs, text};

const DISKS: [(Format, u64); 2] = [(Format::Qcow2, DISK_BYTES), (Format::Raw, DISK_BYTES)];

/// Runs Aquifer with an `ssh` that knows the test's server.
fn run_with_ssh(rig: &Rig, sshd: &Sshd, arguments: &[String]) -> Result<Ended> {
    let own = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([sshd.client_folder()?].into_iter().chain(env::split_paths(&own)))?;
    let mut command = rig.aquifer.command(&as_strs(arguments));
    command.env("PATH", path);
    rig.aquifer.start_command(&command)?.wait()
}

fn backup_over(monitor: &str, rig: &Rig) -> Vec<String> {
    ["backup", "vm", "--qmp", monitor, "--scratch", &rig.scratch()].map(str::to_owned).into()
}

#[test]
#[ignore = "slow group remote"]
fn a_guest_behind_ssh_is_one_moment_and_only_its_changes_the_second_time() -> Outcome {
    let mut rig = Rig::start(&DISKS)?;
    let keys = tempdir()?;
    let sshd = Sshd::start(keys.path())?;
    let arguments = backup_over(&sshd.monitor(&rig.guest.monitor(0)), &rig);
    for name in ["first", "second"] {
        let earliest = rig.guest.seq();
        let done = run_with_ssh(&rig, &sshd, &arguments)?.ok()?.event("done")?;
        let latest = rig.guest.next_seq()?;
        let taken = rig.taken(done, earliest..=latest);
        rig.prove(&taken, name)?;
        if name == "second" {
            taken.ensure_all_by_bitmap()?;
        }
    }
    rig.wait_clean_but_for_bitmaps()
}

#[test]
#[ignore = "slow group remote"]
fn an_unknown_host_is_unavailable_and_named() -> Outcome {
    let mut rig = Rig::start(&DISKS[..1])?;
    let keys = tempdir()?;
    let sshd = Sshd::start(keys.path())?;
    sshd.forget_host()?;
    let arguments = backup_over(&sshd.monitor(&rig.guest.monitor(0)), &rig);
    run_with_ssh(&rig, &sshd, &arguments)?.refused(7, "unavailable", &["hv1"])?;
    rig.ensure_clean()
}

/// A guest whose QEMU has the certificates of `pki`, and a configuration that has its disks served over TLS; our own
/// certificate is the one in `ours`.
fn tls_rig(pki: &TempDir, ours: &Path) -> Result<Rig> {
    let creds = format!("tls-creds-x509,id=tls0,dir={},endpoint=server,verify-peer=on", text(pki.path()));
    let options = GuestOptions { arguments: vec!["-object".to_owned(), creds], ..GuestOptions::default() };
    let rig = Rig::start_with(&DISKS, &options)?;
    let config = format!(
        "[domains.vm]\nqmp = \"{}\"\nscratch = \"{}\"\nnbd_listen = \"tls:0.0.0.0:{}\"\ntls_creds = \"tls0\"\n\
         tls_certificates = \"{}\"\n",
        rig.monitor(),
        rig.scratch(),
        tools::free_port()?,
        text(ours)
    );
    fs::write(rig.folder.path().join("aquifer.toml"), config)?;
    Ok(rig)
}

#[test]
#[ignore = "slow group remote"]
fn disks_served_over_tls_are_one_moment() -> Outcome {
    let pki = tempdir()?;
    make_certificates(pki.path())?;
    let mut rig = tls_rig(&pki, pki.path())?;
    let taken = rig.take(&["backup", "vm"].map(str::to_owned))?;
    rig.prove(&taken, "tls")?;
    rig.wait_clean_but_for_bitmaps()
}

#[test]
#[ignore = "slow group remote"]
fn a_certificate_of_a_stranger_is_denied_and_the_guest_is_as_it_was() -> Outcome {
    let (pki, strangers) = (tempdir()?, tempdir()?);
    make_certificates(pki.path())?;
    make_certificates(strangers.path())?;
    let mut rig = tls_rig(&pki, strangers.path())?;
    rig.aquifer.run(&["backup", "vm"])?.refused(6, "denied", &["vda"])?;
    rig.ensure_clean()
}
