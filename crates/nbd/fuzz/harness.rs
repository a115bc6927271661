//! What must hold for any bytes of a server: no panic, and no answer that the bytes do not support.
//!
//! Shared by the fuzz targets and the tests that replay their seeds. The first bytes of the data choose the situation; the
//! rest is the stream.

use std::ops::ControlFlow;

use aquifer_nbd::proto::handshake::{Goal, Handshake, Progress};
use aquifer_nbd::proto::reply::{Answer, Event, Replies, ReplyMode};
use aquifer_nbd::proto::request::{Command, Request};

/// The first byte: bit 0 TLS, bit 1 list, the rest how the stream is cut.
pub(crate) fn handshake(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let goal = match choice & 2 {
        0 => Goal::Open { export: "disk".to_owned(), contexts: vec!["base:allocation".to_owned()] },
        _ => Goal::List,
    };
    let mut machine = Handshake::new(goal, choice & 1 != 0);
    let mut kept = Vec::new();
    let mut out = Vec::new();
    for piece in stream.chunks(usize::from(choice >> 2) + 1) {
        kept.extend_from_slice(piece);
        match machine.feed(&kept, &mut out) {
            Ok((used, progress)) => {
                kept.drain(..used);
                match progress {
                    Progress::More => {}
                    Progress::StartTls => {
                        assert!(kept.is_empty(), "bytes in the clear survived STARTTLS");
                        machine.secured(&mut out);
                    }
                    Progress::Open(opened) => {
                        assert!(i64::try_from(opened.size_bytes).is_ok());
                        assert!(opened.blocks.minimum.is_power_of_two());
                        return;
                    }
                    Progress::Listed(_) => return,
                }
            }
            Err(_) => return,
        }
        assert!(kept.len() <= 20 + 16 * 1024, "the machine keeps {} bytes waiting", kept.len());
    }
}

/// One request of a situation, and which of its bytes were answered.
struct Asked {
    request: Request,
    answered: Vec<bool>,
    done: bool,
}

/// The first byte: two bits for the form of replies, the rest how the stream is cut. The second: how many requests, of
/// 4 KiB each; every third one is a block status.
pub(crate) fn replies(data: &[u8]) {
    let Some(([choice, count], stream)) = data.split_first_chunk::<2>() else { return };
    let mode =
        [ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended][usize::from(choice & 3).min(2)];
    let mut machine = Replies::new(mode, vec![5], 16);
    let mut asked = Vec::new();
    for number in 0..u64::from(count % 17) {
        let status = number % 3 == 2 && mode != ReplyMode::Simple;
        let command = if status { Command::BlockStatus } else { Command::Read };
        let mut request = Request { command, flags: 0, cookie: 0, offset: number * 4096, bytes: 4096 };
        let slot = machine.issue(&mut request, status.then_some(5)).expect("as many slots as requests");
        assert_eq!(slot, asked.len());
        asked.push(Asked { request, answered: vec![false; 4096], done: false });
    }
    let mut driver = Driver { machine, asked, kept: Vec::new(), payload: 0 };
    for piece in stream.chunks(usize::from(choice >> 2) + 1) {
        if driver.take(piece).is_break() {
            return;
        }
    }
}

/// Moves bytes as a connection does.
struct Driver {
    machine: Replies,
    asked: Vec<Asked>,
    kept: Vec<u8>,
    payload: usize,
}

impl Driver {
    fn take(&mut self, piece: &[u8]) -> ControlFlow<()> {
        self.kept.extend_from_slice(piece);
        loop {
            if self.payload > 0 {
                let moved = self.payload.min(self.kept.len());
                self.kept.drain(..moved);
                self.payload -= moved;
                if self.payload > 0 {
                    return ControlFlow::Continue(());
                }
                match self.machine.payload_moved() {
                    Ok(Some(event)) => self.handle(event),
                    Ok(None) => {}
                    Err(_) => return ControlFlow::Break(()),
                }
                continue;
            }
            match self.machine.feed(&self.kept) {
                Ok((used, event)) => {
                    self.kept.drain(..used);
                    match event {
                        Some(event) => self.handle(event),
                        None => return ControlFlow::Continue(()),
                    }
                }
                Err(_) => return ControlFlow::Break(()),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Payload { slot, at, bytes } => {
                self.mark(slot, at, bytes);
                self.payload = bytes as usize;
            }
            Event::Answered(answer) => self.answered(answer),
        }
    }

    fn mark(&mut self, slot: usize, at: u32, bytes: u32) {
        let asked = &mut self.asked[slot];
        assert!(!asked.done && bytes > 0);
        let part = &mut asked.answered[at as usize..(at + bytes) as usize];
        assert!(part.iter().all(|answered| !answered), "the same bytes twice");
        part.fill(true);
    }

    fn answered(&mut self, answer: Answer) {
        for (at, bytes) in &answer.holes {
            self.mark(answer.slot, *at, *bytes);
        }
        let asked = &mut self.asked[answer.slot];
        assert!(!asked.done, "answered twice");
        asked.done = true;
        if answer.failure.is_some() {
            return;
        }
        match asked.request.command {
            Command::Read => assert!(asked.answered.iter().all(|answered| *answered), "bytes are missing"),
            _ => {
                let mut at = asked.request.offset;
                for extent in &answer.extents {
                    assert!(extent.offset == at && extent.bytes > 0);
                    at += extent.bytes;
                }
                assert!(at > asked.request.offset && at <= asked.request.offset + 4096);
            }
        }
    }
}
