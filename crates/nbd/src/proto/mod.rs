//! The NBD protocol without I/O: state machines that take bytes and give values.
//!
//! Nothing here opens a socket, reads a clock, starts a task or allocates more than a bound known before reading. The
//! driver in `client` moves the bytes; [`handshake::Handshake`] and [`reply::Replies`] decide what they mean.
//!
//! Invariant: the result of a machine does not depend on where the stream was cut into pieces, and no input panics.

pub mod consts;
mod coverage;
mod cursor;
pub mod extent;
pub mod handshake;
pub mod option;
pub mod reply;
pub mod request;
mod table;
pub mod violation;
