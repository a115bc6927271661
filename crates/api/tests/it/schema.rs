//! The schemas in `docs/schema`, checked by `xmllint` against everything that is read and written here, and the examples
//! of docs/API.md against both.

use std::path::{Path, PathBuf};
use std::process::Command;

use aquifer_api::parameters::{DISK_NAMES, NAMES};
use aquifer_api::xml::Document;
use aquifer_api::{
    CreateFlags, DeleteFlags, FinishFlags, JobState, ListFlags, RestoreFlags, TargetFlags, UndefineFlags,
    XmlFlags,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::fixtures;
use crate::generate::{document, written};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn schema(document: &Document) -> &'static str {
    match document {
        Document::Proposal(_) => "domainbackup.rng",
        Document::Libvirt(_) => "domainbackup-libvirt.rng",
    }
}

/// Which of the texts the schema takes, in order. One run of `xmllint` for all of them.
fn valid(schema: &str, texts: &[String]) -> Vec<bool> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lint = Command::new("xmllint");
    lint.args(["--noout", "--nonet", "--huge", "--relaxng"]).arg(docs().join("schema").join(schema));
    let names: Vec<String> = (0..texts.len()).map(|number| format!("{number}.xml")).collect();
    for (name, text) in names.iter().zip(texts) {
        std::fs::write(folder.path().join(name), text).expect("a file");
        lint.arg(name);
    }
    let output = lint.current_dir(folder.path()).output().expect("xmllint runs; scripts/deps.sh installs it");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict = |name: &String| {
        let good = said.lines().any(|line| line == format!("{name} validates"));
        let bad = said.lines().any(|line| line == format!("{name} fails to validate"));
        assert!(good != bad, "xmllint has no verdict on {name}: {said}");
        good
    };
    names.iter().map(verdict).collect()
}

fn assert_valid(schema: &str, texts: &[String]) {
    for (text, valid) in texts.iter().zip(valid(schema, texts)) {
        assert!(valid, "{schema} refuses {text}");
    }
}

#[test]
fn every_example_is_valid_by_the_schema_of_its_dialect_alone() {
    let schemas = ["domainbackup.rng", "domainbackup-libvirt.rng"];
    for (folder, [own, other]) in [("proposal", schemas), ("libvirt", [schemas[1], schemas[0]])] {
        let texts: Vec<String> = fixtures(folder).into_iter().map(|(_, text)| text).collect();
        assert_valid(own, &texts);
        assert!(valid(other, &texts).iter().all(|valid| !valid), "{other} takes a document of {folder}");
    }
}

#[test]
fn generated_documents_are_valid_and_what_was_never_written_is_not() {
    let mut runner = TestRunner::deterministic();
    let strategy = document();
    let mut texts: [(&str, Vec<String>); 2] =
        [("domainbackup.rng", Vec::new()), ("domainbackup-libvirt.rng", Vec::new())];
    for _ in 0..400 {
        let document = strategy.new_tree(&mut runner).expect("a document").current();
        let list = texts.iter_mut().find(|(name, _)| *name == schema(&document));
        list.expect("one of both").1.push(written(&document));
    }
    for (schema, texts) in texts {
        assert!(texts.len() > 100);
        assert_valid(schema, &texts);
        let spoilt: Vec<String> =
            texts.iter().map(|text| text.replace("</domainbackup>", "<unknown/></domainbackup>")).collect();
        assert!(valid(schema, &spoilt).iter().all(|valid| !valid), "{schema} takes anything");
    }
}

#[test]
fn schema_and_reader_refuse_the_same_mistakes() {
    let uuid = "<uuid>54c70d40-26bb-48cd-9639-b3a1e9adf650</uuid>";
    let texts = [
        "<domainbackup><uuid>1</uuid></domainbackup>".to_owned(),
        format!("<domainbackup>{uuid}{uuid}</domainbackup>"),
        format!("<domainbackup>{uuid}<state>done</state></domainbackup>"),
        format!("<domainbackup>{uuid}<parent/></domainbackup>"),
        format!("<domainbackup>{uuid}<target type='tape'/></domainbackup>"),
        format!("<domainbackup>{uuid}<target type='file'><source file='x'/></target></domainbackup>"),
        format!("<domainbackup>{uuid}<disks><disk/></disks></domainbackup>"),
        format!(
            "<domainbackup>{uuid}<disks><disk name='a' backup='no'><target type='nbd'/></disk></disks></domainbackup>"
        ),
        format!("<domainbackup>{uuid}<incremental>x</incremental></domainbackup>"),
    ];
    for (text, valid) in texts.iter().zip(valid("domainbackup.rng", &texts)) {
        assert!(!valid && Document::parse(text).is_err(), "{text}");
    }
    let texts = [
        "<domainbackup mode='shove'/>",
        "<domainbackup mode='push'><server name='x'/></domainbackup>",
        "<domainbackup mode='pull'><server transport='fd' fdgroup='x'/></domainbackup>",
        "<domainbackup mode='push'><disks><disk name='a' exportname='x'/></disks></domainbackup>",
        "<domainbackup mode='push'><disks><disk name='a' type='block'/></disks></domainbackup>",
        "<domainbackup mode='pull'><disks><disk name='a'><driver type='raw'/></disk></disks></domainbackup>",
        "<domainbackup mode='push'><disks><disk name='a' backupmode='full' incremental='c'/></disks></domainbackup>",
        "<domainbackup mode='push'><privateData/></domainbackup>",
    ]
    .map(str::to_owned);
    for (text, valid) in texts.iter().zip(valid("domainbackup-libvirt.rng", &texts)) {
        assert!(!valid && Document::parse(text).is_err(), "{text}");
    }
}

/// The blocks of XML in a page that are whole documents.
fn examples(page: &str) -> Vec<String> {
    let blocks = page.split("```xml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.starts_with("<domainbackup")).map(str::to_owned).collect()
}

#[test]
fn the_examples_of_the_manual_are_read_and_valid() {
    let page = std::fs::read_to_string(docs().join("API.md")).expect("docs/API.md");
    let examples = examples(&page);
    assert!(examples.len() >= 5, "docs/API.md has only {} examples", examples.len());
    for text in examples {
        let document = Document::parse(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        assert_valid(schema(&document), &[text]);
    }
}

#[test]
fn the_manual_names_every_flag_with_its_value_every_parameter_and_every_state() {
    let page = std::fs::read_to_string(docs().join("API.md")).expect("docs/API.md");
    let sets = [
        CreateFlags::KNOWN,
        ListFlags::KNOWN,
        RestoreFlags::KNOWN,
        DeleteFlags::KNOWN,
        FinishFlags::KNOWN,
        XmlFlags::KNOWN,
        TargetFlags::KNOWN,
    ];
    for (name, value) in sets.concat() {
        let (plain, bold) = (format!("{name} {value:#x}"), format!("{name} **{value:#x}**"));
        assert!(page.contains(&plain) || page.contains(&bold), "docs/API.md lacks {plain}");
    }
    assert!(page.contains(&format!("UNDEFINE_BACKUP {:#x}", UndefineFlags::BACKUP.bits())));
    for (name, _) in NAMES {
        assert!(page.contains(&format!("`{name}`")), "docs/API.md lacks the parameter {name}");
    }
    for (name, _) in DISK_NAMES {
        assert!(
            page.contains(&format!("`.{name}`")) || page.contains(&format!("`disk.N.{name}`")),
            "docs/API.md lacks disk.N.{name}"
        );
    }
    for state in JobState::ALL {
        assert!(page.contains(&state.as_str().to_uppercase()), "docs/API.md lacks the state {state}");
    }
}
