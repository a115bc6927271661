//! Stores against real servers: slow groups, ignored by default, which `make test` runs by name.

mod s3;

/// What a test returns: any error ends it with its whole story.
pub(crate) type Outcome = anyhow::Result<()>;
