//! The arguments of the commands that take something away, or keep it from that: `delete`, `undelete`, `protect`,
//! `prune`, `collect`.

use clap::Args;

use super::documents;
use super::values::{Size, Span};

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

/// `collect`
#[derive(Debug, Args)]
#[command(after_long_help = documents::COLLECT)]
pub(crate) struct CollectArgs {
    /// Say what would be done and why; write and delete nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Most bytes to rewrite out of packs that are mostly garbage; 0 rewrites nothing [default: all that is worth it].
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_repack: Option<Size>,
    /// How long packs that nobody needs stay before they are deleted.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub(crate) grace: Span,
    /// End another host's session when no heartbeat of it was seen for so long; it beats every minute, and 0s ends it
    /// at once. Until it ends, what it may count on stays.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(crate) fence_after: Span,
}

/// `protect`
#[derive(Debug, Args)]
#[command(after_long_help = documents::PROTECT)]
pub(crate) struct ProtectArgs {
    /// The backups: uuids, at least eight digits of them, or latest:DOMAIN.
    #[arg(value_name = "UUID", required = true)]
    pub(crate) backups: Vec<String>,
    /// End the protection.
    #[arg(long)]
    pub(crate) off: bool,
}

/// `prune`
#[derive(Debug, Args)]
#[command(after_long_help = documents::PRUNE)]
pub(crate) struct PruneArgs {
    /// Only this domain [default: all that have backups].
    pub(crate) domain: Option<String>,
    /// Say what would be deleted and why; delete nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Delete even more than half of a domain's backups, and even the newest of a disk that verifies.
    #[arg(long)]
    pub(crate) force: bool,
    /// How long the deleted ones can be brought back.
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub(crate) forget_delay: Span,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
}

/// What `prune` keeps.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "What to keep of each domain, in UTC [default: its `retention` in the configuration]"
)]
pub(crate) struct KeepArgs {
    /// The newest N.
    #[arg(long, value_name = "N")]
    pub(crate) keep_last: Option<u32>,
    /// The newest of each of the newest N hours that have one.
    #[arg(long, value_name = "N")]
    pub(crate) keep_hourly: Option<u32>,
    /// The same for days.
    #[arg(long, value_name = "N")]
    pub(crate) keep_daily: Option<u32>,
    /// The same for weeks, which begin on Monday.
    #[arg(long, value_name = "N")]
    pub(crate) keep_weekly: Option<u32>,
    /// The same for months.
    #[arg(long, value_name = "N")]
    pub(crate) keep_monthly: Option<u32>,
    /// The same for years.
    #[arg(long, value_name = "N")]
    pub(crate) keep_yearly: Option<u32>,
}
