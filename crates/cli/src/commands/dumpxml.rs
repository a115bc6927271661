//! `dumpxml`: a backup's description as the backup API writes it.

use aquifer_api::{BackupApi, XmlFlags};
use aquifer_engine::Result;

use super::{open, service};
use crate::args::api::DumpxmlArgs;
use crate::context::Context;

/// Runs `dumpxml`.
///
/// # Errors
/// As opening the repository and finding the backup.
pub(crate) async fn run(context: &Context, args: &DumpxmlArgs) -> Result<()> {
    let service = service::over(context, open::reading_job(context).await?)?;
    let backup = service::resolve(&service, &args.backup)?;
    let flags = [
        (args.libvirt, XmlFlags::LIBVIRT),
        (args.secure, XmlFlags::SECURE),
        (args.inactive, XmlFlags::INACTIVE),
        (args.size, XmlFlags::SIZE),
        (args.no_domain, XmlFlags::NO_DOMAIN),
    ];
    let set = flags.into_iter().filter(|(set, _)| *set);
    let flags = set.fold(XmlFlags::NONE, |flags, (_, flag)| flags | flag);
    let document = service::told(service.get_xml(&backup, flags).await)?;
    context.output.write(document.as_bytes())
}
