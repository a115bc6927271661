//! Any document of either dialect, for the laws that must hold for all of them.

use aquifer_api::JobState;
use aquifer_api::xml::{
    BackupDisk, BackupMode, Definition, DiskState, Document, DomainBackup, Endpoint, Image, ImageFormat,
    ImagePlace, ImageSource, LibvirtBackup, LibvirtDisk, Method, Mode, NbdSource, Seclabel, Server, Target,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use uuid::Uuid;

/// Text as people and attackers write it: markup, quotes, line ends and any other character of XML.
pub(crate) fn text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("</description>".to_owned()),
        Just("]]>".to_owned()),
        Just("&amp;".to_owned()),
        Just("\r\n\t \"'<>&".to_owned()),
        "\\PC{0,8}",
    ];
    vec(pieces, 0..6).prop_map(|parts| parts.concat())
}

fn word() -> impl Strategy<Value = String> {
    text().prop_map(|text| format!("w{text}"))
}

fn path() -> impl Strategy<Value = String> {
    text().prop_map(|text| format!("/{text}"))
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn mode() -> impl Strategy<Value = BackupMode> {
    select(vec![BackupMode::Full, BackupMode::Incremental])
}

fn format() -> impl Strategy<Value = Option<ImageFormat>> {
    of(select(vec![ImageFormat::Raw, ImageFormat::Qcow2]))
}

fn target() -> impl Strategy<Value = Target> {
    let uri = (select(vec!["nbd", "nbds", "nbd+unix", "nbds+unix"]), "[a-z0-9/?=&.:%'<]{0,20}");
    let source = (uri, of(text()))
        .prop_map(|((scheme, rest), context)| NbdSource { uri: format!("{scheme}://{rest}"), context });
    prop_oneof![
        (text(), of(text())).prop_map(|(store, namespace)| Target::ChunkStore { store, namespace }),
        (path(), format()).prop_map(|(path, format)| Target::File { path, format }),
        (path(), format()).prop_map(|(path, format)| Target::Block { path, format }),
        (text(), text()).prop_map(|(pool, volume)| Target::Volume { pool, volume }),
        of(source).prop_map(Target::Nbd),
    ]
}

fn disk() -> impl Strategy<Value = BackupDisk> {
    let numbers = (of(any::<u64>()), of(any::<u64>()), of(any::<[u8; 32]>()));
    (any::<u8>(), of(mode()), numbers, of(uuid()), of(target())).prop_map(
        |(chance, mode, (size_bytes, stored_bytes, digest), parent, target)| match chance {
            0..40 => BackupDisk { excluded: true, ..BackupDisk::default() },
            _ => {
                BackupDisk { mode, size_bytes, stored_bytes, digest, parent, target, ..BackupDisk::default() }
            }
        },
    )
}

fn definition() -> impl Strategy<Value = Definition> {
    text().prop_map(|text| {
        let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let document =
            format!("<!-- x --><domain\ttype='kvm' >\r\n <n:name x=\"'\">{escaped}</n:name></domain >\n");
        Definition::parse(&document).expect("well-formed")
    })
}

/// Makes the names of a list different: the number in front does.
fn named<D>(disks: Vec<(String, D)>, name: impl Fn(&mut D, String)) -> Vec<D> {
    let numbered = disks.into_iter().enumerate().map(|(number, (text, mut disk))| {
        name(&mut disk, format!("{number}{text}"));
        disk
    });
    numbered.collect()
}

/// A description of the proposal's; with `uuid`, one that a restore can take.
pub(crate) fn proposal() -> impl Strategy<Value = DomainBackup> {
    let disks = vec((text(), disk()), 0..4).prop_map(|disks| named(disks, |disk, name| disk.name = name));
    let about = (of(uuid()), of("[a-z][a-z &<]{0,6}[a-z]"), of(any::<i64>()), of(text()));
    let job = (of(select(JobState::ALL.to_vec())), of(select(vec![Method::Classic, Method::Filter])));
    (about, job, of(uuid()), of(target()), of(disks), of(definition())).prop_map(
        |((uuid, name, creation_time, description), (state, method), parent, target, disks, definition)| {
            DomainBackup {
                uuid,
                name,
                creation_time,
                description,
                state,
                method,
                parent,
                target,
                disks,
                definition,
            }
        },
    )
}

fn source() -> impl Strategy<Value = ImageSource> {
    let label = (of(text()), of(text())).prop_map(|(model, label)| Seclabel { model, label });
    (path(), vec(label, 0..3)).prop_map(|(path, seclabels)| ImageSource { path, seclabels })
}

fn libvirt_disk(pull: bool) -> impl Strategy<Value = LibvirtDisk> {
    let place = prop_oneof![of(source()).prop_map(ImagePlace::File), source().prop_map(ImagePlace::Block)];
    let state = select(vec![
        DiskState::Running,
        DiskState::Complete,
        DiskState::Failed,
        DiskState::Cancelling,
        DiskState::Cancelled,
    ]);
    let read = (of(mode()), of(text()));
    (any::<u8>(), read, (of(text()), of(text())), (of(state), of(any::<u32>())), place, format()).prop_map(
        move |(chance, (mode, incremental), (export_name, export_bitmap), (state, index), place, format)| {
            if chance < 40 {
                return LibvirtDisk { excluded: true, ..LibvirtDisk::default() };
            }
            LibvirtDisk {
                mode,
                incremental: incremental.filter(|_| mode != Some(BackupMode::Full)),
                export_name: export_name.filter(|_| pull),
                export_bitmap: export_bitmap.filter(|_| pull),
                state,
                index,
                image: Image {
                    place,
                    format: format.filter(|format| !pull || *format == ImageFormat::Qcow2),
                },
                ..LibvirtDisk::default()
            }
        },
    )
}

/// A document of libvirt's.
pub(crate) fn libvirt() -> impl Strategy<Value = LibvirtBackup> {
    let endpoint = prop_oneof![
        (word(), of(1_u16..)).prop_map(|(name, port)| Endpoint::Tcp(name, port)),
        path().prop_map(Endpoint::Unix),
    ];
    let server = (endpoint, of(any::<bool>())).prop_map(|(endpoint, tls)| Server { endpoint, tls });
    let modes = prop_oneof![Just(Mode::Push), of(server).prop_map(Mode::Pull)];
    (modes, of(text())).prop_flat_map(|(mode, incremental)| {
        let disks = vec((text(), libvirt_disk(mode != Mode::Push)), 0..4);
        let disks = disks.prop_map(|disks| named(disks, |disk, name| disk.name = name));
        (Just(mode), Just(incremental), of(disks)).prop_map(|(mode, incremental, disks)| LibvirtBackup {
            mode,
            incremental,
            disks,
        })
    })
}

/// A document of either.
pub(crate) fn document() -> impl Strategy<Value = Document> {
    prop_oneof![proposal().prop_map(Document::Proposal), libvirt().prop_map(Document::Libvirt)]
}

/// The document as text.
pub(crate) fn written(document: &Document) -> String {
    let mut out = Vec::new();
    match document {
        Document::Proposal(backup) => backup.write(&mut out),
        Document::Libvirt(backup) => backup.write(&mut out),
    }
    .expect("writing into memory");
    String::from_utf8(out).expect("UTF-8")
}
