//! Tests of the record and its summary.

use super::*;

fn disk(name: &str, mode: Mode) -> DiskRecord {
    DiskRecord {
        name: name.to_owned(),
        node: "node".to_owned(),
        size_bytes: 1 << 30,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        root: None,
        bitmap: None,
        mode,
        reason: None,
        read_bytes: 10,
        new_bytes: 20,
        dedup_bytes: 30,
        zero_bytes: 40,
        stored_bytes: 50,
    }
}

fn record(disks: Vec<DiskRecord>) -> Record {
    Record {
        version: RECORD_VERSION,
        backup: Uuid::from_u128(1),
        parent: Some(Uuid::from_u128(2)),
        domain: DomainRecord { uuid: None, name: "web".to_owned(), host: "host".to_owned() },
        created_ms: 1,
        description: String::new(),
        disks,
        definition: None,
        quiesce: QuiesceRecord::default(),
        tool: "aquifer".to_owned(),
        labels: BTreeMap::new(),
        namespace: None,
        external: false,
    }
}

#[test]
fn a_record_round_trips() {
    let mut record = record(vec![disk("vda", Mode::Bitmap), disk("vdb", Mode::Rescan)]);
    for bytes in [b"<domain/>".to_vec(), vec![0xff, 0, 0xfe], Vec::new()] {
        record.definition = Some(Definition { kind: DefinitionKind::Xml, bytes });
        assert_eq!(Record::decode(&record.encode().unwrap()).unwrap(), record);
    }
}

#[test]
fn a_definition_is_readable_text_when_it_is_utf_8_and_hex_when_not() {
    let mut record = record(vec![]);
    record.definition = Some(Definition { kind: DefinitionKind::Json, bytes: b"{}".to_vec() });
    let text = String::from_utf8(record.encode().unwrap()).unwrap();
    assert!(text.contains(r#""definition":{"kind":"json","bytes":"{}"}"#), "{text}");
    record.definition = Some(Definition { kind: DefinitionKind::Xml, bytes: vec![0xff, 1] });
    let text = String::from_utf8(record.encode().unwrap()).unwrap();
    assert!(text.contains(r#""bytes":{"hex":"ff01"}"#), "{text}");
    let odd = text.replace("ff01", "ff0");
    assert!(matches!(Record::decode(odd.as_bytes()), Err(Error::Json { .. })));
}

#[test]
fn fields_of_later_programs_are_ignored_but_later_versions_are_refused() {
    let text = String::from_utf8(record(vec![]).encode().unwrap()).unwrap();
    let extended = text.replacen('{', r#"{"mood":"good","#, 1);
    assert_eq!(Record::decode(extended.as_bytes()).unwrap(), record(vec![]));
    let newer = text.replace(r#""version":1"#, r#""version":2"#);
    assert!(matches!(Record::decode(newer.as_bytes()), Err(Error::Version { found: 2, supported: 1, .. })));
    let older = text.replace(r#""version":1"#, r#""version":0"#);
    assert!(matches!(Record::decode(older.as_bytes()), Err(Error::Field { field: "version", .. })));
    assert!(matches!(Record::decode(b"{}"), Err(Error::Json { .. })));
}

#[test]
fn too_many_disks_too_many_bytes_and_a_name_used_twice_are_refused() {
    let many = (0..257).map(|number| disk(&number.to_string(), Mode::Full)).collect();
    assert!(matches!(record(many).encode(), Err(Error::Limit { field: "disks", limit: 256, .. })));
    let twice = vec![disk("vda", Mode::Full), disk("vda", Mode::Full)];
    assert!(matches!(record(twice).encode(), Err(Error::Field { field: "disk names used twice", .. })));
    let mut long = record(vec![]);
    long.description = "x".repeat(4 << 20);
    assert!(matches!(long.encode(), Err(Error::Limit { field: "bytes", .. })));
    let bytes = vec![b' '; (4 << 20) + 1];
    assert!(matches!(Record::decode(&bytes), Err(Error::Limit { field: "bytes", .. })));
}

#[test]
fn the_summary_adds_up_and_cuts_long_texts() {
    let mut record = record(vec![disk("vda", Mode::Full), disk("vdb", Mode::Full)]);
    assert_eq!(record.summary().level, Level::Full);
    record.disks[1].mode = Mode::Rescan;
    record.disks[1].read_bytes = u64::MAX;
    record.description = "ü".repeat(5000);
    record.labels = (0..50).map(|number| (format!("label{number}"), "v".repeat(500))).collect();
    let summary = record.summary();
    assert_eq!(summary.level, Level::Incremental);
    assert_eq!((summary.read_bytes, summary.new_bytes, summary.stored_bytes), (u64::MAX, 40, 100));
    assert_eq!(summary.description.chars().count(), 160);
    assert_eq!(summary.labels.len(), 8);
    assert!(summary.labels.values().all(|value| value.len() == 64));
    assert_eq!(summary.disks[1].mode, Mode::Rescan);
}

#[test]
fn an_ordinary_summary_takes_less_than_a_kibibyte() {
    let disks = ["vda", "vdb", "vdc", "vdd"].map(|name| disk(name, Mode::Bitmap)).to_vec();
    let mut record = record(disks);
    record.description = "d".repeat(160);
    assert!(serde_json::to_vec(&record.summary()).unwrap().len() <= 1024);
}
