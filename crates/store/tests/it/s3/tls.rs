//! A server whose certificate an own authority signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use aquifer_store::{Error, S3};
use aquifer_testkit::{S3Server, tempdir, tools};

use super::Rig;
use crate::Outcome;

/// An authority, and a certificate for 127.0.0.1 with its key that it signed.
struct Pki {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn openssl(arguments: &[&str], folder: &Path) -> Result<()> {
    let mut command = Command::new(tools::tool("openssl")?);
    tools::run(command.args(arguments).current_dir(folder)).map(drop)
}

fn pki(folder: &Path) -> Result<Pki> {
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    let authority = ["-x509", "-subj", "/CN=test authority", "-keyout", "ca-key.pem", "-out", "ca.pem"];
    openssl(&[&new[..], &authority].concat(), folder)?;
    let request = ["-subj", "/CN=server", "-keyout", "server-key.pem", "-out", "server.csr"];
    openssl(&[&new[..4], &request].concat(), folder)?;
    fs::write(folder.join("extensions"), "subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n")?;
    let sign = [
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca-key.pem",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "extensions",
        "-out",
        "server.pem",
    ];
    openssl(&sign, folder)?;
    Ok(Pki {
        authority: folder.join("ca.pem"),
        certificate: folder.join("server.pem"),
        key: folder.join("server-key.pem"),
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow group s3"]
async fn an_own_authority_is_trusted_when_it_is_named_and_not_before() -> Outcome {
    let rig = Rig::new()?;
    let folder = tempdir()?;
    let pki = pki(folder.path())?;
    let server = S3Server::start_tls(folder.path(), &pki.certificate, &pki.key)?;
    let mut settings = rig.settings(server.address())?;
    settings.endpoint = Some(format!("https://{}", server.address()));
    let error = S3::open(settings.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error}");
    assert!(
        error.to_string().contains("ca-file=FILE") && error.to_string().contains("UnknownIssuer"),
        "{error}"
    );

    settings.ca_file = Some(pki.authority);
    // The bucket is not made: that the server says so proves that it was spoken with.
    let error = S3::open(settings).await.unwrap_err();
    assert!(matches!(error, Error::NoBucket { .. }), "{error}");
    Ok(())
}
