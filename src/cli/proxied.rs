//! The variables that lead a program's HTTPS through sidekey's proxy port and make it trust sidekey's CA.
//!
//! Owns which program reads which variable, as measured with each. Leaves base URLs and keys to `sdk`, and the files to
//! `trust`.

use std::net::SocketAddr;
use std::path::Path;

use crate::cli::trust::TrustFiles;
use crate::config::Environment;

/// Each takes the place of a program's own roots.
pub const REPLACE: &[&str] = &[
    // OpenSSL, Python's ssl and httpx, Go, Ruby, curl.
    "SSL_CERT_FILE",
    // Python's requests, boto3.
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    // git built with GnuTLS.
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "HTTPLIB2_CA_CERTS",
    "NIX_SSL_CERT_FILE",
];
/// Each adds to a program's own roots.
pub const ADD: &[&str] = &["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Each names the proxy. Ruby reads `http_proxy` for https too, curl the one in small letters only.
const PROXY: &[&str] = &["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
/// Where no proxy is used.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Would win over some of the above.
const REMOVED: &[&str] = &["ALL_PROXY", "all_proxy"];
/// Node's own clients from version 22.21 and 24.5 on; uv.
const FLAGS: &[(&str, &str)] = &[("NODE_USE_ENV_PROXY", "1"), ("UV_NATIVE_TLS", "1")];
/// Read by the `java` launcher from version 9 on.
const JAVA: &str = "JDK_JAVA_OPTIONS";
/// Servers beside the program itself: a bracketed `[::1]` is an error to some clients.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What changes in an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Variables that are taken away.
    pub unset: Vec<&'static str>,
    /// Variables and their values.
    pub set: Vec<(&'static str, String)>,
}

/// Trust alone.
#[must_use]
pub fn trusting(environment: &Environment, files: &TrustFiles) -> Changes {
    let mut set = trust(files);
    set.push((JAVA, java(environment, &trust_store(files))));
    Changes { unset: Vec::new(), set }
}

/// Trust and the way. `hosts` are the providers', to which an inherited exception must not apply.
#[must_use]
pub fn proxied(environment: &Environment, proxy: SocketAddr, files: &TrustFiles, hosts: &[String]) -> Changes {
    let mut set = trust(files);
    let url = format!("http://{proxy}");
    set.extend(PROXY.iter().map(|name| (*name, url.clone())));
    let inherited = NO_PROXY.iter().find_map(|name| environment.get(name)).unwrap_or_default();
    let exceptions = exceptions(inherited, hosts);
    set.extend(NO_PROXY.map(|name| (name, exceptions.clone())));
    set.extend(FLAGS.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let mut options = trust_store(files);
    options.extend([
        format!("-Dhttps.proxyHost={}", proxy.ip()),
        format!("-Dhttps.proxyPort={}", proxy.port()),
        "-Dhttp.nonProxyHosts=localhost|127.*|[::1]".to_owned(),
    ]);
    set.push((JAVA, java(environment, &options)));
    Changes { unset: REMOVED.to_vec(), set }
}

fn trust(files: &TrustFiles) -> Vec<(&'static str, String)> {
    let all = |names: &'static [&'static str], path: &Path| {
        let path = path.display().to_string();
        names.iter().map(move |name| (*name, path.clone()))
    };
    all(REPLACE, &files.bundle).chain(all(ADD, &files.added)).collect()
}

fn trust_store(files: &TrustFiles) -> Vec<String> {
    vec![
        format!("-Djavax.net.ssl.trustStore={}", files.java.display()),
        "-Djavax.net.ssl.trustStoreType=PKCS12".to_owned(),
        "-Djavax.net.ssl.trustStorePassword=changeit".to_owned(),
    ]
}

/// What was said before stays, but for options that are set anew.
fn java(environment: &Environment, options: &[String]) -> String {
    let name_of = |option: &str| option.trim_start_matches('"').split('=').next().unwrap_or_default().to_owned();
    let before = environment.get(JAVA).unwrap_or_default();
    // The launcher takes quotes, in which white space stands for itself.
    let quoted = |option: &String| match option.contains(char::is_whitespace) {
        true => format!("\"{option}\""),
        false => option.clone(),
    };
    let kept = before.split_whitespace().filter(|word| !options.iter().any(|option| name_of(option) == name_of(word)));
    kept.map(str::to_owned).chain(options.iter().map(quoted)).collect::<Vec<_>>().join(" ")
}

/// The local ones and those inherited, without any that would let a provider's host pass by.
fn exceptions(inherited: &str, hosts: &[String]) -> String {
    let covers = |exception: &str| {
        let domain = exception.trim_start_matches('*').trim_start_matches('.');
        hosts.iter().any(|host| {
            let rest = host.strip_suffix(domain);
            rest.is_some_and(|rest| domain.is_empty() || rest.is_empty() || rest.ends_with('.'))
        })
    };
    let inherited = inherited.split([',', ' ']).map(str::trim).filter(|one| !one.is_empty() && !covers(one));
    let mut all: Vec<&str> = LOCAL.to_vec();
    all.extend(inherited.filter(|one| !LOCAL.contains(one)));
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_do_not_cover_providers() {
        let hosts = ["api.openai.com".to_owned(), "generativelanguage.googleapis.com".to_owned()];
        for (inherited, want) in [
            ("", "localhost,127.0.0.1,::1"),
            ("localhost,.corp.example,10.0.0.0/8", "localhost,127.0.0.1,::1,.corp.example,10.0.0.0/8"),
            ("*", "localhost,127.0.0.1,::1"),
            ("api.openai.com, .googleapis.com,openai.com *.example", "localhost,127.0.0.1,::1,*.example"),
            ("i.openai.com", "localhost,127.0.0.1,::1,i.openai.com"),
        ] {
            assert_eq!(exceptions(inherited, &hosts), want, "{inherited:?}");
        }
    }

    #[test]
    fn what_is_set() {
        let environment = Environment::from_pairs([
            ("HTTPS_PROXY", "http://corp:8080"),
            ("ALL_PROXY", "socks5://corp"),
            ("no_proxy", ".corp.example"),
            (JAVA, "-Xmx1g -Dhttps.proxyHost=corp"),
        ]);
        let files = TrustFiles::in_dir(Path::new("/tmp/a b"));
        let changes = proxied(&environment, "127.0.0.1:4141".parse().unwrap(), &files, &[]);
        let value = |name: &str| {
            let found: Vec<&str> = changes.set.iter().filter(|(key, _)| *key == name).map(|(_, v)| &**v).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0]
        };
        for name in PROXY {
            assert_eq!(value(name), "http://127.0.0.1:4141");
        }
        assert_eq!(value("SSL_CERT_FILE"), "/tmp/a b/bundle.pem");
        assert_eq!(value("NODE_EXTRA_CA_CERTS"), "/tmp/a b/added.pem");
        assert_eq!(value("NO_PROXY"), "localhost,127.0.0.1,::1,.corp.example");
        assert_eq!(
            value(JAVA),
            "-Xmx1g \"-Djavax.net.ssl.trustStore=/tmp/a b/bundle.p12\" -Djavax.net.ssl.trustStoreType=PKCS12 \
             -Djavax.net.ssl.trustStorePassword=changeit -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=4141 \
             -Dhttp.nonProxyHosts=localhost|127.*|[::1]"
        );
        assert_eq!(changes.unset, ["ALL_PROXY", "all_proxy"]);
        assert!(trusting(&environment, &files).set.iter().all(|(name, _)| !PROXY.contains(name)));
    }
}
