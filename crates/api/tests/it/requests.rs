//! What the calls make of documents, the same from both dialects, and what each of them refuses.

use aquifer_api::request::{BackupRequest, DiskRequest, Parent, RestoreRequest, Start, parse_default_target};
use aquifer_api::xml::{BackupMode, Endpoint, Image, ImageFormat, ImagePlace, ImageSource, Server, Target};

use crate::fixture;

const UUID: &str = "54c70d40-26bb-48cd-9639-b3a1e9adf650";

fn refused(text: &str, start: Start) -> String {
    BackupRequest::parse(text, start).map_or_else(|error| error.to_string(), |taken| panic!("{taken:?}"))
}

#[test]
fn the_proposals_request_names_the_disks_that_it_wants() {
    let request = BackupRequest::parse(&fixture("proposal/create.xml"), Start::Managed).unwrap();
    assert_eq!(request.uuid, UUID.parse().ok());
    assert_eq!(request.parent, Parent::Backup("d2ee2566-bef2-408f-ac7a-eb8004186074".parse().unwrap()));
    assert_eq!(request.mode, None);
    assert_eq!(
        request.disks.unwrap().iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(),
        ["vda", "vdb"]
    );
}

#[test]
fn libvirts_push_names_files_and_checkpoints() {
    let request = BackupRequest::parse(&fixture("libvirt/push.xml"), Start::Managed).unwrap();
    assert_eq!(request.parent, Parent::Checkpoint("nightly-1".into()));
    assert_eq!(request.mode, Some(BackupMode::Incremental));
    let disks = request.disks.unwrap();
    let target = Target::File { path: "/srv/backups/vda.qcow2".into(), format: Some(ImageFormat::Qcow2) };
    assert_eq!(
        disks[0],
        DiskRequest {
            name: "vda".into(),
            mode: Some(BackupMode::Incremental),
            parent: Some(Parent::Checkpoint("nightly-2".into())),
            target: Some(target),
            ..DiskRequest::default()
        }
    );
    let target = Target::Block { path: "/dev/vg/vdb-backup".into(), format: Some(ImageFormat::Qcow2) };
    assert_eq!(disks[1].target, Some(target), "qcow2 is libvirt's format where none is said");
    assert!(disks[2].excluded);
}

#[test]
fn libvirts_pull_names_server_exports_and_scratch() {
    let request = BackupRequest::parse(&fixture("libvirt/pull.xml"), Start::Unmanaged).unwrap();
    let endpoint = Endpoint::Tcp("hv1.example.net".into(), Some(10_809));
    assert_eq!(request.server, Some(Server { endpoint, tls: Some(true) }));
    let disks = request.disks.unwrap();
    let scratch = ImageSource { path: "/var/tmp/web01-vda.scratch".into(), seclabels: Vec::new() };
    let scratch = Image { place: ImagePlace::File(Some(scratch)), format: Some(ImageFormat::Qcow2) };
    assert_eq!(
        disks[0],
        DiskRequest {
            name: "vda".into(),
            scratch: Some(scratch),
            export_name: Some("web01-vda".into()),
            export_bitmap: Some("changed".into()),
            ..DiskRequest::default()
        }
    );
}

#[test]
fn a_document_without_disks_means_all_of_them() {
    for text in ["<domainbackup/>", "<domainbackup><disks/></domainbackup>"] {
        for start in [Start::Managed, Start::Unmanaged] {
            assert_eq!(BackupRequest::parse(text, start).unwrap(), BackupRequest::default(), "{text}");
        }
    }
    let whole = BackupRequest { mode: Some(BackupMode::Full), ..BackupRequest::default() };
    let push = BackupRequest::parse("<domainbackup mode='push'/>", Start::Managed).unwrap();
    assert_eq!(push, whole, "in libvirt's dialect a backup without a checkpoint is full");
    assert_eq!(
        BackupRequest::parse("<domainbackup mode='pull'><disks/></domainbackup>", Start::Unmanaged).unwrap(),
        whole
    );
}

#[test]
fn a_list_of_what_stays_out_is_refused_because_nothing_is_left() {
    let text = refused(
        "<domainbackup><disks>\n<disk name='vdb' backup='no'/></disks></domainbackup>",
        Start::Managed,
    );
    assert_eq!(
        text,
        "line 1, column 15: <disks> lacks a disk without backup='no': a disk that is not listed is not wanted either; \
         leave <disks> out for all"
    );
    let text = format!(
        "<domainbackup><uuid>{UUID}</uuid><disks><disk name='a' backup='no'/></disks></domainbackup>"
    );
    assert!(
        RestoreRequest::parse(&text)
            .unwrap_err()
            .to_string()
            .contains("<disks> lacks a disk without backup='no'")
    );
}

#[test]
fn an_increment_in_libvirts_words_names_its_checkpoint() {
    let disks = "<disks><disk name='a' type='file' backupmode='incremental'/></disks>";
    let text = refused(&format!("<domainbackup mode='push'>{disks}</domainbackup>"), Start::Managed);
    assert!(
        text.ends_with(
            "<disk> lacks a checkpoint: an attribute incremental, or <incremental> in the document"
        ),
        "{text}"
    );
    let named = format!("<domainbackup mode='push'><incremental>c</incremental>{disks}</domainbackup>");
    assert!(BackupRequest::parse(&named, Start::Managed).is_ok());
}

#[test]
fn a_pull_is_not_managed_and_a_push_not_unmanaged() {
    let text = refused("<domainbackup mode='pull'/>", Start::Managed);
    assert_eq!(
        text,
        "line 1, column 15: mode='pull' is not for a managed backup: a pull is read by somebody else: start it as an \
         unmanaged backup"
    );
    let text = refused(&fixture("libvirt/push.xml"), Start::Unmanaged);
    assert!(
        text.starts_with("line 1, column 1: mode='push' is not for an unmanaged backup: nobody would"),
        "{text}"
    );
}

#[test]
fn a_request_that_describes_a_finished_backup_is_refused() {
    for (inner, what) in [
        ("<creationTime>1</creationTime>", "<creationTime>"),
        ("<state>completed</state>", "<state>"),
        ("<domain><name>a</name></domain>", "<domain>"),
        ("<name>clone</name>", "<name>"),
        ("<disks><disk name='a' size='1'/></disks>", "the attribute size of a <disk>"),
        ("<disks><disk name='a' stored='1'/></disks>", "the attribute stored of a <disk>"),
        ("<disks><disk name='a' digest='1'/></disks>", "the attribute digest of a <disk>"),
        ("<disks><disk name='a'><parent/></disk></disks>", "<parent>"),
    ] {
        let text = refused(&format!("<domainbackup>\n{inner}</domainbackup>"), Start::Managed);
        assert!(
            text.starts_with("line 2, column ")
                && text.contains(&format!("{what} is not for a managed backup: ")),
            "{inner}: {text}"
        );
    }
    let text = refused(&fixture("libvirt/output.xml"), Start::Unmanaged);
    assert!(text.contains("the attribute state of a <disk> is not for an unmanaged backup"), "{text}");
}

#[test]
fn a_restore_takes_a_part_with_targets_of_its_own() {
    let request = RestoreRequest::parse(&fixture("proposal/restore.xml")).unwrap();
    let target = Target::Block { path: "/dev/vg/web01-vda".into(), format: None };
    let disks = vec![("vda".to_owned(), Some(target)), ("vdb".to_owned(), None)];
    assert_eq!((request.backup, request.disks), (UUID.parse().unwrap(), Some(disks)));
}

#[test]
fn a_restore_takes_the_whole_description_and_goes_back_to_where_it_came_from() {
    let request = RestoreRequest::parse(&fixture("proposal/dumped.xml")).unwrap();
    let disks = vec![("vda".to_owned(), None), ("vdb".to_owned(), None)];
    assert_eq!(request.disks, Some(disks), "the chunkstore is where the backup is, and vdc is not in it");
}

#[test]
fn a_restore_names_the_new_domain() {
    let text = format!("<domainbackup><uuid>{UUID}</uuid><name> web02 </name></domainbackup>");
    let request = RestoreRequest::parse(&text).unwrap();
    assert_eq!((request.name.as_deref(), request.disks), (Some("web02"), None));
}

#[test]
fn a_restore_without_a_backup_is_refused() {
    let error = RestoreRequest::parse("<domainbackup/>").unwrap_err();
    assert_eq!(error.to_string(), "line 1, column 1: <domainbackup> lacks the <uuid> of the backup");
    let error = RestoreRequest::parse(&fixture("libvirt/push.xml")).unwrap_err();
    assert!(error.to_string().contains("libvirt's dialect is not for a restore: it cannot name a backup"));
}

#[test]
fn a_default_target_is_a_target_and_nothing_else() {
    let target = parse_default_target(&fixture("proposal/default-target.xml")).unwrap();
    assert_eq!(target, Target::ChunkStore { store: "offsite".into(), namespace: None });
    let error = parse_default_target("<domainbackup/>").unwrap_err();
    assert!(error.to_string().ends_with("<domainbackup> lacks a <target>"));
    let error = parse_default_target(&fixture("proposal/create.xml")).unwrap_err();
    assert!(error.to_string().ends_with("lacks a <target>"), "{error}");
    let text = "<domainbackup><target type='nbd'/><description>x</description></domainbackup>";
    let error = parse_default_target(text).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("<description> has no meaning inside of <domainbackup>; known here: target")
    );
}
