//! How each peer is called. A peer that is not on the machine is left out, loudly.
//!
//! Every peer sees the days under one path, as a disk that changes in place would be seen, and encrypts if it can.
//!
//! Not here: installing them (`peers.sh`). Invariant: what a peer restores is compared with the day that it was given.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::bench::Bench;
use crate::job::{Job, Op};

/// A peer, by shell lines in which `@R` is its repository, `@D` the folder of work, `@S` the image, `@X` where it is
/// restored to, and `@P` the folder of peers.
struct Peer {
    name: &'static str,
    /// Fails where the program is missing.
    present: &'static str,
    /// Set in front of every line.
    environment: &'static str,
    init: &'static str,
    /// Backs up `@S` as number `@N`.
    backup: &'static str,
    /// How it is made to read what it takes for unchanged; empty for a peer that always reads.
    unchanged: &'static str,
    restore: &'static str,
    /// The restored file, below `@X`.
    restored: &'static str,
    /// False for one that keeps single images.
    deduplicates: bool,
}

const RESTIC: &str = "RESTIC_PASSWORD=x RESTIC_CACHE_DIR=@D/cache RESTIC_REPOSITORY=@R";
const RUSTIC: &str = "PATH=@P/bin:$PATH RUSTIC_PASSWORD=x RUSTIC_NO_PROGRESS=true RUSTIC_REPOSITORY=@R XDG_CACHE_HOME=@D/cache";
const BORG: &str = "PATH=@P/borg/bin:$PATH BORG_PASSPHRASE=x BORG_BASE_DIR=@D/cache BORG_REPO=@R";
const BUPSTASH: &str =
    "PATH=@P/bin:$PATH BUPSTASH_REPOSITORY=@R BUPSTASH_KEY=@D/cache/key XDG_CACHE_HOME=@D/cache";

const RUSTIC_PEER: Peer = Peer {
    name: "rustic",
    present: "rustic --version",
    environment: RUSTIC,
    init: "rustic --log-level error init",
    backup: "rustic --log-level error backup @S",
    unchanged: "rustic --log-level error backup --force @S",
    restore: "rustic --log-level error restore latest @X",
    restored: "@S",
    deduplicates: true,
};

const PEERS: &[Peer] = &[
    Peer {
        name: "restic",
        present: "restic version",
        environment: RESTIC,
        init: "restic init",
        backup: "restic -q backup @S",
        unchanged: "restic -q backup --force @S",
        restore: "restic -q restore latest --target @X",
        restored: "@S",
        deduplicates: true,
    },
    RUSTIC_PEER,
    Peer {
        name: "rustic, fixed 1 MiB",
        init: "rustic --log-level error init --set-chunker fixed_size --set-chunk-size 1MiB",
        ..RUSTIC_PEER
    },
    Peer {
        name: "borg, zstd,1",
        present: "borg --version",
        environment: BORG,
        init: "borg init -e repokey-blake2",
        backup: "sh -c 'cd @D/source && borg create -C zstd,1 ::@N disk.raw'",
        unchanged: "sh -c 'cd @D/source && borg create --files-cache disabled -C zstd,1 ::@N disk.raw'",
        restore: "sh -c 'cd @X && borg extract --sparse ::2'",
        restored: "/disk.raw",
        deduplicates: true,
    },
    Peer {
        name: "borg, zstd,1, fixed 1 MiB",
        present: "borg --version",
        environment: BORG,
        init: "borg init -e repokey-blake2",
        backup: "sh -c 'cd @D/source && borg create -C zstd,1 --chunker-params fixed,1048576 ::@N disk.raw'",
        unchanged: "sh -c 'cd @D/source && borg create --files-cache disabled -C zstd,1 --chunker-params fixed,1048576 ::@N disk.raw'",
        restore: "sh -c 'cd @X && borg extract --sparse ::2'",
        restored: "/disk.raw",
        deduplicates: true,
    },
    Peer {
        name: "bupstash",
        present: "bupstash version",
        environment: BUPSTASH,
        init: "sh -c 'rm -f $BUPSTASH_KEY; bupstash init -r @R && bupstash new-key -o $BUPSTASH_KEY'",
        backup: "bupstash put -q --no-send-log name=n@N @S",
        unchanged: "",
        restore: "sh -c 'bupstash get -q name=n2 > @X/disk.raw'",
        restored: "/disk.raw",
        deduplicates: true,
    },
    Peer {
        name: "benji",
        present: "@P/benji/bin/benji --help",
        environment: "PATH=@P/benji/bin:$PATH BENJI='benji --no-color --log-level ERROR -c @D/benji.yaml'",
        init: "sh -c 'mkdir -p @R && rm -f @D/benji.sqlite && $BENJI database-init'",
        backup: "sh -c '$BENJI backup -u v@N file:@S d'",
        unchanged: "",
        restore: "sh -c 'truncate -s $(stat -c %s @S) @X/disk.raw && $BENJI restore --force --sparse v2 file:@X/disk.raw'",
        restored: "/disk.raw",
        deduplicates: true,
    },
    Peer {
        name: "qemu-img convert -c, zstd",
        present: "qemu-img --version",
        environment: "",
        init: "mkdir -p @R",
        backup: "qemu-img convert -c -m 8 -W -f raw -O qcow2 -o compression_type=zstd @S @R/1.qcow2",
        unchanged: "",
        restore: "qemu-img convert -m 8 -W -f qcow2 -O raw @R/1.qcow2 @X/disk.raw",
        restored: "/disk.raw",
        deduplicates: false,
    },
    Peer {
        name: "nbdcopy | zstd -1",
        present: "nbdcopy --version",
        environment: "",
        init: "mkdir -p @R",
        backup: "sh -c 'nbdcopy \"@U\" - | zstd -q -1 -T2 -f -o @R/1.zst'",
        unchanged: "",
        restore: "zstd -q -d --sparse @R/1.zst -o @X/disk.raw",
        restored: "/disk.raw",
        deduplicates: false,
    },
];

/// Benji's own default block size and hash; zstd at its least, encrypted as it can.
const BENJI_CONFIG: &str = "\
configurationVersion: '1'
databaseEngine: sqlite:///@D/benji.sqlite
defaultStorage: disk
storages:
  - name: disk
    module: file
    storageId: 1
    configuration:
      path: @R
      activeTransforms: [zstd, aes]
ios:
  - name: file
    module: file
transforms:
  - name: zstd
    module: zstd
    configuration:
      level: 1
  - name: aes
    module: aes_256_gcm
    configuration:
      masterKey: AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=
";

/// The peers that the machine has, each with its series of one round; in the first also the third day.
pub(crate) fn series(bench: &Bench, round: u32) -> Vec<Vec<Job>> {
    let found = PEERS.iter().filter(|peer| {
        let present = peer.is_present(bench);
        if !present && round == 1 {
            eprintln!("compare: {} is not on this machine, and is left out", peer.name);
        }
        present
    });
    found.map(|peer| peer.jobs(bench, round)).collect()
}

/// Whether a tool is one of the peers that deduplicate.
pub(crate) fn deduplicates(tool: &str) -> bool {
    PEERS.iter().any(|peer| peer.name == tool && peer.deduplicates)
}

impl Peer {
    fn is_present(&self, bench: &Bench) -> bool {
        let line = self.line(bench, 1, self.present);
        let status =
            Command::new("sh").args(["-c", &line]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    fn fill(bench: &Bench, number: usize, text: &str) -> String {
        let folder = bench.folder().display().to_string();
        let pairs = [
            ("@S", format!("{folder}/source/disk.raw")),
            ("@R", format!("{folder}/peer")),
            ("@X", format!("{folder}/restored")),
            ("@P", bench.peers.display().to_string()),
            ("@U", bench.days[0].uri.clone()),
            ("@N", number.to_string()),
            ("@D", folder),
        ];
        pairs.iter().fold(text.to_owned(), |text, (mark, value)| text.replace(mark, value))
    }

    /// A shell line of backup `number`.
    fn line(&self, bench: &Bench, number: usize, text: &str) -> String {
        let environment = if self.environment.is_empty() {
            String::new()
        } else {
            format!("export {}; ", self.environment)
        };
        Self::fill(bench, number, &format!("{environment}exec {text}"))
    }

    fn jobs(&self, bench: &Bench, round: u32) -> Vec<Job> {
        let show =
            |day: usize| Self::fill(bench, 0, &format!("ln -f {} @S", bench.days[day].image.display()));
        let job = |op: Op, day: usize, number: usize, text: &str| Job {
            before: vec![show(day)],
            stored: Some(bench.path("peer")),
            ..bench.job(self.name, op, day, self.line(bench, number, text))
        };
        let mut full = job(Op::Full, 0, 1, self.backup);
        let config = Self::fill(bench, 0, BENJI_CONFIG);
        full.before.extend([
            Self::fill(bench, 0, "rm -rf @R @X @D/cache && mkdir -p @X @D/cache"),
            format!("cat > {} <<'END'\n{config}END", bench.path("benji.yaml").display()),
            self.line(bench, 0, self.init),
        ]);
        let kept = if self.deduplicates { 1 } else { 0 };
        let restored = PathBuf::from(Self::fill(bench, 0, "@X") + &Self::fill(bench, 0, self.restored));
        let mut restore = job(Op::Restore, kept, 2, self.restore);
        restore.same = Some((bench.days[kept].image.clone(), restored));
        if !self.deduplicates {
            return vec![full, restore];
        }
        let again = if self.unchanged.is_empty() { self.backup } else { self.unchanged };
        let mut jobs =
            vec![full, job(Op::NextDay, 1, 2, self.backup), job(Op::Unchanged, 1, 3, again), restore];
        if round == 1 {
            jobs.push(job(Op::ThirdDay, 2, 4, self.backup));
        }
        jobs
    }
}
