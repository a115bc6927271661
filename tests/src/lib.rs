//! aquifer-tests
