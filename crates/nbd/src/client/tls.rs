//! Our side of NBD's TLS: certificates from a folder, as QEMU and libnbd lay it out.
//!
//! `ca-cert.pem` says whom to trust and must be there; `client-cert.pem` with `client-key.pem` says who we are and may be
//! absent. The server's certificate is always verified, by name too. Nothing is taken from the system's trust store: a
//! disk's content goes only to the server that the folder vouches for.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use crate::error::TlsProblem;
use crate::uri::{Transport, Uri};

/// The certificate name to expect on a unix socket without `tls-hostname=`.
const NAME_ON_UNIX: &str = "localhost";

/// Everything that a TLS handshake needs.
#[derive(Clone)]
pub(crate) struct TlsSetup {
    pub(crate) connector: TlsConnector,
    pub(crate) name: ServerName<'static>,
}

impl std::fmt::Debug for TlsSetup {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TlsSetup").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TlsSetup {
    /// Reads the folder of a URI with TLS.
    pub(crate) async fn load(uri: &Uri) -> Result<Self, TlsProblem> {
        let folder = uri.tls_certificates.as_deref().ok_or(TlsProblem::NoFolder)?;
        let name = match (&uri.tls_hostname, &uri.transport) {
            (Some(name), _) => name.as_str(),
            (None, Transport::Tcp(host, _)) => host.as_str(),
            (None, Transport::Unix(_)) => NAME_ON_UNIX,
        };
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsProblem::Name(name.to_owned()))?;
        let config = client_config(folder).await?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

async fn client_config(folder: &Path) -> Result<ClientConfig, TlsProblem> {
    let ca_path = folder.join("ca-cert.pem");
    let unusable_ca = |message: String| unusable(&ca_path, "certificate", message);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&ca_path, &read(&ca_path).await?)? {
        roots.add(certificate).map_err(|error| unusable_ca(error.to_string()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable_ca(error.to_string()))?
        .with_root_certificates(roots);
    let (certificate_path, key_path) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    match (exists(&certificate_path).await, exists(&key_path).await) {
        (false, false) => Ok(builder.with_no_client_auth()),
        (true, false) => Err(TlsProblem::HalfPair { path: key_path }),
        (false, true) => Err(TlsProblem::HalfPair { path: certificate_path }),
        (true, true) => {
            let chain = certificates(&certificate_path, &read(&certificate_path).await?)?;
            let key = PrivateKeyDer::from_pem_slice(&read(&key_path).await?)
                .map_err(|error| unusable(&key_path, "private key", error.to_string()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable(&key_path, "private key for client-cert.pem", error.to_string()))
        }
    }
}

async fn exists(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(true)
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsProblem> {
    let unreadable =
        |error: std::io::Error| TlsProblem::Unreadable { path: path.to_owned(), message: error.to_string() };
    tokio::fs::read(path).await.map_err(unreadable)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsProblem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(path, "certificate", "no PEM block in it".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(path, "certificate", error.to_string())),
    }
}

fn unusable(path: &Path, what: &'static str, message: String) -> TlsProblem {
    TlsProblem::Unusable { path: path.to_owned(), what, message }
}
