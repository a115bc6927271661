//! aquifer-format
