//! Values, refusals and laws of the flags.

use proptest::prelude::*;

use super::*;

#[test]
fn the_values_are_those_of_the_proposal_and_of_libvirt() {
    assert_eq!((ListFlags::FULL.bits(), ListFlags::LATEST.bits()), (1, 2));
    assert_eq!(RestoreFlags::NEW_DOMAIN.bits(), 1);
    assert_eq!(RestoreFlags::REWRITE_EXISTING_DISK.bits(), 2);
    assert_eq!((DeleteFlags::ALL.bits(), DeleteFlags::ALL_CHILDREN.bits()), (1, 2));
    assert_eq!((FinishFlags::CANCEL.bits(), FinishFlags::CHECK.bits()), (1, 2));
    assert_eq!((XmlFlags::SECURE.bits(), XmlFlags::INACTIVE.bits()), (1, 2));
    let modify = [TargetFlags::NONE, TargetFlags::LIVE, TargetFlags::CONFIG, TargetFlags::FORCE];
    assert_eq!(modify.map(TargetFlags::bits), [0, 1, 2, 4]);
    assert_eq!(UndefineFlags::BACKUP.bits(), 65_536);
    assert_eq!(CreateFlags::REUSE_EXTERNAL.bits(), 1);
    assert_eq!(CreateFlags::PRESERVE_SHUTDOWN.bits(), 2);
}

#[test]
fn an_unknown_bit_is_named_with_what_is_known() {
    let error = DeleteFlags::from_bits(0x41).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virBackupDeleteFlags: bits 0x40 are unknown; known are ALL (0x1), ALL_CHILDREN (0x2), METADATA_ONLY (0x100)"
    );
}

#[test]
fn a_reserved_word_takes_zero_alone() {
    assert_eq!(ReservedFlags::from_bits(0), Ok(ReservedFlags::NONE));
    let error = ReservedFlags::from_bits(1).unwrap_err();
    assert!(error.to_string().ends_with("must be 0"), "{error}");
}

#[test]
fn flags_that_exclude_each_other_are_refused_with_the_reason() {
    let error = FinishFlags::from_bits(3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virBackupFinishJobFlags: CANCEL and CHECK exclude each other: what is thrown away is not checked"
    );
    assert!((FinishFlags::CANCEL | FinishFlags::WAIT).check().is_err());
    assert!((CreateFlags::FULL | CreateFlags::STRICT_PARENT).check().is_err());
    assert!((RestoreFlags::DRY_RUN | RestoreFlags::INSTANT).check().is_err());
}

#[test]
fn flags_print_by_name() {
    assert_eq!((ListFlags::LATEST | ListFlags::FULL).to_string(), "FULL|LATEST");
    assert_eq!(ListFlags::NONE.to_string(), "0");
}

/// Calls a macro-like check for each set.
fn every_set(
    check: impl Fn(u32, &[(&str, u32)], Result<u32, FlagError>) -> Result<(), TestCaseError>,
    bits: u32,
) -> Result<(), TestCaseError> {
    check(bits, CreateFlags::KNOWN, CreateFlags::from_bits(bits).map(CreateFlags::bits))?;
    check(bits, ListFlags::KNOWN, ListFlags::from_bits(bits).map(ListFlags::bits))?;
    check(bits, RestoreFlags::KNOWN, RestoreFlags::from_bits(bits).map(RestoreFlags::bits))?;
    check(bits, DeleteFlags::KNOWN, DeleteFlags::from_bits(bits).map(DeleteFlags::bits))?;
    check(bits, FinishFlags::KNOWN, FinishFlags::from_bits(bits).map(FinishFlags::bits))?;
    check(bits, XmlFlags::KNOWN, XmlFlags::from_bits(bits).map(XmlFlags::bits))?;
    check(bits, TargetFlags::KNOWN, TargetFlags::from_bits(bits).map(TargetFlags::bits))?;
    check(bits, UndefineFlags::KNOWN, UndefineFlags::from_bits(bits).map(UndefineFlags::bits))?;
    check(bits, ReservedFlags::KNOWN, ReservedFlags::from_bits(bits).map(ReservedFlags::bits))
}

proptest! {
    #[test]
    fn a_set_holds_exactly_the_known_bits_it_was_given(word in any::<u32>(), mask in any::<u32>(), low in any::<bool>()) {
        let bits = if low { word & mask & 0xffff } else { word & mask };
        every_set(|bits, all, result| {
            let known = all.iter().fold(0, |sum, (_, bit)| sum | bit);
            prop_assert_eq!(known.count_ones() as usize, all.len(), "two flags share a bit");
            match result {
                Ok(back) => prop_assert!(back == bits && bits & !known == 0),
                Err(FlagError::Unknown { unknown, .. }) => prop_assert_eq!(unknown, bits & !known),
                Err(FlagError::Contradiction { one, other, .. }) => {
                    let value = |name| all.iter().find(|(known, _)| *known == name).map_or(0, |(_, bit)| *bit);
                    prop_assert!(bits & value(one) != 0 && bits & value(other) != 0 && one != other);
                }
            }
            Ok(())
        }, bits)?;
    }
}
