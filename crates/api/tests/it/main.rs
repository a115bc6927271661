//! Tests of the public API's documents: examples, round trips, hostile text, schemas, and domains made of others.

mod documents;
mod domains;
mod generate;
mod hostile;
mod requests;
mod round_trip;
mod schema;

/// A file of the tests' own.
fn fixture(path: &str) -> String {
    let path = format!("{}/tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Name and text of every file in a folder of the tests' own, which must not be empty.
fn fixtures(folder: &str) -> Vec<(String, String)> {
    let path = format!("{}/tests/fixtures/{folder}", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut files: Vec<(String, String)> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            (path.display().to_string(), std::fs::read_to_string(&path).expect("a text"))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{path} is empty");
    files
}
