//! aquifer-index
