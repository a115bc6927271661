//! Old and independent servers: Debian's nbd-server and the server of the crate `nbd`.

use std::fs;
use std::io::Cursor;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aquifer_nbd::proto::reply::ReplyMode;
use aquifer_nbd::{Client, ClientOptions, Error, list};

use crate::peers::{connect, folder, free_port, noise, quick, read_all, sparse_image, tool, unix_uri};

const MIB: usize = 1 << 20;

/// nbd-server goes to the background by itself; it is ended by the number it leaves in a file.
struct Daemon {
    pid: String,
}

impl Daemon {
    fn start(config: &Path, pid_file: &Path, port: u16) -> Self {
        let (config, file) = (config.display().to_string(), pid_file.display().to_string());
        tool("nbd-server", ["-C", &config, "-p", &file]);
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "nbd-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = fs::read_to_string(pid_file).expect("nbd-server leaves its number").trim().to_owned();
        Self { pid }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill").arg(&self.pid).status();
    }
}

#[tokio::test]
async fn debians_nbd_server_is_read_and_listed() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let content = sparse_image(&image, 5 * MIB);
    let port = free_port();
    let config = folder.path().join("config");
    let text = format!(
        "[generic]\nallowlist = true\nlistenaddr = 127.0.0.1\nport = {port}\n[vda]\nexportname = {}\nreadonly = true\n",
        image.display()
    );
    fs::write(&config, text).unwrap();
    let _daemon = Daemon::start(&config, &folder.path().join("pid"), port);
    let uri = format!("nbd://127.0.0.1:{port}/vda").parse().unwrap();
    let client = connect(&uri).await;
    assert_eq!(client.info().size_bytes, 5 * MIB as u64);
    assert_eq!(client.info().reply_mode, ReplyMode::Simple);
    assert!(read_all(&client, MIB).await.unwrap() == content);
    let names: Vec<_> = list(&uri, &quick()).await.unwrap().into_iter().map(|export| export.name).collect();
    assert_eq!(names, ["vda"]);
    let unknown = format!("nbd://127.0.0.1:{port}/vdb").parse().unwrap();
    let error = Client::connect(&unknown, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

/// The server of the crate `nbd` on a socket, one thread a connection.
fn crate_server(content: Vec<u8>, readonly: bool) -> (tempfile::TempDir, aquifer_nbd::Uri) {
    let folder = folder();
    let socket = folder.path().join("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("connection");
            let content = content.clone();
            std::thread::spawn(move || {
                let size = content.len() as u64;
                let export: nbd::Export = nbd::Export { size, readonly, ..nbd::Export::default() };
                let chosen = nbd::server::handshake(&mut stream, |name| match name {
                    "disk" => Ok(export),
                    _ => Err(std::io::Error::other("no such export")),
                });
                if chosen.is_ok() {
                    let _ = nbd::server::transmission(&mut stream, Cursor::new(content));
                }
            });
        }
    });
    let uri = unix_uri(&socket, "disk");
    (folder, uri)
}

#[tokio::test]
async fn the_old_server_of_the_crate_nbd_is_opened_by_name() {
    let content = noise(2 * MIB + 512, 9);
    let (_folder, uri) = crate_server(content.clone(), true);
    let client = connect(&uri).await;
    assert!(!client.info().with_go);
    assert_eq!((client.info().reply_mode, client.info().connections), (ReplyMode::Simple, 1));
    assert!(read_all(&client, MIB).await.unwrap() == content);
}

#[tokio::test]
async fn an_old_server_without_the_export_hangs_up_and_that_is_said() {
    let (_folder, mut uri) = crate_server(noise(MIB, 9), true);
    uri.export = "other".to_owned();
    let error = Client::connect(&uri, &quick()).await.unwrap_err();
    assert!(error.to_string().contains("refused EXPORT_NAME for export \"other\""), "{error}");
}

#[tokio::test]
async fn an_old_server_is_written_to() {
    let (_folder, uri) = crate_server(vec![1; MIB], false);
    let client = Client::connect(&uri, &ClientOptions { writable: true, ..quick() }).await.unwrap();
    let data = noise(300_000, 2);
    client.write(4096, data.clone()).await.unwrap();
    client.write_zeroes(0, 512, true).await.unwrap();
    client.flush().await.unwrap();
    assert!(client.read(4096, vec![0; 300_000]).await.unwrap().buffer == data);
    assert_eq!(client.read(0, vec![9; 1024]).await.unwrap().buffer, [[0; 512], [1; 512]].concat());
    assert!(matches!(client.trim(0, 512).await, Err(Error::NotOffered { .. })));
}
