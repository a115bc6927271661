//! Aquifer's own works, each next to the floor that it is measured against.
//!
//! Not here: peers. Invariant: floors do no more than a part of what the work beside them must do.

use crate::bench::Bench;
use crate::job::{Job, Op};

/// What the tables call us.
pub(crate) const AQUIFER: &str = "aquifer";
/// Compressing the first day's image.
pub(crate) const ZSTD: &str = "zstd -1 -T2";
/// Reading the second day's export.
pub(crate) const NBDCOPY: &str = "nbdcopy null:";
/// Copying the second day's image, and syncing the copy.
pub(crate) const CP: &str = "cp --sparse=always";
/// Reading the disk that is restored over.
pub(crate) const CAT: &str = "cat to null";

/// Decompressing and hashing what the first two days have.
pub(crate) const UNPACK: &str = "unzstd + BLAKE3";

/// The levels of compression, beside the default, whose cost and gain are told.
pub(crate) const LEVELS: [i32; 3] = [3, 6, 9];

/// What the tables call us at one of these levels.
pub(crate) fn at_level(level: i32) -> String {
    format!("{AQUIFER}, zstd {level}")
}

fn run(bench: &Bench, repository: &str, config: &str, words: &str) -> String {
    let dir = bench.folder().display();
    format!(
        "exec {} --config {dir}/{config}.toml -r {dir}/{repository}/repository --state-dir {dir}/{repository}/state \
         --password-file {dir}/password {words}",
        bench.aquifer.display()
    )
}

/// The lines that make a new repository.
fn init(bench: &Bench, repository: &str) -> Vec<String> {
    let fresh = format!("rm -rf {0} && mkdir {0}", bench.path(repository).display());
    vec![fresh, run(bench, repository, "default", "repository init")]
}

fn backup(bench: &Bench, day: usize) -> String {
    format!("backup disk --nbd vda='{}'", bench.days[day].uri)
}

/// The three days at another level.
pub(crate) fn level_series(bench: &Bench, level: i32) -> Vec<Job> {
    let config = format!("level{level}");
    let job = |op: Op, day: usize| Job {
        stored: Some(bench.path("level/repository")),
        ..bench.job(&at_level(level), op, day, run(bench, "level", &config, &backup(bench, day)))
    };
    vec![Job { before: init(bench, "level"), ..job(Op::Full, 0) }, job(Op::NextDay, 1), job(Op::ThirdDay, 2)]
}

/// A work of ours on the repository of the default settings.
fn ours(bench: &Bench, op: Op, day: usize, words: &str) -> Job {
    Job {
        stored: Some(bench.path("aquifer/repository")),
        ..bench.job(AQUIFER, op, day, run(bench, "aquifer", "default", words))
    }
}

fn restore_to(bench: &Bench, name: &str) -> String {
    format!("restore latest:disk --disk vda=raw:{}", bench.path(name).display())
}

/// The second day over the third, once out of the page cache and once from the storage, and reading that disk once.
fn rewrites(bench: &Bench) -> Vec<Job> {
    let (day1, old) = (&bench.days[1].image, bench.path("old.raw"));
    let disk = old.display();
    let renew = format!("cp --reflink=never --sparse=always {} {disk}", bench.days[2].image.display());
    // What is not written yet cannot be dropped.
    let drop =
        format!("sync {disk} && dd of={disk} oflag=nocache conv=notrunc,fdatasync count=0 status=none");
    let words = format!("{} --rewrite-existing", restore_to(bench, "old.raw"));
    let read = |op: Op| bench.job(CAT, op, 2, format!("exec cat {disk} > /dev/null"));
    vec![
        Job { before: vec![renew.clone()], source: old.clone(), ..read(Op::Rewrite) },
        Job {
            source: old.clone(),
            same: Some((day1.clone(), old.clone())),
            ..ours(bench, Op::Rewrite, 1, &words)
        },
        Job { before: vec![renew, drop.clone()], ..read(Op::RewriteCold) },
        Job {
            before: vec![drop],
            same: Some((day1.clone(), old.clone())),
            ..ours(bench, Op::RewriteCold, 1, &words)
        },
    ]
}

/// One round of ours and of the floors; in the first also the third day.
pub(crate) fn series(bench: &Bench, round: u32) -> Vec<Job> {
    let dir = bench.folder().display();
    let [day0, day1, _] = &bench.days;
    let (frames, compare) = (bench.path("frames"), bench.aquifer.with_file_name("compare"));
    let (frames, compare) = (frames.display(), compare.display());
    let mut jobs = vec![
        Job {
            // Freeing what the last round wrote is no part of the work.
            before: vec![format!("rm -f {dir}/image.zst")],
            ..bench.job(
                ZSTD,
                Op::Full,
                0,
                format!("exec zstd -q -1 -T2 {} -o {dir}/image.zst", day0.image.display()),
            )
        },
        Job {
            before: init(bench, "unchecked"),
            ..bench.job(
                AQUIFER,
                Op::FullUnchecked,
                0,
                run(bench, "unchecked", "unchecked", &backup(bench, 0)),
            )
        },
        Job { before: init(bench, "aquifer"), ..ours(bench, Op::Full, 0, &backup(bench, 0)) },
        ours(bench, Op::NextDay, 1, &backup(bench, 1)),
        bench.job(NBDCOPY, Op::Unchanged, 1, format!("exec nbdcopy --connections=4 '{}' null:", day1.uri)),
        ours(bench, Op::Unchanged, 1, &backup(bench, 1)),
        Job {
            before: vec![format!("rm -f {dir}/copy.raw")],
            same: Some((day1.image.clone(), bench.path("copy.raw"))),
            ..bench.job(
                CP,
                Op::Restore,
                1,
                format!("exec cp --reflink=never --sparse=always {} {dir}/copy.raw", day1.image.display()),
            )
        },
        Job {
            same: Some((day1.image.clone(), bench.path("new.raw"))),
            ..ours(bench, Op::Restore, 1, &restore_to(bench, "new.raw"))
        },
    ];
    jobs.extend(rewrites(bench));
    jobs.extend([
        Job {
            before: vec![format!(
                "[ -e {frames} ] || {compare} pack {frames} {} {}",
                day0.image.display(),
                day1.image.display()
            )],
            source: bench.path("frames"),
            ..bench.job(UNPACK, Op::Verify, 1, format!("exec {compare} unpack {frames}"))
        },
        ours(bench, Op::Verify, 1, "verify --level chunks"),
    ]);
    if round == 1 {
        jobs.push(ours(bench, Op::ThirdDay, 2, &backup(bench, 2)));
    }
    jobs
}
