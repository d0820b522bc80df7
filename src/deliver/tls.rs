//! TLS for destinations that do not use HTTP.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use rustls_platform_verifier::ConfigVerifierExt;
use tokio_rustls::TlsConnector;

/// Builds a connector that trusts the certificates in `ca_file`, or the system's if it is `None`.
pub(super) fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, String> {
    // Fails only if a provider is already installed, and then it is the same one.
    rustls::crypto::ring::default_provider().install_default().ok();
    let config = match ca_file {
        None => ClientConfig::with_platform_verifier().map_err(|error| error.to_string())?,
        Some(file) => {
            let unusable = |error: &dyn std::fmt::Display| format!("cannot use `{}`: {error}", file.display());
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))? {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}
