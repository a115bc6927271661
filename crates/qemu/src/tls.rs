//! The client's half of mutual x509 TLS with a monitor, from a folder of PEM files named as QEMU and libvirt name them.
//!
//! Invariant: the server's certificate is always checked against the folder's own authority and the expected name.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::address::MonitorOptions;
use crate::error::{Error, Result};

/// Completes a TLS handshake on `stream`; `address` is for messages.
pub(crate) async fn connect(
    stream: TcpStream,
    host: &str,
    options: &MonitorOptions,
    address: &str,
) -> Result<TlsStream<TcpStream>> {
    let folder = options
        .tls_certificates
        .as_deref()
        .ok_or_else(|| Error::NoCertificates { address: address.to_owned() })?;
    let name = options.tls_hostname.as_deref().unwrap_or(host);
    let server = ServerName::try_from(name.to_owned()).map_err(|_| Error::Certificates {
        folder: folder.to_owned(),
        reason: format!("{name:?} can be no server's name"),
    })?;
    let connector = TlsConnector::from(Arc::new(config(folder)?));
    connector
        .connect(server, stream)
        .await
        .map_err(|source| Error::Tls { address: address.to_owned(), source })
}

fn config(folder: &Path) -> Result<ClientConfig> {
    let fault = |file: &str, reason: String| Error::Certificates { folder: folder.join(file), reason };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(folder, "ca-cert.pem")? {
        roots.add(certificate).map_err(|error| fault("ca-cert.pem", error.to_string()))?;
    }
    let chain = certificates(folder, "client-cert.pem")?;
    let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem"))
        .map_err(|error| fault("client-key.pem", error.to_string()))?;
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault("", error.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| fault("client-cert.pem", error.to_string()))
}

fn certificates(folder: &Path, file: &str) -> Result<Vec<CertificateDer<'static>>> {
    let path = folder.join(file);
    let fault = |reason: String| Error::Certificates { folder: path.clone(), reason };
    let found = CertificateDer::pem_file_iter(&path)
        .map_err(|error| fault(error.to_string()))?
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| fault(error.to_string()))?;
    if found.is_empty() {
        return Err(fault("holds no certificate".to_owned()));
    }
    Ok(found)
}
