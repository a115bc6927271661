//! Documents as people and libvirt write them: what they mean, and what is said about those that are refused.

use aquifer_api::JobState;
use aquifer_api::xml::{
    BackupDisk, BackupMode, DiskState, Document, DomainBackup, Endpoint, Image, ImageFormat, ImagePlace,
    ImageSource, LibvirtBackup, LibvirtDisk, Method, Mode, NbdSource, Seclabel, Server, Target,
};

use crate::{fixture, fixtures};

const UUID: &str = "54c70d40-26bb-48cd-9639-b3a1e9adf650";
const PARENT: &str = "d2ee2566-bef2-408f-ac7a-eb8004186074";

fn proposal(text: &str) -> DomainBackup {
    match Document::parse(text) {
        Ok(Document::Proposal(backup)) => backup,
        other => panic!("{other:?}"),
    }
}

fn libvirt(text: &str) -> LibvirtBackup {
    match Document::parse(text) {
        Ok(Document::Libvirt(backup)) => backup,
        other => panic!("{other:?}"),
    }
}

fn written(backup: &DomainBackup) -> String {
    let mut out = Vec::new();
    backup.write(&mut out).expect("writing into memory");
    String::from_utf8(out).expect("UTF-8")
}

/// What is said about a document that is refused.
fn refused(text: &str) -> String {
    Document::parse(text).map_or_else(|error| error.to_string(), |document| panic!("taken: {document:?}"))
}

/// Refused inside of a `<domainbackup>` of the proposal's.
fn refused_inside(inner: &str) -> String {
    refused(&format!("<domainbackup><uuid>{UUID}</uuid>{inner}</domainbackup>"))
}

fn disk(name: &str, target: Target) -> BackupDisk {
    BackupDisk { name: name.to_owned(), target: Some(target), ..BackupDisk::default() }
}

#[test]
fn the_proposals_request_is_understood() {
    let expected = DomainBackup {
        uuid: UUID.parse().ok(),
        description: Some("Any string".into()),
        parent: PARENT.parse().ok(),
        disks: Some(vec![
            disk("vda", Target::Volume { pool: "backups".into(), volume: "web01-vda".into() }),
            disk(
                "vdb",
                Target::File {
                    path: "/srv/backups/web01-vdb.qcow2".into(),
                    format: Some(ImageFormat::Qcow2),
                },
            ),
        ]),
        ..DomainBackup::default()
    };
    assert_eq!(proposal(&fixture("proposal/create.xml")), expected);
}

#[test]
fn the_proposals_description_is_written_as_it_was_read() {
    let text = fixture("proposal/dumped.xml");
    let backup = proposal(&text);
    assert_eq!(backup.state, Some(JobState::Completed));
    let disks = backup.disks.as_deref().unwrap();
    assert_eq!(disks[0].mode, Some(BackupMode::Incremental));
    assert_eq!(disks[0].digest.map(|digest| digest[31]), Some(0x1f));
    assert!(disks[2].excluded);
    let definition = backup.definition.as_ref().unwrap().as_str();
    assert!(definition.starts_with("<domain type='kvm'") && definition.contains("web01</name>\t<!--"));
    assert_eq!(written(&backup), text);
}

#[test]
fn an_export_is_named_by_uri_and_context() {
    let text = fixture("proposal/exposed.xml");
    let backup = proposal(&text);
    let source = NbdSource {
        uri: "nbd+unix:///vda?socket=/run/aquifer/web01.sock".into(),
        context: Some("qemu:dirty-bitmap:aquifer-vda".into()),
    };
    assert_eq!(backup.disks.as_ref().unwrap()[0].target, Some(Target::Nbd(Some(source))));
    assert_eq!((backup.state, backup.method), (Some(JobState::Exposed), Some(Method::Classic)));
    assert_eq!(written(&backup), text);
}

#[test]
fn what_a_backup_lacks_is_left_out() {
    let bare = DomainBackup { uuid: UUID.parse().ok(), disks: Some(Vec::new()), ..DomainBackup::default() };
    let text = format!("<domainbackup>\n  <uuid>{UUID}</uuid>\n  <disks/>\n</domainbackup>\n");
    assert_eq!(written(&bare), text);
    assert_eq!(proposal(&text), bare);
}

#[test]
fn libvirts_push_is_understood() {
    let source = ImageSource {
        path: "/srv/backups/vda.qcow2".into(),
        seclabels: vec![
            Seclabel { model: Some("dac".into()), label: None },
            Seclabel {
                model: Some("selinux".into()),
                label: Some("system_u:object_r:svirt_image_t:s0".into()),
            },
        ],
    };
    let device = ImageSource { path: "/dev/vg/vdb-backup".into(), seclabels: Vec::new() };
    let expected = LibvirtBackup {
        mode: Mode::Push,
        incremental: Some("nightly-1".into()),
        disks: Some(vec![
            LibvirtDisk {
                name: "vda".into(),
                mode: Some(BackupMode::Incremental),
                incremental: Some("nightly-2".into()),
                image: Image { place: ImagePlace::File(Some(source)), format: Some(ImageFormat::Qcow2) },
                ..LibvirtDisk::default()
            },
            LibvirtDisk {
                name: "vdb".into(),
                mode: Some(BackupMode::Full),
                image: Image { place: ImagePlace::Block(device), format: None },
                ..LibvirtDisk::default()
            },
            LibvirtDisk { name: "vdc".into(), excluded: true, ..LibvirtDisk::default() },
        ]),
    };
    assert_eq!(libvirt(&fixture("libvirt/push.xml")), expected);
}

#[test]
fn libvirts_pull_and_its_output_are_understood() {
    let backup = libvirt(&fixture("libvirt/pull.xml"));
    let endpoint = Endpoint::Tcp("hv1.example.net".into(), Some(10_809));
    assert_eq!(backup.mode, Mode::Pull(Some(Server { endpoint, tls: Some(true) })));
    let vda = &backup.disks.as_ref().unwrap()[0];
    assert_eq!(vda.export_name.as_deref(), Some("web01-vda"));
    assert_eq!(vda.export_bitmap.as_deref(), Some("changed"));
    let backup = libvirt(&fixture("libvirt/output.xml"));
    let vda = &backup.disks.as_ref().unwrap()[0];
    assert_eq!((vda.state, vda.index), (Some(DiskState::Running), Some(4)));
}

#[test]
fn a_document_is_told_by_its_content() {
    for (name, text) in fixtures("proposal") {
        assert!(matches!(Document::parse(&text), Ok(Document::Proposal(_))), "{name}");
    }
    for (name, text) in fixtures("libvirt") {
        assert!(matches!(Document::parse(&text), Ok(Document::Libvirt(_))), "{name}");
    }
    for neither in [
        "<domainbackup/>",
        "<domainbackup><disks><disk name='vda' backupmode='full'/><disk name='vdb' backup='no'/></disks></domainbackup>",
    ] {
        assert!(matches!(Document::parse(neither), Ok(Document::Proposal(_))), "{neither}");
    }
}

#[test]
fn words_of_both_dialects_are_refused_with_one_of_each() {
    assert_eq!(
        refused(&format!(
            "<domainbackup>\n <uuid>{UUID}</uuid>\n <incremental>a</incremental>\n</domainbackup>"
        )),
        "line 3, column 2: <incremental> is of libvirt's dialect, but the document is of the proposal's because of \
         <uuid>; use one"
    );
    let text = refused_inside("<disks><disk name='vda' exportname='x'/></disks>");
    assert!(text.contains("the attribute exportname of a <disk> is of libvirt's dialect"), "{text}");
    let text = refused(
        "<domainbackup mode='push'><disks><disk name='a'><target type='nbd'/></disk></disks></domainbackup>",
    );
    assert!(text.contains("because of the attribute type of a <target>"), "{text}");
    let text = refused_inside("<disks><disk name='vda'><target file='/x'/></disk></disks>");
    assert!(text.contains("a <target> without a type is of libvirt's dialect"), "{text}");
}

#[test]
fn the_proposals_unclosed_parent_is_named_with_the_right_form() {
    assert_eq!(
        refused(&fixture("refused/unclosed-parent.xml")),
        "line 6, column 3: <parent> inside of <parent>: the example in the proposal closes <parent> with a second \
         <parent>, which is not XML; write <parent><uuid>…</uuid></parent>"
    );
}

#[test]
fn what_has_no_meaning_is_refused_by_name_with_what_has() {
    assert_eq!(
        refused_inside("\n <descripton>x</descripton>"),
        "line 2, column 2: <descripton> has no meaning inside of <domainbackup>; known here: uuid, name, creationTime, \
         description, state, method, parent, target, disks, domain"
    );
    assert_eq!(
        refused_inside("<disks><disk name='vda' backupmod='full'/></disks>"),
        "line 1, column 88: attribute backupmod has no meaning at <disk>; known here: name, backup, backupmode, size, \
         stored, digest, parent, target"
    );
    let text = refused_inside("<disks><disk name='vda' backup='no'><target type='nbd'/></disk></disks>");
    assert!(text.ends_with("<target> has no meaning inside of <disk>; known here: name, backup"), "{text}");
    let text = refused_inside("<description>a<b/></description>");
    assert!(
        text.ends_with("<b> has no meaning inside of <description>; known here: nothing but text"),
        "{text}"
    );
    assert!(refused_inside("stray").ends_with("text has no meaning directly inside of <domainbackup>"));
    let text =
        refused("<domainbackup mode='push'><disks><disk name='vda' exportname='x'/></disks></domainbackup>");
    assert!(text.contains("attribute exportname has no meaning at <disk>"), "{text}");
    assert!(refused("<domainbackup xmlns='urn:x'/>").contains("attribute xmlns has no meaning"));
}

#[test]
fn what_may_be_there_once_is_refused_the_second_time() {
    let text = refused_inside("\n<uuid>54c70d40-26bb-48cd-9639-b3a1e9adf651</uuid>");
    assert_eq!(text, "line 2, column 1: <uuid> is there twice");
    let disks = "<disks><disk name='vda'/>\n<disk name='vdb'/>\n<disk name='vda'/></disks>";
    assert_eq!(refused_inside(disks), "line 3, column 1: disk `vda` is named twice");
}

#[test]
fn what_must_be_there_is_asked_for() {
    assert!(refused_inside("<disks><disk/></disks>").ends_with("<disk> lacks the attribute name"));
    assert!(refused_inside("<parent/>").ends_with("<parent> lacks a <uuid>"));
    assert!(
        refused_inside("<target/>")
            .ends_with("<target> lacks the attribute type: chunkstore, file, block, volume or nbd")
    );
    assert!(refused_inside("<target type='chunkstore'/>").ends_with("<target> lacks the attribute store"));
    assert!(refused_inside("<target type='file'/>").ends_with("<target> lacks <source file='…'/>"));
    assert!(
        refused_inside("<target type='volume'><source pool='p'/></target>")
            .ends_with("<source> lacks the attribute volume")
    );
    assert!(
        refused("<domainbackup mode='pull'><server/></domainbackup>")
            .ends_with("<server> lacks the attribute name: a host")
    );
    let text = "<domainbackup mode='push'><disks><disk name='a' type='block'/></disks></domainbackup>";
    assert!(refused(text).ends_with("<disk> lacks <target dev='…'>"));
}

#[test]
fn a_wrong_value_is_shown_with_what_was_expected() {
    assert_eq!(
        refused("<domainbackup><uuid>1234</uuid></domainbackup>"),
        "line 1, column 15: <uuid> is \"1234\"; expected a uuid as in 54c70d40-26bb-48cd-9639-b3a1e9adf650"
    );
    for (inner, expected) in [
        ("<creationTime>soon</creationTime>", "seconds since 1970"),
        ("<creationTime>+1</creationTime>", "seconds since 1970"),
        ("<creationTime>9223372036854775808</creationTime>", "seconds since 1970"),
        ("<state>done</state>", "a state of a job"),
        ("<method>magic</method>", "classic or filter"),
        ("<disks><disk name=''/></disks>", "a disk's name"),
        ("<disks><disk name='a' backup='maybe'/></disks>", "yes or no"),
        ("<disks><disk name='a' backupmode='half'/></disks>", "full or incremental"),
        ("<disks><disk name='a' size='-1'/></disks>", "bytes"),
        ("<disks><disk name='a' digest='ABC'/></disks>", "64 hexadecimal digits in lower case"),
        ("<target type='tape'/>", "chunkstore, file, block, volume or nbd"),
        ("<target type='file'><source file='x.img'/></target>", "an absolute path"),
        (
            "<target type='nbd'><source uri='http://x/'/></target>",
            "an nbd://, nbds://, nbd+unix:// or nbds+unix:// URI without blanks",
        ),
        (
            "<target type='nbd'><source uri='nbd://a b'/></target>",
            "an nbd://, nbds://, nbd+unix:// or nbds+unix:// URI without blanks",
        ),
    ] {
        let text = refused_inside(inner);
        assert!(text.ends_with(&format!("expected {expected}")), "{inner}: {text}");
    }
    for (text, expected) in [
        ("<domainbackup mode='shove'/>", "push or pull"),
        ("<domainbackup mode='pull'><server name='h' port='0'/></domainbackup>", "a port from 1 to 65535"),
        ("<domainbackup mode='pull'><server transport='rdma'/></domainbackup>", "tcp or unix"),
        (
            "<domainbackup mode='pull'><server transport='unix' socket='x'/></domainbackup>",
            "an absolute path",
        ),
        (
            "<domainbackup mode='pull'><disks><disk name='a'><driver type='raw'/></disk></disks></domainbackup>",
            "qcow2",
        ),
        (
            "<domainbackup mode='push'><disks><disk name='a' type='network'/></disks></domainbackup>",
            "file or block",
        ),
        ("<domainbackup mode='push'><disks><disk name='a' index='01'/></disks></domainbackup>", "a number"),
    ] {
        assert!(refused(text).ends_with(&format!("expected {expected}")), "{text}: {}", refused(text));
    }
    let text = "<domainbackup mode='push'><disks><disk name='a' backupmode='full' incremental='c'/></disks></domainbackup>";
    assert!(refused(text).ends_with("expected none: a full backup counts from no checkpoint"));
}

#[test]
fn what_is_not_done_is_told_apart_from_what_is_wrong() {
    for text in [
        "<domainbackup mode='pull'><server transport='fd' fdgroup='x'/></domainbackup>",
        "<domainbackup mode='push'><disks><disk name='a'><target file='/x'><encryption format='luks'/></target></disk></disks></domainbackup>",
        "<domainbackup mode='push'><disks><disk name='a'><driver type='vmdk'/></disk></disks></domainbackup>",
        "<domainbackup mode='push'><privateData/></domainbackup>",
    ] {
        let error = Document::parse(text).unwrap_err();
        assert!(
            error.is_unsupported() && error.to_string().contains("is not supported: "),
            "{text}: {error}"
        );
    }
    let error = Document::parse("<domainbackup mode='push'><server name='x'/></domainbackup>").unwrap_err();
    assert!(!error.is_unsupported());
    assert_eq!(
        error.to_string(),
        "line 1, column 27: <server> is not for a push: the mode is push; write mode='pull'"
    );
}

#[test]
fn labels_that_say_nothing_or_two_things_are_refused() {
    let around = |label: &str| {
        refused(&format!(
            "<domainbackup mode='push'><disks><disk name='a'><target file='/x'>{label}</target></disk></disks></domainbackup>"
        ))
    };
    assert!(around("<seclabel model='dac'/>").ends_with("<seclabel> lacks a <label>, or relabel='no'"));
    assert!(around("<seclabel relabel='no'><label>x</label></seclabel>").contains("expected yes"));
}
