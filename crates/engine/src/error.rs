//! The one error type of the engine: a coarse kind that says what the caller must do, a message that
//! names the object and the number, a hint that names the way out, and structured context.
//!
//! Not here: the precise enums of the lower crates. They are kept as the source of an [`Error`], so that
//! a log shows the whole chain, but a caller decides by [`Kind`] alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller must do about an error. The command line maps each kind to one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request is wrong: change it.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Somebody else holds it, or it exists already: wait, end the other, or ask for replacement.
    Conflict,
    /// Credentials, a password or permissions are missing or wrong.
    Denied,
    /// A peer does not answer or failed half-way: try again later.
    Unavailable,
    /// Stored or received bytes are damaged: repair or use another copy.
    Corrupt,
    /// This version, peer or store cannot do it.
    Unsupported,
    /// The caller cancelled.
    Cancelled,
    /// A fault of Aquifer itself.
    Internal,
}

impl Kind {
    /// The kind's name as JSON documents spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Invalid => "invalid",
            Kind::NotFound => "not_found",
            Kind::Conflict => "conflict",
            Kind::Denied => "denied",
            Kind::Unavailable => "unavailable",
            Kind::Corrupt => "corrupt",
            Kind::Unsupported => "unsupported",
            Kind::Cancelled => "cancelled",
            Kind::Internal => "internal",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed job. `Display` prints the message; the hint and the context are read through methods.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    context: BTreeMap<&'static str, serde_json::Value>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of the engine's own making.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            context: BTreeMap::new(),
            source: None,
        }))
    }

    /// An error that a lower crate reported; its text is the message, so nothing is said twice.
    pub fn caused(kind: Kind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let mut error = Error::new(kind, source.to_string());
        error.0.source = Some(Box::new(source));
        error
    }

    /// The error of a cancelled job.
    pub fn cancelled() -> Self {
        Error::new(Kind::Cancelled, "cancelled before it was complete")
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the way out unless the lower crate named a better one.
    #[must_use]
    pub fn hint_or(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Adds one structured fact, such as the disk or the offset.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.0.context.insert(key, value.into());
        self
    }

    /// Puts the object in front of the message: `disk vda: …`.
    #[must_use]
    pub fn about(mut self, object: impl fmt::Display) -> Self {
        self.0.message = format!("{object}: {}", self.0.message);
        self
    }

    /// What the caller must do.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened, naming the object and the number.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The way out, where one is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Structured facts (`disk`, `offset`, `length`, …).
    pub fn context(&self) -> &BTreeMap<&'static str, serde_json::Value> {
        &self.0.context
    }

    /// The lower crate's error, if the engine did not make this one itself.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.source.as_deref()
    }
}

/// The `error` document of the command line: `{"event":"error","kind","message","hint","context"}`.
impl Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut document = serializer.serialize_struct("Error", 5)?;
        document.serialize_field("event", "error")?;
        document.serialize_field("kind", &self.0.kind)?;
        document.serialize_field("message", &self.0.message)?;
        document.serialize_field("hint", &self.0.hint)?;
        document.serialize_field("context", &self.0.context)?;
        document.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_serialises_as_the_documented_event() {
        let error = Error::new(Kind::Invalid, "disk vda: target has 5 bytes, 10 are needed")
            .hint("give a larger volume")
            .with("disk", "vda")
            .with("needed_bytes", 10_u64);
        assert_eq!(
            serde_json::to_value(&error).unwrap(),
            serde_json::json!({
                "event": "error",
                "kind": "invalid",
                "message": "disk vda: target has 5 bytes, 10 are needed",
                "hint": "give a larger volume",
                "context": {"disk": "vda", "needed_bytes": 10},
            })
        );
    }

    #[test]
    fn the_kind_prints_as_it_serialises() {
        for kind in [
            Kind::Invalid,
            Kind::NotFound,
            Kind::Conflict,
            Kind::Denied,
            Kind::Unavailable,
            Kind::Corrupt,
            Kind::Unsupported,
            Kind::Cancelled,
            Kind::Internal,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), serde_json::Value::from(kind.as_str()));
        }
    }

    #[test]
    fn a_cause_is_kept_and_its_text_is_not_repeated() {
        let cause = std::io::Error::from_raw_os_error(28);
        let text = cause.to_string();
        let error = Error::caused(Kind::Unavailable, cause).about("disk vda");
        assert_eq!(error.to_string(), format!("disk vda: {text}"));
        assert!(error.cause().is_some());
    }

    #[test]
    fn a_better_hint_is_not_overwritten() {
        let error = Error::cancelled().hint("the lower crate's").hint_or("a general one");
        assert_eq!(error.hint_text(), Some("the lower crate's"));
    }
}
