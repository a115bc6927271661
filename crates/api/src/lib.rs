//! aquifer-api
