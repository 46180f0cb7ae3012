//! Paths to fields, as people write them.

/// Where a value stands: `PID-3`, `PID-3.1`, `PID-3.4.2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldPath {
    pub(crate) segment: [u8; 3],
    pub(crate) field: usize,
    pub(crate) component: Option<usize>,
    pub(crate) subcomponent: Option<usize>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "not a field path: write SEGMENT-FIELD, SEGMENT-FIELD.COMPONENT or SEGMENT-FIELD.COMPONENT.SUBCOMPONENT, like PID-3.1"
)]
pub(crate) struct FieldPathError;

impl std::str::FromStr for FieldPath {
    type Err = FieldPathError;

    fn from_str(text: &str) -> Result<Self, FieldPathError> {
        let (segment, numbers) = text.split_once('-').ok_or(FieldPathError)?;
        let segment: [u8; 3] = segment.as_bytes().try_into().map_err(|_| FieldPathError)?;
        if !segment.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()) {
            return Err(FieldPathError);
        }
        // Only digits, and no zero before them: Rust's numbers may begin with a plus.
        let mut numbers = numbers.split('.').map(|number| match number.parse() {
            Ok(value) if number.starts_with(|first| matches!(first, '1'..='9')) => Ok(value),
            Ok(_) | Err(_) => Err(FieldPathError),
        });
        let field = numbers.next().ok_or(FieldPathError)??;
        let component = numbers.next().transpose()?;
        let subcomponent = numbers.next().transpose()?;
        if numbers.next().is_some() || (segment == *b"MSH" && field <= 2) {
            return Err(FieldPathError);
        }
        Ok(Self { segment, field, component, subcomponent })
    }
}

impl std::fmt::Display for FieldPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.segment.escape_ascii(), self.field)?;
        for number in [self.component, self.subcomponent].into_iter().flatten() {
            write!(f, ".{number}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_as_it_was_read() {
        for path in ["PID-3", "MSH-10", "PID-3.1", "ZZ1-12.4.2"] {
            assert_eq!(path.parse::<FieldPath>().unwrap().to_string(), path);
        }
    }

    #[test]
    fn paths_that_mean_nothing_are_refused() {
        for path in [
            "",
            "PID",
            "PID-",
            "PID-0",
            "PID-3.",
            "PID-3.0",
            "PID-03",
            "PID-+3",
            "PID-3.1.1.1",
            "pid-3",
            "PIDX-3",
            "MSH-1",
            "MSH-2",
            "PID-x",
        ] {
            assert_eq!(path.parse::<FieldPath>(), Err(FieldPathError), "{path}");
        }
    }
}
