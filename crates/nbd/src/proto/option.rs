//! Options of the handshake: their bytes, and the replies to them.

use std::fmt;

use super::consts::{
    INFO_BLOCK_SIZE, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_LIST, OPT_SET_META_CONTEXT,
    OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_ERROR_BIT,
};
use super::cursor::Cursor;
use super::violation::Violation;

/// The longest reply to an option that is read, in bytes: an export's name and description, both at the protocol's limit,
/// fit with room to spare.
pub const OPTION_REPLY_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of a reply before its content.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// How a server says no to an option (NBD protocol, "Option reply types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not known to the server.
    Unsupported,
    /// Forbidden by the server's configuration.
    Policy,
    /// The server finds the option malformed.
    Invalid,
    /// Not on this platform.
    Platform,
    /// Only under TLS.
    TlsRequired,
    /// No such export.
    Unknown,
    /// The server is going down.
    Shutdown,
    /// Only for clients that ask for block sizes.
    BlockSizeRequired,
    /// Too big.
    TooBig,
    /// Only for clients with extended headers.
    ExtendedHeadersRequired,
    /// The server closed the connection instead of answering, which is how `EXPORT_NAME` is refused.
    Hangup,
    /// A refusal this client does not know, with its number.
    Other(u32),
}

impl Refusal {
    /// The refusal in a reply of this kind; `None` when the reply is no refusal.
    pub fn of(kind: u32) -> Option<Self> {
        let code = kind.checked_sub(REP_ERROR_BIT)?;
        Some(match code {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::Unknown,
            7 => Self::Shutdown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            10 => Self::ExtendedHeadersRequired,
            _ => Self::Other(kind),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Unsupported => "not supported",
            Self::Policy => "forbidden by the server's policy",
            Self::Invalid => "invalid request",
            Self::Platform => "not supported on the server's platform",
            Self::TlsRequired => "TLS is required",
            Self::Unknown => "no such export",
            Self::Shutdown => "the server is shutting down",
            Self::BlockSizeRequired => "block sizes must be negotiated",
            Self::TooBig => "too big",
            Self::ExtendedHeadersRequired => "extended headers are required",
            Self::Hangup => "it closed the connection, which an old server does when it has no such export",
            Self::Other(kind) => return write!(out, "refusal {kind:#x}"),
        })
    }
}

/// The name of an option in messages.
pub fn name(option: u32) -> &'static str {
    match option {
        OPT_EXPORT_NAME => "EXPORT_NAME",
        OPT_LIST => "LIST",
        OPT_STARTTLS => "STARTTLS",
        OPT_GO => "GO",
        OPT_STRUCTURED_REPLY => "STRUCTURED_REPLY",
        OPT_SET_META_CONTEXT => "SET_META_CONTEXT",
        OPT_EXTENDED_HEADERS => "EXTENDED_HEADERS",
        _ => "an option",
    }
}

/// Appends an option with its content. Contents come from [`go`] and [`set_meta_context`] and are short.
pub fn encode(option: u32, content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&length(content).to_be_bytes());
    out.extend_from_slice(content);
}

/// Content of `GO`: the export, and that block sizes are wanted.
pub fn go(export: &str) -> Vec<u8> {
    let mut content = counted(export);
    content.extend_from_slice(&1u16.to_be_bytes());
    content.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    content
}

/// Content of `SET_META_CONTEXT`: the export and the contexts.
pub fn set_meta_context(export: &str, contexts: &[String]) -> Vec<u8> {
    let mut content = counted(export);
    content.extend_from_slice(&u32::try_from(contexts.len()).unwrap_or(u32::MAX).to_be_bytes());
    for context in contexts {
        content.extend_from_slice(&counted(context));
    }
    content
}

fn counted(text: &str) -> Vec<u8> {
    let mut out = length(text.as_bytes()).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

/// Names are at most 4096 bytes and contexts are few, so the maximum is never met; a server would refuse it.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// One reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReply<'a> {
    /// What kind of reply.
    pub kind: u32,
    /// Its content.
    pub content: &'a [u8],
}

impl<'a> OptionReply<'a> {
    /// Decodes the reply to `sent` at the front of `input`; `None` when more bytes are needed. The number is the bytes
    /// used.
    ///
    /// # Errors
    /// A wrong magic, another option's reply, or a length beyond [`OPTION_REPLY_BYTES_MAX`].
    pub fn decode(sent: u32, input: &'a [u8]) -> Result<Option<(Self, usize)>, Violation> {
        let mut cursor = Cursor::new(input);
        let Some(magic) = cursor.u64() else { return Ok(None) };
        if magic != OPTION_REPLY_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
        let (Some(got), Some(kind), Some(bytes)) = (cursor.u32(), cursor.u32(), cursor.u32()) else {
            return Ok(None);
        };
        if got != sent {
            return Err(Violation::OptionMismatch { sent, got });
        }
        if bytes > OPTION_REPLY_BYTES_MAX {
            return Err(Violation::OptionLength { option: sent, bytes });
        }
        let Some(content) = usize::try_from(bytes).ok().and_then(|bytes| cursor.take(bytes)) else {
            return Ok(None);
        };
        Ok(Some((Self { kind, content }, OPTION_REPLY_HEADER_BYTES + content.len())))
    }

    /// The content as the words of a refusal.
    pub fn message(&self) -> String {
        String::from_utf8_lossy(self.content).into_owned()
    }

    /// The violation of a content that does not parse.
    pub fn malformed(&self, option: u32) -> Violation {
        Violation::OptionBody { option, kind: self.kind, bytes: length(self.content) }
    }
}
