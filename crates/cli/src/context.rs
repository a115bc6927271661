//! What the words mean: the command line, the configuration and the environment put together.
//!
//! The second of two steps. A [`Context`] knows which repository is meant, where its password and this machine's
//! state lie, and what a job may use. It opens nothing; the commands do.
//!
//! Invariant: the command line beats the environment, the environment beats the configuration.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use aquifer_engine::{Error, Kind, Result};
use tokio_util::sync::CancellationToken;

use crate::args::Global;
use crate::config::{Config, RepositoryConfig};
use crate::location::StoreUrl;
use crate::output::Output;
use crate::password;
use crate::traffic::Traffic;

/// What every command works with.
pub(crate) struct Context {
    /// Options of every command.
    pub(crate) global: Global,
    /// The configuration.
    pub(crate) config: Config,
    /// What the process was started with.
    pub(crate) environment: Environment,
    /// Where results go.
    pub(crate) output: Arc<Output>,
    /// Cancelled by the first signal.
    pub(crate) cancel: CancellationToken,
    /// What goes to the stores.
    pub(crate) traffic: Traffic,
}

/// The parts of the process's environment that commands look at.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// Whether the process runs as root.
    pub(crate) root: bool,
    /// `$HOME`
    pub(crate) home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`
    pub(crate) config_home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`
    pub(crate) state_home: Option<PathBuf>,
    /// `$AQUIFER_PASSWORD_FILE`
    pub(crate) password_file: Option<PathBuf>,
    /// `$AQUIFER_STATE_DIR`
    pub(crate) state_dir: Option<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`
    pub(crate) credentials: Option<OsString>,
}

/// The repository that a command works on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Its configured name, else its URL.
    pub(crate) name: String,
    /// Where its packs are.
    pub(crate) packs: StoreUrl,
    /// Where its log is, if apart.
    pub(crate) log: Option<StoreUrl>,
    /// The file of its password; `None` for one without encryption.
    pub(crate) password_file: Option<PathBuf>,
}

impl Environment {
    /// What this process was started with.
    pub(crate) fn of_process() -> Self {
        // An empty variable is one that is not set.
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // An XDG folder counts only when it is absolute (XDG Base Directory Specification, "Basics").
        let folder = |name| path(name).filter(|path| path.is_absolute());
        Environment {
            root: rustix::process::geteuid().is_root(),
            home: folder("HOME"),
            config_home: folder("XDG_CONFIG_HOME"),
            state_home: folder("XDG_STATE_HOME"),
            password_file: path("AQUIFER_PASSWORD_FILE"),
            state_dir: path("AQUIFER_STATE_DIR"),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY"),
        }
    }

    /// Where the configuration lies when nobody says so: the user's own file if there is one, else the machine's.
    pub(crate) fn default_config(&self) -> PathBuf {
        let own = self.config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")));
        match own.map(|folder| folder.join("aquifer/aquifer.toml")) {
            Some(file) if file.exists() => file,
            _ => PathBuf::from("/etc/aquifer/aquifer.toml"),
        }
    }

    fn default_state_dir(&self) -> Option<PathBuf> {
        if self.root {
            return Some(PathBuf::from("/var/lib/aquifer"));
        }
        let state_home = self.state_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/state")));
        Some(state_home?.join("aquifer"))
    }
}

impl Context {
    /// The folder of index caches and journals.
    ///
    /// # Errors
    /// `Invalid` when nothing names it.
    pub(crate) fn state_dir(&self) -> Result<PathBuf> {
        let named = self.global.state_dir.as_ref().or(self.environment.state_dir.as_ref());
        named.cloned().or_else(|| self.environment.default_state_dir()).ok_or_else(|| {
            Error::new(Kind::Invalid, "no folder for this machine's state: HOME is not set")
                .hint("name one with --state-dir DIR or AQUIFER_STATE_DIR")
        })
    }

    /// Whether any repository is named, on the command line or in the configuration.
    pub(crate) fn names_a_repository(&self) -> bool {
        self.global.repository.is_some() || self.config.defaults.repository.is_some()
    }

    /// The repository that is meant.
    ///
    /// # Errors
    /// `Invalid` when none is named, and as [`StoreUrl`] reads its URLs.
    pub(crate) fn repository(&self) -> Result<Chosen> {
        let named = self.global.repository.as_ref().or(self.config.defaults.repository.as_ref()).ok_or_else(
            || {
                Error::new(Kind::Invalid, "no repository is named")
                    .hint("add -r NAME|URL, or set `repository` under [defaults] in the configuration")
            },
        )?;
        if self.global.repository.is_none() && !self.config.repositories.contains_key(named) {
            return Err(Error::new(
                Kind::Invalid,
                format!("the default repository `{named}` is not configured"),
            )
            .hint(format!("configured repositories: {}", self.config.repository_names())));
        }
        let mut chosen = self.named_repository(named)?;
        if let Some(log) = &self.global.log {
            chosen.log = Some(log.parse()?);
        }
        Ok(chosen)
    }

    /// A repository by its configured name or its URL.
    ///
    /// # Errors
    /// As [`StoreUrl`] reads URLs.
    pub(crate) fn named_repository(&self, named: &str) -> Result<Chosen> {
        let mut chosen = match self.config.repositories.get(named) {
            Some(configured) => self.configured(named, configured)?,
            None => Chosen { name: named.to_owned(), packs: named.parse()?, log: None, password_file: None },
        };
        if let Some(file) = self.named_password() {
            chosen.password_file = Some(file.clone());
        }
        Ok(chosen)
    }

    /// A configured repository as the configuration has it.
    ///
    /// # Errors
    /// As [`Context::repository`].
    pub(crate) fn configured(&self, name: &str, configured: &RepositoryConfig) -> Result<Chosen> {
        Ok(Chosen {
            name: name.to_owned(),
            packs: configured.url.parse()?,
            log: configured.log_url.as_deref().map(str::parse).transpose()?,
            password_file: self.configured_password(configured)?,
        })
    }

    /// The password file that was named outside of the configuration.
    fn named_password(&self) -> Option<&PathBuf> {
        self.global.password_file.as_ref().or(self.environment.password_file.as_ref())
    }

    fn configured_password(&self, configured: &RepositoryConfig) -> Result<Option<PathBuf>> {
        if let Some(name) = &configured.password_credential {
            if let Some(file) = password::credential_file(name, self.environment.credentials.as_deref())? {
                return Ok(Some(file));
            }
            if configured.password_file.is_none() && self.named_password().is_none() {
                return Err(Error::new(
                    Kind::Denied,
                    format!(
                        "the password is the systemd credential `{name}`, and the service manager passed none"
                    ),
                )
                .hint("start through the unit with LoadCredential=, or give --password-file FILE"));
            }
        }
        Ok(configured.password_file.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    const CONFIG: &str = "
        [repositories.main]
        url = '/srv/main'
        password_file = '/etc/aquifer/main.password'
        password_credential = 'main.password'
        [repositories.sealed]
        url = '/srv/sealed'
        password_credential = 'sealed.password'
        [repositories.plain]
        url = 'file:///srv/plain'
        log_url = '/srv/plain-log'
        [defaults]
        repository = 'main'
    ";

    fn context(words: &[&str], config: &str) -> Context {
        let words = ["aquifer"].iter().chain(words).chain(&["list"]);
        let cli = Cli::try_parse_from(words).unwrap();
        Context {
            global: cli.global,
            config: toml::from_str(config).unwrap(),
            environment: Environment::default(),
            output: Arc::new(Output::new(true)),
            cancel: CancellationToken::new(),
            traffic: Traffic::default(),
        }
    }

    fn directory(path: &str) -> StoreUrl {
        StoreUrl::Directory(PathBuf::from(path))
    }

    #[test]
    fn a_configured_name_brings_its_url_log_and_password() {
        let main = context(&[], CONFIG).repository().unwrap();
        assert_eq!(main.name, "main");
        assert_eq!(main.packs, directory("/srv/main"));
        assert_eq!(main.password_file.as_deref(), Some(Path::new("/etc/aquifer/main.password")));
        let plain = context(&["-r", "plain"], CONFIG).repository().unwrap();
        assert_eq!((plain.packs, plain.log), (directory("/srv/plain"), Some(directory("/srv/plain-log"))));
        assert_eq!(plain.password_file, None);
    }

    #[test]
    fn a_path_needs_no_configuration() {
        let chosen = context(&["-r", "/srv/other", "--log", "/srv/log"], "").repository().unwrap();
        assert_eq!((chosen.packs, chosen.log), (directory("/srv/other"), Some(directory("/srv/log"))));
        assert_eq!((chosen.name.as_str(), chosen.password_file), ("/srv/other", None));
    }

    #[test]
    fn the_command_line_beats_the_environment_and_that_beats_the_configuration() {
        let mut context = context(&["--log", "/elsewhere", "--password-file", "/typed"], CONFIG);
        context.environment.password_file = Some(PathBuf::from("/environment"));
        let chosen = context.repository().unwrap();
        assert_eq!(chosen.log, Some(directory("/elsewhere")));
        assert_eq!(chosen.password_file.as_deref(), Some(Path::new("/typed")));
        context.global.password_file = None;
        assert_eq!(context.repository().unwrap().password_file.as_deref(), Some(Path::new("/environment")));
    }

    #[test]
    fn a_systemd_credential_beats_the_configured_file() {
        let mut context = context(&[], CONFIG);
        context.environment.credentials = Some("/run/credentials/u".into());
        let password = context.repository().unwrap().password_file;
        assert_eq!(password, Some(PathBuf::from("/run/credentials/u/main.password")));
    }

    #[test]
    fn a_credential_that_was_not_passed_is_denied_with_the_way_out() {
        let error = context(&["-r", "sealed"], CONFIG).repository().unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.hint_text().unwrap().contains("LoadCredential="), "{error}");
    }

    #[test]
    fn a_command_without_any_repository_says_how_to_name_one() {
        let error = context(&[], "").repository().unwrap_err();
        assert_eq!((error.kind(), error.message()), (Kind::Invalid, "no repository is named"));
        let error = context(&[], "[defaults]\nrepository = 'gone'").repository().unwrap_err();
        assert_eq!(error.message(), "the default repository `gone` is not configured");
    }

    #[test]
    fn state_lies_where_the_command_line_says_else_where_the_user_keeps_it() {
        let mut context = context(&[], "");
        assert_eq!(context.state_dir().unwrap_err().kind(), Kind::Invalid);
        context.environment.home = Some(PathBuf::from("/home/ada"));
        assert_eq!(context.state_dir().unwrap(), Path::new("/home/ada/.local/state/aquifer"));
        context.environment.state_home = Some(PathBuf::from("/state"));
        assert_eq!(context.state_dir().unwrap(), Path::new("/state/aquifer"));
        context.environment.root = true;
        assert_eq!(context.state_dir().unwrap(), Path::new("/var/lib/aquifer"));
        context.environment.state_dir = Some(PathBuf::from("/run/state"));
        assert_eq!(context.state_dir().unwrap(), Path::new("/run/state"));
        context.global.state_dir = Some(PathBuf::from("/tmp/state"));
        assert_eq!(context.state_dir().unwrap(), Path::new("/tmp/state"));
    }
}
