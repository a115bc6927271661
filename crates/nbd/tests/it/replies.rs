//! Replies that break the protocol: each is one named error, at once.

use std::time::{Duration, Instant};

use aquifer_nbd::{Client, Error, Violation};

use crate::hostile::{CONTEXT_ID, Conn, Hostile, Offer, PLAIN, Request, SIZE, content};
use crate::peers::quick;

const READ: u16 = 0;
const EXTENDED: Offer = Offer { extended: true, ..PLAIN };
const SIMPLE: Offer = Offer { structured: false, ..PLAIN };

/// The error of reading 8 KiB at 4096 from a server with this script.
async fn read_error(
    offer: Offer,
    script: impl Fn(&mut Conn, Request) -> std::io::Result<()> + Send + Sync + 'static,
) -> Error {
    let server = Hostile::replying(offer, script);
    let client = Client::connect(&server.uri, &quick()).await.expect("connect");
    let begun = Instant::now();
    let error = client.read(4096, vec![0; 8192]).await.expect_err("the read must fail");
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    let text = error.to_string();
    assert!(text.contains("\"disk\""), "{text} does not name the export");
    error
}

async fn read_violation(
    offer: Offer,
    script: impl Fn(&mut Conn, Request) -> std::io::Result<()> + Send + Sync + 'static,
) -> Violation {
    match read_error(offer, script).await {
        Error::Violation { violation, .. } => violation,
        other => panic!("{other}"),
    }
}

async fn status_violation(
    script: impl Fn(&mut Conn, Request) -> std::io::Result<()> + Send + Sync + 'static,
) -> Violation {
    let server = Hostile::replying(PLAIN, script);
    let client = Client::connect(&server.uri, &quick()).await.expect("connect");
    let mut extents = client.extents("base:allocation", 0..SIZE).expect("context");
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(5), "extents without end");
        match extents.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the extents ended without an error"),
            Err(Error::Violation { violation, .. }) => return violation,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_good_answer_is_a_good_read() {
    let server = Hostile::replying(PLAIN, |conn, request| conn.answer(request));
    let client = Client::connect(&server.uri, &quick()).await.unwrap();
    assert_eq!(client.read(4096, vec![0; 8192]).await.unwrap().buffer, content(4096, 8192));
}

#[tokio::test]
async fn a_wrong_cookie_is_found_out() {
    let violation = read_violation(PLAIN, |conn, request| {
        conn.data(true, request.cookie ^ 1 << 20, request.offset, request.bytes as usize)
    });
    assert!(matches!(violation.await, Violation::UnknownCookie(_)));
}

#[tokio::test]
async fn a_request_answered_twice_is_found_out() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(PLAIN)?;
        let first = conn.request()?;
        conn.request()?;
        conn.answer(first)?;
        conn.answer(first)?;
        conn.until_closed()
    });
    let client = Client::connect(&server.uri, &quick()).await.unwrap();
    match client.read(0, vec![0; 1024 * 1024]).await {
        Err(Error::Violation { violation: Violation::UnknownCookie(_), .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_sent_twice_are_found_out() {
    let violation = read_violation(PLAIN, |conn, request| {
        conn.data(false, request.cookie, 4096, 4096)?;
        conn.data(true, request.cookie, 8191, 4096)
    });
    assert_eq!(violation.await, Violation::Overlap { offset: 8191, bytes: 4096 });
}

#[tokio::test]
async fn a_hole_over_data_is_found_out() {
    let violation = read_violation(PLAIN, |conn, request| {
        conn.data(false, request.cookie, 4096, 8192)?;
        conn.hole(true, request.cookie, 4096, 8192)
    });
    assert_eq!(violation.await, Violation::Overlap { offset: 4096, bytes: 8192 });
}

#[tokio::test]
async fn a_gap_never_passes_as_zeros() {
    let violation = read_violation(PLAIN, |conn, request| {
        conn.data(false, request.cookie, 4096, 4096)?;
        conn.data(true, request.cookie, 8704, 3584)
    });
    assert_eq!(violation.await, Violation::Gap { offset: 4096, bytes: 8192, missing: 512 });
}

#[tokio::test]
async fn an_answer_without_data_is_found_out() {
    let violation = read_violation(PLAIN, |conn, request| conn.chunk(true, 0, request.cookie, &[]));
    assert_eq!(violation.await, Violation::Gap { offset: 4096, bytes: 8192, missing: 8192 });
}

#[tokio::test]
async fn more_data_than_asked_for_is_found_out_before_it_is_read() {
    let violation = read_violation(PLAIN, |conn, request| {
        conn.head(true, 1, request.cookie, u32::MAX)?;
        conn.send(&request.offset.to_be_bytes())
    });
    let expected = Violation::ChunkLength { kind: 1, offset: 4096, bytes: u64::from(u32::MAX) };
    assert_eq!(violation.await, expected);
}

#[tokio::test]
async fn data_beside_the_request_is_found_out() {
    let before = read_violation(PLAIN, |conn, request| conn.data(true, request.cookie, 4095, 2));
    let expected = Violation::Outside { offset: 4096, bytes: 8192, got_offset: 4095, got_bytes: 2 };
    assert_eq!(before.await, expected);
    let behind = read_violation(PLAIN, |conn, request| conn.data(true, request.cookie, 12287, 2));
    let expected = Violation::Outside { offset: 4096, bytes: 8192, got_offset: 12287, got_bytes: 2 };
    assert_eq!(behind.await, expected);
    let far = read_violation(PLAIN, |conn, request| conn.hole(true, request.cookie, u64::MAX, u32::MAX));
    assert!(matches!(far.await, Violation::Outside { got_offset: u64::MAX, .. }));
}

#[tokio::test]
async fn empty_chunks_are_found_out() {
    let data = read_violation(PLAIN, |conn, request| conn.data(false, request.cookie, 4096, 0));
    assert_eq!(data.await, Violation::ChunkLength { kind: 1, offset: 4096, bytes: 8 });
    let hole = read_violation(PLAIN, |conn, request| conn.hole(false, request.cookie, 4096, 0));
    assert!(matches!(hole.await, Violation::Outside { got_bytes: 0, .. }));
    let none = read_violation(PLAIN, |conn, request| conn.chunk(false, 0, request.cookie, &[]));
    assert_eq!(none.await, Violation::ChunkLength { kind: 0, offset: 4096, bytes: 0 });
}

#[tokio::test]
async fn a_reply_in_crumbs_without_end_is_found_out() {
    let crumbs = read_violation(PLAIN, |conn, request| {
        for at in 0..8192 {
            conn.hole(false, request.cookie, request.offset + at, 1)?;
        }
        Ok(())
    });
    assert!(matches!(crumbs.await, Violation::Chunks { offset: 4096, .. }));
    let errors = read_violation(PLAIN, |conn, request| {
        loop {
            conn.error(false, request.cookie, 5, "again")?;
        }
    });
    assert!(matches!(errors.await, Violation::Chunks { offset: 4096, .. }));
}

#[tokio::test]
async fn chunks_of_foreign_kinds_are_found_out() {
    let status = read_violation(PLAIN, |conn, request| conn.extents(request.cookie, CONTEXT_ID, &[(1, 0)]));
    assert_eq!(status.await, Violation::ChunkKind { command: "read", offset: 4096, kind: 5 });
    let unknown = read_violation(PLAIN, |conn, request| conn.chunk(true, 99, request.cookie, &[]));
    assert_eq!(unknown.await, Violation::ChunkKind { command: "read", offset: 4096, kind: 99 });
}

#[tokio::test]
async fn a_foreign_magic_is_found_out() {
    let foreign = read_violation(PLAIN, |conn, _| conn.send(b"HTTP/1.1 200 OK\r\n\r\n")).await;
    assert_eq!(foreign, Violation::ReplyMagic(u32::from_be_bytes(*b"HTTP")));
    let mode = read_violation(SIMPLE, |conn, request| conn.answer(request)).await;
    assert_eq!(mode, Violation::ReplyMagic(0x668e_33ef));
    let extended = read_violation(EXTENDED, |conn, request| conn.answer(request)).await;
    assert_eq!(extended, Violation::ReplyMagic(0x668e_33ef));
}

#[tokio::test]
async fn a_simple_success_is_no_answer_to_a_structured_read() {
    let violation = read_violation(PLAIN, |conn, request| conn.simple(0, request.cookie)).await;
    assert_eq!(violation, Violation::ChunkKind { command: "read", offset: 4096, kind: 0 });
}

#[tokio::test]
async fn an_extended_reply_about_another_offset_is_found_out() {
    let violation = read_violation(EXTENDED, |conn, request| {
        conn.wide_head(1, request.cookie, request.offset + 512, 8 + u64::from(request.bytes))
    });
    assert_eq!(violation.await, Violation::ReplyOffset { sent: 4096, got: 4608 });
}

#[tokio::test]
async fn extended_replies_are_understood() {
    let server = Hostile::replying(EXTENDED, |conn, request| {
        if request.command == READ {
            conn.wide_head(1, request.cookie, request.offset, 8 + u64::from(request.bytes))?;
            conn.send(&request.offset.to_be_bytes())?;
            return conn.send(&content(request.offset, request.bytes as usize));
        }
        conn.wide_head(6, request.cookie, request.offset, 40)?;
        conn.send(&CONTEXT_ID.to_be_bytes())?;
        conn.send(&2u32.to_be_bytes())?;
        for number in [512, 3, SIZE * 1000, 0] {
            conn.send(&number.to_be_bytes())?;
        }
        Ok(())
    });
    let client = Client::connect(&server.uri, &quick()).await.unwrap();
    assert_eq!(client.read(4096, vec![0; 8192]).await.unwrap().buffer, content(4096, 8192));
    let extents = crate::peers::extents(&client, "base:allocation").await;
    let found: Vec<_> = extents.iter().map(|extent| (extent.bytes, extent.flags)).collect();
    assert_eq!(found, [(512, 3), (SIZE - 512, 0)]);
}

#[tokio::test]
async fn an_error_after_data_fails_the_read_by_offset_and_length() {
    let error = read_error(PLAIN, |conn, request| {
        conn.data(false, request.cookie, request.offset, request.bytes as usize)?;
        conn.error(true, request.cookie, 5, "bad sector")
    });
    match error.await {
        Error::Failed { offset, bytes, errno, message, .. } => {
            assert_eq!((offset, bytes, errno.0, message.as_str()), (4096, 4096, 5, "bad sector"));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_unknown_kind_of_error_is_an_error() {
    let error = read_error(PLAIN, |conn, request| {
        conn.chunk(true, 1 << 15 | 77, request.cookie, &[0, 0, 0, 28, 0, 2, b'n', b'o', 1, 2, 3])
    });
    assert_eq!(
        error.await.to_string(),
        "export \"disk\": read of 4096 bytes at 4096 failed: the peer answered ENOSPC (28): \"no\""
    );
}

#[tokio::test]
async fn malformed_errors_are_found_out() {
    let success = read_violation(PLAIN, |conn, request| conn.error(true, request.cookie, 0, ""));
    assert_eq!(success.await, Violation::ErrorChunk { offset: 4096 });
    let long = read_violation(PLAIN, |conn, request| {
        conn.chunk(true, 1 << 15 | 1, request.cookie, &[0, 0, 0, 5, 0, 9, b'x'])
    });
    assert_eq!(long.await, Violation::ErrorChunk { offset: 4096 });
    let huge = read_violation(PLAIN, |conn, request| conn.head(true, 1 << 15 | 1, request.cookie, 1 << 20));
    assert!(matches!(huge.await, Violation::ChunkLength { .. }));
}

#[tokio::test]
async fn an_extent_of_length_zero_is_found_out() {
    let violation =
        status_violation(|conn, request| conn.extents(request.cookie, CONTEXT_ID, &[(512, 0), (0, 3)]));
    assert_eq!(violation.await, Violation::ZeroExtent { offset: 0 });
}

#[tokio::test]
async fn extents_without_end_are_found_out() {
    let past = status_violation(|conn, request| {
        conn.extents(request.cookie, CONTEXT_ID, &[(request.bytes, 0), (512, 3), (512, 0)])
    });
    assert_eq!(past.await, Violation::EndlessExtents { offset: 0 });
    let announced = status_violation(|conn, request| {
        conn.head(true, 5, request.cookie, 4 + 8 * (1 << 28))?;
        conn.send(&CONTEXT_ID.to_be_bytes())?;
        loop {
            conn.send(&[0, 0, 2, 0, 0, 0, 0, 0])?;
        }
    });
    assert!(matches!(announced.await, Violation::ChunkLength { kind: 5, .. }));
}

#[tokio::test]
async fn extents_of_a_foreign_context_are_found_out() {
    let foreign = status_violation(|conn, request| conn.extents(request.cookie, 7, &[(512, 0)]));
    assert_eq!(foreign.await, Violation::ContextId(7));
    let twice = status_violation(|conn, request| {
        let mut body = CONTEXT_ID.to_be_bytes().to_vec();
        body.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        conn.chunk(false, 5, request.cookie, &body)?;
        conn.chunk(true, 5, request.cookie, &body)
    });
    assert_eq!(twice.await, Violation::ContextId(CONTEXT_ID));
}

#[tokio::test]
async fn a_block_status_without_extents_is_found_out() {
    let none = status_violation(|conn, request| conn.chunk(true, 0, request.cookie, &[]));
    assert_eq!(none.await, Violation::NoExtents { offset: 0 });
    let cut = status_violation(|conn, request| conn.chunk(true, 5, request.cookie, &[0, 0, 0, 42, 0, 0, 2]));
    assert!(matches!(cut.await, Violation::ChunkLength { kind: 5, .. }));
}

#[tokio::test]
async fn extents_in_crumbs_still_cover_the_range_exactly() {
    let server = Hostile::replying(PLAIN, |conn, request| {
        // One short extent for each question, the last one longer than asked for.
        let flags = u32::from(request.offset / 131_072 % 2 == 0);
        conn.extents(request.cookie, CONTEXT_ID, &[(131_072 + 1024, flags)])
    });
    let client = Client::connect(&server.uri, &quick()).await.unwrap();
    let mut stream = client.extents("base:allocation", 1000..SIZE - 1000).unwrap();
    let mut at = 1000;
    while let Some(extent) = stream.next().await.unwrap() {
        assert_eq!(extent.offset, at);
        at += extent.bytes;
    }
    assert_eq!(at, SIZE - 1000);
}

#[tokio::test]
async fn simple_replies_are_read_exactly() {
    let server = Hostile::replying(SIMPLE, |conn, request| {
        conn.simple(0, request.cookie)?;
        conn.send(&content(request.offset, request.bytes as usize))
    });
    let client = Client::connect(&server.uri, &quick()).await.unwrap();
    assert_eq!(client.read(512, vec![0; 700_000]).await.unwrap().buffer, content(512, 700_000));
    assert!(client.info().contexts.is_empty());
    assert!(matches!(client.extents("base:allocation", 0..1), Err(Error::NoContext { .. })));
}

#[tokio::test]
async fn chunks_may_come_in_any_order_and_in_crumbs_of_the_stream() {
    let server = Hostile::replying(PLAIN, |conn, request| {
        let Request { cookie, offset, .. } = request;
        let mut body = (offset + 4096).to_be_bytes().to_vec();
        body.extend(content(offset + 4096, 4096));
        conn.head(false, 1, cookie, body.len() as u32)?;
        for crumb in body.chunks(37) {
            conn.send(crumb)?;
        }
        conn.hole(false, cookie, offset + 512, 3584)?;
        conn.data(false, cookie, offset, 512)?;
        conn.chunk(true, 0, cookie, &[])
    });
    let client = Client::connect(&server.uri, &quick()).await.unwrap();
    let read = client.read(4096, vec![0xee; 8192]).await.unwrap();
    assert_eq!(read.holes, [(512, 3584)]);
    assert_eq!(read.buffer[..512], content(4096, 512));
    assert!(read.buffer[512..4096].iter().all(|byte| *byte == 0xee), "a hole is not written to");
    assert_eq!(read.buffer[4096..], content(8192, 4096));
}
