//! aquifer-testkit
