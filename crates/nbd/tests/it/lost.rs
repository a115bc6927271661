//! Lost connections: what is dialed again, what is issued again, and what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aquifer_nbd::{Client, ClientOptions, Command, Error, Stage};

use crate::hostile::{Conn, Hostile, MULTI_CONN, Offer, PLAIN, READ_ONLY, SIZE, WRITABLE, content, hasty};

fn serve(conn: &mut Conn, offer: Offer) -> std::io::Result<()> {
    conn.negotiate(offer)?;
    loop {
        let request = conn.request()?;
        conn.answer(request)?;
    }
}

#[tokio::test]
async fn a_read_goes_on_over_a_new_connection() {
    let server = Hostile::start(|conn, number| {
        if number > 0 {
            return serve(conn, PLAIN);
        }
        conn.negotiate(PLAIN)?;
        let first = conn.request()?;
        conn.answer(first)?;
        // The second piece breaks off in the middle of its data.
        let second = conn.request()?;
        conn.head(true, 1, second.cookie, second.bytes + 8)?;
        conn.send(&second.offset.to_be_bytes())?;
        conn.send(&[0xbb; 1000])
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    let mut read = client.read(1024, vec![0xee; 600_000]).await.unwrap();
    read.zero_holes();
    assert!(read.buffer == content(1024, 600_000));
}

#[tokio::test]
async fn holes_of_a_broken_answer_do_not_survive_it() {
    let server = Hostile::start(|conn, number| {
        if number > 0 {
            return serve(conn, PLAIN);
        }
        conn.negotiate(PLAIN)?;
        let request = conn.request()?;
        conn.hole(false, request.cookie, request.offset, 4096)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    let read = client.read(0, vec![0; 8192]).await.unwrap();
    assert_eq!(read.holes, []);
    assert_eq!(read.buffer, content(0, 8192));
}

#[tokio::test]
async fn a_read_that_always_loses_its_connection_fails_by_offset_and_length() {
    let dialed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dialed);
    let server = Hostile::start(move |conn, _| {
        count.fetch_add(1, Ordering::SeqCst);
        conn.negotiate(PLAIN)?;
        conn.request().map(drop)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    match client.read(4096, vec![0; 8192]).await {
        Err(Error::Lost { offset: 4096, bytes: 8192, losses: 4, export, command: Command::Read, .. }) => {
            assert_eq!(export, "disk");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(dialed.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_silent_server_is_left_at_the_deadline() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(PLAIN)?;
        conn.until_closed()
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    let begun = Instant::now();
    match client.read(0, vec![0; 512]).await {
        Err(Error::Lost { cause, .. }) => {
            assert!(matches!(*cause, Error::Deadline { stage: Stage::Request, .. }), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(9), "four times the deadline of one second");
}

#[tokio::test]
async fn a_server_that_trickles_is_left_at_the_deadline() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(PLAIN)?;
        let request = conn.request()?;
        conn.head(true, 1, request.cookie, request.bytes + 8)?;
        conn.send(&request.offset.to_be_bytes())?;
        loop {
            conn.send(&[1])?;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    assert!(matches!(client.read(0, vec![0; 65536]).await, Err(Error::Lost { .. })));
}

#[tokio::test]
async fn a_deadline_counts_per_request_and_not_per_connection() {
    let server = Hostile::replying(PLAIN, |conn, request| {
        std::thread::sleep(Duration::from_millis(300));
        conn.answer(request)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    for _ in 0..5 {
        client.read(0, vec![0; 512]).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_went_away_is_given_up_after_the_attempts() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(PLAIN)?;
        conn.request().map(drop)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    if let aquifer_nbd::Transport::Unix(path) = &server.uri.transport {
        std::fs::remove_file(path).unwrap();
    }
    let error = client.read(0, vec![0; 512]).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    let begun = Instant::now();
    assert!(client.read(0, vec![0; 512]).await.is_err());
    assert!(begun.elapsed() < Duration::from_millis(100), "a client that is at its end says so at once");
}

async fn after_reconnect(second: Offer) -> Error {
    let server = Hostile::start(move |conn, number| {
        conn.negotiate(if number == 0 { PLAIN } else { second })?;
        conn.request().map(drop)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    let error = client.read(0, vec![0; 512]).await.unwrap_err();
    assert!(matches!(client.read(0, vec![0; 512]).await, Err(Error::Changed { .. })), "and so it stays");
    error
}

#[tokio::test]
async fn an_export_that_changed_meanwhile_is_not_read_on() {
    let size = after_reconnect(Offer { size: SIZE * 2, ..PLAIN }).await.to_string();
    assert!(size.contains("1048576") && size.contains("2097152"), "{size}");
    let flags = after_reconnect(Offer { flags: READ_ONLY | MULTI_CONN, ..PLAIN }).await.to_string();
    assert!(flags.contains("flags"), "{flags}");
    let contexts = after_reconnect(Offer { structured: false, ..PLAIN }).await.to_string();
    assert!(contexts.contains("base:allocation"), "{contexts}");
}

#[tokio::test]
async fn connections_that_disagree_from_the_start_are_refused() {
    let server = Hostile::start(|conn, number| {
        let offer = Offer { flags: READ_ONLY | MULTI_CONN, ..PLAIN };
        conn.negotiate(if number < 2 { offer } else { Offer { size: 512, ..offer } })?;
        conn.until_closed()
    });
    assert!(matches!(Client::connect(&server.uri, &hasty()).await, Err(Error::Changed { .. })));
}

#[tokio::test]
async fn a_server_at_its_limit_of_connections_is_used_with_fewer() {
    let server = Hostile::start(|conn, number| {
        if number > 1 {
            return conn.until_closed();
        }
        serve(conn, Offer { flags: READ_ONLY | MULTI_CONN, ..PLAIN })
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    assert_eq!(client.info().connections, 2);
    assert_eq!(client.read(0, vec![0; 512]).await.unwrap().buffer, content(0, 512));
}

#[tokio::test]
async fn one_broken_connection_of_several_does_not_end_the_others() {
    let server = Hostile::start(|conn, number| {
        let offer = Offer { flags: READ_ONLY | MULTI_CONN, ..PLAIN };
        match number {
            0 => {
                conn.negotiate(offer)?;
                conn.request().map(drop)
            }
            1..4 => serve(conn, offer),
            // Nobody can dial again.
            _ => Ok(()),
        }
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    let all = crate::peers::read_all(&client, 4096).await.unwrap();
    assert!(all == content(0, all.len()));
}

#[tokio::test]
async fn a_writer_never_dials_again() {
    let server = Hostile::start(|conn, number| {
        assert_eq!(number, 0, "a second connection");
        conn.negotiate(Offer { flags: WRITABLE, ..PLAIN })?;
        let first = conn.request()?;
        conn.take_vec(first.bytes as usize)?;
        conn.simple(0, first.cookie)?;
        conn.request().map(drop)
    });
    let options = ClientOptions { writable: true, ..hasty() };
    let client = Client::connect(&server.uri, &options).await.unwrap();
    client.write(0, vec![1; 4096]).await.unwrap();
    assert!(matches!(client.flush().await, Err(Error::Lost { losses: 1, command: Command::Flush, .. })));
    assert!(matches!(client.write(0, vec![1; 4096]).await, Err(Error::Lost { .. })), "also for others");
    assert!(matches!(client.read(0, vec![1; 4096]).await, Err(Error::Lost { .. })));
}

#[tokio::test]
async fn a_writer_whose_idle_connection_broke_does_not_flush_over_another() {
    let closed = Arc::new(AtomicUsize::new(0));
    let tell = Arc::clone(&closed);
    let server = Hostile::start(move |conn, number| {
        assert_eq!(number, 0, "a second connection");
        conn.negotiate(Offer { flags: WRITABLE, ..PLAIN })?;
        let write = conn.request()?;
        conn.take_vec(write.bytes as usize)?;
        conn.simple(0, write.cookie)?;
        conn.hang_up()?;
        tell.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let options = ClientOptions { writable: true, ..hasty() };
    let client = Client::connect(&server.uri, &options).await.unwrap();
    client.write(0, vec![1; 4096]).await.unwrap();
    while closed.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = client.flush().await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. } | Error::Lost { .. }), "{error}");
    assert!(client.flush().await.is_err());
}

#[tokio::test]
async fn a_write_answered_before_its_data_is_found_out() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(Offer { flags: WRITABLE, size: 1 << 30, ..PLAIN })?;
        let request = conn.request()?;
        conn.simple(0, request.cookie)?;
        conn.until_closed_slowly()
    });
    let options = ClientOptions { writable: true, request_bytes: 32 << 20, ..hasty() };
    let client = Client::connect(&server.uri, &options).await.unwrap();
    match client.write(0, vec![1; 32 << 20]).await {
        Err(Error::Violation { violation: aquifer_nbd::Violation::EarlyReply { offset: 0 }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_does_not_take_its_requests_is_left_at_the_deadline() {
    let server = Hostile::start(|conn, _| {
        conn.negotiate(Offer { flags: WRITABLE, size: 1 << 30, ..PLAIN })?;
        std::thread::sleep(Duration::from_secs(10));
        conn.until_closed()
    });
    let options = ClientOptions { writable: true, ..hasty() };
    let client = Client::connect(&server.uri, &options).await.unwrap();
    let begun = Instant::now();
    assert!(matches!(client.write(0, vec![1; 32 << 20]).await, Err(Error::Lost { losses: 1, .. })));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_dropped_read_leaves_the_connection_in_order() {
    let server = Hostile::replying(PLAIN, |conn, request| {
        std::thread::sleep(Duration::from_millis(30));
        conn.answer(request)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    let dropped = tokio::time::timeout(Duration::from_millis(10), client.read(0, vec![0; 65536])).await;
    assert!(dropped.is_err(), "the read was to be dropped in the middle");
    assert_eq!(client.read(4096, vec![0; 512]).await.unwrap().buffer, content(4096, 512));
}

#[tokio::test]
async fn a_disconnected_client_says_so() {
    let said_goodbye = Arc::new(AtomicUsize::new(0));
    let heard = Arc::clone(&said_goodbye);
    let server = Hostile::replying(PLAIN, move |conn, request| {
        if request.command == 2 {
            heard.fetch_add(1, Ordering::SeqCst);
            return conn.until_closed();
        }
        conn.answer(request)
    });
    let client = Client::connect(&server.uri, &hasty()).await.unwrap();
    client.read(0, vec![0; 512]).await.unwrap();
    client.disconnect().await;
    assert!(matches!(client.read(0, vec![0; 512]).await, Err(Error::Disconnected { .. })));
    let until = Instant::now() + Duration::from_secs(5);
    while said_goodbye.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until, "no polite end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_byte_budget_bounds_what_is_in_flight() {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let server = Hostile::start(move |conn, _| {
        conn.negotiate(PLAIN)?;
        loop {
            // Take all requests that come within a moment, then answer them.
            let mut batch = vec![conn.request()?];
            while let Some(next) = conn.request_within(Duration::from_millis(30)) {
                batch.push(next);
            }
            seen.fetch_max(batch.iter().map(|r| r.bytes as usize).sum(), Ordering::SeqCst);
            for request in batch {
                conn.answer(request)?;
            }
        }
    });
    let options = ClientOptions { in_flight_bytes: 128 * 1024, ..hasty() };
    let client = Client::connect(&server.uri, &options).await.unwrap();
    let all = crate::peers::read_all(&client, 64 * 1024).await.unwrap();
    assert!(all == content(0, all.len()));
    assert_eq!(most.load(Ordering::SeqCst), 128 * 1024);
}
