//! What the fuzz targets run; the crate's own tests replay the seeds through the same functions.

pub mod decoders;
pub mod forge;
