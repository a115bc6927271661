//! aquifer-nbd
