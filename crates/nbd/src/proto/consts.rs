//! Numbers of the NBD protocol, under the names of its `proto.md` without the `NBD_` prefix.
//!
//! Only what the client sends or understands is here.

use std::fmt;

/// First eight bytes of every server.
pub const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Second eight bytes of a newstyle server, and the start of every option.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Second eight bytes of an oldstyle server (before 2011), which has no options.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag: the server answers options it does not know.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zero bytes after `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Option: choose an export and begin, without an error message when it is not there.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: leave politely.
pub const OPT_ABORT: u32 = 2;
/// Option: list the exports.
pub const OPT_LIST: u32 = 3;
/// Option: go on under TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Option: choose an export and begin, with information.
pub const OPT_GO: u32 = 7;
/// Option: structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: choose metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Option: extended headers (which include structured replies).
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: done.
pub const REP_ACK: u32 = 1;
/// Option reply: one export of a list.
pub const REP_SERVER: u32 = 2;
/// Option reply: a piece of information about an export.
pub const REP_INFO: u32 = 3;
/// Option reply: a metadata context and its number.
pub const REP_META_CONTEXT: u32 = 4;
/// Option replies with this bit are refusals.
pub const REP_ERROR_BIT: u32 = 1 << 31;

/// Information: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: minimum, preferred and maximum block.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the export cannot be written.
pub const TRANSMISSION_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: FLUSH is understood.
pub const TRANSMISSION_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: TRIM is understood.
pub const TRANSMISSION_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: WRITE_ZEROES is understood.
pub const TRANSMISSION_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: several connections see one and the same state.
pub const TRANSMISSION_CAN_MULTI_CONN: u16 = 1 << 8;

/// Command flag of WRITE_ZEROES: allocate, do not punch a hole.
pub const COMMAND_FLAG_NO_HOLE: u16 = 1 << 1;

/// Reply flag: the last chunk of a reply.
pub const REPLY_FLAG_DONE: u16 = 1;
/// Chunk without content, which ends a reply.
pub const CHUNK_NONE: u16 = 0;
/// Chunk of data at an offset.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk that stands for zeros at an offset.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk of extents with 32-bit lengths.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk of extents with 64-bit lengths.
pub const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Chunk types with this bit are errors.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// The longest string of the protocol in bytes: names, messages.
pub const STRING_BYTES_MAX: usize = 4096;

/// An error code as the peer sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u32);

impl fmt::Display for Errno {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "EPERM",
            5 => "EIO",
            12 => "ENOMEM",
            22 => "EINVAL",
            28 => "ENOSPC",
            75 => "EOVERFLOW",
            95 => "ENOTSUP",
            108 => "ESHUTDOWN",
            other => return write!(out, "error {other}"),
        };
        write!(out, "{name} ({})", self.0)
    }
}
