//! Handshakes that break the protocol, refuse, or never end.

use std::time::{Duration, Instant};

use aquifer_nbd::{Client, Error, Stage, Violation, list};

use crate::hostile::{ACK, Conn, Hostile, INFO, PLAIN, READ_ONLY, SIZE, UNSUPPORTED, hasty};

const STARTTLS: u32 = 5;
const GO: u32 = 7;

/// The error of connecting to a server with this script.
async fn refusal(script: impl Fn(&mut Conn) -> std::io::Result<()> + Send + Sync + 'static) -> Error {
    let server = Hostile::start(move |conn, _| {
        script(conn)?;
        conn.until_closed()
    });
    let begun = Instant::now();
    let error = Client::connect(&server.uri, &hasty()).await.expect_err("the handshake must fail");
    assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    error
}

async fn violation(script: impl Fn(&mut Conn) -> std::io::Result<()> + Send + Sync + 'static) -> Violation {
    match refusal(script).await {
        Error::Violation { violation, .. } => violation,
        other => panic!("{other}"),
    }
}

/// Refuses every option up to GO.
fn up_to_go(conn: &mut Conn) -> std::io::Result<()> {
    conn.greet(3)?;
    loop {
        match conn.option()?.0 {
            GO => return Ok(()),
            option => conn.option_reply(option, UNSUPPORTED, &[])?,
        }
    }
}

#[tokio::test]
async fn nobody_listening_is_said_with_the_address() {
    let uri = "nbd+unix:///x?socket=/nonexistent/nbd.sock".parse().unwrap();
    let error = Client::connect(&uri, &hasty()).await.unwrap_err();
    assert!(error.to_string().contains("unix:/nonexistent/nbd.sock"), "{error}");
}

#[tokio::test]
async fn silence_instead_of_a_greeting_ends_at_the_deadline() {
    let error = refusal(|_| Ok(())).await;
    assert!(matches!(error, Error::Deadline { stage: Stage::Greeting, .. }), "{error}");
}

#[tokio::test]
async fn half_a_greeting_ends_at_the_deadline() {
    let error = refusal(|conn| conn.send(b"NBDMAGICIHAVE")).await;
    assert!(matches!(error, Error::Deadline { stage: Stage::Greeting, .. }), "{error}");
}

#[tokio::test]
async fn half_a_handshake_ends_at_the_deadline() {
    let error = refusal(|conn| {
        conn.greet(3)?;
        let (option, _) = conn.option()?;
        conn.option_reply(option, UNSUPPORTED, &[])
    });
    let error = error.await;
    assert!(matches!(error, Error::Deadline { stage: Stage::Handshake, .. }), "{error}");
}

#[tokio::test]
async fn a_connection_closed_in_the_handshake_is_said() {
    let server = Hostile::start(|conn, _| conn.greet(3));
    let error = Client::connect(&server.uri, &hasty()).await.unwrap_err();
    assert!(matches!(error, Error::Closed { stage: Stage::Handshake, .. }), "{error}");
}

#[tokio::test]
async fn something_else_than_nbd_is_found_out() {
    let found = violation(|conn| conn.send(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n")).await;
    assert!(matches!(found, Violation::Greeting(..)));
}

#[tokio::test]
async fn an_oldstyle_server_is_told_apart() {
    let found = violation(|conn| conn.send(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53")).await;
    assert_eq!(found, Violation::Oldstyle);
}

#[tokio::test]
async fn replies_to_options_are_checked() {
    let magic = violation(|conn| {
        conn.greet(3)?;
        conn.send(&[7; 20])
    });
    assert_eq!(magic.await, Violation::OptionMagic(0x0707_0707_0707_0707));
    let other = violation(|conn| {
        conn.greet(3)?;
        conn.option_reply(99, ACK, &[])
    });
    assert_eq!(other.await, Violation::OptionMismatch { sent: 11, got: 99 });
    let kind = violation(|conn| {
        conn.greet(3)?;
        conn.option_reply(11, 77, &[])
    });
    assert_eq!(kind.await, Violation::OptionReply { option: 11, kind: 77 });
    let long = violation(|conn| {
        conn.greet(3)?;
        conn.send(b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0b\x00\x00\x00\x01\xff\xff\xff\xff")
    });
    assert_eq!(long.await, Violation::OptionLength { option: 11, bytes: u32::MAX });
}

#[tokio::test]
async fn an_export_without_a_size_is_found_out() {
    let found = violation(|conn| {
        up_to_go(conn)?;
        conn.option_reply(GO, ACK, &[])
    });
    assert_eq!(found.await, Violation::NoSize);
}

#[tokio::test]
async fn an_impossible_size_is_found_out() {
    let found = violation(|conn| {
        up_to_go(conn)?;
        conn.info_export(u64::MAX, READ_ONLY)?;
        conn.option_reply(GO, ACK, &[])
    });
    assert_eq!(found.await, Violation::Size(u64::MAX));
}

#[tokio::test]
async fn information_is_checked() {
    let short = violation(|conn| {
        up_to_go(conn)?;
        conn.option_reply(GO, INFO, &[0, 0, 1])
    });
    assert_eq!(short.await, Violation::OptionBody { option: GO, kind: INFO, bytes: 3 });
    let blocks = violation(|conn| {
        up_to_go(conn)?;
        conn.option_reply(GO, INFO, &[0, 3, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1, 0, 0])
    });
    assert_eq!(blocks.await, Violation::BlockSizes { minimum: 0, preferred: 4096, maximum: 65536 });
    let endless = violation(|conn| {
        up_to_go(conn)?;
        loop {
            conn.option_reply(GO, INFO, &[0, 2, b'x'])?;
        }
    });
    assert_eq!(endless.await, Violation::EndlessReplies { option: GO });
}

#[tokio::test]
async fn contexts_that_nobody_asked_for_are_found_out() {
    let found = violation(|conn| {
        conn.greet(3)?;
        conn.option()?;
        conn.option_reply(11, ACK, &[])?;
        conn.option()?;
        conn.option_reply(10, 4, b"\x00\x00\x00\x01base:other")
    });
    assert_eq!(found.await, Violation::UnaskedContext("base:other".to_owned()));
}

#[tokio::test]
async fn bytes_before_any_request_are_found_out() {
    let server = Hostile::start(|conn, _| {
        up_to_go(conn)?;
        conn.info_export(SIZE, READ_ONLY)?;
        let mut last = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        last.extend([0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]);
        last.extend([1, 2, 3]);
        conn.send(&last)?;
        conn.until_closed()
    });
    match Client::connect(&server.uri, &hasty()).await {
        Err(Error::Violation { violation: Violation::UnaskedBytes(3), .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stripped_starttls_is_no_connection_in_the_clear() {
    let server = Hostile::start(|conn, _| {
        conn.greet(3)?;
        let (option, _) = conn.option()?;
        assert_eq!(option, STARTTLS, "nothing else goes out in the clear");
        conn.option_reply(option, UNSUPPORTED, b"what is TLS?")?;
        assert!(conn.option().is_err(), "and nothing after the refusal");
        Ok(())
    });
    let (_folder, uri) = with_tls(&server);
    let error = Client::connect(&uri, &hasty()).await.unwrap_err();
    assert!(matches!(error, Error::TlsRefused { .. }), "{error}");
}

#[tokio::test]
async fn a_server_too_old_for_tls_gets_nothing() {
    let server = Hostile::start(|conn, _| {
        conn.send(b"NBDMAGICIHAVEOPT\x00\x00")?;
        conn.until_closed()
    });
    let (_folder, uri) = with_tls(&server);
    let error = Client::connect(&uri, &hasty()).await.unwrap_err();
    assert!(matches!(error, Error::TlsRefused { .. }), "{error}");
}

#[tokio::test]
async fn bytes_in_the_clear_after_starttls_are_found_out() {
    let server = Hostile::start(|conn, _| {
        conn.greet(3)?;
        conn.option()?;
        let mut ack = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        ack.extend([0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0]);
        ack.extend(b"injected");
        conn.send(&ack)?;
        conn.until_closed()
    });
    let (_folder, uri) = with_tls(&server);
    match Client::connect(&uri, &hasty()).await {
        Err(Error::Violation { violation: Violation::BytesBeforeTls(8), .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn silence_in_the_tls_handshake_ends_at_the_deadline() {
    let server = Hostile::start(|conn, _| {
        conn.greet(3)?;
        conn.option()?;
        conn.option_reply(STARTTLS, ACK, &[])?;
        conn.until_closed()
    });
    let (_folder, uri) = with_tls(&server);
    let error = Client::connect(&uri, &hasty()).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { stage: Stage::Tls, .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_wants_tls_is_never_upgraded_to_silently() {
    let error = refusal(|conn| {
        conn.greet(3)?;
        let (option, _) = conn.option()?;
        conn.option_reply(option, 1 << 31 | 5, b"TLS first")
    });
    let error = error.await;
    assert!(matches!(&error, Error::TlsRequired { .. }), "{error}");
    assert!(error.to_string().contains("nbds"), "{error}");
}

#[tokio::test]
async fn a_read_only_export_is_not_opened_for_writing() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(PLAIN)?;
        conn.until_closed()
    });
    let options = aquifer_nbd::ClientOptions { writable: true, ..hasty() };
    assert!(matches!(Client::connect(&server.uri, &options).await, Err(Error::ReadOnly { .. })));
}

#[tokio::test]
async fn a_list_without_end_is_found_out() {
    let server = Hostile::start(|conn, _| {
        conn.greet(3)?;
        conn.option()?;
        loop {
            conn.option_reply(3, 2, b"\x00\x00\x00\x01x")?;
        }
    });
    match list(&server.uri, &hasty()).await {
        Err(Error::Violation { violation: Violation::EndlessReplies { option: 3 }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// The server's URI with `nbds+unix` and a folder with a certificate authority.
fn with_tls(server: &Hostile) -> (tempfile::TempDir, aquifer_nbd::Uri) {
    let folder = crate::tls::authority();
    let mut uri = server.uri.clone();
    uri.tls = true;
    uri.tls_certificates = Some(folder.path().to_owned());
    (folder, uri)
}
