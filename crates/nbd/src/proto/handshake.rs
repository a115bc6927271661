//! The handshake as a state machine: from the greeting to an export that can be read.
//!
//! Order: STARTTLS when the URI says so, EXTENDED_HEADERS, else STRUCTURED_REPLY, then SET_META_CONTEXT, then GO, else
//! EXPORT_NAME. A server without fixed newstyle gets EXPORT_NAME at once, because it answers nothing else.
//!
//! Invariant: with TLS wanted, no option but STARTTLS is sent in the clear, and no byte that came in the clear after the
//! greeting survives it.

use super::consts::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE, INFO_EXPORT, MAGIC, OLDSTYLE_MAGIC, OPT_ABORT,
    OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_LIST, OPT_SET_META_CONTEXT, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, OPTION_MAGIC, REP_ACK, REP_INFO, REP_META_CONTEXT, REP_SERVER,
};
use super::cursor::Cursor;
use super::option::{self, OptionReply, Refusal};
use super::reply::ReplyMode;
use super::violation::Violation;

/// Most exports of a LIST that are kept.
const EXPORTS_MAX: usize = 4096;
/// Most pieces of information that a server may send for one GO.
const INFOS_MAX: u32 = 64;
/// Zero bytes after the answer to EXPORT_NAME, unless both sides agreed to leave them out.
const EXPORT_NAME_ZEROES: usize = 124;
/// Largest minimum block that is accepted, in bytes (NBD protocol, "Block size constraints").
const MINIMUM_BLOCK_BYTES_MAX: u32 = 64 * 1024;

/// What the handshake is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Open an export, with these metadata contexts where the server has them.
    Open {
        /// The export's name.
        export: String,
        /// Exact names of contexts.
        contexts: Vec<String>,
    },
    /// List the exports.
    List,
}

/// The block sizes of an export in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every request is a multiple of this.
    pub minimum: u32,
    /// Requests of multiples of this are fast.
    pub preferred: u32,
    /// No payload may be longer.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What the protocol tells clients to assume of a server that does not say.
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 }
    }
}

/// A metadata context that the server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its number on this connection.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// The outcome of a handshake that opened an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Block sizes.
    pub blocks: BlockSizes,
    /// The contexts granted.
    pub contexts: Vec<Context>,
    /// The form of requests and replies.
    pub mode: ReplyMode,
    /// False when the server knew only EXPORT_NAME.
    pub with_go: bool,
}

/// One export of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name.
    pub name: String,
    /// The server's words about it, mostly empty.
    pub description: String,
}

/// What the driver has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Send what was put out, read more.
    More,
    /// Send what was put out, start TLS, then call [`Handshake::secured`].
    StartTls,
    /// The export is open.
    Open(Box<Negotiated>),
    /// The list is complete.
    Listed(Vec<ListedExport>),
}

/// Why a handshake ends without an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandshakeError {
    /// The server broke the protocol.
    Violation(Violation),
    /// The server wants TLS, the caller did not.
    TlsRequired {
        /// The server's words.
        message: String,
    },
    /// The caller wants TLS, the server refused or cannot.
    TlsRefused {
        /// The kind of refusal.
        refusal: Refusal,
        /// The server's words.
        message: String,
    },
    /// The server refused the export or the list.
    Refused {
        /// The option that was refused.
        option: u32,
        /// The kind of refusal.
        refusal: Refusal,
        /// The server's words.
        message: String,
    },
}

impl From<Violation> for HandshakeError {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    /// Waiting for the replies to this option.
    Option(u32),
    /// TLS is agreed; the driver is at it.
    Tls,
    Finished,
}

/// The state machine. Feed it everything the server sends, send everything it puts out.
#[derive(Debug)]
pub struct Handshake {
    goal: Goal,
    tls: bool,
    state: State,
    server_flags: u16,
    mode: ReplyMode,
    contexts: Vec<Context>,
    size: Option<(u64, u16)>,
    blocks: BlockSizes,
    infos: u32,
    listed: Vec<ListedExport>,
}

impl Handshake {
    /// A handshake that has seen nothing yet. With `tls` it goes on only under TLS.
    pub fn new(goal: Goal, tls: bool) -> Self {
        Self {
            goal,
            tls,
            state: State::Greeting,
            server_flags: 0,
            mode: ReplyMode::Simple,
            contexts: Vec::new(),
            size: None,
            blocks: BlockSizes::default(),
            infos: 0,
            listed: Vec::new(),
        }
    }

    /// True when the server's greeting has arrived.
    pub fn greeted(&self) -> bool {
        self.state != State::Greeting
    }

    /// The option that waits for its answer, for messages about a connection that ended here.
    pub fn pending_option(&self) -> Option<u32> {
        match self.state {
            State::Option(option) => Some(option),
            State::Greeting | State::Tls | State::Finished => None,
        }
    }

    /// Takes whole messages from `input`, appends what is to be sent to `out`, and says how many bytes were used. The
    /// caller keeps the rest and calls again when more has come.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the connection is then of no use.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Progress), HandshakeError> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let (taken, progress) = match self.state {
                State::Greeting => (self.greeting(rest, out)?, Progress::More),
                State::Option(OPT_EXPORT_NAME) => self.export_name_reply(rest)?,
                State::Option(option) => self.option_reply(option, rest, out)?,
                State::Tls | State::Finished => (0, Progress::More),
            };
            used += taken;
            match progress {
                Progress::More if taken > 0 => {}
                Progress::More => return Ok((used, progress)),
                Progress::StartTls if used < input.len() => {
                    return Err(Violation::BytesBeforeTls(input.len() - used).into());
                }
                Progress::Open(_) if used < input.len() => {
                    return Err(Violation::UnaskedBytes(input.len() - used).into());
                }
                Progress::StartTls | Progress::Open(_) | Progress::Listed(_) => return Ok((used, progress)),
            }
        }
    }

    /// Goes on after TLS was set up. Nothing learned before counts, except the greeting's flags, which the protocol does
    /// not repeat.
    pub fn secured(&mut self, out: &mut Vec<u8>) {
        if self.state == State::Tls {
            self.first_option(out);
        }
    }

    /// Appends the polite end of a handshake that opens nothing.
    pub fn abort(out: &mut Vec<u8>) {
        option::encode(OPT_ABORT, &[], out);
    }

    fn send(&mut self, option: u32, content: &[u8], out: &mut Vec<u8>) {
        option::encode(option, content, out);
        self.state = State::Option(option);
    }

    fn greeting(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, HandshakeError> {
        let mut cursor = Cursor::new(input);
        let (Some(first), Some(second)) = (cursor.u64(), cursor.u64()) else { return Ok(0) };
        match (first, second) {
            (MAGIC, OPTION_MAGIC) => {}
            (MAGIC, OLDSTYLE_MAGIC) => return Err(Violation::Oldstyle.into()),
            (first, second) => return Err(Violation::Greeting(first, second).into()),
        }
        let Some(flags) = cursor.u16() else { return Ok(0) };
        self.server_flags = flags;
        let known = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        out.extend_from_slice(&u32::from(known).to_be_bytes());
        let fixed = flags & FLAG_FIXED_NEWSTYLE != 0;
        match (self.tls, fixed) {
            (true, true) => self.send(OPT_STARTTLS, &[], out),
            (true, false) => {
                return Err(HandshakeError::TlsRefused {
                    refusal: Refusal::Unsupported,
                    message: "the server is too old for options".to_owned(),
                });
            }
            (false, _) => self.first_option(out),
        }
        Ok(input.len() - cursor.rest().len())
    }

    fn first_option(&mut self, out: &mut Vec<u8>) {
        let fixed = self.server_flags & FLAG_FIXED_NEWSTYLE != 0;
        match self.goal {
            Goal::List => self.send(OPT_LIST, &[], out),
            Goal::Open { .. } if fixed => self.send(OPT_EXTENDED_HEADERS, &[], out),
            Goal::Open { .. } => self.send_export_name(out),
        }
    }

    fn send_contexts(&mut self, out: &mut Vec<u8>) {
        match &self.goal {
            Goal::Open { export, contexts } if !contexts.is_empty() => {
                let content = option::set_meta_context(export, contexts);
                self.send(OPT_SET_META_CONTEXT, &content, out);
            }
            _ => self.send_go(out),
        }
    }

    fn send_go(&mut self, out: &mut Vec<u8>) {
        if let Goal::Open { export, .. } = &self.goal {
            let content = option::go(export);
            self.send(OPT_GO, &content, out);
        }
    }

    fn send_export_name(&mut self, out: &mut Vec<u8>) {
        if let Goal::Open { export, .. } = &self.goal {
            let content = export.clone().into_bytes();
            self.send(OPT_EXPORT_NAME, &content, out);
        }
    }

    /// The answer to EXPORT_NAME is the only one without a header, and the only one that cannot say no.
    fn export_name_reply(&mut self, input: &[u8]) -> Result<(usize, Progress), Violation> {
        let mut cursor = Cursor::new(input);
        let zeroes = if self.server_flags & FLAG_NO_ZEROES == 0 { EXPORT_NAME_ZEROES } else { 0 };
        let (Some(size), Some(flags), Some(_)) = (cursor.u64(), cursor.u16(), cursor.take(zeroes)) else {
            return Ok((0, Progress::More));
        };
        Ok((input.len() - cursor.rest().len(), self.opened(size, flags, false)?))
    }

    fn opened(&mut self, size_bytes: u64, flags: u16, with_go: bool) -> Result<Progress, Violation> {
        // Within this bound no sum of an offset and a length overflows.
        if i64::try_from(size_bytes).is_err() {
            return Err(Violation::Size(size_bytes));
        }
        self.state = State::Finished;
        Ok(Progress::Open(Box::new(Negotiated {
            size_bytes,
            flags,
            blocks: self.blocks,
            contexts: std::mem::take(&mut self.contexts),
            mode: self.mode,
            with_go,
        })))
    }

    fn option_reply(
        &mut self,
        option: u32,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        let Some((reply, used)) = OptionReply::decode(option, input)? else { return Ok((0, Progress::More)) };
        let progress = match Refusal::of(reply.kind) {
            Some(refusal) => self.refused(option, refusal, &reply, out)?,
            None if reply.kind == REP_ACK => self.acknowledged(option, out)?,
            None => self.informed(option, &reply)?,
        };
        Ok((used, progress))
    }

    fn refused(
        &mut self,
        option: u32,
        refusal: Refusal,
        reply: &OptionReply<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        let message = reply.message();
        match (option, refusal) {
            (OPT_STARTTLS, _) => return Err(HandshakeError::TlsRefused { refusal, message }),
            (_, Refusal::TlsRequired) => return Err(HandshakeError::TlsRequired { message }),
            (_, Refusal::Shutdown) => return Err(HandshakeError::Refused { option, refusal, message }),
            (OPT_EXTENDED_HEADERS, _) => self.send(OPT_STRUCTURED_REPLY, &[], out),
            // Without structured replies there is no block status, so no contexts either.
            (OPT_STRUCTURED_REPLY, _) => self.send_go(out),
            // An export that is not there is better reported by GO.
            (OPT_SET_META_CONTEXT, _) => {
                self.contexts.clear();
                self.send_go(out);
            }
            (OPT_GO, Refusal::Unsupported) => self.send_export_name(out),
            _ => return Err(HandshakeError::Refused { option, refusal, message }),
        }
        Ok(Progress::More)
    }

    fn acknowledged(&mut self, option: u32, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        match option {
            OPT_STARTTLS => {
                self.state = State::Tls;
                return Ok(Progress::StartTls);
            }
            OPT_EXTENDED_HEADERS | OPT_STRUCTURED_REPLY => {
                let extended = option == OPT_EXTENDED_HEADERS;
                self.mode = if extended { ReplyMode::Extended } else { ReplyMode::Structured };
                self.send_contexts(out);
            }
            OPT_SET_META_CONTEXT => self.send_go(out),
            OPT_GO => {
                let (size, flags) = self.size.ok_or(Violation::NoSize)?;
                return Ok(self.opened(size, flags, true)?);
            }
            OPT_LIST => {
                self.state = State::Finished;
                return Ok(Progress::Listed(std::mem::take(&mut self.listed)));
            }
            _ => return Err(Violation::OptionReply { option, kind: REP_ACK }.into()),
        }
        Ok(Progress::More)
    }

    fn informed(&mut self, option: u32, reply: &OptionReply<'_>) -> Result<Progress, HandshakeError> {
        let parsed = match (option, reply.kind) {
            (OPT_SET_META_CONTEXT, REP_META_CONTEXT) => self.context_granted(reply)?,
            (OPT_GO, REP_INFO) => self.info(reply)?,
            (OPT_LIST, REP_SERVER) => self.export_listed(reply)?,
            (_, kind) => return Err(Violation::OptionReply { option, kind }.into()),
        };
        parsed.ok_or_else(|| reply.malformed(option))?;
        Ok(Progress::More)
    }

    fn context_granted(&mut self, reply: &OptionReply<'_>) -> Result<Option<()>, Violation> {
        let mut cursor = Cursor::new(reply.content);
        let Some(id) = cursor.u32() else { return Ok(None) };
        let Ok(name) = std::str::from_utf8(cursor.rest()) else { return Ok(None) };
        let asked = matches!(&self.goal, Goal::Open { contexts, .. } if contexts.iter().any(|c| c == name));
        if !asked || self.contexts.iter().any(|context| context.id == id || context.name == name) {
            return Err(Violation::UnaskedContext(name.to_owned()));
        }
        self.contexts.push(Context { id, name: name.to_owned() });
        Ok(Some(()))
    }

    fn info(&mut self, reply: &OptionReply<'_>) -> Result<Option<()>, Violation> {
        self.infos += 1;
        if self.infos > INFOS_MAX {
            return Err(Violation::EndlessReplies { option: OPT_GO });
        }
        let mut cursor = Cursor::new(reply.content);
        match cursor.u16() {
            Some(INFO_EXPORT) => {
                let (Some(size), Some(flags), []) = (cursor.u64(), cursor.u16(), cursor.rest()) else {
                    return Ok(None);
                };
                self.size = Some((size, flags));
            }
            Some(INFO_BLOCK_SIZE) => {
                let (Some(minimum), Some(preferred), Some(maximum), []) =
                    (cursor.u32(), cursor.u32(), cursor.u32(), cursor.rest())
                else {
                    return Ok(None);
                };
                self.blocks = check_blocks(BlockSizes { minimum, preferred, maximum })?;
            }
            // Names and descriptions are of no use here, and the protocol lets a server send what nobody asked for.
            Some(_) => {}
            None => return Ok(None),
        }
        Ok(Some(()))
    }

    fn export_listed(&mut self, reply: &OptionReply<'_>) -> Result<Option<()>, Violation> {
        if self.listed.len() == EXPORTS_MAX {
            return Err(Violation::EndlessReplies { option: OPT_LIST });
        }
        let mut cursor = Cursor::new(reply.content);
        let Some(name) = cursor.counted() else { return Ok(None) };
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        self.listed.push(ListedExport { name: text(name), description: text(cursor.rest()) });
        Ok(Some(()))
    }
}

fn check_blocks(blocks: BlockSizes) -> Result<BlockSizes, Violation> {
    let BlockSizes { minimum, preferred, maximum } = blocks;
    let sane = minimum.is_power_of_two()
        && minimum <= MINIMUM_BLOCK_BYTES_MAX
        && preferred >= minimum
        && maximum >= minimum
        && (maximum == u32::MAX || maximum % minimum == 0);
    if sane { Ok(blocks) } else { Err(Violation::BlockSizes { minimum, preferred, maximum }) }
}
