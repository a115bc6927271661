//! aquifer-store
