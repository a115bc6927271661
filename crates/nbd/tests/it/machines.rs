//! Laws of the protocol's state machines: cutting the stream elsewhere changes nothing, and no bytes make them panic.

#[path = "../../fuzz/harness.rs"]
mod harness;

use std::fs;
use std::path::Path;

use aquifer_nbd::Violation;
use aquifer_nbd::proto::handshake::{Goal, Handshake, HandshakeError, Progress};
use aquifer_nbd::proto::reply::{Answer, Event, Replies, ReplyMode};
use aquifer_nbd::proto::request::{Command, Request};
use proptest::prelude::*;

fn option_reply(option: u32, kind: u32, content: &[u8]) -> Vec<u8> {
    let mut reply = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    for number in [option, kind, content.len() as u32] {
        reply.extend(number.to_be_bytes());
    }
    reply.extend(content);
    reply
}

/// All that a well-behaved server says, by what it knows.
fn server_says(extended: bool, structured: bool, go: bool, zeroes: bool) -> Vec<u8> {
    const UNSUPPORTED: u32 = 1 << 31 | 1;
    let mut said = b"NBDMAGICIHAVEOPT".to_vec();
    said.extend([0, if zeroes { 1 } else { 3 }]);
    said.extend(option_reply(11, if extended { 1 } else { UNSUPPORTED }, b""));
    if !extended {
        said.extend(option_reply(8, if structured { 1 } else { UNSUPPORTED }, b"no"));
    }
    if extended || structured {
        said.extend(option_reply(10, 4, b"\x00\x00\x00\x05base:allocation"));
        said.extend(option_reply(10, 1, b""));
    }
    if !go {
        said.extend(option_reply(7, UNSUPPORTED, b""));
        said.extend(1_000_000u64.to_be_bytes());
        said.extend([1, 3]);
        said.extend(vec![0; if zeroes { 124 } else { 0 }]);
        return said;
    }
    said.extend(option_reply(7, 3, b"\x00\x00\x00\x00\x00\x00\x00\x0f\x42\x40\x01\x03"));
    said.extend(option_reply(7, 3, b"\x00\x02some description"));
    said.extend(option_reply(7, 3, b"\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x00\x10\x00\x00"));
    said.extend(option_reply(7, 1, b""));
    said
}

type Shaken = (Vec<u8>, Result<Progress, HandshakeError>);

/// Feeds a conversation cut at these places.
fn shake(said: &[u8], cuts: &[usize]) -> Shaken {
    let goal = Goal::Open { export: "disk".to_owned(), contexts: vec!["base:allocation".to_owned()] };
    let mut machine = Handshake::new(goal, false);
    let (mut kept, mut out) = (Vec::new(), Vec::new());
    for piece in pieces(said, cuts) {
        kept.extend_from_slice(piece);
        match machine.feed(&kept, &mut out) {
            Ok((used, Progress::More)) => drop(kept.drain(..used)),
            Ok((_, progress)) => return (out, Ok(progress)),
            Err(error) => return (out, Err(error)),
        }
    }
    (out, Ok(Progress::More))
}

fn pieces<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    places.sort_unstable();
    places.push(stream.len());
    let mut at = 0;
    places.into_iter().map(|place| &stream[std::mem::replace(&mut at, place)..place]).collect()
}

/// One read of 4 KiB and how its answer is cut: data and holes in turn, in some order.
#[derive(Debug, Clone)]
struct Plan {
    lengths: Vec<(u16, bool)>,
    backwards: bool,
    fails: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    (proptest::collection::vec((1u16..2000, any::<bool>()), 1..6), any::<bool>(), prop::bool::weighted(0.1))
        .prop_map(|(lengths, backwards, fails)| Plan { lengths, backwards, fails })
}

/// The chunks of a plan for the request with this cookie, and what the reader should hold afterwards.
fn chunks(plan: &Plan, request: Request, mode: ReplyMode) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut buffer = vec![0xee; request.bytes as usize];
    let mut parts = Vec::new();
    let mut at = 0u32;
    let last = plan.lengths.len() - 1;
    for (number, (length, hole)) in plan.lengths.iter().enumerate() {
        let rest = request.bytes - at;
        let bytes = if number == last { rest } else { u32::from(*length).min(rest) };
        if bytes == 0 {
            continue;
        }
        let offset = (request.offset + u64::from(at)).to_be_bytes();
        let mut body = offset.to_vec();
        if *hole {
            body.extend(bytes.to_be_bytes());
        } else {
            let data: Vec<u8> = (at..at + bytes).map(|at| (at % 251) as u8).collect();
            buffer[at as usize..(at + bytes) as usize].copy_from_slice(&data);
            body.extend(data);
        }
        parts.push((if *hole { 2u16 } else { 1 }, body));
        at += bytes;
    }
    if plan.backwards {
        parts.reverse();
    }
    if plan.fails {
        parts.push((1 << 15 | 1, b"\x00\x00\x00\x05\x00\x03bad".to_vec()));
    }
    parts.push((0, Vec::new()));
    let count = parts.len();
    let chunk = |(number, (kind, body)): (usize, (u16, Vec<u8>))| {
        let done = u16::from(number + 1 == count);
        let extended = mode == ReplyMode::Extended;
        let mut chunk = if extended { 0x6e8a_278cu32 } else { 0x668e_33ef }.to_be_bytes().to_vec();
        chunk.extend(done.to_be_bytes());
        chunk.extend(kind.to_be_bytes());
        chunk.extend(request.cookie.to_be_bytes());
        if extended {
            chunk.extend(request.offset.to_be_bytes());
            chunk.extend((body.len() as u64).to_be_bytes());
        } else {
            chunk.extend((body.len() as u32).to_be_bytes());
        }
        chunk.extend(body);
        chunk
    };
    (parts.into_iter().enumerate().map(chunk).collect(), buffer)
}

/// Buffers and answers after a stream cut at these places.
fn reply(
    machine: &mut Replies,
    count: usize,
    stream: &[u8],
    cuts: &[usize],
) -> Result<(Vec<Vec<u8>>, Vec<Answer>), Violation> {
    let mut buffers = vec![vec![0xee; 4096]; count];
    let mut answers = Vec::new();
    let mut kept: Vec<u8> = Vec::new();
    let mut moving: Option<(usize, usize, usize)> = None;
    for piece in pieces(stream, cuts) {
        kept.extend_from_slice(piece);
        loop {
            let event = if let Some((slot, at, left)) = moving {
                let moved = left.min(kept.len());
                buffers[slot][at..at + moved].copy_from_slice(&kept[..moved]);
                kept.drain(..moved);
                moving = Some((slot, at + moved, left - moved)).filter(|moving| moving.2 > 0);
                if moving.is_some() {
                    break;
                }
                machine.payload_moved()?
            } else {
                let (used, event) = machine.feed(&kept)?;
                kept.drain(..used);
                if event.is_none() {
                    break;
                }
                event
            };
            match event {
                Some(Event::Payload { slot, at, bytes }) => {
                    moving = Some((slot, at as usize, bytes as usize))
                }
                Some(Event::Answered(answer)) => answers.push(answer),
                None => {}
            }
        }
    }
    Ok((buffers, answers))
}

fn requests(machine: &mut Replies, count: usize) -> Vec<Request> {
    let request = |number: usize| {
        let mut request = Request {
            command: Command::Read,
            flags: 0,
            cookie: 0,
            offset: number as u64 * 8192,
            bytes: 4096,
        };
        assert_eq!(machine.issue(&mut request, None), Some(number));
        request
    };
    (0..count).map(request).collect()
}

proptest! {
    #[test]
    fn a_handshake_does_not_depend_on_where_it_is_cut(
        extended: bool, structured: bool, go: bool, zeroes: bool,
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
        broken in proptest::option::of((any::<usize>(), any::<u8>())),
    ) {
        let mut said = server_says(extended, structured, go, zeroes);
        if let Some((place, byte)) = broken {
            let place = place % said.len();
            said[place] = byte;
        }
        let whole = shake(&said, &[]);
        let cut = shake(&said, &cuts);
        let every_byte: Vec<usize> = (0..said.len()).collect();
        let crumbs = shake(&said, &every_byte);
        if broken.is_none() {
            prop_assert!(matches!(&whole.1, Ok(Progress::Open(opened)) if opened.size_bytes == 1_000_000));
            prop_assert_eq!(&whole, &cut);
            prop_assert_eq!(&whole, &crumbs);
        } else if whole.1.is_ok() {
            prop_assert_eq!(&whole, &cut);
        }
    }

    #[test]
    fn replies_do_not_depend_on_where_they_are_cut(
        plans in proptest::collection::vec(plan(), 1..5),
        extended: bool,
        order in proptest::collection::vec(any::<usize>(), 0..60),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let mode = if extended { ReplyMode::Extended } else { ReplyMode::Structured };
        let mut machine = Replies::new(mode, Vec::new(), 8);
        let requests = requests(&mut machine, plans.len());
        let mut queues = Vec::new();
        let mut expected = Vec::new();
        for (plan, request) in plans.iter().zip(&requests) {
            let (chunks, buffer) = chunks(plan, *request, mode);
            queues.push(std::collections::VecDeque::from(chunks));
            expected.push(buffer);
        }
        // Chunks of different requests may come mixed; those of one stay in order.
        let mut stream = Vec::new();
        for choice in order.into_iter().chain(0..) {
            let open: Vec<usize> = (0..queues.len()).filter(|number| !queues[*number].is_empty()).collect();
            if open.is_empty() {
                break;
            }
            let chosen = open[choice % open.len()];
            stream.extend(queues[chosen].pop_front().unwrap());
        }
        let (buffers, answers) = reply(&mut machine, plans.len(), &stream, &cuts).unwrap();
        prop_assert_eq!(answers.len(), plans.len());
        prop_assert_eq!(machine.in_flight(), 0);
        for answer in answers {
            let plan = &plans[answer.slot];
            prop_assert_eq!(answer.failure.is_some(), plan.fails);
            prop_assert_eq!(&buffers[answer.slot], &expected[answer.slot]);
            let holes: u64 = answer.holes.iter().map(|hole| u64::from(hole.1)).sum();
            let untouched = expected[answer.slot].iter().filter(|byte| **byte == 0xee).count() as u64;
            prop_assert!(holes <= untouched, "data was taken for a hole");
        }
    }

    #[test]
    fn a_flipped_bit_never_makes_a_read_succeed_with_bytes_missing(
        plans in proptest::collection::vec(plan(), 1..4), place: prop::sample::Index, bit in 0u8..8, count in 1u8..4,
    ) {
        let mut machine = Replies::new(ReplyMode::Structured, Vec::new(), 16);
        let requests = requests(&mut machine, plans.len());
        let mut data = vec![1 | 63 << 2, count];
        for (plan, request) in plans.iter().zip(requests) {
            // The harness asks at other offsets, so offsets are moved to its own.
            let request = Request { offset: request.offset / 2, ..request };
            data.extend(chunks(plan, request, ReplyMode::Structured).0.concat());
        }
        let place = place.index(data.len() - 2) + 2;
        data[place] ^= 1 << bit;
        harness::replies(&data);
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        harness::handshake(&data);
        harness::replies(&data);
        let mut greeted = vec![data.first().copied().unwrap_or(0)];
        greeted.extend(b"NBDMAGICIHAVEOPT\x00\x03");
        greeted.extend(&data);
        harness::handshake(&greeted);
    }
}

#[test]
fn the_seeds_of_the_fuzzer_hold() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let target = |name| if name == "replies" { harness::replies as fn(&[u8]) } else { harness::handshake };
    for name in ["handshake", "replies"] {
        let mut seen = 0;
        for seed in fs::read_dir(corpus.join(name)).expect("a folder of seeds") {
            target(name)(&fs::read(seed.expect("seed").path()).expect("bytes"));
            seen += 1;
        }
        assert!(seen > 0, "no seeds for {name}");
    }
}
