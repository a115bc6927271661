//! From settings to a client: credentials by the AWS chain, TLS with own authorities, and a bound on every answer.
//!
//! The SDK's retries and its correction of the clock are off: the first would hide lost answers, the second a host
//! whose records carry wrong times.
//!
//! Invariant: no answer makes the client hold more than a bound that is known before it is read.

use std::path::Path;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
    SharedHttpClient,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use http_body_util::Limited;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::rustls::RootCertStore;

use super::S3Settings;
use crate::{Error, Result};

/// How long a connection may take to come up.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The region to sign for where none is named and the endpoint is not Amazon's.
const ANY_REGION: &str = "us-east-1";

/// A client for the bucket's server. Nothing is sent yet, except to find a region at Amazon.
pub(super) async fn client(settings: &S3Settings) -> Result<Client> {
    let region = region(settings).await;
    let http = http_client(settings)?;
    let mut loader: ConfigLoader = aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_WITHIN).build())
        .disable_clock_skew_correction(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = &settings.credentials_file {
        loader = loader.credentials_provider(only_file(file, settings.profile.as_deref()));
    }
    let shared = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(settings.path_style);
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// The region of the settings, else of environment and profile. Only for Amazon's own endpoint the instance is asked.
async fn region(settings: &S3Settings) -> RegionProviderChain {
    if let Some(region) = &settings.region {
        return RegionProviderChain::first_try(Region::new(region.clone()));
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &settings.profile {
        profile = profile.profile_name(name);
    }
    let chain =
        RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile.build());
    let chain = if settings.endpoint.is_none() { chain.or_default_provider() } else { chain };
    chain.or_else(Region::from_static(ANY_REGION))
}

/// The access key of one file, whatever the environment says.
fn only_file(file: &Path, profile: Option<&str>) -> ProfileFileCredentialsProvider {
    let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
    let mut provider = ProfileFileCredentialsProvider::builder().profile_files(files);
    if let Some(profile) = profile {
        provider = provider.profile_name(profile);
    }
    provider.build()
}

fn http_client(settings: &S3Settings) -> Result<SharedHttpClient> {
    let mut trusted = TrustStore::default();
    if let Some(file) = &settings.ca_file {
        let unusable = |reason: String| Error::Authority { path: file.clone(), reason };
        let pem = std::fs::read(file).map_err(|source| unusable(source.to_string()))?;
        check_authorities(&pem).map_err(unusable)?;
        trusted = trusted.with_pem_certificate(pem);
    }
    let tls = TlsContext::builder().with_trust_store(trusted).build();
    let tls = tls.map_err(|source| Error::Authority {
        path: settings.ca_file.clone().unwrap_or_default(),
        reason: source.to_string(),
    })?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https())
}

/// Reads the file as the TLS library will, which would panic where this refuses.
fn check_authorities(pem: &[u8]) -> std::result::Result<(), String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    if store.is_empty() {
        return Err("it holds no certificate in PEM form".to_owned());
    }
    Ok(())
}

/// Cuts an answer's body off at a bound, so that reading it fails there.
#[derive(Debug)]
pub(super) struct Bounded(pub(super) usize);

impl Intercept for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let body = std::mem::replace(context.response_mut().body_mut(), SdkBody::taken());
        *context.response_mut().body_mut() = SdkBody::from_body_1_x(Limited::new(body, self.0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_that_is_no_certificate_is_refused_before_it_could_panic() {
        assert!(check_authorities(b"").unwrap_err().contains("no certificate"));
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(check_authorities(garbage).is_err());
    }

    #[test]
    fn a_missing_authority_file_is_named() {
        let mut settings = S3Settings::new("bucket", "");
        settings.ca_file = Some("/nonexistent/ca.pem".into());
        let error = http_client(&settings).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    }
}
