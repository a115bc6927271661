//! The built binary from the outside: exit codes, texts and documents of everything that needs no hypervisor.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is the failure of the test")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The binary in a world of its own: no configuration, no environment, a fresh state folder.
struct Aquifer {
    home: TempDir,
}

impl Aquifer {
    fn new() -> Self {
        Aquifer { home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, content: &str) -> String {
        std::fs::write(self.home.path().join(name), content).unwrap();
        self.path(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
        command
            .args(words)
            .env_clear()
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("AQUIFER_STATE_DIR", self.home.path().join("state"))
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that has to succeed, and gives its standard output.
    fn text(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.text(words)).unwrap()
    }

    /// Runs a command that has to fail, and gives its exit code and its message, free of this test's paths.
    fn refusal(&self, words: &[&str]) -> (i32, String) {
        let output = self.run(words);
        let message = stderr(&output).replace(self.home.path().to_str().unwrap(), "HOME");
        (output.status.code().unwrap(), message)
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const COMMANDS: [&[&str]; 30] = [
    &[],
    &["repository"],
    &["repository", "init"],
    &["repository", "info"],
    &["repository", "stats"],
    &["repository", "probe"],
    &["repository", "rebuild-index"],
    &["repository", "keys"],
    &["repository", "keys", "list"],
    &["repository", "keys", "add"],
    &["repository", "keys", "retire"],
    &["backup"],
    &["list"],
    &["dumpxml"],
    &["restore"],
    &["verify"],
    &["delete"],
    &["undelete"],
    &["protect"],
    &["prune"],
    &["collect"],
    &["domain"],
    &["domain", "list"],
    &["domain", "show"],
    &["domain", "cleanup"],
    &["doctor"],
    &["debug"],
    &["debug", "cat"],
    &["debug", "log"],
    &["debug", "tree"],
];

#[test]
fn every_command_explains_itself() {
    let aquifer = Aquifer::new();
    let mut texts = String::new();
    for command in COMMANDS {
        let help = aquifer.text(&[command, &["-h"]].concat());
        // The options of every command are the same everywhere: once is enough.
        let own = if command.is_empty() {
            help.as_str()
        } else {
            help.split("Options of every command").next().unwrap()
        };
        texts += &format!("$ aquifer {} -h\n{}\n\n", command.join(" "), own.trim_end());
    }
    insta::assert_snapshot!(texts);
}

#[test]
fn the_long_help_of_jobs_has_their_json() {
    let aquifer = Aquifer::new();
    for job in ["backup", "restore"] {
        assert!(aquifer.text(&[job, "--help"]).contains(r#"{"event":"done","uuid""#), "{job}");
    }
}

#[test]
fn wrong_words_are_usage_errors_with_exit_code_2() {
    let aquifer = Aquifer::new();
    let wrong: [&[&str]; 7] = [
        &["bakup"],
        &["backup"],
        &["backup", "web01", "--all"],
        &["backup", "web01", "--qmp", "unix:/x", "--nbd", "vda=nbd://h"],
        &["backup", "web01", "--password", "secret"],
        &["restore", "latest:web01"],
        &["repository", "init", "--chunk-size", "huge"],
    ];
    let mut texts = String::new();
    for words in wrong {
        let (code, message) = aquifer.refusal(words);
        assert_eq!(code, 2, "{words:?}");
        texts += &format!("$ aquifer {}\n{message}\n", words.join(" "));
    }
    insta::assert_snapshot!(texts);
}

#[test]
fn a_usage_error_is_a_document_in_json() {
    let output = Aquifer::new().run(&["--json", "bakup"]);
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["event"], &document["kind"]), (&"error".into(), &"usage".into()));
    assert!(stderr(&output).contains("unrecognized subcommand"));
}

#[test]
fn wrong_requests_name_the_thing_and_the_way_out() {
    let aquifer = Aquifer::new();
    let config = aquifer.file("typo.toml", "[defaults]\nrepositori = \"main\"\n");
    let missing = aquifer.path("missing.toml");
    let empty = aquifer.file("empty.password", "\n");
    let repository = aquifer.path("repository");
    let cases: [(i32, &[&str]); 9] = [
        (3, &["list"]),
        (3, &["--config", &config, "list"]),
        (4, &["--config", &missing, "list"]),
        (3, &["-r", "s3://bucket/prefix?endpont=https://host", "list"]),
        (3, &["-r", "ftp://host/path", "list"]),
        (4, &["-r", &repository, "list"]),
        (3, &["-r", &repository, "repository", "init"]),
        (3, &["-r", &repository, "--password-file", &empty, "repository", "init"]),
        (4, &["-r", &repository, "--password-file", "nowhere", "repository", "init"]),
    ];
    let mut texts = String::new();
    for (expected, words) in cases {
        let (code, message) = aquifer.refusal(words);
        texts += &format!("$ aquifer {}\n{message}\n", words.join(" ")).replace(&aquifer.path(""), "HOME/");
        assert_eq!(code, expected, "{words:?}: {message}");
    }
    insta::assert_snapshot!(texts);
}

#[test]
fn an_error_is_an_event_in_json_and_a_message_on_standard_error() {
    let output = Aquifer::new().run(&["--json", "-r", "ftp://host", "list"]);
    assert_eq!(output.status.code(), Some(3));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let members: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["context", "event", "hint", "kind", "message"]);
    assert_eq!(document["kind"], "invalid");
    assert!(stderr(&output).starts_with("aquifer: error: "));
}

#[test]
fn a_reader_that_goes_away_is_no_panic_and_no_failure() {
    let aquifer = Aquifer::new();
    let mut child = aquifer
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn completions_and_manual_pages_come_from_the_same_definition() {
    let aquifer = Aquifer::new();
    assert!(aquifer.text(&["completions", "bash"]).contains("rebuild-index"));
    aquifer.text(&["man", &aquifer.path("")]);
    assert!(Path::new(&aquifer.path("aquifer-repository-keys-add.1")).exists());
    let (code, message) = aquifer.refusal(&["man", "/dev/null"]);
    assert_eq!((code, message.contains("manual pages in /dev/null: ")), (7, true), "{message}");
}

/// A world with a repository in it, and the words that open it.
fn with_repository() -> (Aquifer, Vec<String>) {
    let aquifer = Aquifer::new();
    let password = aquifer.file("password", "correct horse\n");
    let words = ["-r", &aquifer.path("repository"), "--password-file", &password].map(str::to_owned).to_vec();
    let init = [as_strs(&words), vec!["repository", "init"]].concat();
    aquifer.text(&init);
    (aquifer, words)
}

fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn a_new_repository_answers_every_question_about_itself() {
    let (aquifer, opened) = with_repository();
    let ask = |words: &[&str]| aquifer.json(&[&as_strs(&opened)[..], &["--json"], words].concat());
    let info = ask(&["repository", "info"]);
    assert_eq!((&info["encrypted"], &info["chunk_bytes"]), (&true.into(), &(128 << 10).into()));
    assert_eq!(ask(&["list"]), serde_json::json!([]));
    assert_eq!(ask(&["domain", "list"]), serde_json::json!([]));
    assert_eq!(ask(&["repository", "stats"])["packs"], 0);
    assert_eq!(ask(&["repository", "probe"])["passed"], true);
    assert_eq!(ask(&["repository", "rebuild-index"])["from"], "segments");
    assert_eq!(ask(&["verify"])["clean"], true);
    assert_eq!(ask(&["debug", "cat", "format"])["repository"], info["repository"]);
    assert_eq!(ask(&["debug", "log"])["seq"], 1);
    assert_eq!(ask(&["repository", "keys", "list"])[0]["in_use"], true);
}

#[test]
fn the_same_answers_are_texts_for_people() {
    let (aquifer, opened) = with_repository();
    let ask = |words: &[&str]| aquifer.text(&[&as_strs(&opened)[..], words].concat());
    assert_eq!(ask(&["list"]), "no backups\n");
    assert!(ask(&["repository", "info"]).contains("\nencrypted:     yes\n"));
    assert!(ask(&["repository", "stats"]).starts_with("backups:"));
    assert!(ask(&["repository", "probe"]).contains("creates objects atomically"));
    assert!(ask(&["verify"]).contains("no damage"));
    assert!(ask(&["debug", "log"]).contains("writer "));
}

#[test]
fn a_wrong_password_is_denied_and_a_recovery_key_opens() {
    let aquifer = Aquifer::new();
    let password = aquifer.file("password", "correct horse\n");
    let (repository, key) = (aquifer.path("repository"), aquifer.path("recovery.key"));
    let init =
        ["-r", &repository, "--password-file", &password, "repository", "init", "--recovery-key", &key];
    aquifer.text(&init);
    let wrong = aquifer.file("wrong", "incorrect donkey");
    assert_eq!(aquifer.refusal(&["-r", &repository, "--password-file", &wrong, "list"]).0, 6);
    assert_eq!(aquifer.refusal(&["-r", &repository, "list"]).0, 6);
    assert_eq!(aquifer.text(&["-r", &repository, "--password-file", &key, "list"]), "no backups\n");
}

#[test]
fn a_refused_init_leaves_no_recovery_key_and_an_old_one_is_not_overwritten() {
    let (aquifer, opened) = with_repository();
    let key = aquifer.path("recovery.key");
    let init = [as_strs(&opened), vec!["repository", "init", "--recovery-key", &key]].concat();
    assert_eq!(aquifer.refusal(&init).0, 5);
    assert!(!Path::new(&key).exists());
    aquifer.file("recovery.key", "precious");
    assert_eq!(aquifer.refusal(&init).0, 5);
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "precious");
}

#[test]
fn a_password_and_no_encryption_contradict_each_other() {
    let aquifer = Aquifer::new();
    let password = aquifer.file("password", "correct horse\n");
    let (repository, plain) = (aquifer.path("repository"), ["repository", "init", "--no-encryption"]);
    let words = [&["-r", &repository, "--password-file", &password][..], &plain].concat();
    assert_eq!(aquifer.refusal(&words).0, 3);
    aquifer.text(&[&["-r", &repository][..], &plain].concat());
    // A configured password promises encryption, and a plain repository in its place is refused.
    assert_eq!(aquifer.refusal(&["-r", &repository, "--password-file", &password, "list"]).0, 6);
}

#[test]
fn a_configured_repository_is_opened_by_its_name_and_password_file() {
    let (aquifer, _) = with_repository();
    let config = format!(
        "[repositories.main]\nurl = \"{}\"\npassword_file = \"{}\"\n[defaults]\nrepository = \"main\"\n",
        aquifer.path("repository"),
        aquifer.path("password")
    );
    std::fs::create_dir_all(aquifer.path("config/aquifer")).unwrap();
    std::fs::write(aquifer.path("config/aquifer/aquifer.toml"), config).unwrap();
    assert_eq!(aquifer.text(&["list"]), "no backups\n");
    assert!(aquifer.text(&["repository", "info"]).starts_with("repository:    main\n"));
}

#[test]
fn the_doctor_finds_a_healthy_repository_good_and_a_missing_one_bad() {
    let (aquifer, opened) = with_repository();
    let findings = aquifer.run(&[as_strs(&opened), vec!["--json", "doctor"]].concat());
    let findings: Vec<Value> = serde_json::from_slice(&findings.stdout).unwrap();
    let health =
        |check: &str| findings.iter().find(|found| found["check"] == check).map(|found| &found["health"]);
    assert_eq!((health("repository"), health("store")), (Some(&"good".into()), Some(&"good".into())));
    let missing = aquifer.run(&["-r", &aquifer.path("missing"), "--json", "doctor"]);
    let findings: Vec<Value> = serde_json::from_slice(&missing.stdout).unwrap();
    assert_eq!((&findings[0]["health"], &findings[0]["kind"]), (&"bad".into(), &"not_found".into()));
    assert!(!missing.status.success());
}

#[test]
fn a_folder_with_other_things_inside_does_not_become_a_repository() {
    let aquifer = Aquifer::new();
    let password = aquifer.file("password", "correct horse\n");
    std::fs::create_dir_all(aquifer.path("photos/lost+found")).unwrap();
    let photos = aquifer.path("photos");
    let init = ["-r", &photos, "--password-file", &password, "repository", "init"];
    aquifer.file("photos/cat.jpg", "miaow");
    let (code, message) = aquifer.refusal(&init);
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("HOME/photos is not empty: it holds cat.jpg"), "{message}");
    std::fs::remove_file(aquifer.path("photos/cat.jpg")).unwrap();
    aquifer.text(&init);
}
