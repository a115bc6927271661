//! aquifer-engine
