//! What a peer can do against the protocol, one variant a deed.
//!
//! A violation ends its connection at once and is never retried: a peer that is wrong about the framing may be wrong
//! about the data too.

/// A breach of the protocol by the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The first 16 bytes are not those of an NBD server.
    #[error("its greeting begins {0:#018x} {1:#018x}, which is not NBD")]
    Greeting(u64, u64),
    /// The server speaks the protocol of before 2011.
    #[error(
        "it speaks the oldstyle protocol, which has no export names and ended in 2011; update the server"
    )]
    Oldstyle,
    /// A reply to an option without its magic.
    #[error("a reply to an option begins {0:#018x}")]
    OptionMagic(u64),
    /// A reply to an option nobody sent.
    #[error("it answered option {got} when option {sent} was asked")]
    OptionMismatch {
        /// The option sent.
        sent: u32,
        /// The option answered.
        got: u32,
    },
    /// A kind of reply that does not belong to the option.
    #[error("it answered option {option} with a reply of kind {kind:#x}")]
    OptionReply {
        /// The option sent.
        option: u32,
        /// The kind of reply.
        kind: u32,
    },
    /// A reply to an option whose content does not fit its length.
    #[error("its reply of kind {kind:#x} to option {option} has {bytes} bytes that do not parse")]
    OptionBody {
        /// The option sent.
        option: u32,
        /// The kind of reply.
        kind: u32,
        /// Length in bytes.
        bytes: u32,
    },
    /// A reply to an option that is longer than any real one.
    #[error("its reply to option {option} announces {bytes} bytes")]
    OptionLength {
        /// The option sent.
        option: u32,
        /// The announced length in bytes.
        bytes: u32,
    },
    /// Replies to one option without end.
    #[error("its replies to option {option} do not end")]
    EndlessReplies {
        /// The option sent.
        option: u32,
    },
    /// A metadata context that was not asked for, or twice.
    #[error("it granted the metadata context {0:?}, which was not asked for or was granted before")]
    UnaskedContext(String),
    /// GO without the export's size.
    #[error("it accepted the export without telling its size")]
    NoSize,
    /// A size beyond 2^63 - 1 bytes, which no disk has.
    #[error("it says that the export has {0} bytes")]
    Size(u64),
    /// Block sizes that contradict each other or the protocol.
    #[error("its block sizes make no sense: minimum {minimum}, preferred {preferred}, maximum {maximum}")]
    BlockSizes {
        /// Minimum in bytes.
        minimum: u32,
        /// Preferred in bytes.
        preferred: u32,
        /// Maximum in bytes.
        maximum: u32,
    },
    /// Bytes in the clear after TLS was agreed on: an injection, or a server that is confused.
    #[error("it sent {0} bytes in the clear after agreeing to TLS")]
    BytesBeforeTls(usize),
    /// Bytes before any request.
    #[error("it sent {0} bytes before any request")]
    UnaskedBytes(usize),
    /// A reply that begins with the wrong magic for what was negotiated.
    #[error("a reply begins {0:#010x}")]
    ReplyMagic(u32),
    /// A reply to no request in flight: a wrong cookie, or a request answered twice.
    #[error("it answered cookie {0:#x}, which is not in flight")]
    UnknownCookie(u64),
    /// An extended reply whose offset is not the request's.
    #[error("it answered the request at {sent} with the offset {got}")]
    ReplyOffset {
        /// Offset of the request.
        sent: u64,
        /// Offset in the reply.
        got: u64,
    },
    /// A chunk of a kind that the request does not have.
    #[error("it answered {command} at {offset} with a chunk of kind {kind:#x}")]
    ChunkKind {
        /// The command's name.
        command: &'static str,
        /// Offset of the request.
        offset: u64,
        /// Kind of the chunk.
        kind: u16,
    },
    /// A chunk whose length does not fit its kind.
    #[error("a chunk of kind {kind:#x} for the request at {offset} has {bytes} bytes, which cannot be")]
    ChunkLength {
        /// Kind of the chunk.
        kind: u16,
        /// Offset of the request.
        offset: u64,
        /// Announced length in bytes.
        bytes: u64,
    },
    /// Data outside the request.
    #[error("for {bytes} bytes at {offset} it sent {got_bytes} bytes at {got_offset}")]
    Outside {
        /// Offset of the request.
        offset: u64,
        /// Length of the request in bytes.
        bytes: u32,
        /// Offset of the chunk.
        got_offset: u64,
        /// Length of the chunk in bytes.
        got_bytes: u64,
    },
    /// The same bytes twice.
    #[error("it sent {bytes} bytes at {offset} twice")]
    Overlap {
        /// Offset of the chunk.
        offset: u64,
        /// Length of the chunk in bytes.
        bytes: u32,
    },
    /// A reply that ended before all bytes were there.
    #[error("its reply to {bytes} bytes at {offset} ended with {missing} bytes missing")]
    Gap {
        /// Offset of the request.
        offset: u64,
        /// Length of the request in bytes.
        bytes: u32,
        /// Bytes not covered.
        missing: u64,
    },
    /// More chunks than a reply can need.
    #[error("its reply at {offset} comes in more than {limit} chunks")]
    Chunks {
        /// Offset of the request.
        offset: u64,
        /// The limit.
        limit: u32,
    },
    /// An error chunk with the code for success, or a message longer than its chunk.
    #[error("its error chunk for the request at {offset} makes no sense")]
    ErrorChunk {
        /// Offset of the request.
        offset: u64,
    },
    /// Extents for a metadata context that was not negotiated, or twice.
    #[error("it sent extents of metadata context {0}, which is not negotiated or was sent before")]
    ContextId(u32),
    /// Block status that ended without the context asked for.
    #[error("its block status at {offset} lacks the metadata context")]
    NoExtents {
        /// Offset of the request.
        offset: u64,
    },
    /// An extent of length 0.
    #[error("its block status at {offset} has an extent of length 0")]
    ZeroExtent {
        /// Offset of the request.
        offset: u64,
    },
    /// Extents that go on after the end of the request.
    #[error("its block status at {offset} goes on after the end of the request")]
    EndlessExtents {
        /// Offset of the request.
        offset: u64,
    },
    /// Status flags beyond 32 bits.
    #[error("its block status at {offset} has flags {flags:#x}, more than 32 bits")]
    WideFlags {
        /// Offset of the request.
        offset: u64,
        /// The flags.
        flags: u64,
    },
    /// A write answered before its data was sent.
    #[error("it answered the write at {offset} before it had the data")]
    EarlyReply {
        /// Offset of the request.
        offset: u64,
    },
}
