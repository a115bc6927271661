//! `backup`: which source, which settings, one domain or all of them.

use std::path::{Path, PathBuf};

use aquifer_api::CreateFlags;
use aquifer_api::request::Start;
use aquifer_engine::nbd::Uri;
use aquifer_engine::{BackupOutcome, BackupRequest, DiskMode, Error, FilterVerdicts, Kind, Result, Source};
use aquifer_service::Service;

use super::service::Wishes;
use super::source::{Typed, qmp_source};
use super::unmanaged::read_text;
use super::{open, service};
use crate::args::jobs::{BackupArgs, MethodName, QuiesceMode};
use crate::args::values::Named;
use crate::config::DomainConfig;
use crate::context::Context;
use crate::exit::Exit;
use crate::human;
use crate::output::Report;

/// Runs `backup`.
///
/// # Errors
/// As the engine says; with `--all`, what stopped each domain is printed, and the exit code sums it up.
pub(crate) async fn run(context: &Context, args: BackupArgs) -> Result<Exit> {
    let read_limit_bytes = args.read_limit.map(|rate| rate.0);
    if let (Some(domain), Some(file)) = (&args.domain, &args.xml) {
        let outcome = by_document(context, &args, domain, file).await;
        context.done(&outcome.map_err(|error| of_domain(error, domain))?)?;
        return Ok(Exit::Done);
    }
    if let Some(domain) = &args.domain {
        let filter = verdicts(context, &args)?;
        let request = request(context.config.domains.get(domain), &args, domain, filter)?;
        let job = open::writing_job(context, read_limit_bytes).await?;
        let service = service::over(context, job)?;
        let outcome = service.backup(request).await.map_err(|error| of_domain(error, domain))?;
        context.done(&outcome)?;
        return Ok(Exit::Done);
    }
    if context.config.domains.is_empty() {
        return Err(Error::new(Kind::NotFound, "--all: no domain is configured")
            .hint("add [domains.NAME] to the configuration, or name a domain and its source"));
    }
    let job = open::writing_job(context, read_limit_bytes).await?;
    all(context, &args, &service::over(context, job)?).await
}

async fn by_document(
    context: &Context,
    args: &BackupArgs,
    domain: &str,
    file: &Path,
) -> Result<BackupOutcome> {
    let flags = [
        (args.full, CreateFlags::FULL),
        (args.strict_parent, CreateFlags::STRICT_PARENT),
        (args.reuse_external, CreateFlags::REUSE_EXTERNAL),
        (args.quiesce == Some(QuiesceMode::Try), CreateFlags::QUIESCE),
        (args.quiesce == Some(QuiesceMode::Require), CreateFlags::REQUIRE_QUIESCE),
    ];
    let set = flags.into_iter().filter(|(set, _)| *set);
    let flags = set.fold(CreateFlags::NONE, |flags, (_, flag)| flags | flag);
    let xml = read_text(file).await?;
    let job = open::writing_job(context, args.read_limit.map(|rate| rate.0)).await?;
    let wishes = Wishes { qmp: args.qmp.clone(), lease: None };
    let service = service::with(context, job, wishes)?;
    service.backup_document(domain, &xml, Start::Managed, flags).await
}

async fn all(context: &Context, args: &BackupArgs, service: &Service) -> Result<Exit> {
    let filter = verdicts(context, args)?;
    let mut exit = Exit::Done;
    for (domain, configured) in &context.config.domains {
        let outcome = match request(Some(configured), args, domain, filter.clone()) {
            Ok(request) => service.backup(request).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(outcome) => context.done(&outcome)?,
            Err(error) => {
                exit = exit.and(Exit::Failed(error.kind()));
                context.output.error(&of_domain(error, domain));
            }
        }
        if context.cancel.is_cancelled() {
            return Ok(Exit::Failed(Kind::Cancelled));
        }
    }
    Ok(exit)
}

/// Names the domain, unless the engine did.
fn of_domain(error: Error, domain: &str) -> Error {
    let name = format!("domain {domain}");
    let error = if error.message().contains(&name) { error } else { error.about(name) };
    error.with("domain", domain)
}

/// What this host knows of filters, where one is asked for.
fn verdicts(context: &Context, args: &BackupArgs) -> Result<Option<FilterVerdicts>> {
    match args.method {
        MethodName::Classic => Ok(None),
        MethodName::Filter => FilterVerdicts::load(&context.state_dir()?).map(Some),
    }
}

fn request(
    configured: Option<&DomainConfig>,
    args: &BackupArgs,
    domain: &str,
    filter: Option<FilterVerdicts>,
) -> Result<BackupRequest> {
    Ok(BackupRequest {
        domain: domain.to_owned(),
        source: source(configured, args, domain, filter)?,
        uuid: args.uuid,
        description: args.description.clone().unwrap_or_default(),
        labels: args.label.iter().map(|label| (label.key.clone(), label.value.clone())).collect(),
        full: args.full,
        full_disks: Vec::new(),
        parent: None,
        // Those of the domain, which the service knows.
        namespace: None,
        definition: None,
        recheck_ppm: args.recheck.map(|share| share.ppm),
        fence_after: args.fence_after.0,
    })
}

fn source(
    configured: Option<&DomainConfig>,
    args: &BackupArgs,
    domain: &str,
    filter: Option<FilterVerdicts>,
) -> Result<Source> {
    if !args.nbd.is_empty() {
        let exports = chosen(&args.nbd, &args.disk)?;
        let exports = exports.into_iter().map(|named| Ok((named.name.clone(), named.value.parse::<Uri>()?)));
        return Ok(Source::Nbd(exports.collect::<Result<_>>()?));
    }
    if !args.image.is_empty() {
        let images = chosen(&args.image, &args.disk)?;
        return Ok(Source::Images(
            images.into_iter().map(|named| (named.name.clone(), PathBuf::from(&named.value))).collect(),
        ));
    }
    let monitor = args.qmp.as_ref().or_else(|| configured.map(|domain| &domain.qmp)).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("domain `{domain}` is not configured, and no source is given"))
            .hint("add --qmp ADDRESS, --nbd NAME=URI or --image NAME=PATH, or configure [domains.NAME]")
    })?;
    let typed = Typed {
        agent: args.agent.as_deref(),
        quiesce: args.quiesce,
        scratch: args.scratch.as_deref(),
        scratch_max_bytes: args.scratch_max.map(|size| size.0),
        disks: &args.disk,
    };
    Ok(Source::Qmp(Box::new(qmp_source(configured, &typed, monitor.parse()?, filter)?)))
}

/// The pairs of `given` that `--disk` selects, all without it; each name once.
fn chosen<'a>(given: &'a [Named], only: &[String]) -> Result<Vec<&'a Named>> {
    for (index, named) in given.iter().enumerate() {
        if given[..index].iter().any(|other| other.name == named.name) {
            return Err(Error::new(Kind::Invalid, format!("disk `{}` is given twice", named.name)));
        }
    }
    if let Some(unknown) = only.iter().find(|name| given.iter().all(|named| named.name != **name)) {
        let known: Vec<&str> = given.iter().map(|named| named.name.as_str()).collect();
        return Err(Error::new(Kind::NotFound, format!("disk `{unknown}` is not among the given ones"))
            .hint(format!("given: {}", known.join(", "))));
    }
    Ok(given.iter().filter(|named| only.is_empty() || only.contains(&named.name)).collect())
}

fn mode(mode: DiskMode) -> &'static str {
    match mode {
        DiskMode::Full => "full",
        DiskMode::Bitmap => "bitmap",
        DiskMode::Rescan => "rescan",
    }
}

impl Report for BackupOutcome {
    fn human(&self) -> String {
        let head = ["disk", "size", "mode", "read", "zero", "kept", "known", "new", "stored"];
        let rows = self.disks.iter().map(|disk| {
            let sizes = [
                disk.read_bytes,
                disk.zero_bytes,
                disk.kept_bytes,
                disk.deduplicated_bytes,
                disk.new_bytes,
                disk.stored_bytes,
            ];
            let mut row = vec![disk.name.clone(), human::size(disk.size_bytes), mode(disk.mode).to_owned()];
            row.extend(sizes.map(human::size));
            row
        });
        let mut text = human::table(&head, &[1, 3, 4, 5, 6, 7, 8], rows);
        for disk in &self.disks {
            if let Some(reason) = &disk.reason {
                text += &format!("{}: {}: {reason}\n", disk.name, mode(disk.mode));
            }
        }
        let frozen = self.freeze_ms.map_or(String::new(), |ms| format!(", guest frozen for {ms} ms"));
        let parent = self.parent.map_or(String::new(), |parent| format!(" against {parent}"));
        text + &format!(
            "backup {} of {} at {}{parent}: done in {:.1}s{frozen}, peak memory {}\n",
            self.uuid,
            self.domain,
            human::time(self.created),
            self.seconds,
            human::size(self.memory_peak_bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aquifer_engine::QmpSource;
    use aquifer_engine::qemu::{DiskChoice, DiskName, NbdListen, Quiesce};
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    const WEB01: &str = "
        qmp = 'unix:/run/web01.qmp'
        agent = 'unix:/run/web01.ga'
        scratch = '/srv/scratch'
        scratch_max = '2GiB'
        nbd_listen = 'tls:[::]:10809'
        tls_certificates = '/etc/pki'
        tls_creds = 'tls0'
        [disks]
        vda = 'virtio-disk0'
    ";

    fn args(words: &[&str]) -> BackupArgs {
        let words = ["aquifer", "backup", "web01"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Backup(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn qmp(configured: Option<&str>, words: &[&str]) -> Result<QmpSource> {
        let configured = configured.map(|text| toml::from_str::<DomainConfig>(text).unwrap());
        match source(configured.as_ref(), &args(words), "web01", None)? {
            Source::Qmp(source) => Ok(*source),
            other => panic!("{other:?}"),
        }
    }

    fn refusal(configured: Option<&str>, words: &[&str]) -> String {
        let error = qmp(configured, words).unwrap_err();
        format!("{}: {} ({})", error.kind(), error.message(), error.hint_text().unwrap_or_default())
    }

    #[test]
    fn another_hosts_session_is_ended_after_an_hour_of_silence_unless_told_otherwise() {
        let fence_after = |words: &[&str]| {
            request(Some(&toml::from_str(WEB01).unwrap()), &args(words), "web01", None).unwrap().fence_after
        };
        assert_eq!(fence_after(&[]), aquifer_engine::repository::FENCE_AFTER);
        assert_eq!(fence_after(&["--fence-after", "0s"]), std::time::Duration::ZERO);
    }

    #[test]
    fn a_configured_domain_needs_nothing_but_its_name() {
        let source = qmp(Some(WEB01), &[]).unwrap();
        assert_eq!(source.monitor.to_string(), "unix:/run/web01.qmp");
        assert_eq!(source.agent.map(|agent| agent.to_string()).as_deref(), Some("unix:/run/web01.ga"));
        assert_eq!(source.quiesce, Quiesce::Try);
        assert_eq!(
            (source.scratch, source.scratch_max_bytes),
            (PathBuf::from("/srv/scratch"), Some(2 << 30))
        );
        let name = DiskName { name: "vda".to_owned(), selector: "virtio-disk0".to_owned() };
        assert_eq!(source.disks, DiskChoice { names: vec![name], only: Vec::new() });
        assert_eq!(
            source.listen,
            NbdListen::Tls { host: "::".to_owned(), port: 10809, creds: "tls0".to_owned(), authz: None }
        );
        assert_eq!(source.guard.unwrap().args, ["guard"]);
    }

    #[test]
    fn what_was_typed_beats_what_is_configured() {
        let words =
            ["--qmp", "unix:/other", "--scratch", "/tmp", "--scratch-max", "1GiB", "--quiesce", "off"];
        let source = qmp(Some(WEB01), &words).unwrap();
        assert_eq!(source.monitor.to_string(), "unix:/other");
        assert_eq!((source.scratch, source.scratch_max_bytes), (PathBuf::from("/tmp"), Some(1 << 30)));
        assert_eq!(source.quiesce, Quiesce::Off);
    }

    #[test]
    fn a_domain_without_configuration_needs_a_source_only() {
        let source = qmp(None, &["--qmp", "unix:/run/x", "--disk", "vdb"]).unwrap();
        assert_eq!((source.quiesce, source.listen), (Quiesce::Off, NbdListen::Unix));
        assert_eq!(source.scratch, Path::new("/var/tmp"));
        assert_eq!(source.disks.only, ["vdb"]);
    }

    #[test]
    fn an_error_names_its_domain_once() {
        let error = of_domain(of_domain(Error::cancelled(), "web01"), "web01");
        assert_eq!(error.message(), "domain web01: cancelled before it was complete");
        assert_eq!(error.context()["domain"], "web01");
    }

    #[test]
    fn requests_that_cannot_work_are_refused_with_the_way_out() {
        let without_creds = WEB01.replace("tls_creds = 'tls0'", "");
        let plain = WEB01.replace("tls:[::]:10809", "0.0.0.0:10809");
        let texts = [
            refusal(None, &[]),
            refusal(None, &["--qmp", "unix:/run/x", "--quiesce", "require"]),
            refusal(Some(&without_creds), &[]),
            refusal(Some(&plain), &[]),
        ];
        insta::assert_snapshot!(texts.join("\n"));
    }

    #[test]
    fn disks_of_exports_and_images_are_given_once_and_chosen_by_name() {
        let exports = ["--nbd", "a=nbd://h/a", "--nbd", "b=nbd://h/b"];
        let chosen = |more: &[&str]| source(None, &args(&[&exports[..], more].concat()), "web01", None);
        let Ok(Source::Nbd(all)) = chosen(&[]) else { panic!("no exports") };
        assert_eq!(all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let Ok(Source::Nbd(one)) = chosen(&["--disk", "b"]) else { panic!("no exports") };
        assert_eq!(one[0].0, "b");
        assert_eq!(chosen(&["--disk", "c"]).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(chosen(&["--nbd", "a=nbd://h/c"]).unwrap_err().message(), "disk `a` is given twice");
    }
}
