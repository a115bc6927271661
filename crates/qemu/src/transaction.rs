//! One QMP transaction: what happens to all disks at one instant, or to none.

use serde_json::{Value, json};

use crate::commands::RunTransaction;
use crate::error::Result;
use crate::monitor::Monitor;

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

    pub(crate) async fn run(self, monitor: &Monitor) -> Result<()> {
        monitor.execute(RunTransaction(json!({"actions": self.actions}))).await.map(drop)
    }

    fn push(&mut self, kind: &str, data: Value) {
        self.actions.push(json!({"type": kind, "data": data}));
    }
}
