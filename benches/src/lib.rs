//! aquifer-benches
