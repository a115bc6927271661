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

/// One round of ours and of the floors; in the first also the third day.
pub(crate) fn series(bench: &Bench, round: u32) -> Vec<Job> {
    let dir = bench.folder().display();
    let [day0, day1, _] = &bench.days;
    let run = |repository: &str, config: &str, words: &str| {
        format!(
            "exec {} --config {dir}/{config}.toml -r {dir}/{repository}/repository --state-dir {dir}/{repository}/state \
             --password-file {dir}/password {words}",
            bench.aquifer.display()
        )
    };
    let init = |repository: &str| {
        let fresh = format!("rm -rf {dir}/{repository} && mkdir {dir}/{repository}");
        vec![fresh, run(repository, "default", "repository init")]
    };
    let backup = |day: usize| format!("backup disk --nbd vda='{}'", bench.days[day].uri);
    let ours = |op: Op, day: usize, words: &str| Job {
        stored: Some(bench.path("aquifer/repository")),
        ..bench.job(AQUIFER, op, day, run("aquifer", "default", words))
    };
    let to = |name: &str| format!("restore latest:disk --disk vda=raw:{dir}/{name}");
    let old = bench.path("old.raw");
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
            before: init("unchecked"),
            ..bench.job(AQUIFER, Op::FullUnchecked, 0, run("unchecked", "unchecked", &backup(0)))
        },
        Job { before: init("aquifer"), ..ours(Op::Full, 0, &backup(0)) },
        ours(Op::NextDay, 1, &backup(1)),
        bench.job(NBDCOPY, Op::Unchanged, 1, format!("exec nbdcopy --connections=4 '{}' null:", day1.uri)),
        ours(Op::Unchanged, 1, &backup(1)),
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
            ..ours(Op::Restore, 1, &to("new.raw"))
        },
        Job {
            before: vec![format!(
                "cp --reflink=never --sparse=always {} {}",
                day0.image.display(),
                old.display()
            )],
            source: old.clone(),
            ..bench.job(CAT, Op::Rewrite, 0, format!("exec cat {} > /dev/null", old.display()))
        },
        Job {
            source: old.clone(),
            same: Some((day1.image.clone(), old)),
            ..ours(Op::Rewrite, 1, &format!("{} --rewrite-existing", to("old.raw")))
        },
        Job {
            before: vec![format!(
                "[ -e {frames} ] || {compare} pack {frames} {} {}",
                day0.image.display(),
                day1.image.display()
            )],
            source: bench.path("frames"),
            ..bench.job(UNPACK, Op::Verify, 1, format!("exec {compare} unpack {frames}"))
        },
        ours(Op::Verify, 1, "verify --level chunks"),
    ];
    if round == 1 {
        jobs.push(ours(Op::ThirdDay, 2, &backup(2)));
    }
    jobs
}
