//! Domains: defining, default targets, undefining; and deleting backups.
//!
//! Not here: how a domain's monitor is reached, which is the configuration's.

use aquifer_api::request::parse_default_target;
use aquifer_api::xml::{Definition, DomainBackup, Target};
use aquifer_api::{DeleteFlags, DomainRecord, Error, Kind, Result, TargetFlags, UndefineFlags};
use aquifer_engine::definition_of;
use aquifer_engine::repository::format::log::{DefaultTargets, DefinedDomain};
use aquifer_engine::repository::format::record::DefinitionKind;
use aquifer_engine::repository::{DeleteScope, FORGET_DELAY};
use uuid::Uuid;

use crate::catalogue::Item;
use crate::error::{journal, repository};
use crate::service::Service;

/// A domain's definition, with what it says of the domain itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDefinition {
    /// The name.
    pub name: String,
    /// The id, if there is one in it.
    pub uuid: Option<Uuid>,
    /// Every byte of it.
    pub bytes: Vec<u8>,
}

impl DomainDefinition {
    /// Reads a definition: libvirt's domain XML, a JSON object with `name` and perhaps `uuid`, or QEMU's command line
    /// with `-name` and perhaps `-uuid`.
    ///
    /// # Errors
    /// `Xml`, with the place; `InvalidArg` when it names no domain.
    pub fn read(bytes: Vec<u8>) -> Result<Self> {
        let text = String::from_utf8_lossy(&bytes);
        let (name, uuid) = match definition_of(bytes.clone()).kind {
            DefinitionKind::Xml => {
                let definition = Definition::parse(&text)?;
                let uuid = definition.uuid()?;
                (Some(definition.name()?), uuid)
            }
            DefinitionKind::Json => {
                let json: serde_json::Value = serde_json::from_str(&text)
                    .map_err(|error| Error::InvalidArg(format!("the definition is no JSON: {error}")))?;
                let uuid = json["uuid"].as_str().and_then(|uuid| uuid.parse().ok());
                (json["name"].as_str().map(str::to_owned), uuid)
            }
            DefinitionKind::CommandLine => {
                let name = option(&text, "-name").map(|value| {
                    let first = value.split(',').next().unwrap_or_default();
                    first.strip_prefix("guest=").unwrap_or(first).to_owned()
                });
                (name, option(&text, "-uuid").and_then(|uuid| uuid.parse().ok()))
            }
        };
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            let ways = "libvirt's XML needs <name>, JSON a key \"name\", QEMU's command line -name";
            Error::InvalidArg(format!("the definition does not name its domain: {ways}"))
        })?;
        Ok(DomainDefinition { name, uuid, bytes })
    }
}

/// The word after an option of QEMU's command line, as the kernel (zero bytes) or a person (blanks) writes it.
fn option<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut words = text.split(['\0', ' ', '\n', '\t']).filter(|word| !word.is_empty());
    words.find(|word| *word == name)?;
    words.next().map(|value| value.trim_matches(['\'', '"']))
}

impl Service {
    /// Defines a domain, or defines it anew; backups of its name are its own. Default targets stay.
    ///
    /// # Errors
    /// `InvalidArg` for a name that no domain can have; those of the repository.
    pub async fn define(&self, definition: &DomainDefinition) -> Result<()> {
        let DomainDefinition { name, uuid, bytes } = definition;
        aquifer_engine::check_name("domain", name).map_err(|error| crate::to_api(&error, name))?;
        let change = |before: Option<&DefinedDomain>| DefinedDomain {
            name: name.clone(),
            uuid: *uuid,
            definition: Some(definition_of(bytes.clone())),
            targets: before.map(|before| before.targets.clone()).unwrap_or_default(),
        };
        self.repository().define_domain(name, change).await.map_err(repository)
    }

    /// The default target of a domain's backups.
    pub(crate) fn default_target(&self, domain: &str) -> Result<Option<Target>> {
        let defined = self.repository().domain(domain);
        let document = defined.and_then(|defined| defined.targets.backup);
        document.map(|document| parse_default_target(&document)).transpose().map_err(Error::from)
    }

    pub(crate) async fn set_target(&self, domain: &str, xml: Option<&str>, flags: TargetFlags) -> Result<()> {
        self.refresh().await?;
        self.require_domain(domain)?;
        let target = xml.map(parse_default_target).transpose()?;
        if let Some(target) = &target
            && !flags.contains(TargetFlags::FORCE)
        {
            self.require_store(target)?;
        }
        let document =
            target.map(|target| written(&DomainBackup { target: Some(target), ..DomainBackup::default() }));
        let document = document.transpose()?;
        // The proposal has one call for all three.
        let targets =
            DefaultTargets { backup: document.clone(), snapshot: document.clone(), managed_save: document };
        let change = |before: Option<&DefinedDomain>| match before {
            Some(before) => DefinedDomain { targets: targets.clone(), ..before.clone() },
            None => DefinedDomain {
                name: domain.to_owned(),
                uuid: None,
                definition: None,
                targets: targets.clone(),
            },
        };
        self.repository().define_domain(domain, change).await.map_err(repository)
    }

    /// Refuses a target in another repository than this one, and one that is none.
    pub(crate) fn require_store(&self, target: &Target) -> Result<()> {
        match target {
            Target::ChunkStore { store, .. } if *store != self.0.store => Err(Error::NoStore(store.clone())),
            Target::ChunkStore { .. } => Ok(()),
            Target::File { path, .. } | Target::Block { path, .. } => Err(not_into(path)),
            Target::Volume { pool, volume } => Err(not_into(&format!("volume {volume} of pool {pool}"))),
            Target::Nbd(_) => Err(Error::OperationUnsupported(
                "a managed backup into an NBD export; start it as an unmanaged one, and read its exports"
                    .to_owned(),
            )),
        }
    }

    pub(crate) async fn domain_record(&self, backup: Uuid) -> Result<DomainRecord> {
        let item = self.item(backup).await?;
        let name = item.domain().to_owned();
        let defined = self.repository().domain(&name);
        let recorded = match &item {
            Item::Stored(_) => self.repository().record(backup).await.map_err(repository)?.domain.uuid,
            Item::Job(_) => None,
        };
        let uuid = defined.as_ref().and_then(|defined| defined.uuid).or(recorded);
        let defined = defined.is_some() || self.0.configured.contains(&name);
        Ok(DomainRecord { name, uuid, defined })
    }

    pub(crate) async fn undefine_domain(&self, domain: &str, flags: UndefineFlags) -> Result<()> {
        self.refresh().await?;
        self.require_domain(domain)?;
        let jobs: Vec<_> = self.entries()?.into_iter().filter(|entry| entry.domain == domain).collect();
        if let Some(job) = jobs.iter().find(|job| !job.state.is_final()) {
            let (domain, job) = (domain.to_owned(), format!("job {} is {}", job.uuid, job.state));
            return Err(Error::JobBusy { domain, job });
        }
        self.repository()
            .undefine_domain(domain, flags.contains(UndefineFlags::BACKUP))
            .await
            .map_err(repository)?;
        jobs.iter().try_for_each(|job| self.0.journal.remove(job.uuid)).map_err(journal)
    }

    pub(crate) async fn delete(&self, backup: Uuid, flags: DeleteFlags) -> Result<()> {
        if flags.contains(DeleteFlags::METADATA_ONLY) {
            // It is what is done anyway: a deleted backup's bitmap stays until the next backup of its disk.
            tracing::debug!(%backup, "METADATA_ONLY changes nothing");
        }
        let items = self.items().await?;
        let item = items.iter().find(|item| item.uuid() == backup).ok_or(Error::NoBackup(backup))?;
        let with_all = flags.contains(DeleteFlags::ALL);
        let jobs: Vec<&Item> = items
            .iter()
            .filter(|other| matches!(other, Item::Job(_)))
            .filter(|other| other.uuid() == backup || with_all && other.domain() == item.domain())
            .collect();
        if let Some(active) = jobs.iter().find(|job| !job.state().is_final()) {
            let (backup, state) = (active.uuid(), active.state());
            return Err(Error::OperationInvalid { backup, state, what: "its job is not over".to_owned() });
        }
        let scope = match (with_all, flags.contains(DeleteFlags::ALL_CHILDREN)) {
            (true, _) => DeleteScope::Domains,
            (false, true) => DeleteScope::Descendants,
            (false, false) => DeleteScope::Only,
        };
        let stored = |item: &&Item| matches!(item, Item::Stored(_));
        let anchor = match item {
            Item::Stored(_) => Some(item),
            Item::Job(_) if with_all => {
                items.iter().filter(stored).find(|other| other.domain() == item.domain())
            }
            Item::Job(_) => None,
        };
        if let Some(anchor) = anchor {
            self.repository().delete(&[anchor.uuid()], scope, FORGET_DELAY).await.map_err(repository)?;
        }
        jobs.iter().try_for_each(|job| self.0.journal.remove(job.uuid())).map_err(journal)
    }
}

fn not_into(place: &str) -> Error {
    Error::Other {
        kind: Kind::Unsupported,
        message: format!("not supported: a backup straight into {place}"),
        hint: Some("back up into a repository, and restore from it into any volume".to_owned()),
    }
}

/// A document as text.
pub(crate) fn written(document: &DomainBackup) -> Result<String> {
    let mut out = Vec::new();
    document.write(&mut out).map_err(|error| Error::Internal(error.to_string()))?;
    String::from_utf8(out).map_err(|error| Error::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DomainDefinition> {
        DomainDefinition::read(text.as_bytes().to_vec())
    }

    #[test]
    fn a_definition_names_its_domain_in_each_of_three_ways() {
        let uuid: Uuid = "54c70d40-26bb-48cd-9639-b3a1e9adf650".parse().unwrap();
        for text in [
            format!("<domain type='kvm'><name>web01</name><uuid>{uuid}</uuid></domain>"),
            format!("{{\"name\": \"web01\", \"uuid\": \"{uuid}\"}}"),
            format!("qemu-system-x86_64 -uuid {uuid} -name guest=web01,debug-threads=on -m 1G"),
            format!("qemu-system-x86_64\0-name\0web01\0-uuid\0{uuid}\0"),
        ] {
            let found = read(&text).unwrap();
            assert_eq!((found.name.as_str(), found.uuid), ("web01", Some(uuid)), "{text}");
            assert_eq!(found.bytes, text.as_bytes());
        }
    }

    #[test]
    fn a_definition_without_a_name_is_refused_with_the_three_ways() {
        for text in ["{}", "qemu-system-x86_64 -m 1G", "qemu -name"] {
            let error = read(text).unwrap_err();
            assert_eq!(error.code(), "INVALID_ARG");
            assert!(error.to_string().contains("-name"), "{error}");
        }
        assert_eq!(read("<domain/>").unwrap_err().code(), "XML_ERROR");
        assert_eq!(read("{\"name\":").unwrap_err().code(), "INVALID_ARG");
    }
}
