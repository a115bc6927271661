//! aquifer-repository
