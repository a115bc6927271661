//! A second domain out of the first one's definition. `domain/web01.xml` is what a libvirtd of Debian 12 printed after
//! `virsh define`, `domain/running.xml` what its test driver prints for a running domain.

use aquifer_api::domain::{DomainError, DomainFault, NewDisk, NewDomain, NewSource, rewrite};
use aquifer_api::xml::{Definition, ImageFormat};
use proptest::prelude::*;
use uuid::Uuid;

use crate::fixture;

const NEW_UUID: &str = "11111111-2222-4333-8444-555555555555";

fn file(target: &str, path: &str) -> NewDisk {
    NewDisk { target: target.into(), source: NewSource::File(path.into()), format: ImageFormat::Raw }
}

fn clone(disks: Vec<NewDisk>) -> NewDomain {
    NewDomain { name: "web02".into(), uuid: NEW_UUID.parse().expect("a uuid"), disks, nvram: None }
}

fn web02() -> NewDomain {
    let vdb = NewDisk {
        target: "vdb".into(),
        source: NewSource::File("/srv/restored/web02-vdb.qcow2".into()),
        format: ImageFormat::Qcow2,
    };
    clone(vec![file("vda", "/srv/restored/web02-vda.raw"), vdb])
}

/// Counts, so that every address is another.
fn counting() -> impl FnMut(&mut [u8]) {
    let mut count = 0_u8;
    move |bytes| {
        count += 1;
        bytes.fill(count);
    }
}

fn rewritten(definition: &str, new: &NewDomain) -> Result<String, DomainError> {
    rewrite(definition, new, &mut counting())
}

fn fault(definition: &str, new: &NewDomain) -> DomainFault {
    rewritten(definition, new).expect_err(definition).fault
}

/// A domain with one disk, and something else among its parts.
fn with(devices: &str, others: &str) -> String {
    format!(
        "<domain type='kvm'><name>a</name><uuid>ac109b22-7d26-4624-8c88-3adb9198776e</uuid>{others}<devices>\
         <disk type='file'><source file='/a'/><target dev='vda'/></disk>{devices}</devices></domain>"
    )
}

fn small() -> NewDomain {
    clone(vec![file("vda", "/b")])
}

/// The lines that differ, old and new.
fn differing<'t>(old: &'t str, new: &'t str) -> Vec<(&'t str, &'t str)> {
    assert_eq!(old.lines().count(), new.lines().count());
    let pairs = old.lines().zip(new.lines()).map(|(old, new)| (old.trim_start(), new.trim_start()));
    pairs.filter(|(old, new)| old != new).collect()
}

#[test]
fn of_a_real_definition_only_what_must_differ_does() {
    let old = fixture("domain/web01.xml");
    let new = rewritten(&old, &web02()).unwrap();
    let expected = [
        ("<name>web01</name>", "<name>web02</name>"),
        (
            "<uuid>ac109b22-7d26-4624-8c88-3adb9198776e</uuid>",
            "<uuid>11111111-2222-4333-8444-555555555555</uuid>",
        ),
        (
            "<genid>8e99af60-4b3d-4c27-8d6e-cded813c5f79</genid>",
            "<genid>01010101-0101-4101-8101-010101010101</genid>",
        ),
        ("<driver name='qemu' type='qcow2' cache='none'/>", "<driver name='qemu' type='raw' cache='none'/>"),
        (
            "<source file='/var/lib/libvirt/images/web01-vda.qcow2'/>",
            "<source file='/srv/restored/web02-vda.raw'/>",
        ),
        ("<disk type='block' device='disk'>", "<disk type='file' device='disk'>"),
        (
            "<driver name='qemu' type='raw' discard='unmap'/>",
            "<driver name='qemu' type='qcow2' discard='unmap'/>",
        ),
        ("<source dev='/dev/vg/web01-vdb'/>", "<source file='/srv/restored/web02-vdb.qcow2'/>"),
        ("<mac address='52:54:00:04:2c:f0'/>", "<mac address='52:54:00:02:02:02'/>"),
        ("<mac address='52:54:00:12:34:56'/>", "<mac address='52:54:00:03:03:03'/>"),
    ];
    assert_eq!(differing(&old, &new), expected);
}

#[test]
fn the_disks_that_need_a_source_are_those_with_data() {
    let definition = Definition::parse(&fixture("domain/web01.xml")).unwrap();
    assert_eq!(definition.disks().unwrap(), ["vda", "vdb"], "the CD drive keeps its medium");
    let nameless = Definition::parse("<domain><devices><disk/></devices></domain>").unwrap();
    assert!(nameless.disks().unwrap_err().to_string().ends_with("<disk> lacks a <target dev='…'>"));
}

#[test]
fn a_definition_of_a_running_domain_is_refused() {
    let error = rewritten(&fixture("domain/running.xml"), &small()).unwrap_err();
    assert_eq!(error.place, Some((1, 1)));
    assert!(error.to_string().ends_with("take `virsh dumpxml --inactive`"), "{error}");
}

#[test]
fn every_disk_needs_a_source_and_every_source_a_disk() {
    let old = fixture("domain/web01.xml");
    let error = rewritten(&old, &clone(vec![file("vda", "/b")])).unwrap_err();
    assert_eq!(error.fault, DomainFault::NoSource("vdb".into()));
    assert_eq!(error.place.map(|(_, column)| column), Some(5));
    let mut new = web02();
    new.disks.push(file("vdz", "/z"));
    let disks = vec!["vda".to_owned(), "vdb".to_owned()];
    assert_eq!(fault(&old, &new), DomainFault::NoDisk { disk: "vdz".into(), disks });
    new.disks.push(file("vdz", "/zz"));
    assert_eq!(fault(&old, &new), DomainFault::DiskTwice("vdz".into()));
}

#[test]
fn a_place_that_is_taken_is_refused() {
    let old = fixture("domain/web01.xml");
    for taken in
        ["/var/lib/libvirt/images/web01-vda.qcow2", "/dev/vg/web01-vdb", "/var/lib/libvirt/images/debian.iso"]
    {
        let mut new = web02();
        new.disks[1].source = NewSource::Block(taken.into());
        assert_eq!(fault(&old, &new), DomainFault::TakenPath(taken.into()));
    }
    let twice = clone(vec![file("vda", "/same"), file("vdb", "/same")]);
    assert_eq!(fault(&old, &twice), DomainFault::TakenPath("/same".into()));
}

#[test]
fn a_name_or_path_that_no_domain_can_have_is_refused() {
    for name in ["", " ", "a/b", "a\nb", "a\u{0}"] {
        let new = NewDomain { name: name.into(), ..small() };
        assert_eq!(fault(&with("", ""), &new), DomainFault::Name(name.into()));
    }
    for path in ["", "b.img", "/b\n"] {
        let new = clone(vec![file("vda", path)]);
        assert_eq!(fault(&with("", ""), &new), DomainFault::Path(path.into()));
    }
}

#[test]
fn values_are_escaped() {
    let new = NewDomain { name: "<&>".into(), ..clone(vec![file("vda", "/it's \"b\" & <c>")]) };
    let text = rewritten(&with("", ""), &new).unwrap();
    assert!(text.contains("<name>&lt;&amp;&gt;</name>"), "{text}");
    assert!(text.contains("<source file='/it&apos;s &quot;b&quot; &amp; &lt;c&gt;'/>"), "{text}");
}

#[test]
fn what_a_definition_leaves_out_is_added_where_it_must_be() {
    let old = "<domain><name>a</name><devices><disk><source file='/a'/><target dev='vda'/></disk></devices></domain>";
    let mut new = small();
    new.disks[0].format = ImageFormat::Qcow2;
    assert_eq!(
        rewritten(old, &new).unwrap(),
        "<domain><name>web02</name><uuid>11111111-2222-4333-8444-555555555555</uuid><devices><disk type='file'>\
         <driver name='qemu' type='qcow2'/><source file='/b'/><target dev='vda'/></disk></devices></domain>"
    );
}

#[test]
fn the_uuid_that_the_firmware_shows_follows_the_domains() {
    let entry = |uuid: &str| {
        format!("<sysinfo type='smbios'><system><entry name='uuid'>{uuid}</entry></system></sysinfo>")
    };
    let text = rewritten(&with("", &entry("ac109b22-7d26-4624-8c88-3adb9198776e")), &small()).unwrap();
    assert!(text.contains(&entry(NEW_UUID)), "{text}");
}

#[test]
fn firmware_variables_need_a_file_of_their_own() {
    for nvram in
        ["<nvram template='/t'>/a_VARS.fd</nvram>", "<nvram type='file'><source file='/a_VARS.fd'/></nvram>"]
    {
        let old = with("", &format!("<os>{nvram}</os>"));
        assert_eq!(fault(&old, &small()), DomainFault::Nvram("/a_VARS.fd".into()));
        let new = NewDomain { nvram: Some("/b_VARS.fd".into()), ..small() };
        let text = rewritten(&old, &new).unwrap();
        assert!(text.contains("/b_VARS.fd") && !text.contains("/a_VARS.fd"), "{text}");
    }
    assert!(
        rewritten(&with("", "<os><nvram template='/t'/></os>"), &small()).is_ok(),
        "libvirt names the file itself"
    );
}

#[test]
fn a_chain_of_backing_files_ends_at_what_was_restored() {
    let old = "<domain><name>a</name><devices><disk type='network'><source protocol='rbd' name='p/a'><host name='h'/>\
               </source><backingStore type='file'><format type='raw'/><source file='/base'/></backingStore>\
               <target dev='vda'/></disk></devices></domain>";
    let text = rewritten(old, &small()).unwrap();
    assert!(
        text.contains("<disk type='file'><source file='/b'/><backingStore/><target dev='vda'/>"),
        "{text}"
    );
}

#[test]
fn what_two_domains_must_not_share_is_refused_by_name() {
    for (devices, others, what) in [
        ("<hostdev mode='subsystem' type='pci'/>", "", "a device of the host"),
        ("<memory model='nvdimm'><source><path>/p</path></source></memory>", "", "persistent memory"),
        ("<pstore backend='acpi-erst'><path>/p</path></pstore>", "", "<pstore>"),
        (
            "<tpm><backend type='emulator'><source type='dir' path='/t'/></backend></tpm>",
            "",
            "the state of a TPM",
        ),
        ("<serial type='file'><source path='/log'/></serial>", "", "a <serial> at /log"),
        ("<channel type='unix'><source mode='bind' path='/ga'/></channel>", "", "a <channel> at /ga"),
        ("<console type='pty'><log file='/log'/></console>", "", "a <console> at /log"),
        ("", "<os><loader readonly='no'>/fw</loader></os>", "a firmware that is written to"),
        ("", "<q:commandline xmlns:q='u'><q:arg value='-qmp'/></q:commandline>", "<q:commandline>"),
        (
            "<disk type='vhostuser'><source type='unix'/><target dev='vdb'/></disk>",
            "",
            "disk `vdb` of type vhostuser",
        ),
        (
            "<disk type='block' device='lun'><source dev='/l'/><target dev='vdb'/></disk>",
            "",
            "disk `vdb`, a LUN",
        ),
        (
            "<disk type='file'><source file='/e'><encryption format='luks'/></source><target dev='vdb'/></disk>",
            "",
            "the <encryption> of disk `vdb`",
        ),
        (
            "<disk type='file'><source file='/e'/><encryption format='luks'/><target dev='vdb'/></disk>",
            "",
            "the <encryption> of disk `vdb`",
        ),
        (
            "<disk type='network'><source/><auth username='x'/><target dev='vdb'/></disk>",
            "",
            "the <auth> of disk `vdb`",
        ),
        (
            "<disk type='file'><source file='/e'/><mirror/><target dev='vdb'/></disk>",
            "",
            "the <mirror> of disk `vdb`",
        ),
    ] {
        let new = clone(vec![file("vda", "/b"), file("vdb", "/c")]);
        let new = if devices.contains("'vdb'") { new } else { small() };
        let error = rewritten(&with(devices, others), &new).expect_err(what);
        assert!(matches!(error.fault, DomainFault::Shared { .. }), "{what}: {error}");
        assert!(error.to_string().contains(&format!(": {what}")) && error.place.is_some(), "{what}: {error}");
    }
}

#[test]
fn an_identity_at_a_place_that_nobody_knows_is_refused() {
    let mac = "<interface type='bridge'><mac address='52:54:00:AA:BB:CC'/><filterref filter='f'>\
               <parameter name='MAC' value='52:54:00:aa:bb:cc'/></filterref></interface>";
    let error = rewritten(&with(mac, ""), &small()).unwrap_err();
    let what = "a MAC address of the first domain";
    assert_eq!(error.fault, DomainFault::LeftOver { what, value: "52:54:00:aa:bb:cc".into() });
    let serial = "<sysinfo><system><entry name='serial'>AC109B22-7D26-4624-8C88-3ADB9198776E</entry></system></sysinfo>";
    assert!(matches!(fault(&with("", serial), &small()), DomainFault::LeftOver { .. }));
    let again = "<filesystem><source dir='/a'/></filesystem>";
    assert!(matches!(fault(&with(again, ""), &small()), DomainFault::LeftOver { .. }));
    let note = "<metadata><x:id xmlns:x='u'>ac109b22-7d26-4624-8c88-3adb9198776e</x:id></metadata>";
    assert!(rewritten(&with("", note), &small()).is_ok(), "notes of other tools are nobody's identity");
}

#[test]
fn what_is_no_definition_is_refused_with_its_place() {
    for (text, what) in [
        ("<network/>", "line 1, column 1: the document is a <network>, not a <domain>"),
        ("<domain/>", "line 1, column 1: <domain> lacks a <name>"),
        ("<domain><name>a</name><name>b</name></domain>", "line 1, column 23: <name> is there twice"),
        ("<domain><name/></domain>", "line 1, column 9: <name> lacks its text"),
        ("<!DOCTYPE domain><domain/>", "line 1, column 1: a DOCTYPE is refused"),
    ] {
        let error = rewritten(text, &clone(Vec::new())).expect_err(text);
        assert!(error.to_string().starts_with(what), "{text}: {error}");
    }
}

#[test]
fn a_source_of_random_bytes_that_repeats_itself_is_noticed() {
    let interface = "<interface type='user'><mac address='52:54:00:00:00:00'/></interface>";
    let error = rewrite(&with(interface, ""), &small(), &mut |bytes| bytes.fill(0)).unwrap_err();
    assert_eq!(error.fault, DomainFault::Random(16));
}

#[test]
fn passwords_of_displays_are_taken_out_and_nothing_else() {
    let with = |passwords: [&str; 2]| {
        let [vnc, spice] = passwords;
        format!(
            "<domain><name>a</name><metadata><graphics passwd='kept'/></metadata><devices>\
             <graphics type='vnc' port='-1'{vnc}/><graphics {spice}type='spice'><listen type='none'/></graphics>\
             </devices></domain>"
        )
    };
    let secret = with([" passwd='a&lt;b'", "passwd = \"x'y\" "]);
    let open = Definition::parse(&secret).unwrap().without_passwords().unwrap();
    assert_eq!(open.as_str(), with([" ", " "]));
    assert_eq!(open.without_passwords().unwrap(), open);
}

proptest! {
    #[test]
    fn a_rewritten_domain_is_one_more_of_the_same(name in "[^/\\p{C}]{0,12}w", path in "[^\\p{C}]{0,20}", id in any::<u128>(), seed in any::<u32>()) {
        let old = fixture("domain/web01.xml");
        let mut new = web02();
        new.name = name;
        new.uuid = Uuid::from_u128(id);
        new.disks[0].source = NewSource::Block(format!("/new/{path}"));
        let mut state = seed;
        let mut random = |bytes: &mut [u8]| for byte in bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = state.to_be_bytes()[0];
        };
        let text = rewrite(&old, &new, &mut random).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let definition = Definition::parse(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(definition.disks().unwrap(), ["vda", "vdb"]);
        prop_assert_eq!(differing(&old, &text).len(), 11, "{}", text);
        // Put back, it is the first domain again, but for what was random.
        let mut back = web02();
        back.name = "web01".into();
        back.uuid = "ac109b22-7d26-4624-8c88-3adb9198776e".parse().unwrap();
        back.disks[0] = NewDisk { format: ImageFormat::Qcow2, ..file("vda", "/var/lib/libvirt/images/web01-vda.qcow2") };
        back.disks[1] = NewDisk { source: NewSource::Block("/dev/vg/web01-vdb".into()), ..file("vdb", "") };
        let again = rewrite(&text, &back, &mut random).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(differing(&old, &again).iter().all(|(old, _)| old.starts_with("<genid>") || old.starts_with("<mac ")));
    }
}
