//! An authority with a server's and a client's certificate, in the layout of QEMU and libvirt, made for one test.
//!
//! Good for `localhost` and 127.0.0.1, and for two days.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::tools::run;

/// The distinguished name of the client, as QEMU's authorisation lists match it.
pub const CLIENT_NAME: &str = "O=Test,CN=client";

/// Makes `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem` and `client-key.pem` in `folder`.
pub fn make_certificates(folder: &Path) -> Result<()> {
    // Without the machine's own extensions, which would come twice.
    fs::write(folder.join("empty.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n")?;
    let openssl = |arguments: &[&str]| run(Command::new("openssl").current_dir(folder).args(arguments));
    let new_key = ["req", "-newkey", "rsa:2048", "-nodes", "-batch", "-config", "empty.cnf"];
    let authority = ["-x509", "-days", "2", "-subj", "/CN=Test authority", "-keyout", "ca-key.pem"];
    let may_sign =
        ["-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:true"];
    openssl(&[&new_key[..], &authority, &may_sign, &["-out", "ca-cert.pem"]].concat())?;
    for (role, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let [key, request, certificate] = ["-key.pem", ".csr", "-cert.pem"].map(|end| format!("{role}{end}"));
        let subject = format!("/O=Test/CN={role}");
        openssl(&[&new_key[..], &["-subj", &subject, "-keyout", &key, "-out", &request]].concat())?;
        let extensions = format!("{role}.ext");
        let text = format!(
            "basicConstraints=CA:false\nkeyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage={usage}\n\
             subjectAltName=DNS:localhost,IP:127.0.0.1\n"
        );
        fs::write(folder.join(&extensions), text)?;
        let sign =
            ["x509", "-req", "-days", "2", "-in", &request, "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"];
        let out = ["-CAcreateserial", "-extfile", &extensions, "-out", &certificate];
        openssl(&[&sign[..], &out].concat())?;
    }
    Ok(())
}
