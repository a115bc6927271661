//! The way into a session: the steps of docs/QEMU.md, from a clean QEMU to frozen disks that are served.
//!
//! Invariant: after an error, [`Opening::undo`] takes back every step that was made; what it cannot take back its
//! guard, the next run or the next session's checkpoints do.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::broadcast;

use crate::agent::Frozen;
use crate::checkpoint::{self, Ending, Marked};
use crate::cleanup::{Occasion, refuse_foreign, sweep};
use crate::commands::ExportAdd;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::guard::Guard;
use crate::monitor::{Event, Monitor};
use crate::names::{Names, percent_encoded};
use crate::nbd_server::{self, NbdListen, dial_authority};
use crate::scratch::{self, Place};
use crate::session::{Export, Method, Quiesce, SessionRequest};
use crate::transaction::Transaction;

/// A session on its way, and how far it has come.
pub(crate) struct Opening<'a> {
    pub(crate) request: &'a SessionRequest,
    pub(crate) monitor: &'a Monitor,
    pub(crate) names: &'a Names,
    /// The disks of the session, and what is to be done with the checkpoints of each.
    pub(crate) disks: &'a [Disk],
    pub(crate) marked: &'a [Marked],
    warnings: Vec<String>,
    /// Whether the NBD server was started.
    server: bool,
    /// Whether the instant came to be, and with it the new bitmaps.
    begun: bool,
}

/// What a session that is open consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) exports: Vec<Export>,
    pub(crate) warnings: Vec<String>,
    pub(crate) instant: Instant,
    pub(crate) ids: Vec<String>,
    pub(crate) files: Vec<String>,
}

/// The instant itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Instant {
    pub(crate) at_ms: Option<u64>,
    pub(crate) freeze_ms: Option<u64>,
    pub(crate) quiesced: bool,
}

impl<'a> Opening<'a> {
    pub(crate) fn new(
        request: &'a SessionRequest,
        monitor: &'a Monitor,
        names: &'a Names,
        disks: &'a [Disk],
        marked: &'a [Marked],
        warnings: Vec<String>,
    ) -> Self {
        Self { request, monitor, names, disks, marked, warnings, server: false, begun: false }
    }

    /// Goes through the steps of docs/QEMU.md. After an error, [`Opening::undo`].
    pub(crate) async fn run(&mut self) -> Result<(Opened, broadcast::Receiver<Event>)> {
        let monitor = self.monitor;
        refuse_foreign(monitor, self.names).await?;
        checkpoint::settle(monitor, self.marked).await?;
        self.make_scratches().await?;
        if self.request.method == Method::Filter {
            self.filters().prepare().await?;
        }
        self.start_server().await?;
        // From here on, so that nothing between the instant and the watch is missed.
        let events = monitor.events();
        let instant = self.freeze().await?;
        let ids: Vec<String> = (0..self.disks.len()).map(|disk| self.id(disk)).collect();
        let files = (0..self.disks.len()).map(|disk| self.names.file(disk)).collect();
        if self.request.method == Method::Filter {
            self.filters().show().await?;
        }
        let exports = self.export().await?;
        let warnings = std::mem::take(&mut self.warnings);
        Ok((Opened { exports, warnings, instant, ids, files }, events))
    }

    fn filters(&self) -> Filters<'a> {
        Filters { monitor: self.monitor, names: self.names, disks: self.disks }
    }

    /// The node on which the bitmap of the changes lies, and the one that is exported.
    fn shown(&self, disk: usize) -> (String, String) {
        match self.request.method {
            Method::Classic => (self.names.overlay(disk), self.names.overlay(disk)),
            Method::Filter => (self.names.filter(disk), self.names.access(disk)),
        }
    }

    fn id(&self, disk: usize) -> String {
        self.names.session(&self.request.backup, disk)
    }

    async fn make_scratches(&mut self) -> Result<()> {
        let disks = self.disks;
        let host = self.monitor.host();
        let folder = self.request.scope.scratch.as_path();
        let sizes: Vec<u64> = disks.iter().map(|disk| disk.size_bytes).collect();
        let free = host.free_bytes(folder).await?;
        let budgets = scratch::plan(&sizes, self.request.scratch_max_bytes, free, folder)?;
        for (number, (disk, budget)) in disks.iter().zip(budgets).enumerate() {
            let place = Place { monitor: self.monitor, host, names: self.names, folder, number };
            // A filter reads the disk itself; an overlay takes what it has not from the disk behind it.
            let backing = (self.request.method == Method::Classic).then_some(disk.node.as_str());
            if let Some(shortfall) = place.make(disk, backing, budget).await? {
                self.warnings.push(shortfall.warning(folder));
            }
        }
        Ok(())
    }

    async fn start_server(&mut self) -> Result<()> {
        match nbd_server::start(self.monitor, &self.request.scope, self.request.max_connections).await {
            Ok(()) => {
                self.server = true;
                Ok(())
            }
            // QEMU has no query for its server; of all its refusals this one is told apart by its words, for the
            // better text alone.
            Err(Error::Refused { description, .. }) if description.contains("already running") => {
                Err(Error::ForeignServer { exports: Vec::new() })
            }
            Err(error) => Err(error),
        }
    }

    /// The instant itself, between freeze and thaw of the guest's file systems.
    async fn freeze(&mut self) -> Result<Instant> {
        let frozen = self.quiesce().await?;
        let mut events = self.monitor.events();
        let mut transaction = Transaction::default();
        for (number, (disk, marked)) in self.disks.iter().zip(self.marked).enumerate() {
            // The job first: QEMU keeps the disk still from there to the end of the transaction, also one that a thread of
            // its own serves. A write between the bitmaps and the job would be in the instant and in no bitmap.
            if self.request.method == Method::Classic {
                transaction.freeze(&self.id(number), &disk.node, &self.names.overlay(number));
            }
            marked.begin(&mut transaction, &self.shown(number).0);
        }
        let outcome = match self.request.method {
            Method::Classic => transaction.run(self.monitor).await,
            Method::Filter => self.filters().switch(transaction).await,
        };
        // Thaw first: an error of the transaction must not keep the guest waiting.
        let thawed = match frozen {
            None => None,
            Some(frozen) => Some(frozen.thaw().await),
        };
        outcome?;
        self.begun = true;
        let first = self.id(0);
        let mut at_ms = None;
        while let Ok(event) = events.try_recv() {
            let begins = match self.request.method {
                Method::Classic => event.name == "JOB_STATUS_CHANGE" && event.text("id") == first,
                Method::Filter => event.name == "STOP",
            };
            if at_ms.is_none() && begins {
                at_ms = Some(event.at_ms);
            }
        }
        let thawed = match thawed {
            None => return Ok(Instant { at_ms, freeze_ms: None, quiesced: false }),
            Some(thawed) => thawed?,
        };
        if thawed.by_watchdog {
            self.tolerate(Error::ThawedEarly { frozen_ms: thawed.frozen_ms })?;
        }
        Ok(Instant { at_ms, freeze_ms: Some(thawed.frozen_ms), quiesced: !thawed.by_watchdog })
    }

    async fn quiesce(&mut self) -> Result<Option<Frozen>> {
        let Some(agent) = &self.request.scope.agent else { return Ok(None) };
        if self.request.quiesce == Quiesce::Off {
            return Ok(None);
        }
        match Frozen::begin(agent, &self.request.options, self.monitor.host()).await {
            Ok(frozen) => Ok(Some(frozen)),
            Err(error) => self.tolerate(error).map(|()| None),
        }
    }

    /// What `require` refuses and `try` only warns of.
    fn tolerate(&mut self, error: Error) -> Result<()> {
        if self.request.quiesce == Quiesce::Require {
            return Err(error);
        }
        self.warnings.push(format!("the guest is not quiesced: {error}"));
        Ok(())
    }

    async fn export(&self) -> Result<Vec<Export>> {
        let mut exports = Vec::with_capacity(self.disks.len());
        let mut socket = None;
        for (number, (disk, marked)) in self.disks.iter().zip(self.marked).enumerate() {
            let export_name = format!("{}/{}", self.request.backup, disk.name);
            let (changed, shown) = self.shown(number);
            let mut arguments = json!({
                "type": "nbd", "id": self.id(number), "node-name": shown, "name": export_name,
                "writable": false, "allocation-depth": true,
            });
            if let Some(delta) = marked.delta() {
                arguments["bitmaps"] = match self.request.method {
                    Method::Classic => json!([delta]),
                    Method::Filter => json!([{"node": changed, "name": delta}]),
                };
            }
            self.monitor.execute(ExportAdd(arguments)).await?;
            if socket.is_none() {
                socket = Some(self.server_uri().await?);
            }
            // The name stands between the two halves of the URI.
            let (before, after) = socket.as_ref().expect("it was set just above");
            let path = percent_encoded(&export_name, |byte| byte == b'/' || is_unreserved(byte));
            exports.push(Export {
                disk: disk.clone(),
                uri: format!("{before}{path}{after}"),
                export_name,
                changes: marked.delta().map(|delta| format!("qemu:dirty-bitmap:{delta}")),
                checkpoint: marked.mark().map(str::to_owned),
            });
        }
        Ok(exports)
    }

    /// What goes before and after an export's name in its URI (NBD URI specification).
    async fn server_uri(&self) -> Result<(String, String)> {
        let query = |text: &str| percent_encoded(text, is_unreserved_or_slash);
        match &self.request.scope.nbd {
            NbdListen::Unix => {
                let path = self.names.socket(&self.request.scope.scratch)?;
                let local = self.monitor.host().reach_socket(&path, &path.display().to_string()).await?;
                Ok(("nbd+unix:///".to_owned(), format!("?socket={}", query(&local.to_string_lossy()))))
            }
            NbdListen::Tls { host, port, .. } => {
                let mut parameters = Vec::new();
                if let Some(folder) = &self.request.options.tls_certificates {
                    parameters.push(format!("tls-certificates={}", query(&folder.to_string_lossy())));
                }
                if let Some(name) = &self.request.options.tls_hostname {
                    parameters.push(format!("tls-hostname={}", query(name)));
                }
                let tail =
                    if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
                Ok((format!("nbds://{}/", dial_authority(host, *port, &self.request.monitor)), tail))
            }
        }
    }

    /// After an error: takes back what was done. If that fails too, the guard is left to do it.
    pub(crate) async fn undo(&self, guard: Option<Guard>) {
        let outcome = async {
            let session = self.names.session_prefix(&self.request.backup);
            let occasion = Occasion::SessionEnd { session: &session, server: self.server };
            sweep(self.monitor, &self.request.options, &self.request.scope, occasion).await?;
            if self.begun {
                checkpoint::end(self.monitor, self.marked, Ending::Failed).await?;
            }
            match guard {
                Some(guard) => guard.dismiss().await,
                None => Ok(()),
            }
        };
        if let Err(error) = outcome.await {
            tracing::warn!(%error, "the session that failed to open was not taken back whole");
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn is_unreserved_or_slash(byte: u8) -> bool {
    byte == b'/' || is_unreserved(byte)
}
