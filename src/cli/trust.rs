//! Files that make a program trust sidekey's CA beside all that it trusts already.
//!
//! Owns which certificates go into them: the machine's, those the variables of the parent name (a company's CA), and
//! sidekey's roots. Leaves which variable takes which file to `proxied`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::proxied::{ADD, REPLACE};
use crate::config::Environment;
use crate::net::ca::pem;
use crate::net::pkcs12::trust_store;

/// Where systems keep their roots in one file; several names can be one file.
pub const SYSTEM_BUNDLES: &[&str] = &[
    // Debian, Arch, Gentoo, NixOS.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora.
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // SUSE.
    "/etc/ssl/ca-bundle.pem",
    // Alpine, macOS.
    "/etc/ssl/cert.pem",
];

/// Where systems keep Java's.
const JAVA_STORES: &[&str] = &["/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts"];

/// The roots of the daemon's CA, newest first.
///
/// # Errors
/// When the API does not say.
pub async fn roots(client: &AdminClient) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let said = client.get("/api/ca").await?.body;
    let pems = said["roots"].as_array().into_iter().flatten().rev().filter_map(|root| root["pem"].as_str());
    let read = |pem: &str| {
        CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| Failure::new(Exit::Failure, format!("a root of the local CA: {error}")))
    };
    let roots: Vec<_> = pems.map(read).collect::<Result<_, _>>()?;
    match roots.is_empty() {
        true => Err(Failure::new(Exit::Failure, "the daemon has no local CA").fix("restart it")),
        false => Ok(roots),
    }
}

/// The files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustFiles {
    /// PEM: all that is trusted, for what takes the place of a program's own.
    pub bundle: PathBuf,
    /// PEM: what is added to a program's own.
    pub added: PathBuf,
    /// PKCS #12 of `bundle`, for Java.
    pub java: PathBuf,
}

impl TrustFiles {
    /// Their names in `dir`.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { bundle: dir.join("bundle.pem"), added: dir.join("added.pem"), java: dir.join("bundle.p12") }
    }

    /// Each with a file of the system's in whose place it can stand.
    #[must_use]
    pub fn system_files(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut seen = HashSet::new();
        let mut found = |mine: &PathBuf, paths: &[&str]| -> Vec<(PathBuf, PathBuf)> {
            let paths = paths.iter().filter_map(|path| fs::canonicalize(path).ok());
            paths.filter(|path| seen.insert(path.clone())).map(|path| (mine.clone(), path)).collect()
        };
        [found(&self.bundle, SYSTEM_BUNDLES), found(&self.java, JAVA_STORES)].concat()
    }

    /// Writes them. `ours` are sidekey's roots. Gives what could not be read on the way.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, environment: &Environment, ours: &[CertificateDer<'static>]) -> io::Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut added = Certificates::default();
        added.of_variables(ADD, environment, self, &mut warnings);
        let mut all = Certificates::default();
        all.of_variables(REPLACE, environment, self, &mut warnings);
        match SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.is_file()) {
            Some(path) => all.of_file(path, &mut warnings),
            None if all.list.is_empty() => {
                warnings.push("the system's roots are in none of the usual files".to_owned())
            }
            None => {}
        }
        for certificate in ours {
            added.push(certificate.clone());
        }
        for certificate in &added.list {
            all.push(certificate.clone());
        }
        fs::write(&self.bundle, all.pem())?;
        fs::write(&self.added, added.pem())?;
        fs::write(&self.java, trust_store(&all.list))?;
        Ok(warnings)
    }
}

/// Each once, in the order they came.
#[derive(Default)]
struct Certificates {
    list: Vec<CertificateDer<'static>>,
    seen: HashSet<CertificateDer<'static>>,
}

impl Certificates {
    fn push(&mut self, certificate: CertificateDer<'static>) {
        if self.seen.insert(certificate.clone()) {
            self.list.push(certificate);
        }
    }

    /// What a shell has of `ours` from before is written anew, without roots that have gone since.
    fn of_variables(
        &mut self,
        names: &[&str],
        environment: &Environment,
        ours: &TrustFiles,
        warnings: &mut Vec<String>,
    ) {
        let is_ours = |path: &&str| [&ours.bundle, &ours.added].iter().any(|own| own.as_path() == Path::new(path));
        let paths = names.iter().filter_map(|name| environment.get(name));
        let mut paths: Vec<&str> = paths.filter(|path| !is_ours(path)).collect();
        paths.sort_unstable();
        paths.dedup();
        for path in paths {
            self.of_file(Path::new(path), warnings);
        }
    }

    fn of_file(&mut self, path: &Path, warnings: &mut Vec<String>) {
        let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        match CertificateDer::pem_file_iter(path) {
            Err(error) => warnings.push(fault(&error)),
            Ok(found) => {
                for certificate in found {
                    match certificate {
                        Ok(certificate) => self.push(certificate),
                        Err(error) => warnings.push(fault(&error)),
                    }
                }
            }
        }
    }

    fn pem(&self) -> String {
        self.list.iter().map(pem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> CertificateDer<'static> {
        rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap().cert.der().clone()
    }

    fn read(path: &Path) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn what_was_trusted_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let [company, proxy, node, ours] = ["company", "proxy", "node", "ours"].map(certificate);
        let file = |name: &str, certificates: &[&CertificateDer<'static>]| {
            let path = dir.path().join(name);
            fs::write(&path, certificates.iter().map(|one| pem(one)).collect::<String>()).unwrap();
            path.display().to_string()
        };
        let (first, second, third) =
            (file("a.pem", &[&company]), file("b.pem", &[&company, &proxy]), file("c.pem", &[&node]));
        let environment = Environment::from_pairs([
            ("SSL_CERT_FILE", first.as_str()),
            ("CURL_CA_BUNDLE", second.as_str()),
            ("PIP_CERT", second.as_str()),
            ("REQUESTS_CA_BUNDLE", "/nonexistent/x.pem"),
            ("NODE_EXTRA_CA_CERTS", third.as_str()),
        ]);
        let files = TrustFiles::in_dir(dir.path());
        let warnings = files.write(&environment, std::slice::from_ref(&ours)).unwrap();
        assert!(warnings.iter().any(|warning| warning.starts_with("/nonexistent/x.pem: ")), "{warnings:?}");
        assert_eq!(read(&files.added), [node.clone(), ours.clone()]);
        let all = read(&files.bundle);
        for one in [&company, &proxy, &node, &ours] {
            assert_eq!(all.iter().filter(|other| *other == one).count(), 1);
        }
        assert!(fs::read(&files.java).unwrap().windows(ours.len()).any(|bytes| bytes == &*ours));
    }
}
