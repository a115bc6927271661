//! `params`: the typed parameters of a backup and of its job.

use aquifer_api::{BackupApi, Parameters, ReservedFlags, Value};
use aquifer_engine::Result;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{open, service};
use crate::context::Context;
use crate::human;
use crate::output::Report;

/// Runs `params`.
///
/// # Errors
/// As opening the repository and finding the backup.
pub(crate) async fn run(context: &Context, backup: &str) -> Result<()> {
    let service = service::over(context, open::reading_job(context).await?)?;
    let backup = service::resolve(&service, backup)?;
    let parameters = service::told(service.get_parameters(&backup, ReservedFlags::NONE).await)?;
    context.output.report(&Told(parameters))
}

struct Told(Parameters);

impl Serialize for Told {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.count()))?;
        for parameter in self.0.iter() {
            match &parameter.value {
                Value::Int(value) => map.serialize_entry(&parameter.name, value)?,
                Value::Uint(value) => map.serialize_entry(&parameter.name, value)?,
                Value::Llong(value) => map.serialize_entry(&parameter.name, value)?,
                Value::Ullong(value) => map.serialize_entry(&parameter.name, value)?,
                Value::Double(value) => map.serialize_entry(&parameter.name, value)?,
                Value::Boolean(value) => map.serialize_entry(&parameter.name, value)?,
                Value::String(value) => map.serialize_entry(&parameter.name, value)?,
            }
        }
        map.end()
    }
}

impl Report for Told {
    fn human(&self) -> String {
        let rows = self.0.iter().map(|parameter| {
            let value = match &parameter.value {
                Value::Int(value) => value.to_string(),
                Value::Uint(value) => value.to_string(),
                Value::Llong(value) => value.to_string(),
                Value::Ullong(value) => value.to_string(),
                Value::Double(value) => value.to_string(),
                Value::Boolean(value) => value.to_string(),
                Value::String(value) => value.replace('\n', " "),
            };
            vec![parameter.name.clone(), value]
        });
        human::table(&["parameter", "value"], &[], rows)
    }
}
