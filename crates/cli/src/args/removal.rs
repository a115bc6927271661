//! The arguments of the commands that take something away: `delete`, `undelete`.

use clap::Args;

use super::documents;
use super::values::Span;

/// `delete`
#[derive(Debug, Args)]
#[command(after_long_help = documents::DELETE)]
pub(crate) struct DeleteArgs {
    /// The backups: uuids, at least eight digits of them, or latest:DOMAIN.
    #[arg(value_name = "UUID", required = true)]
    pub(crate) backups: Vec<String>,
    /// And every other backup of their domains.
    #[arg(long)]
    pub(crate) all: bool,
    /// And all that were read against them, directly or over others. Without it those stay, and stay whole.
    #[arg(long)]
    pub(crate) all_children: bool,
    /// How long they can be brought back; 0s lets the next collection drop them.
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub(crate) forget_delay: Span,
}

/// `undelete`
#[derive(Debug, Args)]
#[command(after_long_help = documents::UNDELETE)]
pub(crate) struct UndeleteArgs {
    /// The backups: uuids, or at least eight digits of them; `list --deleted` shows them.
    #[arg(value_name = "UUID", required = true)]
    pub(crate) backups: Vec<String>,
}
