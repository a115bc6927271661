//! Opens a session on a monitor and holds it until its standard input ends: something for the tests to kill.
//!
//! Usage: `session MONITOR SCRATCH REPOSITORY classic|filter [GUARD]`. Prints `open` and one URI a line, then `closed`.

use std::error::Error;
use std::path::PathBuf;

use aquifer_qemu::{
    DiskChoice, Ending, ExportSession, GuardCommand, Method, MonitorOptions, NbdListen, Quiesce, Scope,
    SessionRequest,
};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, monitor, scratch, repository, method, rest @ ..] = &arguments[..] else {
        return Err("usage: session MONITOR SCRATCH REPOSITORY classic|filter [GUARD]".into());
    };
    let session = ExportSession::open(SessionRequest {
        monitor: monitor.parse()?,
        options: MonitorOptions::default(),
        scope: Scope {
            repository: repository.clone(),
            domain: "web01".to_owned(),
            scratch: PathBuf::from(scratch),
            nbd: NbdListen::Unix,
            agent: None,
        },
        backup: "0190163d-8694-739b-aea5-966c26f8ad91".to_owned(),
        disks: DiskChoice::default(),
        scratch_max_bytes: None,
        max_connections: 4,
        quiesce: Quiesce::Off,
        method: if method == "filter" { Method::Filter } else { Method::Classic },
        guard: rest.first().map(|program| GuardCommand { program: program.into(), args: Vec::new() }),
    })
    .await?;
    println!("open");
    for export in session.exports() {
        println!("{}", export.uri);
    }
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    session.close(Ending::Failed).await?;
    println!("closed");
    Ok(())
}
