//! TLS against qemu-nbd and qemu-storage-daemon, with certificates made for the test by certtool.

use std::fs;
use std::path::Path;
use std::process::Command;

use aquifer_nbd::{Client, Error, Uri, list};
use tempfile::TempDir;

use crate::peers::{Address, Peer, folder, free_port, qemu_nbd_program, quick, read_all, sparse_image, tool};

/// A folder with a certificate authority of its own, and nothing else.
pub(crate) fn authority() -> TempDir {
    let folder = folder();
    make_authority(folder.path());
    folder
}

fn make_authority(folder: &Path) {
    fs::write(folder.join("ca.info"), "cn = Aquifer test\nca\ncert_signing_key\nexpiration_days = 2\n")
        .unwrap();
    private_key(&folder.join("ca-key.pem"));
    let path = |name: &str| folder.join(name).display().to_string();
    tool(
        "certtool",
        [
            "--generate-self-signed",
            "--template",
            &path("ca.info"),
            "--load-privkey",
            &path("ca-key.pem"),
            "--outfile",
            &path("ca-cert.pem"),
        ],
    );
}

fn private_key(path: &Path) {
    tool(
        "certtool",
        ["--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", &path.display().to_string()],
    );
}

/// Makes `WHO-cert.pem` and `WHO-key.pem` in `folder`, signed by the authority in `ca`.
fn certificate(ca: &Path, folder: &Path, who: &str, lines: &str) {
    let path = |name: String| folder.join(name).display().to_string();
    let (info, key, cert) =
        (path(format!("{who}.info")), path(format!("{who}-key.pem")), path(format!("{who}-cert.pem")));
    fs::write(&info, format!("{lines}\nexpiration_days = 2\nencryption_key\nsigning_key\n")).unwrap();
    private_key(Path::new(&key));
    let (ca_cert, ca_key) = (ca.join("ca-cert.pem"), ca.join("ca-key.pem"));
    let args = ["--generate-certificate", "--template", &info, "--load-privkey", &key, "--outfile", &cert];
    let mut command = Command::new("certtool");
    command.args(args).arg("--load-ca-certificate").arg(ca_cert).arg("--load-ca-privkey").arg(ca_key);
    let output = command.output().expect("certtool; install the Debian package gnutls-bin");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A server's folder and a client's folder under one authority, beside an image.
struct Place {
    folder: TempDir,
    content: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let folder = authority();
        let content = sparse_image(&folder.path().join("disk.img"), 3 << 20);
        for side in ["server", "client"] {
            fs::create_dir(folder.path().join(side)).unwrap();
            fs::copy(folder.path().join("ca-cert.pem"), folder.path().join(side).join("ca-cert.pem"))
                .unwrap();
        }
        let server = "cn = storage\ndns_name = storage.example\nip_address = 127.0.0.1\ntls_www_server";
        certificate(folder.path(), &folder.path().join("server"), "server", server);
        certificate(
            folder.path(),
            &folder.path().join("client"),
            "client",
            "cn = backup\norganization = tests\ntls_www_client",
        );
        Self { folder, content }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// qemu-nbd with TLS on TCP that wants a client certificate.
    fn serve(&self) -> (Peer, Uri) {
        let port = free_port();
        let object = format!(
            "tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={}",
            self.path("server").display()
        );
        let mut command = Command::new(qemu_nbd_program());
        command.args(["--persistent", "--shared=16", "--read-only", "--format=raw", "--bind=127.0.0.1"]);
        command.arg(format!("--port={port}")).args(["--object", &object, "--tls-creds=tls0"]);
        command.args(["--export-name=vda"]).arg(self.path("disk.img"));
        let peer = Peer::start(&mut command, Address::Tcp(port));
        (peer, self.uri(&format!("127.0.0.1:{port}"), "client"))
    }

    fn uri(&self, host: &str, certificates: &str) -> Uri {
        format!("nbds://{host}/vda?tls-certificates={}", self.path(certificates).display()).parse().unwrap()
    }
}

#[tokio::test]
async fn mutual_tls_reads_the_same_bytes_as_the_file() {
    let place = Place::new();
    let (_peer, uri) = place.serve();
    let client = Client::connect(&uri, &quick()).await.unwrap();
    assert!(client.info().tls);
    assert_eq!(client.info().connections, 4);
    assert!(read_all(&client, 300_000).await.unwrap() == place.content);
    client.disconnect().await;
}

#[tokio::test]
async fn exports_are_listed_under_tls() {
    let place = Place::new();
    let (_peer, uri) = place.serve();
    let exports = list(&uri, &quick()).await.unwrap();
    assert_eq!(exports.iter().map(|export| export.name.as_str()).collect::<Vec<_>>(), ["vda"]);
}

#[tokio::test]
async fn a_client_without_certificate_is_told_what_may_be_wrong() {
    let place = Place::new();
    let (_peer, mut uri) = place.serve();
    fs::create_dir(place.path("anonymous")).unwrap();
    fs::copy(place.path("ca-cert.pem"), place.path("anonymous/ca-cert.pem")).unwrap();
    uri.tls_certificates = Some(place.path("anonymous"));
    let error = Client::connect(&uri, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::TlsDropped { .. } | Error::Tls { .. }), "{error}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let place = Place::new();
    let (_peer, mut uri) = place.serve();
    let other = authority();
    uri.tls_certificates = Some(other.path().to_owned());
    let error = Client::connect(&uri, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_server_with_another_name_is_refused_and_a_given_name_is_looked_for() {
    let place = Place::new();
    let (_peer, mut uri) = place.serve();
    uri.tls_hostname = Some("elsewhere.example".to_owned());
    let error = Client::connect(&uri, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    uri.tls_hostname = Some("storage.example".to_owned());
    Client::connect(&uri, &quick()).await.unwrap();
}

#[tokio::test]
async fn a_plain_uri_to_a_tls_server_says_what_to_use() {
    let place = Place::new();
    let (_peer, mut uri) = place.serve();
    uri.tls = false;
    uri.tls_certificates = None;
    let error = Client::connect(&uri, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::TlsRequired { .. }), "{error}");
}

#[tokio::test]
async fn a_tls_uri_to_a_plain_server_gets_nothing() {
    let place = Place::new();
    let (_peer, mut uri) = crate::peers::qemu_nbd(
        place.folder.path(),
        ["--read-only", "--format=raw", &place.path("disk.img").display().to_string()],
    );
    uri.tls = true;
    uri.tls_certificates = Some(place.path("client"));
    let error = Client::connect(&uri, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::TlsRefused { .. }), "{error}");
}

#[tokio::test]
async fn what_is_wrong_with_the_folder_is_said_with_the_file() {
    let place = Place::new();
    let uri = |folder: &str| place.uri("127.0.0.1:1", folder);
    let message = |uri: Uri| async move { Client::connect(&uri, &quick()).await.unwrap_err().to_string() };
    let mut without = uri("client");
    without.tls_certificates = None;
    assert!(message(without).await.contains("tls-certificates=DIR"));
    assert!(message(uri("nowhere")).await.contains("nowhere/ca-cert.pem cannot be read"));
    fs::remove_file(place.path("client/client-key.pem")).unwrap();
    assert!(message(uri("client")).await.contains("client-key.pem is missing beside its partner"));
    fs::write(place.path("client/client-key.pem"), "no key").unwrap();
    assert!(message(uri("client")).await.contains("client-key.pem holds no usable private key"));
    fs::write(place.path("client/ca-cert.pem"), "no certificate").unwrap();
    assert!(message(uri("client")).await.contains("ca-cert.pem holds no usable certificate"));
}

#[tokio::test]
async fn the_storage_daemon_speaks_tls_too() {
    let place = Place::new();
    let port = free_port();
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--object").arg(format!(
        "tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={}",
        place.path("server").display()
    ));
    command
        .arg("--object")
        .arg("authz-list,id=auth0,policy=deny,rules.0.match=O=tests,,CN=backup,rules.0.policy=allow");
    command.arg("--blockdev").arg(format!(
        "driver=file,node-name=disk,filename={},read-only=on",
        place.path("disk.img").display()
    ));
    command.arg("--nbd-server").arg(format!(
        "addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=tls0,tls-authz=auth0,max-connections=16"
    ));
    command.args(["--export", "type=nbd,id=e0,node-name=disk,name=vda,writable=off"]);
    let _peer = Peer::start(&mut command, Address::Tcp(port));
    let client = Client::connect(&place.uri(&format!("127.0.0.1:{port}"), "client"), &quick()).await.unwrap();
    assert!(read_all(&client, 300_000).await.unwrap() == place.content);
}
