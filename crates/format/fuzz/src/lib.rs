//! What the fuzz targets run. The crate's own tests replay `seeds/` and random mutations through the same
//! functions, so this package holds no logic that they do not reach.

mod decoders;
mod forge;

/// Whole objects, as they are and with the trailing hash set right.
pub fn objects(data: &[u8]) {
    decoders::objects(data);
}

/// Bodies behind right checksums: JSON documents, segments, zstd frames.
pub fn bodies(data: &[u8]) {
    decoders::bodies(data);
}

/// Plain bytes of meta blobs: tree nodes and records.
pub fn blobs(data: &[u8]) {
    decoders::blobs(data);
}
