//! The tree's own rules, as tests: layers, no forgotten test, files that fit in one head.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::Outcome;

/// The layer of each crate. A crate depends on lower layers only (docs/ARCHITECTURE.md, invariant 10).
const LAYERS: [(&str, u8); 10] = [
    ("aquifer-api", 0),
    ("aquifer-format", 0),
    ("aquifer-nbd", 0),
    ("aquifer-qemu", 0),
    ("aquifer-store", 0),
    ("aquifer-index", 1),
    ("aquifer-repository", 2),
    ("aquifer-engine", 3),
    ("aquifer-service", 4),
    ("aquifer-cli", 5),
];

/// Packages that only test or measure: the product never depends on them.
const BESIDE: [&str; 3] = ["aquifer-testkit", "aquifer-tests", "aquifer-benches"];

/// The one crate that may link each of these.
const LINKED_ONCE: [(&str, &str); 11] = [
    ("argon2", "aquifer-format"),
    ("aws-lc-rs", "aquifer-format"),
    ("aws-sdk-s3", "aquifer-store"),
    ("blake3", "aquifer-format"),
    ("clap", "aquifer-cli"),
    ("nbd", "aquifer-engine"),
    ("openssh", "aquifer-qemu"),
    ("qapi", "aquifer-qemu"),
    ("quick-xml", "aquifer-api"),
    ("rocksdb", "aquifer-index"),
    ("zstd", "aquifer-format"),
];

/// What only code with side effects says (docs/ARCHITECTURE.md, invariant 1).
const IMPURE: [&str; 8] =
    ["std::fs", "std::net", "std::thread", "std::process", "tokio::", "Instant::", "SystemTime", "std::env"];

/// Longest Rust file, in lines.
const FILE_LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Each package's name with the names that it depends on, without those for tests.
fn packages() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(root().join("crates"))?.flatten().map(|entry| entry.path()).collect();
    folders.extend([root().join("tests"), root().join("benches")]);
    let mut packages = BTreeMap::new();
    for folder in folders {
        let file = folder.join("Cargo.toml");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let manifest: toml::Table = text.parse().with_context(|| file.display().to_string())?;
        let name = manifest["package"]["name"].as_str().context("a package without a name")?.to_owned();
        let mut needs = BTreeSet::new();
        for section in ["dependencies", "build-dependencies"] {
            let table = manifest.get(section).and_then(|section| section.as_table());
            needs.extend(table.into_iter().flatten().map(|(name, _)| name.clone()));
        }
        packages.insert(name, needs);
    }
    Ok(packages)
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, found)?;
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn all_rust_files() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["crates", "tests", "benches"] {
        rust_files(&root().join(folder), &mut found)?;
    }
    Ok(found)
}

#[test]
fn no_crate_depends_sideways_or_upwards() -> Outcome {
    let layers = BTreeMap::from(LAYERS);
    for (name, needs) in packages()? {
        if BESIDE.contains(&name.as_str()) {
            continue;
        }
        let own =
            layers.get(name.as_str()).with_context(|| format!("{name} has no layer in this test's table"))?;
        for need in needs.iter().filter(|need| need.starts_with("aquifer-")) {
            ensure!(!BESIDE.contains(&need.as_str()), "{name} depends on {need}, which is for tests");
            let other = layers
                .get(need.as_str())
                .with_context(|| format!("{need} has no layer in this test's table"))?;
            ensure!(other < own, "{name} (layer {own}) depends on {need} (layer {other})");
        }
    }
    Ok(())
}

#[test]
fn what_proves_a_backup_shares_no_code_with_what_makes_it() -> Outcome {
    let packages = packages()?;
    let shared: Vec<_> =
        packages["aquifer-testkit"].iter().filter(|need| need.starts_with("aquifer-")).collect();
    ensure!(shared.is_empty(), "the testkit depends on {shared:?}");
    Ok(())
}

#[test]
fn each_heavy_library_is_linked_by_one_crate() -> Outcome {
    for (library, owner) in LINKED_ONCE {
        for (name, needs) in packages()? {
            let allowed = name == owner || BESIDE.contains(&name.as_str());
            ensure!(allowed || !needs.contains(library), "{name} links {library}, which belongs to {owner}");
        }
    }
    Ok(())
}

#[test]
fn the_pure_parts_do_no_io_read_no_clock_and_start_no_task() -> Outcome {
    for folder in ["crates/format/src", "crates/nbd/src/proto"] {
        let mut files = Vec::new();
        rust_files(&root().join(folder), &mut files)?;
        ensure!(!files.is_empty(), "{folder} has no Rust file");
        for file in files {
            let text = fs::read_to_string(&file)?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in IMPURE {
                ensure!(!code.contains(word), "{} is to be pure, and speaks of `{word}`", file.display());
            }
        }
    }
    Ok(())
}

#[test]
fn every_module_of_these_tests_is_part_of_the_binary() -> Outcome {
    let folder = root().join("tests/tests/it");
    let main = fs::read_to_string(folder.join("main.rs"))?;
    let declared: BTreeSet<_> =
        main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(
            name == "main" || declared.contains(name.as_str()),
            "{} is no module of main.rs",
            path.display()
        );
    }
    Ok(())
}

#[test]
fn every_ignored_test_belongs_to_a_slow_group_that_make_test_runs() -> Outcome {
    let makefile = fs::read_to_string(root().join("Makefile"))?;
    let groups = makefile
        .lines()
        .find_map(|line| line.strip_prefix("GROUPS := "))
        .context("no GROUPS in the Makefile")?;
    let groups: BTreeSet<_> = groups.split_whitespace().collect();
    let mut used = BTreeSet::new();
    for file in all_rust_files()? {
        let text = fs::read_to_string(&file)?;
        for line in text.lines().filter(|line| line.trim_start().starts_with("#[ignore")) {
            let group = line.split('"').nth(1).and_then(|reason| reason.strip_prefix("slow group "));
            let group = group.with_context(|| format!("{}: {line} names no slow group", file.display()))?;
            // `--test it` runs the binaries of that name of all crates; the group is a module in them.
            let path = file.display().to_string();
            let own = path.ends_with(&format!("/tests/it/{group}.rs"))
                || path.contains(&format!("/tests/it/{group}/"));
            ensure!(own && groups.contains(group), "{}: `make test` does not run {group}", file.display());
            used.insert(group.to_owned());
        }
    }
    ensure!(
        groups.iter().all(|group| used.contains(*group)),
        "a group without tests: {groups:?}, found {used:?}"
    );
    Ok(())
}

#[test]
fn every_rust_file_begins_with_what_it_is_and_fits_in_one_head() -> Outcome {
    for file in all_rust_files()? {
        let text = fs::read_to_string(&file)?;
        ensure!(text.starts_with("//!"), "{} does not begin with its `//!` header", file.display());
        let lines = text.lines().count();
        ensure!(
            lines <= FILE_LINES_MAX,
            "{} has {lines} lines, more than {FILE_LINES_MAX}: split it",
            file.display()
        );
    }
    Ok(())
}
