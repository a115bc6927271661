//! One page of a listing of a directory tree, in the order of keys.
//!
//! Names come from the disk and are foreign: each is checked against the grammar before it is joined to a path.
//! Links are not followed. Invariant: memory is bounded by the names of one folder at a time plus one page.

use std::fs::DirEntry;
use std::io;
use std::path::Path;

use crate::Key;
use crate::key::Shape;
use crate::object::{LIST_PAGE_ENTRIES, Listed, Page};

/// The folder or object at fault, and what the system said.
type Failed = (String, io::Error);

/// Lists what is below `root` with the given prefix and after the given key.
pub(super) fn page(root: &Path, prefix: &str, after: Option<&str>) -> Result<Page, Failed> {
    let mut walk = Walk { root, prefix, after, page: Page::default() };
    walk.folder("")?;
    Ok(walk.page)
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: Option<&'a str>,
    page: Page,
}

impl Walk<'_> {
    /// Walks one folder; `name` is empty for the root, else it passed the grammar and has no slash at its end.
    fn folder(&mut self, name: &str) -> Result<(), Failed> {
        let failed = |source| (name.to_owned(), source);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.root.join(name)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let last = entry.file_name().to_string_lossy().into_owned();
            found.push((if name.is_empty() { last } else { format!("{name}/{last}") }, entry));
        }
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, entry) in found {
            if self.page.more {
                break;
            }
            self.one(name, &entry)?;
        }
        Ok(())
    }

    fn one(&mut self, name: String, entry: &DirEntry) -> Result<(), Failed> {
        let kind = entry.file_type().map_err(|source| (name.clone(), source))?;
        match Shape::of(&name) {
            Shape::Folder if kind.is_dir() => {
                if self.may_hold_matches(&name) {
                    return vanished_is_empty(self.folder(&name));
                }
            }
            Shape::Object if kind.is_file() => {
                if name.starts_with(self.prefix) && self.after.is_none_or(|after| name.as_str() > after) {
                    return vanished_is_empty(self.object(&name, entry));
                }
            }
            Shape::Object | Shape::Folder | Shape::Foreign => {
                if name.starts_with(self.prefix) && self.after.is_none_or(|after| name.as_str() > after) {
                    self.page.foreign.push(name);
                }
            }
        }
        Ok(())
    }

    /// Whether a folder's objects can begin with the prefix and come after the last key.
    fn may_hold_matches(&self, name: &str) -> bool {
        let inside = format!("{name}/");
        let matches = inside.starts_with(self.prefix) || self.prefix.starts_with(&inside);
        matches && self.after.is_none_or(|after| inside.as_str() > after || after.starts_with(&inside))
    }

    fn object(&mut self, name: &str, entry: &DirEntry) -> Result<(), Failed> {
        if self.page.entries.len() == LIST_PAGE_ENTRIES {
            self.page.more = true;
            return Ok(());
        }
        let bytes = entry.metadata().map_err(|source| (name.to_owned(), source))?.len();
        if let Ok(key) = Key::parse(name) {
            self.page.entries.push(Listed { key, bytes });
        }
        Ok(())
    }
}

/// What was deleted between the look at its folder and the look at itself is simply not there.
fn vanished_is_empty(result: Result<(), Failed>) -> Result<(), Failed> {
    match result {
        Err((_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
