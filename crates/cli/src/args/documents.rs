//! What each command prints with `--json`, as its long help and its manual page say it.
//!
//! Invariant: a document is described here or nowhere; the tests of the commands hold the members to it.

/// `backup`
pub(super) const BACKUP: &str = r#"JSON: event lines; the last is
  {"event":"done","uuid","parent","domain","created","state","level","seconds","freeze_ms",
   "memory_peak_bytes","packs","disks":[{"name","size_bytes","mode":"full|bitmap|rescan","reason",
   "read_bytes","rechecked_bytes","zero_bytes","kept_bytes","deduplicated_bytes","new_bytes",
   "stored_bytes","tree_nodes_read","tree_nodes_written"}],"warnings":[…],"requests":{"puts","creates",
   "gets","heads","lists","deletes","sent_bytes","received_bytes"}}
or {"event":"error","kind","message","hint","context"}. With --all, one such line for each domain."#;

/// `restore`
pub(super) const RESTORE: &str = r#"JSON: event lines; the last is
  {"event":"done","uuid","seconds","dry_run","memory_peak_bytes","disks":[{"name","volume",
   "size_bytes","written_bytes","skipped_bytes","zero_bytes","missing_bytes",
   "missing":[{"offset","length"}],"verified"}],"requests":{…}}
or {"event":"error","kind","message","hint","context"}.
What a salvage could not restore is in "missing"; there the volume is as it was before (a new one reads
as zeros), and the exit code is 8."#;

/// `verify`
pub(super) const VERIFY: &str = r#"JSON: {"event":"done","depth","seconds","clean","report":{"level","backups","objects","nodes",
 "chunks","packs","packs_read","bytes_read","never_read","oldest_read_ms","blobs_opened","damage":[{"object","what"}],
 "more_damage","touched":[{"backup","domain","disk","ranges":[[offset,length]],"more_ranges"}]},
 "disks_read","bytes_restored","unreadable":[{"backup","disk","what"}]}
Damage ends with exit code 8."#;

/// `repair`
pub(super) const REPAIR: &str = r#"JSON: {"dry_run","quarantined_packs","quarantined_blobs","healed":{"objects","bytes"},
 "fetched":{"objects","bytes"},"left":{…}}: what was marked as damaged in the log, what was stored
anew out of this repository and out of the other one, and what is damaged after it, as `verify` reports
it. Exit code 8 if anything is. What nobody has any more, the next backup of the disk stores anew if the
disk still has it; run it, and repair again. Nothing is deleted."#;

/// `repository extend-locks`
pub(super) const EXTEND_LOCKS: &str = r#"JSON: {"objects","extended","unneeded","missing","locked_until_ms"}: objects that are needed in the
stores that lock, those whose lock was extended, objects that nobody needs, chunks and tree nodes that are needed
and of which no copy is known (`verify` tells more), and when the first lock of a needed object ends. Only locks
with half of their period left, or less, are extended."#;

/// `list`
pub(super) const LIST: &str = r#"JSON: [{"uuid","parent","domain","created","state":"completed|deleted","level","description",
 "labels","protected","external","deleted_until","read_bytes","new_bytes","stored_bytes","disks":[{"name",
 "size_bytes","mode"}]}], newest first. A deleted parent's own parent takes its place. The data of an
external backup is with whoever read it.
Long descriptions are cut here; dumpxml has them whole."#;

/// `delete`
pub(super) const DELETE: &str = r#"JSON: {"deleted","already","deleted_until"}: uuids, those that were deleted before, and until when
they can at least be brought back. All are deleted or none; one that is being restored, verified
or exported ends with exit code 5."#;

/// `undelete`
pub(super) const UNDELETE: &str = r#"JSON: {"restored","already"}: uuids, and those that were not deleted."#;

/// `protect`
pub(super) const PROTECT: &str =
    r#"JSON: {"changed","already"}: uuids, and those that were as they should be."#;

/// `prune`
pub(super) const PRUNE: &str = r#"JSON: {"dry_run","deleted_until","domains":[{"domain","kept":[{"uuid","created","reasons":[…]}],
 "dropped":[{"uuid","created","reasons":[…]}]}]}, newest first.
A backup that any rule keeps stays. So do protected ones, ones that are being read, and, without
--force, the newest backup of each disk that verifies. A run that would delete more than half of a
domain's backups deletes nothing and ends with exit code 5, unless it is forced."#;

/// `collect`
pub(super) const COLLECT: &str = r#"JSON: {"dry_run","dropped","backups","nodes","packs","needed","in_progress","rewritten","condemned",
 "kept","deleted","waiting","segments","heartbeats","log_entries","log_floor","missing","refused",
 "sessions":[{"session","kind","host","silent_s","fenced"}],"decisions":[{"pack","bytes",
 "fate":"unused|orphan|rewritten|kept","why"}],"more_decisions","foreign"}
"packs" to "waiting" are {"objects","bytes"}. Condemned packs are deleted by a run that comes after
the grace, once every session that was open when they were condemned has ended."#;

/// `repository init` and `repository info`
pub(super) const INFO: &str = r#"JSON: {"name","repository","version","encrypted","chunk_bytes","packs","log","log_entries",
 "writers","features","backups","open_sessions","state_dir"}; init adds "recovery_key", if made."#;

/// `repository stats`
pub(super) const STATS: &str = r#"JSON: {"backups","forgotten","domains","logical_bytes","packs","pack_bytes","meta_bytes",
 "condemned_packs","chunks","index_bytes","segments","log_entries","open_sessions"}; chunks is an
estimate."#;

/// `repository probe`
pub(super) const PROBE: &str = r#"JSON: {"store","passed","racers","rounds":[{"winners","failures","winner_kept"}],"left_behind"}
A store that fails ends with exit code 9."#;

/// `repository rebuild-index`
pub(super) const REBUILD: &str = r#"JSON: {"from":"segments|packs","read"}"#;

/// `repository keys list`
pub(super) const KEYS: &str = r#"JSON: [{"slot","in_use"}]"#;

/// `repository keys add` and `retire`
pub(super) const KEY: &str = r#"JSON: {"slot","change":"added|retired"}"#;

/// `domain list`
pub(super) const DOMAINS: &str =
    r#"JSON: [{"domain","configured","defined","qmp","backups","latest","stored_bytes"}]"#;

/// `domain show`
pub(super) const DOMAIN: &str = r#"JSON: {"domain","configuration","defined":{"uuid","kind","bytes","targets"},"backups","latest","stored_bytes"};
latest is as in `list`, defined is null for a domain that nobody defined."#;

/// `domain cleanup`
pub(super) const CLEANUP: &str = r#"JSON: {"domain","removed","foreign","kept","continued","thawed"}"#;

/// `doctor`
pub(super) const DOCTOR: &str = r#"JSON: [{"check","object","health":"good|warning|bad","text","hint","kind"}]
The exit code is that of the kind of what is bad."#;

/// `debug log`
pub(super) const LOG: &str = r#"JSON: one entry a line, {"seq","prev","writer","nonce","wall_ms","bodies"}."#;

/// `debug tree`
pub(super) const TREE: &str = r#"JSON: {"disk","size_bytes","root","levels","chunk_bytes","leaves":[{"offset",
 "chunks":[{"offset","id"}]}]}; what is zero is left out."#;

/// `start-unmanaged`
pub(super) const START_UNMANAGED: &str = r#"JSON: {"uuid","state":"exposed","exports":[{"disk","size_bytes","uri","bitmap_context"}]}; uri is an NBD
URI, bitmap_context the metadata context of what changed since the parent, or null. Where all targets
are repositories nothing is served: the backup is made at once, and told as `backup` tells it."#;

/// `finish`
pub(super) const FINISH: &str = r#"JSON: {"uuid","state":"completed|cancelled"}"#;

/// `params`
pub(super) const PARAMS: &str = r#"JSON: one object; the names are those of the backup API, such as "state", "domain", "disk_total",
"disk_processed", "success", "errmsg", "disk.0.name", "fallback.vda"."#;

/// `domain define`, `undefine`, `set-default-target`
pub(super) const DEFINED: &str =
    r#"JSON: {"domain","change":"defined|undefined|default target set|default target cleared"}"#;
