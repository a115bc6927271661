//! A repository in a bucket: everything that a directory does, over HTTP, with answers that get lost, and on a server
//! that may not hold the log.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use aquifer_testkit::{
    AccessKey, Aquifer, Ended, Fault, HttpProxy, Rule, S3Server, TempDir, process, tempdir,
};

use crate::Outcome;
use crate::rig::{ensure_same, sample, text};

const BUCKET: &str = "offsite";

/// A server with a bucket, a proxy in front of it, and an image to back up.
struct Bucket {
    folder: TempDir,
    server: S3Server,
    proxy: HttpProxy,
    image: PathBuf,
}

impl Bucket {
    fn new() -> Result<Bucket> {
        Bucket::made_by(S3Server::make_bucket)
    }

    /// One that heeds object locks.
    fn locking() -> Result<Bucket> {
        Bucket::made_by(S3Server::make_locking_bucket)
    }

    fn made_by(make: impl FnOnce(&S3Server, &str) -> Result<()>) -> Result<Bucket> {
        let folder = tempdir()?;
        let server = S3Server::start(folder.path())?;
        make(&server, BUCKET)?;
        let proxy = HttpProxy::start(server.address())?;
        let image = folder.path().join("stopped.raw");
        sample(&image, 9 << 20)?;
        Ok(Bucket { folder, server, proxy, image })
    }

    /// The repository's URL through this address, with the credentials of `key`.
    fn url(&self, address: SocketAddr, key: &AccessKey) -> Result<String> {
        let file = key.file_in(self.folder.path())?;
        Ok(format!("s3://{BUCKET}/main?endpoint=http://{address}&credentials-file={}", text(&file)))
    }

    /// A user whose repository is behind the proxy.
    fn user(&self) -> Result<Aquifer> {
        Ok(Aquifer::new(self.folder.path())?.at(self.url(self.proxy.address(), &AccessKey::any())?))
    }

    /// Backs up the image and proves that it comes back.
    fn there_and_back(&self, aquifer: &Aquifer, name: &str) -> Outcome {
        aquifer.backup(&["stopped", "--image", &format!("root={}", text(&self.image))])?;
        let images = aquifer.restore("latest:stopped", &["root"], name)?;
        ensure_same(&self.image, &images[0])
    }
}

fn rule(method: &'static str, target: &str, times: usize, fault: Fault) -> Rule {
    Rule { method, target: target.to_owned(), after: 0, times, fault }
}

#[test]
#[ignore = "slow group s3"]
fn every_command_works_on_a_bucket_and_no_local_state_is_needed() -> Outcome {
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    let made = aquifer.run(&["repository", "init"])?.ok()?.document()?;
    let endpoint = bucket.proxy.address().to_string();
    ensure!(made["packs"] == format!("s3://{BUCKET}/main at http://{endpoint}"), "{made}");
    bucket.there_and_back(&aquifer, "first")?;
    ensure!(aquifer.list()?.len() == 1);
    fs::remove_dir_all(aquifer.state_dir())?;
    fs::create_dir(aquifer.state_dir())?;
    let images = aquifer.restore("latest:stopped", &["root"], "second")?;
    ensure_same(&bucket.image, &images[0])?;
    aquifer.run(&["verify", "--level", "chunks"])?.ok()?;
    aquifer.run(&["repository", "rebuild-index"])?.ok()?;
    aquifer.run(&["repository", "rebuild-index", "--from-packs"])?.ok()?;
    let stats = aquifer.run(&["repository", "stats"])?.ok()?.document()?;
    ensure!(stats["backups"] == 1 && stats["packs"].as_u64() > Some(0), "{stats}");
    let info = aquifer.run(&["repository", "info"])?.ok()?.document()?;
    ensure!(info["backups"] == 1 && info["open_sessions"] == 0, "{info}");
    let probed = aquifer.run(&["repository", "probe"])?.ok()?.document()?;
    ensure!(probed["passed"] == true && probed["left_behind"] == 0, "{probed}");
    aquifer.run(&["repository", "init"])?.refused(5, "conflict", &["holds a repository already"])?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn a_backup_survives_lost_answers_storms_and_cut_bodies() -> Outcome {
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    let slow = Fault::Answer(503, Vec::new(), "<Error><Code>SlowDown</Code></Error>".into());
    bucket.proxy.arm([
        rule("PUT", "/log/", 2, Fault::LoseAnswer),
        rule("PUT", "/packs/", 1, Fault::LoseAnswer),
        rule("PUT", "/packs/", 1, slow),
        rule("GET", "/packs/", 2, Fault::CutAnswer(1000)),
        rule("GET", "list-type", 1, Fault::Drop),
    ]);
    aquifer.run(&["repository", "init"])?.ok()?;
    bucket.there_and_back(&aquifer, "restored")?;
    aquifer.run(&["verify", "--level", "chunks"])?.ok()?;
    ensure!(aquifer.list()?.len() == 1);
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn a_backup_needs_no_right_to_delete() -> Outcome {
    let bucket = Bucket::new()?;
    let writer = bucket.server.make_user("writer", &["s3:PutObject", "s3:GetObject", "s3:ListBucket"])?;
    bucket.server.guard()?;
    let url = bucket.url(bucket.proxy.address(), &writer)?;
    let aquifer = Aquifer::new(bucket.folder.path())?.at(url);
    aquifer.run(&["repository", "init"])?.ok()?;
    bucket.there_and_back(&aquifer, "restored")?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn a_server_that_does_not_create_atomically_holds_packs_but_not_the_log() -> Outcome {
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    let careless = || rule("PUT", "", usize::MAX, Fault::Without("if-none-match"));
    bucket.proxy.arm([careless()]);
    aquifer.run(&["repository", "probe"])?.with_code(9)?;
    aquifer.run(&["repository", "init"])?.refused(9, "unsupported", &["16 16 16 16", "--log URL"])?;

    bucket.proxy.arm([careless()]);
    let log = text(&bucket.folder.path().join("log"));
    let log = ["--log", log.as_str()];
    aquifer.run(&[&["repository", "init"][..], &log].concat())?.ok()?;
    let source = format!("root={}", text(&bucket.image));
    aquifer.backup(&[&["stopped", "--image", &source][..], &log].concat())?;
    let restored = bucket.folder.path().join("root.restored");
    let disk = format!("root=raw:{}", text(&restored));
    aquifer.run(&[&["restore", "latest:stopped", "--disk", &disk][..], &log].concat())?.ok()?;
    ensure_same(&bucket.image, &restored)?;
    // The bucket has a copy of the log: good enough to read from when the log's store has burnt down, never to go on with.
    let listed = aquifer.run(&["list"])?;
    ensure!(listed.ok()?.messages.contains("--log URL"), "nobody was told: {}", listed.messages);
    fs::remove_file(&restored)?;
    aquifer.run(&["restore", "latest:stopped", "--disk", &disk])?.ok()?;
    ensure_same(&bucket.image, &restored)?;
    aquifer.run(&["backup", "stopped", "--image", &source])?.refused(3, "invalid", &["--log URL"])?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn losing_the_log_store_loses_nothing_and_a_new_one_takes_its_place() -> Outcome {
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    let (old, new) = (bucket.folder.path().join("log"), bucket.folder.path().join("new-log"));
    let (old, new) = (["--log", &text(&old)].map(str::to_owned), ["--log", &text(&new)].map(str::to_owned));
    let run = |arguments: &[&str], log: &[String; 2]| -> Result<Ended> {
        let mut all = arguments.to_vec();
        all.extend(log.iter().map(String::as_str));
        aquifer.run(&all)
    };
    let source = format!("root={}", text(&bucket.image));
    run(&["repository", "init"], &old)?.ok()?;
    run(&["backup", "stopped", "--image", &source], &old)?.ok()?;
    fs::rename(&old[1], bucket.folder.path().join("burnt"))?;
    // And every host with it.
    fs::remove_dir_all(aquifer.state_dir())?;
    run(&["repository", "adopt-log"], &new)?.ok()?;
    run(&["backup", "stopped", "--image", &source], &new)?.ok()?;
    let restored = bucket.folder.path().join("root.restored");
    let disk = format!("root=raw:{}", text(&restored));
    run(&["restore", "latest:stopped", "--disk", &disk], &new)?.ok()?;
    ensure_same(&bucket.image, &restored)?;
    run(&["verify", "--level", "restore"], &new)?.ok()?;
    run(&["repository", "adopt-log"], &new)?.refused(5, "conflict", &["holds a repository already"])?;
    // The old store turns up again with a host that knows nothing of all this.
    fs::rename(bucket.folder.path().join("burnt"), &old[1])?;
    fs::remove_dir_all(aquifer.state_dir())?;
    run(&["backup", "stopped", "--image", &source], &old)?.refused(
        5,
        "conflict",
        &["adopt-log", "--log URL"],
    )?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn a_locked_bucket_keeps_what_was_deleted_until_its_time_and_what_is_needed_for_as_long() -> Outcome {
    let bucket = Bucket::locking()?;
    let url = bucket.url(bucket.proxy.address(), &AccessKey::any())?;
    let at = |period: &str| format!("{url}&object-lock=governance:{period}");
    let aquifer = Aquifer::new(bucket.folder.path())?.at(at("30s"));
    aquifer.run(&["repository", "init"])?.ok()?;
    let gone = bucket.folder.path().join("gone.raw");
    sample(&gone, 6 << 20)?;
    let mut bytes = fs::read(&gone)?;
    bytes.reverse();
    fs::write(&gone, bytes)?;
    aquifer.backup(&["gone", "--image", &format!("root={}", text(&gone))])?;
    bucket.there_and_back(&aquifer, "first")?;
    aquifer.run(&["delete", "latest:gone", "--forget-delay", "0s"])?.ok()?;
    let collect = ["collect", "--grace", "0s", "--max-repack", "0"];
    let early = aquifer.run(&collect)?.ok()?.document()?;
    ensure!(early["refused"].as_u64() > Some(0) && early["deleted"]["objects"] == 0, "{early}");

    // Under a period of an hour none of the locks has half of it left.
    let longer = at("1h");
    let extend = ["--repository", &longer, "repository", "extend-locks"];
    let first = aquifer.run(&extend)?.ok()?.document()?;
    ensure!(first["extended"].as_u64() > Some(5) && first["unneeded"].as_u64() > Some(0), "{first}");
    ensure!(first["missing"] == 0, "{first}");
    let second = aquifer.run(&extend)?.ok()?.document()?;
    ensure!(second["objects"].as_u64() >= first["objects"].as_u64() && second["extended"] == 0, "{second}");

    let freed = process::wait_for("the end of the locks", Duration::from_secs(120), || {
        let done = aquifer.run(&collect)?.ok()?.document()?;
        Ok((done["deleted"]["objects"].as_u64() > Some(0)).then_some(done))
    })?;
    ensure!(freed["deleted"]["bytes"].as_u64() > Some(1 << 20), "{freed}");
    aquifer.restore("latest:stopped", &["root"], "second")?;
    aquifer.run(&["verify", "--level", "chunks"])?.ok()?;
    // What was extended outlives even its own deletion.
    aquifer.run(&["delete", "latest:stopped", "--forget-delay", "0s"])?.ok()?;
    let kept = aquifer.run(&collect)?.ok()?.document()?;
    ensure!(kept["refused"].as_u64() > Some(0), "{kept}");

    let unlocked = ["--repository", &url, "repository", "extend-locks"];
    aquifer.run(&unlocked)?.refused(3, "invalid", &["object-lock="])?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn a_bucket_that_was_rolled_back_is_refused_by_a_host_that_saw_more_and_good_for_one_that_did_not() -> Outcome
{
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    aquifer.run(&["repository", "init"])?.ok()?;
    bucket.there_and_back(&aquifer, "first")?;
    let before = bucket.server.names(BUCKET)?;
    let source = format!("root={}", text(&bucket.image));
    let lost = aquifer.backup(&["stopped", "--image", &source])?;
    for name in bucket.server.names(BUCKET)? {
        if !before.contains(&name) {
            bucket.server.remove(BUCKET, &name)?;
        }
    }
    for command in [&["list"][..], &["backup", "stopped", "--image", &source], &["collect"]] {
        let words = ["rolled back or truncated", "restore its newer state, or remove"];
        aquifer.run(command)?.refused(8, "corrupt", &words)?;
    }
    fs::remove_dir_all(aquifer.state_dir())?;
    fs::create_dir(aquifer.state_dir())?;
    ensure!(aquifer.list()?.len() == 1, "only what was there before: {lost:?}");
    let images = aquifer.restore("latest:stopped", &["root"], "second")?;
    ensure_same(&bucket.image, &images[0])?;
    aquifer.backup(&["stopped", "--image", &source])?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn a_log_of_another_repository_is_refused() -> Outcome {
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    let log = |name: &str| text(&bucket.folder.path().join(name));
    aquifer.run(&["--log", &log("own"), "repository", "init"])?.ok()?;
    let other = aquifer.repository();
    let other = text(&other);
    aquifer.run(&["--repository", &other, "--log", &log("theirs"), "repository", "init"])?.ok()?;
    aquifer.run(&["--log", &log("theirs"), "list"])?.refused(3, "invalid", &["different repositories"])?;
    Ok(())
}

#[test]
#[ignore = "slow group s3"]
fn each_failure_of_a_bucket_has_its_exit_code_and_says_why() -> Outcome {
    let bucket = Bucket::new()?;
    let aquifer = bucket.user()?;
    aquifer.run(&["list"])?.refused(4, "not_found", &["holds no repository", "repository init"])?;
    let server = bucket.server.address();
    let nowhere = format!("s3://nowhere?endpoint=http://{server}");
    let file = bucket
        .url(server, &AccessKey::any())?
        .split("credentials-file=")
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let at = |url: &str| aquifer.run(&["--repository", &format!("{url}&credentials-file={file}"), "list"]);
    at(&nowhere)?.refused(4, "not_found", &["no such bucket"])?;
    at("s3://offsite?endpoint=http://127.0.0.1:1")?.refused(7, "unavailable", &["127.0.0.1:1", "refused"])?;
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT".to_owned();
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code></Error>".to_owned();
    bucket.proxy.arm([rule("GET", "", usize::MAX, Fault::Answer(403, vec![date], skewed))]);
    aquifer.run(&["list"])?.refused(6, "denied", &["this host's clock is", "ahead of"])?;

    bucket.server.make_user("somebody", &["s3:GetObject"])?;
    bucket.server.guard()?;
    bucket.proxy.arm([]);
    aquifer.run(&["list"])?.refused(6, "denied", &["InvalidAccessKeyId", "credentials-file"])?;
    Ok(())
}
