//! What `make install` places: man pages, completions, units that systemd accepts, a configuration that loads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aquifer_testkit::{TempDir, aquifer_binary, tempdir, tools};

use crate::Outcome;

/// An installation under a folder of its own, as a package would make it.
fn installed() -> Result<TempDir> {
    let folder = tempdir()?;
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let binary = aquifer_binary()?;
    let mut make = Command::new(tools::tool("make")?);
    // A make that runs this test must not lend it its job server.
    make.env_remove("MAKEFLAGS").arg("-C").arg(&top).arg("install-files").arg("PREFIX=/usr");
    make.arg(format!("DESTDIR={}", folder.path().display())).arg(format!("BINARY={}", binary.display()));
    tools::run(&mut make)?;
    Ok(folder)
}

fn units(installed: &Path) -> Result<Vec<PathBuf>> {
    let folder = installed.join("usr/lib/systemd/system");
    Ok(fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect())
}

#[test]
fn an_installation_is_complete_and_keeps_a_configuration_that_was_there() -> Outcome {
    let folder = installed()?;
    for file in [
        "usr/bin/aquifer",
        "usr/share/man/man1/aquifer.1",
        "usr/share/man/man1/aquifer-backup.1",
        "usr/share/bash-completion/completions/aquifer",
        "usr/share/zsh/site-functions/_aquifer",
        "usr/share/fish/vendor_completions.d/aquifer.fish",
        "usr/lib/sysusers.d/aquifer.conf",
        "usr/lib/tmpfiles.d/aquifer.conf",
        "usr/share/doc/aquifer/LICENSE",
        "etc/aquifer/aquifer.toml",
    ] {
        let length = folder.path().join(file).metadata().with_context(|| file.to_owned())?.len();
        ensure!(length > 0, "{file} is empty");
    }
    Ok(())
}

#[test]
fn systemd_accepts_every_unit_and_each_names_a_man_page_and_a_timer() -> Outcome {
    let folder = installed()?;
    let units = units(folder.path())?;
    ensure!(units.len() >= 4, "units are missing: {units:?}");
    let checked = tempdir()?;
    let mut verify = Command::new(tools::tool("systemd-analyze")?);
    verify.args(["verify", "--man=no"]);
    for unit in &units {
        let text = fs::read_to_string(unit)?;
        for page in
            text.lines().filter_map(|line| line.strip_prefix("Documentation=man:")?.strip_suffix("(1)"))
        {
            let page = folder.path().join(format!("usr/share/man/man1/{page}.1"));
            ensure!(page.exists(), "{} names {}, which is not installed", unit.display(), page.display());
        }
        // systemd looks whether the program is there: it is, under the folder of the test.
        let binary = folder.path().join("usr/bin/aquifer");
        let name = unit.file_name().unwrap_or_default();
        fs::write(
            checked.path().join(name),
            text.replace("/usr/bin/aquifer", &binary.display().to_string()),
        )?;
        verify.arg(checked.path().join(name));
        if unit.extension().is_some_and(|end| end == "service") {
            ensure!(unit.with_extension("timer").exists(), "{} has no timer", unit.display());
        }
    }
    let output = verify.output()?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && messages.is_empty(), "{messages}");
    Ok(())
}

#[test]
fn the_services_run_without_privileges() -> Outcome {
    let folder = installed()?;
    for unit in
        units(folder.path())?.iter().filter(|unit| unit.extension().is_some_and(|end| end == "service"))
    {
        let mut security = Command::new(tools::tool("systemd-analyze")?);
        // 0 is no exposure, 10 is all of it; systemd calls up to 2.0 "OK".
        tools::run(security.args(["security", "--offline=true", "--threshold=20", "--no-pager"]).arg(unit))?;
    }
    Ok(())
}
