//! What this QEMU can do, read from its own schema (`query-qmp-schema`) and never from its version.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::error::{Error, Result};

/// What a backup needs of a QEMU.
const COMMANDS: [&str; 14] = [
    "query-named-block-nodes",
    "query-jobs",
    "query-block-exports",
    "nbd-server-start",
    "nbd-server-stop",
    "blockdev-add",
    "blockdev-del",
    "blockdev-backup",
    "block-set-write-threshold",
    "transaction",
    "block-export-add",
    "block-export-del",
    "job-cancel",
    "job-dismiss",
];

/// What it must be able to do to all disks at one instant.
const ACTIONS: [&str; 6] = [
    "blockdev-backup",
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-dirty-bitmap-enable",
    "block-dirty-bitmap-disable",
    "block-dirty-bitmap-merge",
];

/// Commands and transaction actions of one QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    commands: BTreeSet<String>,
    actions: BTreeSet<String>,
}

impl Capabilities {
    /// Reads the schema; entities of an unknown shape are passed over.
    pub(crate) fn from_schema(entities: &[Value]) -> Self {
        let by_name: BTreeMap<&str, &Value> =
            entities.iter().filter_map(|entity| Some((entity["name"].as_str()?, entity))).collect();
        let commands = by_name
            .iter()
            .filter(|(_, entity)| entity["meta-type"] == "command")
            .map(|(name, _)| (*name).to_owned())
            .collect();
        Self { commands, actions: transaction_actions(&by_name).unwrap_or_default() }
    }

    /// Whether QEMU knows a command.
    #[must_use]
    pub fn has_command(&self, name: &str) -> bool {
        self.commands.contains(name)
    }

    /// Whether `transaction` takes an action.
    #[must_use]
    pub fn has_action(&self, name: &str) -> bool {
        self.actions.contains(name)
    }

    /// Fails with the names of what a backup needs and this QEMU lacks.
    pub(crate) fn require_backup(&self, version: &str) -> Result<()> {
        let mut missing: Vec<String> =
            COMMANDS.iter().filter(|name| !self.has_command(name)).map(|name| (*name).to_owned()).collect();
        let actions = ACTIONS.iter().filter(|name| !self.has_action(name));
        missing.extend(actions.map(|name| format!("transaction of {name}")));
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Error::Unsupported { version: version.to_owned(), missing })
        }
    }
}

/// `transaction` → its argument type → member `actions` → element type → the cases of its union.
fn transaction_actions(by_name: &BTreeMap<&str, &Value>) -> Option<BTreeSet<String>> {
    let arguments = by_name.get(by_name.get("transaction")?["arg-type"].as_str()?)?;
    let list = arguments["members"].as_array()?.iter().find(|member| member["name"] == "actions")?;
    let element = by_name.get(list["type"].as_str()?)?["element-type"].as_str()?;
    let cases = by_name.get(element)?["variants"].as_array()?;
    Some(cases.iter().filter_map(|case| Some(case["case"].as_str()?.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_qemu_without_the_jobs_names_each_missing_command() {
        let schema = [json!({"name": "query-jobs", "meta-type": "command"})];
        let error = Capabilities::from_schema(&schema).require_backup("1.0.0").unwrap_err().to_string();
        assert!(error.contains("job-dismiss") && error.contains("transaction of blockdev-backup"), "{error}");
        assert!(!error.contains("query-jobs"), "{error}");
    }

    #[test]
    fn a_schema_of_unknown_shape_is_no_capability_and_no_panic() {
        let schema = [json!(1), json!({"name": 5}), json!({"name": "transaction", "arg-type": "9"})];
        assert_eq!(Capabilities::from_schema(&schema), Capabilities::default());
    }
}
