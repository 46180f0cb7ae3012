//! Which destinations a message goes to. A route's condition is a CEL expression over the event's attributes and its JSON
//! data; a condition that fails is an error that names the route, never "no match".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cel::{Context, Env, Program, Value};

/// Longest CEL expression, bytes.
pub const CONDITION_BYTES_MAX: usize = 4096;

/// Attributes that a condition may name although an event lacks them; they are then the empty string, which no attribute can be.
const OPTIONAL_ATTRIBUTES: [&str; 9] = [
    "subject",
    "datacontenttype",
    "dataschema",
    "time",
    "partitionkey",
    "expirytime",
    "correlationid",
    "causationid",
    "traceparent",
];

/// One routing rule: from a sender, under a condition, to destinations.
pub struct Route {
    pub name: String,
    pub from: String,
    pub condition: Option<Condition>,
    pub to: Vec<String>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Route({})", self.name)
    }
}

/// A compiled CEL expression.
pub struct Condition {
    program: Program,
    needs_data: bool,
}

/// What a condition can see of an event.
pub struct EventView<'a> {
    /// Every attribute of the event, standard and extension, as a JSON value.
    pub attributes: &'a BTreeMap<String, serde_json::Value>,
    /// The payload, if it is JSON.
    pub json: Option<&'a [u8]>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    #[error("the condition is longer than {CONDITION_BYTES_MAX} bytes")]
    TooLong,
    #[error("the condition is not CEL: {0}")]
    Syntax(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no route takes it")]
    NoRoute,
    /// The text says what kind of failure, never a value of the event.
    #[error("route {route}: {fault}")]
    Failed { route: String, fault: String },
}

impl Condition {
    pub fn compile(source: &str) -> Result<Self, ConditionError> {
        if source.len() > CONDITION_BYTES_MAX {
            return Err(ConditionError::TooLong);
        }
        let program = Program::compile(source).map_err(|error| ConditionError::Syntax(error.to_string()))?;
        let needs_data = program.references().has_variable("data");
        Ok(Self { program, needs_data })
    }
}

/// All routes in the order of the configuration.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
    env: CelEnv,
}

/// The CEL environment is built once: it is the same for every condition.
struct CelEnv(Arc<Env>);

impl fmt::Debug for CelEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

impl Routes {
    pub fn new(routes: Vec<Route>) -> Self {
        Self { routes, env: CelEnv(Arc::new(Env::stdlib())) }
    }

    /// Destinations of an event from `sender`: every matching route applies, each destination once, in the routes' order.
    pub fn destinations(&self, sender: &str, event: &EventView<'_>) -> Result<Vec<String>, RouteError> {
        let mut found: Vec<String> = Vec::new();
        let mut context: Option<Context<'_, '_>> = None;
        for route in self.routes.iter().filter(|route| route.from == sender) {
            let applies = match &route.condition {
                None => true,
                Some(condition) => {
                    let context = context.get_or_insert_with(|| self.context(sender, event));
                    if condition.needs_data {
                        add_data(context, event.json);
                    }
                    evaluate(route, condition, context)?
                }
            };
            if applies {
                for destination in &route.to {
                    if !found.contains(destination) {
                        found.push(destination.clone());
                    }
                }
            }
        }
        if found.is_empty() { Err(RouteError::NoRoute) } else { Ok(found) }
    }

    fn context<'v>(&self, sender: &str, event: &EventView<'_>) -> Context<'_, 'v> {
        let mut context = Context::with_env(Arc::clone(&self.env.0));
        context.add_variable_from_value("app", sender.to_owned());
        for name in OPTIONAL_ATTRIBUTES {
            context.add_variable_from_value(name, String::new());
        }
        for (name, value) in event.attributes {
            context.add_variable_from_value(name.as_str(), cel_value(value));
        }
        context
    }
}

fn cel_value(value: &serde_json::Value) -> Value {
    cel::to_value(value).unwrap_or(Value::Null)
}

fn add_data(context: &mut Context<'_, '_>, json: Option<&[u8]>) {
    let data = json.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
    context.add_variable_from_value("data", data.as_ref().map_or(Value::Null, cel_value));
}

fn evaluate(route: &Route, condition: &Condition, context: &Context<'_, '_>) -> Result<bool, RouteError> {
    let failed = |fault: &str| RouteError::Failed { route: route.name.clone(), fault: fault.to_owned() };
    match condition.program.execute(context) {
        Ok(Value::Bool(applies)) => Ok(applies),
        Ok(_) => Err(failed("the condition did not give true or false")),
        // CEL's own error text quotes values of the event, which must not leave in an error.
        Err(cel::ExecutionError::UndeclaredReference(name)) => {
            Err(failed(&format!("the event has no attribute or function `{name}`")))
        }
        Err(cel::ExecutionError::NoSuchKey(key)) => {
            Err(failed(&format!("the event's data has no member `{key}`")))
        }
        Err(_) => Err(failed("the condition cannot be evaluated on this event (wrong type or value)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, from: &str, when: Option<&str>, to: &[&str]) -> Route {
        Route {
            name: name.into(),
            from: from.into(),
            condition: when.map(|source| Condition::compile(source).unwrap()),
            to: to.iter().map(|&name| name.into()).collect(),
        }
    }

    fn find(routes: Vec<Route>, kind: &str, json: Option<&str>) -> Result<Vec<String>, RouteError> {
        let attributes = BTreeMap::from([
            ("type".to_owned(), kind.into()),
            ("source".to_owned(), "/s".into()),
            ("priority".to_owned(), 5.into()),
        ]);
        Routes::new(routes)
            .destinations("ehr", &EventView { attributes: &attributes, json: json.map(str::as_bytes) })
    }

    #[test]
    fn r13_6_every_matching_route_applies_and_each_destination_counts_once() {
        let routes = || {
            vec![
                route("1", "ehr", Some("type.startsWith('org.hl7.v2.ORU')"), &["lab", "archive"]),
                route("2", "ehr", None, &["archive", "copy"]),
                route("3", "other", None, &["elsewhere"]),
            ]
        };
        assert_eq!(find(routes(), "org.hl7.v2.ORU_R01", None).unwrap(), ["lab", "archive", "copy"]);
        assert_eq!(find(routes(), "org.hl7.v2.ADT_A01", None).unwrap(), ["archive", "copy"]);
    }

    #[test]
    fn r13_6_no_route_is_an_error_and_a_failing_condition_is_another() {
        assert_eq!(find(vec![], "t", None), Err(RouteError::NoRoute));
        assert_eq!(
            find(vec![route("1", "ehr", Some("type == 'x'"), &["a"])], "t", None),
            Err(RouteError::NoRoute)
        );
        let failed = |when: &str, json| match find(vec![route("bad", "ehr", Some(when), &["a"])], "t", json) {
            Err(RouteError::Failed { route, fault }) => {
                assert_eq!(route, "bad");
                fault
            }
            other => panic!("{when}: {other:?}"),
        };
        assert!(failed("unknown == 'x'", None).contains("unknown"));
        assert!(failed("type", None).contains("true or false"));
        assert!(failed("data.amount > 3", Some(r#"{"other":1}"#)).contains("amount"));
        assert!(!failed("int(data.name) > 3", Some(r#"{"name":"canary"}"#)).contains("canary"));
    }

    #[test]
    fn conditions_see_json_data_integers_and_absent_optional_attributes() {
        let matched = |when: &str, json| find(vec![route("r", "ehr", Some(when), &["a"])], "t", json).is_ok();
        assert!(matched("data.amount > 3 && priority == 5", Some(r#"{"amount":4}"#)));
        assert!(matched("subject == '' && app == 'ehr'", None));
        assert!(!matched("data != null && data.amount > 3", None));
    }

    #[test]
    fn broken_conditions_are_refused_when_compiled() {
        assert!(matches!(Condition::compile("type ==").err(), Some(ConditionError::Syntax(_))));
        assert_eq!(Condition::compile(&"x".repeat(5000)).err(), Some(ConditionError::TooLong));
    }
}
