//! Where a password comes from: a file, a systemd credential, or (only for a new one) the terminal.
//!
//! Never from the command line's own words, the environment's values or the configuration's values.
//!
//! Invariant: at most [`PASSWORD_BYTES_MAX`] bytes are read, and an empty password is refused.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aquifer_engine::{Error, Kind, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// The longest password, in bytes: enough for a key file, too little for a mistaken disk image.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// A password; wiped from memory when dropped.
pub(crate) type Password = Zeroizing<Vec<u8>>;

/// Reads the password in `path`: its whole content without one line end.
///
/// # Errors
/// `NotFound`, `Denied` or `Unavailable` as the file system says; `Invalid` when it is empty or too long.
pub(crate) fn from_file(path: &Path) -> Result<Password> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Unavailable,
        };
        Error::caused(kind, error)
            .about(format_args!("password file {}", path.display()))
            .hint("name another one with --password-file FILE or AQUIFER_PASSWORD_FILE")
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.mode() & 0o007 != 0 {
        tracing::warn!("password file {} can be read by everybody; `chmod o= FILE` helps", path.display());
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(PASSWORD_BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    trimmed(content, &format!("password file {}", path.display()))
}

/// The file of the systemd credential `name`, if the service manager passed any credentials
/// (systemd.exec(5), `LoadCredential=`).
///
/// # Errors
/// `Invalid` when `name` is a path instead of a name.
pub(crate) fn credential_file(name: &str, directory: Option<&OsStr>) -> Result<Option<PathBuf>> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(Error::new(Kind::Invalid, format!("`{name}` is not the name of a systemd credential"))
            .hint("write the name of the unit's LoadCredential=NAME:FILE"));
    }
    Ok(directory.map(|directory| Path::new(directory).join(name)))
}

/// Reads a new password from standard input: its first line; typed without echo when it is a terminal.
///
/// # Errors
/// `Invalid` when it is empty or too long, `Unavailable` when standard input fails.
pub(crate) fn new_from_stdin() -> Result<Password> {
    let stdin = std::io::stdin();
    let failed = |error: std::io::Error| Error::caused(Kind::Unavailable, error).about("standard input");
    let quiet = if stdin.is_terminal() {
        // Without a terminal to show it on, the question is not needed.
        let _ = write!(std::io::stderr(), "New password: ");
        Some(EchoOff::new().map_err(|error| failed(error.into()))?)
    } else {
        None
    };
    let mut content = Zeroizing::new(Vec::new());
    let mut lines = BufReader::new(stdin.lock().take(PASSWORD_BYTES_MAX + 1));
    lines.read_until(b'\n', &mut content).map_err(failed)?;
    drop(quiet);
    trimmed(content, "the new password")
}

/// A terminal that does not show what is typed, until dropped.
struct EchoOff(Termios);

impl EchoOff {
    fn new() -> rustix::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(EchoOff(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // A terminal that has gone away meanwhile needs no echo.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
        let _ = writeln!(std::io::stderr());
    }
}

fn trimmed(mut content: Password, what: &str) -> Result<Password> {
    if u64::try_from(content.len()).is_ok_and(|length| length > PASSWORD_BYTES_MAX) {
        return Err(Error::new(Kind::Invalid, format!("{what} is longer than {PASSWORD_BYTES_MAX} bytes")));
    }
    if content.last() == Some(&b'\n') {
        content.pop();
        if content.last() == Some(&b'\r') {
            content.pop();
        }
    }
    if content.is_empty() {
        return Err(Error::new(Kind::Invalid, format!("{what} is empty")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn one_line_end_is_no_part_of_the_password() {
        for content in [&b"secret"[..], b"secret\n", b"secret\r\n"] {
            assert_eq!(from_file(file(content).path()).unwrap().as_slice(), b"secret");
        }
        assert_eq!(from_file(file(b" a\n\n").path()).unwrap().as_slice(), b" a\n");
    }

    #[test]
    fn an_empty_password_is_refused() {
        for content in [&b""[..], b"\n", b"\r\n"] {
            let error = from_file(file(content).path()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().ends_with("is empty"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_password_is_refused_before_it_is_read_whole() {
        let error = from_file(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains("longer than 65536 bytes"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = from_file(Path::new("/nonexistent/pw")).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.message().starts_with("password file /nonexistent/pw: "), "{error}");
    }

    #[test]
    fn a_credential_is_looked_up_in_the_folder_of_the_service_manager() {
        let directory = OsStr::new("/run/credentials/aquifer");
        assert_eq!(
            credential_file("main.password", Some(directory)).unwrap(),
            Some(PathBuf::from("/run/credentials/aquifer/main.password"))
        );
        assert_eq!(credential_file("main.password", None).unwrap(), None);
    }

    #[test]
    fn a_credential_is_a_name_and_not_a_path() {
        for wrong in ["", "../etc/shadow", "/etc/shadow", ".."] {
            assert_eq!(credential_file(wrong, None).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }
}
