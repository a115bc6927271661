//! Hostile text: bombs, limits, what is almost XML, and a replay of fuzzed input.

use std::fs;
use std::path::Path;

use aquifer_api::xml::{DEFINITION_LIMITS, Definition, Document, LIMITS, XmlFault};
use proptest::prelude::*;

use crate::{fixture, fixtures};

#[path = "../../fuzz/harness.rs"]
mod harness;

fn fault(text: &str) -> XmlFault {
    Document::parse(text).expect_err("refused").fault
}

fn described(inner: &str) -> String {
    format!("<domainbackup><description>{inner}</description></domainbackup>")
}

fn description(text: &str) -> String {
    match Document::parse(text) {
        Ok(Document::Proposal(backup)) => backup.description.expect("a description"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_document_type_is_refused_before_its_entities_are_looked_at() {
    let error = Document::parse(&fixture("refused/laughs.xml")).unwrap_err();
    assert_eq!((error.line, error.column, error.fault), (2, 1, XmlFault::Doctype));
}

#[test]
fn an_entity_of_nobodys_is_refused_by_name() {
    assert_eq!(fault(&described("&b;")), XmlFault::Entity("b".into()));
    let text = "<domainbackup><disks><disk name='&b;'/></disks></domainbackup>";
    assert_eq!(fault(text), XmlFault::Entity("b".into()));
    assert_eq!(description(&described("&lt;&gt;&amp;&quot;&apos;&#65;&#x42;")), "<>&\"'AB");
}

#[test]
fn a_document_beyond_four_mebibytes_is_refused_unread() {
    let tail = described("").len();
    let fits = described(&"x".repeat(LIMITS.bytes - tail));
    assert_eq!(description(&fits).len(), LIMITS.bytes - tail);
    let over = format!("{fits} ");
    assert_eq!(fault(&over), XmlFault::TooLarge { bytes: LIMITS.bytes + 1, most: LIMITS.bytes });
}

#[test]
fn elements_nested_beyond_the_limit_are_refused() {
    let nested = |depth: usize| {
        let around = depth - 2;
        format!(
            "<domainbackup><domain>{}{}</domain></domainbackup>",
            "<a>".repeat(around),
            "</a>".repeat(around)
        )
    };
    assert_eq!(fault(&nested(LIMITS.depth + 1)), XmlFault::TooDeep(LIMITS.depth));
    assert_eq!(fault(&nested(LIMITS.depth)), XmlFault::TooDeep(DEFINITION_LIMITS.depth));
    assert!(Document::parse(&nested(DEFINITION_LIMITS.depth + 1)).is_ok());
    assert_eq!(fault(&"<a>".repeat(1_000_000)), XmlFault::TooDeep(LIMITS.depth));
}

#[test]
fn more_elements_and_attributes_than_the_limit_are_refused() {
    assert_eq!(fault(&format!("<a>{}", "<b/>".repeat(LIMITS.nodes))), XmlFault::TooMany(LIMITS.nodes));
    let many: String = (0..100).map(|number| format!(" a{number}=''")).collect();
    assert_eq!(
        fault(&format!("<a{many}/>")),
        XmlFault::Malformed("an element has more than 64 attributes".into())
    );
}

#[test]
fn a_definition_has_narrower_limits_so_that_it_fits_into_a_description() {
    let long = format!("<domain>{}</domain>", "x".repeat(DEFINITION_LIMITS.bytes));
    let error = Definition::parse(&long).unwrap_err();
    assert_eq!(error.fault, XmlFault::TooLarge { bytes: long.len(), most: DEFINITION_LIMITS.bytes });
    assert_eq!(fault(&format!("<domainbackup>{long}</domainbackup>")), error.fault);
    let error = Definition::parse("<network/>").unwrap_err();
    assert_eq!(error.to_string(), "line 1, column 1: the document is a <network>, not a <domain>");
}

#[test]
fn a_character_that_xml_cannot_carry_is_refused_literally_and_by_number() {
    assert_eq!(fault(&described("\u{1b}")), XmlFault::Character('\u{1b}'));
    assert_eq!(fault(&described("&#27;")), XmlFault::Character('\u{1b}'));
    assert_eq!(
        fault("<domainbackup><disks><disk name='&#xFFFF;'/></disks></domainbackup>"),
        XmlFault::Character('\u{ffff}')
    );
    assert_eq!(XmlFault::Character('\u{1b}').to_string(), "the character U+001B is not allowed in XML");
}

#[test]
fn line_ends_and_references_are_read_as_xml_says() {
    assert_eq!(description(&described("a\r\nb\rc&#13;<![CDATA[<d>\r\n]]>")), "a\nb\nc\r<d>\n");
    let text = "<domainbackup><target type='chunkstore' store='a\tb\r\nc&#10;d'/></domainbackup>";
    let Ok(Document::Proposal(backup)) = Document::parse(text) else { panic!("{text}") };
    assert!(format!("{backup:?}").contains(r#"store: "a b c\nd""#), "{backup:?}");
}

#[test]
fn what_is_almost_xml_is_refused() {
    for (text, what) in [
        ("", "there is no element"),
        ("text", "text outside of the root"),
        ("<domainbackup/><domainbackup/>", "more than one root"),
        ("<domainbackup/>x", "text outside of the root"),
        ("\u{feff}\u{feff}<domainbackup/>", "text outside of the root"),
        ("<domainbackup>", "<domainbackup> is not closed"),
        ("<domainbackup></domainbackup", "not closed"),
        ("<domainbackup></a>", "expected `</domainbackup>`"),
        ("<domainbackup a/>", "attribute a has no value"),
        ("<domainbackup a=b/>", "has no quotes"),
        ("<domainbackup a='1'b='2'/>", "a blank is missing"),
        ("<domainbackup a='1' a='2'/>", "attribute a is there twice"),
        ("<domainbackup a='<'/>", "`<` in the value"),
        ("<domainbackup 1='a'/>", "no name of an attribute"),
        ("<1/>", "no name of an element"),
        ("< a/>", "no name of an element"),
        ("<domainbackup><!-- a -- b --></domainbackup>", "`--`"),
        ("<domainbackup>&amp</domainbackup>", "reference not closed"),
        ("<domainbackup>]]></domainbackup>", "`]]>` in text"),
        (" <?xml version='1.0'?><domainbackup/>", "the XML declaration is not the one"),
        ("<?xml version='1.1'?><domainbackup/>", "the XML declaration is not the one"),
        ("<?xml version='1.0' encoding='latin1'?><domainbackup/>", "not in UTF-8"),
        ("<?php 1?><domainbackup/>", "a processing instruction"),
    ] {
        let error = Document::parse(text).expect_err(text);
        assert!(error.to_string().contains(what), "{text:?}: {error}");
    }
    assert_eq!(fault("<domain/>"), XmlFault::Root { found: "domain".into(), expected: "domainbackup" });
}

#[test]
fn a_fault_is_found_by_line_and_column_in_characters() {
    let error = Document::parse("\u{feff}<domainbackup>\r\n<description>é</description><x/></domainbackup>")
        .unwrap_err();
    assert_eq!((error.line, error.column), (2, 29));
}

#[test]
fn a_long_name_is_cut_in_the_message() {
    let name = "x".repeat(100_000);
    for inner in [
        format!("<{name}/>"),
        format!("</{name}>"),
        format!("&{name};"),
        format!("<a {name}/>"),
        format!("<uuid>{name}</uuid>"),
    ] {
        let error = Document::parse(&format!("<domainbackup>{inner}</domainbackup>")).unwrap_err();
        assert!(error.to_string().len() < 400, "{error}");
    }
}

/// Every fixture, and every seed that fuzzing begins with.
fn seeds() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut seeds: Vec<Vec<u8>> = ["documents", "definitions"]
        .iter()
        .flat_map(|target| fs::read_dir(corpus.join(target)).expect("a folder of seeds"))
        .map(|seed| fs::read(seed.expect("a seed").path()).expect("bytes"))
        .collect();
    let folders = ["proposal", "libvirt", "refused", "domain"];
    seeds.extend(folders.iter().flat_map(|folder| fixtures(folder)).map(|(_, text)| text.into_bytes()));
    seeds
}

#[test]
fn the_seeds_of_the_fuzzer_hold() {
    let seeds = seeds();
    assert!(seeds.len() > 10);
    for seed in seeds {
        harness::documents(&seed);
        harness::definitions(&seed);
    }
}

/// Pieces that matter to the parser, to be put anywhere.
const PIECES: [&str; 20] = [
    "<",
    ">",
    "/>",
    "</",
    "'",
    "\"",
    "&",
    ";",
    "&#13;",
    "<![CDATA[",
    "]]>",
    "<!--",
    "-->",
    "<?xml ",
    "\r",
    "\n",
    " id='1'",
    "<parent>",
    "<disk name='vda'/>",
    "\u{10ffff}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_mutated_document_never_panics_and_means_the_same_when_written(
        seed in any::<prop::sample::Index>(),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, 0_usize..40), 1..6),
    ) {
        let seeds = seeds();
        let mut text = String::from_utf8_lossy(&seeds[seed.index(seeds.len())]).into_owned();
        for (place, piece, length) in cuts {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let start = place.index(places.len());
            let end = (start + length.saturating_sub(8)).min(places.len() - 1);
            text.replace_range(places[start]..places[end], PIECES.get(piece + length % 9).copied().unwrap_or(""));
        }
        harness::documents(text.as_bytes());
        harness::definitions(text.as_bytes());
    }
}
