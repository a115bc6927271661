//! Reads all allocated bytes of an export and prints how many and how fast: `nbdread URI [CONNECTIONS [DEPTH]]`.
//!
//! It is the counterpart of `nbdcopy URI null:` for comparing speeds; the bytes go nowhere.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aquifer_nbd::{Client, ClientOptions, Extent, STATE_ZERO, Uri};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let uri: Uri = args.next().ok_or("usage: nbdread URI [CONNECTIONS [DEPTH]]")?.parse()?;
    let mut options = ClientOptions::default();
    if let Some(connections) = args.next() {
        options.connections = connections.parse()?;
        options.connections_max = options.connections;
    }
    if let Some(depth) = args.next() {
        options.depth = depth.parse()?;
    }
    let client = Client::connect(&uri, &options).await?;
    let info = client.info();
    eprintln!(
        "{}: {} bytes, {:?}, {} connections",
        info.name, info.size_bytes, info.reply_mode, info.connections
    );
    let readers = u32::from(info.connections) * u32::from(options.depth);
    let read_bytes = options.request_bytes;
    let begun = Instant::now();
    let (sender, receiver) = mpsc::channel::<Extent>(usize::from(options.depth));
    let receiver = Arc::new(Mutex::new(receiver));
    let total = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..readers {
        tasks.spawn(read_pieces(client.clone(), Arc::clone(&receiver), read_bytes, Arc::clone(&total)));
    }
    feed(&client, read_bytes, sender).await?;
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (bytes, seconds) = (total.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    println!("{bytes} bytes in {seconds:.3} s");
    client.disconnect().await;
    Ok(())
}

/// Cuts what is allocated into pieces and hands them out; everything, where the server tells no allocation.
async fn feed(client: &Client, piece_bytes: u32, sender: mpsc::Sender<Extent>) -> Result<(), Box<dyn Error>> {
    let size_bytes = client.info().size_bytes;
    let Ok(mut extents) = client.extents("base:allocation", 0..size_bytes) else {
        return send_pieces(Extent { offset: 0, bytes: size_bytes, flags: 0 }, piece_bytes, &sender).await;
    };
    while let Some(extent) = extents.next().await? {
        if extent.flags & STATE_ZERO == 0 {
            send_pieces(extent, piece_bytes, &sender).await?;
        }
    }
    Ok(())
}

async fn send_pieces(
    extent: Extent,
    piece_bytes: u32,
    sender: &mpsc::Sender<Extent>,
) -> Result<(), Box<dyn Error>> {
    let (mut offset, end, piece) = (extent.offset, extent.offset + extent.bytes, u64::from(piece_bytes));
    while offset < end {
        let bytes = (piece - offset % piece).min(end - offset);
        sender.send(Extent { offset, bytes, flags: 0 }).await?;
        offset += bytes;
    }
    Ok(())
}

async fn read_pieces(
    client: Client,
    pieces: Arc<Mutex<mpsc::Receiver<Extent>>>,
    piece_bytes: u32,
    total: Arc<AtomicU64>,
) -> Result<(), aquifer_nbd::Error> {
    let mut buffer = vec![0; usize::try_from(piece_bytes).unwrap_or(usize::MAX)];
    loop {
        let Some(piece) = pieces.lock().await.recv().await else { return Ok(()) };
        buffer.resize(usize::try_from(piece.bytes).unwrap_or(usize::MAX), 0);
        buffer = client.read(piece.offset, buffer).await?.buffer;
        total.fetch_add(piece.bytes, Ordering::Relaxed);
    }
}
