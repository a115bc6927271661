//! What the command line says about itself: completion scripts and manual pages.

use std::io::ErrorKind;
use std::path::Path;

use aquifer_engine::{Error, Kind, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::output::Output;

/// Prints the completion script of `shell`.
///
/// # Errors
/// As [`Output::write`].
pub(crate) fn completions(shell: Shell, output: &Output) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "aquifer", &mut script);
    output.write(&script)
}

/// Writes `aquifer.1`, `aquifer-backup.1` and so on into `folder`, which is made if it is missing.
///
/// # Errors
/// `Denied` or `Unavailable` when the folder or a page cannot be written.
pub(crate) fn pages(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder)).map_err(
        |error| {
            let denied = error.kind() == ErrorKind::PermissionDenied;
            Error::caused(if denied { Kind::Denied } else { Kind::Unavailable }, error)
                .about(format_args!("manual pages in {}", folder.display()))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_its_page_and_hidden_ones_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("man1");
        pages(&folder).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.join(name));
        assert!(page("aquifer-backup.1").unwrap().contains("deduplicated_bytes"));
        assert!(page("aquifer-repository-init.1").is_ok());
        assert!(page("aquifer-guard.1").is_err());
    }

    #[test]
    fn pages_that_cannot_be_written_name_their_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = pages(file.path()).unwrap_err();
        assert!(
            error.message().starts_with(&format!("manual pages in {}: ", file.path().display())),
            "{error}"
        );
    }
}
