//! One QMP transaction: what happens to all disks at one instant, or to none.

use serde_json::{Value, json};

use crate::commands::RunTransaction;
use crate::error::Result;
use crate::monitor::Monitor;

/// A bitmap, as QEMU finds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a str,
    pub(crate) name: &'a str,
}

/// The actions, in the order in which QEMU carries them out.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    actions: Vec<Value>,
}

impl Transaction {
    /// From this instant on, what the guest overwrites in `source` is first copied to `target` (`blockdev-backup`,
    /// `sync` = `none`). The job stays after its end, so that its error can be read.
    pub(crate) fn freeze(&mut self, job: &str, source: &str, target: &str) {
        self.push(
            "blockdev-backup",
            json!({
                "job-id": job, "device": source, "target": target, "sync": "none", "auto-dismiss": false,
                "on-source-error": "report", "on-target-error": "report",
            }),
        );
    }

    /// From this instant on, what is written to `bitmap.node` is marked (`block-dirty-bitmap-add`). A persistent bitmap
    /// lives in its qcow2.
    pub(crate) fn mark(&mut self, bitmap: At<'_>, granularity_bytes: u64, persistent: bool) {
        self.push(
            "block-dirty-bitmap-add",
            json!({"node": bitmap.node, "name": bitmap.name, "granularity": granularity_bytes, "persistent": persistent}),
        );
    }

    /// Makes an empty bitmap that marks nothing by itself.
    pub(crate) fn collect_in(&mut self, bitmap: At<'_>, granularity_bytes: u64) {
        self.push(
            "block-dirty-bitmap-add",
            json!({"node": bitmap.node, "name": bitmap.name, "granularity": granularity_bytes, "disabled": true}),
        );
    }

    /// Adds what `from` marks to `into` (`block-dirty-bitmap-merge`).
    pub(crate) fn merge(&mut self, from: At<'_>, into: At<'_>) {
        self.push(
            "block-dirty-bitmap-merge",
            json!({"node": into.node, "target": into.name, "bitmaps": [{"node": from.node, "name": from.name}]}),
        );
    }

    /// Lets a bitmap mark again what is written.
    pub(crate) fn enable(&mut self, bitmap: At<'_>) {
        self.push("block-dirty-bitmap-enable", json!({"node": bitmap.node, "name": bitmap.name}));
    }

    /// Keeps a bitmap as it is.
    pub(crate) fn disable(&mut self, bitmap: At<'_>) {
        self.push("block-dirty-bitmap-disable", json!({"node": bitmap.node, "name": bitmap.name}));
    }

    /// Removes a bitmap, an inconsistent one too.
    pub(crate) fn remove(&mut self, bitmap: At<'_>) {
        self.push("block-dirty-bitmap-remove", json!({"node": bitmap.node, "name": bitmap.name}));
    }

    /// Runs it; one without actions is not sent.
    pub(crate) async fn run(self, monitor: &Monitor) -> Result<()> {
        if self.actions.is_empty() {
            return Ok(());
        }
        monitor.execute(RunTransaction(json!({"actions": self.actions}))).await.map(drop)
    }

    fn push(&mut self, kind: &str, data: Value) {
        self.actions.push(json!({"type": kind, "data": data}));
    }
}
