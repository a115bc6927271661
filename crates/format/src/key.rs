//! The keys of the objects of a repository: the strings that the AAD and the key derivation bind.
//!
//! Not here: parsing of listings, which is the store's. The invariant: a key is never reused for other
//! bytes, `hb/` apart.

use crate::id::{PackName, SegmentName, SessionId, SlotId};

/// Key of the object that describes the repository.
pub const FORMAT: &str = "format";

/// `keys/<slot>`.
#[must_use]
pub fn slot(id: SlotId) -> String {
    format!("keys/{id}")
}

/// `log/<seq as 16 hex digits>`.
#[must_use]
pub fn log(seq: u64) -> String {
    format!("log/{seq:016x}")
}

/// `ckpt/<seq as 16 hex digits>`.
#[must_use]
pub fn checkpoint(seq: u64) -> String {
    format!("ckpt/{seq:016x}")
}

/// `packs/<session>/<number as 8 hex digits>`.
#[must_use]
pub fn pack(name: &PackName) -> String {
    format!("packs/{name}")
}

/// `index/<session>/<number as 8 hex digits>`.
#[must_use]
pub fn segment(name: &SegmentName) -> String {
    format!("index/{name}")
}

/// `hb/<session>`.
#[must_use]
pub fn heartbeat(session: &SessionId) -> String {
    format!("hb/{session}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_fixed_width_numbers_so_that_listings_sort() {
        let session = SessionId::new([0xaa; 10], 7);
        assert_eq!(log(255), "log/00000000000000ff");
        assert_eq!(checkpoint(1), "ckpt/0000000000000001");
        assert_eq!(
            pack(&PackName { session, number: 16 }),
            "packs/aaaaaaaaaaaaaaaaaaaa000000000007/00000010"
        );
        assert_eq!(
            segment(&SegmentName { session, number: 1 }),
            "index/aaaaaaaaaaaaaaaaaaaa000000000007/00000001"
        );
        assert_eq!(heartbeat(&session), "hb/aaaaaaaaaaaaaaaaaaaa000000000007");
        assert_eq!(slot(SlotId([1; 8])), "keys/0101010101010101");
    }
}
