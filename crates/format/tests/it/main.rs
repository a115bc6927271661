//! Tests of the crate through its public face: golden bytes, damage, places, bombs, laws.
//!
//! Everything is deterministic: salts, seeds and ids are fixed, the key derivation is cheap.

mod damage;
mod fixture;
mod fold;
mod golden;
mod hostile;
mod packs;
mod places;

#[path = "../../fuzz/src/decoders.rs"]
mod decoders;
#[path = "../../fuzz/src/forge.rs"]
mod forge;
