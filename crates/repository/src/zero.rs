//! Zero detection: whether a run of plain bytes holds nothing but zeros.
//!
//! Not a policy: a caller decides what an all-zero chunk means (it is never stored). It has no early answer
//! for short or unaligned input that differs from the long one.

/// Bytes looked at before the whole run is compared; real data nearly always ends the question here.
const HEAD_BYTES: usize = 64;

/// Whether every byte of `bytes` is zero; an empty run is.
///
/// Runs at memory speed: a run of zeros equals itself shifted by the zero head, and that comparison is the
/// platform's `memcmp`. Data answers within its first bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    let Some((head, _)) = bytes.split_at_checked(HEAD_BYTES) else {
        return bytes.iter().all(|byte| *byte == 0);
    };
    // The head is zero and each byte equals the one HEAD_BYTES before it, so by induction all are zero.
    head.iter().fold(0, |sum, byte| sum | byte) == 0
        && bytes[HEAD_BYTES..] == bytes[..bytes.len() - HEAD_BYTES]
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zeros_of_every_length_are_zero() {
        for length in 0..300 {
            assert!(is_zero(&vec![0; length]), "{length} zero bytes");
        }
    }

    #[test]
    fn a_single_set_bit_anywhere_is_found() {
        for length in [1, 7, 63, 64, 65, 127, 128, 129, 4096] {
            for at in 0..length {
                let mut bytes = vec![0; length];
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "bit at {at} of {length}");
            }
        }
    }
}
