//! Typed parameters: what `get_parameters` tells of a backup and of its job, under libvirt's names where it has one.
//!
//! Invariants: a name is known, has the type that the table gives it, fits libvirt's field of 80 bytes and is there
//! once; reading into slots never writes beyond them.

/// Most bytes of a name: libvirt's `VIR_TYPED_PARAM_FIELD_LENGTH` is 80, with the closing zero.
pub const NAME_BYTES_MAX: usize = 79;

/// A value with one of libvirt's seven types.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `int`
    Int(i32),
    /// `unsigned int`
    Uint(u32),
    /// `long long`
    Llong(i64),
    /// `unsigned long long`
    Ullong(u64),
    /// `double`
    Double(f64),
    /// `char`, 0 or 1
    Boolean(bool),
    /// Text without zero bytes.
    String(String),
}

/// The type of a [`Value`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// [`Value::Int`]
    Int,
    /// [`Value::Uint`]
    Uint,
    /// [`Value::Llong`]
    Llong,
    /// [`Value::Ullong`]
    Ullong,
    /// [`Value::Double`]
    Double,
    /// [`Value::Boolean`]
    Boolean,
    /// [`Value::String`]
    String,
}

impl Value {
    /// The value's type.
    pub fn kind(&self) -> Type {
        match self {
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Llong(_) => Type::Llong,
            Value::Ullong(_) => Type::Ullong,
            Value::Double(_) => Type::Double,
            Value::Boolean(_) => Type::Boolean,
            Value::String(_) => Type::String,
        }
    }
}

/// The names with a meaning of their own, and their types. `disk.N.NAME` repeats those of one disk (N counts from 0 in
/// the order of the document); `fallback.DISK` is the reason why that disk was read whole.
pub const NAMES: &[(&str, Type)] = &[
    // libvirt's, with its types where it has one.
    ("operation", Type::Int),
    ("time_elapsed", Type::Ullong),
    ("time_remaining", Type::Ullong),
    ("disk_total", Type::Ullong),
    ("disk_processed", Type::Ullong),
    ("disk_remaining", Type::Ullong),
    ("disk_bps", Type::Ullong),
    ("disk_temp_used", Type::Ullong),
    ("disk_temp_total", Type::Ullong),
    ("success", Type::Boolean),
    ("errmsg", Type::String),
    // Ours.
    ("state", Type::String),
    ("phase", Type::String),
    ("level", Type::String),
    ("job", Type::String),
    ("domain", Type::String),
    ("parent", Type::String),
    ("bytes_read", Type::Ullong),
    ("bytes_zero", Type::Ullong),
    ("bytes_dup", Type::Ullong),
    ("bytes_new", Type::Ullong),
    ("bytes_stored", Type::Ullong),
    ("chunks_total", Type::Ullong),
    ("chunks_new", Type::Ullong),
    ("chunks_dup", Type::Ullong),
    ("dedup_ratio", Type::Double),
    ("store_puts", Type::Ullong),
    ("store_gets", Type::Ullong),
    ("bandwidth_limit", Type::Ullong),
    ("nbd_connections", Type::Uint),
    ("nbd_inflight", Type::Uint),
    ("freeze_ms", Type::Ullong),
    ("guest_write_latency_us_p99", Type::Ullong),
    ("quiesced", Type::Boolean),
    ("verified_at", Type::String),
    ("locked_until", Type::String),
    ("resume_token", Type::String),
];

/// The names that `disk.N.` may be followed by.
pub const DISK_NAMES: &[(&str, Type)] = &[
    ("name", Type::String),
    ("size", Type::Ullong),
    ("level", Type::String),
    ("bytes_read", Type::Ullong),
    ("bytes_zero", Type::Ullong),
    ("bytes_dup", Type::Ullong),
    ("bytes_new", Type::Ullong),
    ("bytes_stored", Type::Ullong),
];

/// A parameter that cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// No such name.
    #[error("`{0}` is no parameter of a backup")]
    Unknown(String),
    /// The name is there already.
    #[error("parameter `{0}` was given twice")]
    Twice(String),
    /// The type is another.
    #[error("parameter `{name}` is of type {expected:?}, not {found:?}")]
    Type {
        /// The parameter.
        name: String,
        /// What the table says.
        expected: Type,
        /// What was given.
        found: Type,
    },
    /// The name does not fit libvirt's field.
    #[error("parameter name `{name}` has {bytes} bytes; at most {NAME_BYTES_MAX} fit")]
    TooLong {
        /// The name.
        name: String,
        /// Its length.
        bytes: usize,
    },
}

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// The parameters of one backup, in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    /// None yet.
    pub fn new() -> Self {
        Parameters::default()
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`ParameterError`] if the name is unknown, too long or there already, or the type is another.
    pub fn add(&mut self, name: impl Into<String>, value: Value) -> Result<(), ParameterError> {
        let name = name.into();
        if name.len() > NAME_BYTES_MAX {
            return Err(ParameterError::TooLong { bytes: name.len(), name });
        }
        let Some(expected) = type_of(&name) else { return Err(ParameterError::Unknown(name)) };
        if expected != value.kind() {
            return Err(ParameterError::Type { name, expected, found: value.kind() });
        }
        if self.get(&name).is_some() {
            return Err(ParameterError::Twice(name));
        }
        self.0.push(Parameter { name, value });
        Ok(())
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|parameter| parameter.name == name).map(|parameter| &parameter.value)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter()
    }

    /// How many there are: the answer to the first call of the proposal's two, with no room for values.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The second of the proposal's two calls: fills the slots from the first on, and returns how many it filled. That
    /// may be fewer than there are slots, and fewer than there are parameters, but never more than either.
    pub fn fill(&self, slots: &mut [Option<Parameter>]) -> usize {
        for (slot, parameter) in slots.iter_mut().zip(&self.0) {
            *slot = Some(parameter.clone());
        }
        slots.len().min(self.0.len())
    }
}

/// The type that a name must have.
fn type_of(name: &str) -> Option<Type> {
    let named = |table: &[(&str, Type)], name: &str| {
        table.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    };
    if let Some(rest) = name.strip_prefix("disk.") {
        let (index, name) = rest.split_once('.')?;
        let plain = index.parse::<u16>().is_ok_and(|number| number.to_string() == index);
        return plain.then(|| named(DISK_NAMES, name)).flatten();
    }
    if let Some(disk) = name.strip_prefix("fallback.") {
        return (!disk.is_empty()).then_some(Type::String);
    }
    named(NAMES, name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_parameter_is_kept_under_its_name() {
        let mut parameters = Parameters::new();
        parameters.add("state", Value::String("running".into())).unwrap();
        parameters.add("disk.0.bytes_read", Value::Ullong(7)).unwrap();
        parameters.add("fallback.vda", Value::String("no bitmap".into())).unwrap();
        assert_eq!(parameters.get("disk.0.bytes_read"), Some(&Value::Ullong(7)));
        assert_eq!(parameters.count(), 3);
    }

    #[test]
    fn a_name_that_is_not_in_the_table_is_refused() {
        for name in ["", "blkio", "disk.0", "disk.x.name", "disk.01.name", "disk.0.colour", "fallback."] {
            let error = Parameters::new().add(name, Value::Int(1)).unwrap_err();
            assert_eq!(error, ParameterError::Unknown(name.to_owned()));
        }
    }

    #[test]
    fn another_type_is_refused_with_both() {
        let error = Parameters::new().add("quiesced", Value::Int(1)).unwrap_err();
        assert_eq!(error.to_string(), "parameter `quiesced` is of type Boolean, not Int");
    }

    #[test]
    fn the_same_name_twice_is_refused() {
        let mut parameters = Parameters::new();
        parameters.add("disk_total", Value::Ullong(1)).unwrap();
        let error = parameters.add("disk_total", Value::Ullong(2)).unwrap_err();
        assert_eq!(error, ParameterError::Twice("disk_total".into()));
        assert_eq!(parameters.get("disk_total"), Some(&Value::Ullong(1)));
    }

    #[test]
    fn a_name_longer_than_libvirts_field_is_refused() {
        let name = format!("fallback.{}", "d".repeat(80));
        let error = Parameters::new().add(name, Value::String(String::new())).unwrap_err();
        assert!(error.to_string().ends_with("has 89 bytes; at most 79 fit"), "{error}");
    }

    proptest! {
        #[test]
        fn filling_writes_as_many_slots_as_both_sides_have(there in 0_usize..20, room in 0_usize..30) {
            let mut parameters = Parameters::new();
            for number in 0..there {
                parameters.add(format!("disk.{number}.size"), Value::Ullong(9)).unwrap();
            }
            let mut slots = vec![None; room];
            let filled = parameters.fill(&mut slots);
            prop_assert_eq!(filled, there.min(room));
            prop_assert!(slots[..filled].iter().zip(parameters.iter()).all(|(slot, one)| slot.as_ref() == Some(one)));
            prop_assert!(slots[filled..].iter().all(Option::is_none));
        }
    }
}
