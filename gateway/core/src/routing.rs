//! Which destinations a message goes to. A route's condition is a CEL expression over the event's attributes and its JSON
//! data; a condition that fails is an error that names the route, never "no match".

use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::common::types::{CelBool, CelInt, CelString};
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use cel::{Context, Env, Program, Value};

/// Longest CEL expression, bytes.
pub const CONDITION_BYTES_MAX: usize = 4096;

/// Attributes that a condition may name although an event lacks them; they are then the empty string, which no attribute can be.
const OPTIONAL_ATTRIBUTES: [&str; 10] = [
    "subject",
    "datacontenttype",
    "dataschema",
    "time",
    "partitionkey",
    "barrierkey",
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
}

/// An attribute's value, as conditions see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    Text(&'a str),
    Integer(i64),
    Bool(bool),
}

/// What a condition can see of an event. It asks for what it names, and for nothing else.
pub trait EventView: Send + Sync {
    /// An attribute of the event, standard or extension.
    fn attribute(&self, name: &str) -> Option<Attribute<'_>>;
    /// The payload, if it is JSON.
    fn json(&self) -> Option<&[u8]>;
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
        Ok(Self { program })
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
    pub fn destinations(&self, sender: &str, event: &dyn EventView) -> Result<Vec<String>, RouteError> {
        let mut found: Vec<String> = Vec::new();
        let variables = Variables { sender, event, data: OnceLock::new() };
        let mut context: Option<Context<'_, '_>> = None;
        for route in self.routes.iter().filter(|route| route.from == sender) {
            let applies = match &route.condition {
                None => true,
                Some(condition) => {
                    evaluate(route, condition, context.get_or_insert_with(|| self.context(&variables)))?
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

    fn context<'v>(&self, variables: &'v Variables<'_>) -> Context<'_, 'v> {
        let mut context = Context::with_env(Arc::clone(&self.env.0));
        context.set_variable_resolver(variables);
        context
    }
}

/// What conditions may name, looked up when they do: most name one attribute of many.
struct Variables<'e> {
    sender: &'e str,
    event: &'e dyn EventView,
    /// The payload, parsed when the first condition asks for it.
    data: OnceLock<Value>,
}

impl Variables<'_> {
    fn data(&self) -> Value {
        let parsed = || {
            let data = self.event.json().map(serde_json::from_slice::<serde_json::Value>);
            data.and_then(Result::ok).and_then(|data| cel::to_value(data).ok()).unwrap_or(Value::Null)
        };
        self.data.get_or_init(parsed).clone()
    }
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        match name {
            // Before the event's own attributes: who sends is not the sender's to say.
            "app" => return Some(CowVal::owned(CelString::from(self.sender))),
            "data" => return self.data().try_into().ok().map(CowVal::Owned),
            _ => {}
        }
        match self.event.attribute(name) {
            Some(Attribute::Text(text)) => Some(CowVal::owned(CelString::from(text))),
            Some(Attribute::Integer(number)) => Some(CowVal::owned(CelInt::from(number))),
            Some(Attribute::Bool(value)) => Some(CowVal::owned(CelBool::from(value))),
            None => OPTIONAL_ATTRIBUTES.contains(&name).then(|| CowVal::owned(CelString::from(""))),
        }
    }
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

    /// An event with the attributes `type`, `source`, `priority` and `app`.
    struct Seen<'a> {
        kind: &'a str,
        json: Option<&'a str>,
    }

    impl EventView for Seen<'_> {
        fn attribute(&self, name: &str) -> Option<Attribute<'_>> {
            match name {
                "type" => Some(Attribute::Text(self.kind)),
                "source" => Some(Attribute::Text("/s")),
                "priority" => Some(Attribute::Integer(5)),
                "urgent" => Some(Attribute::Bool(true)),
                "app" => Some(Attribute::Text("somebody else")),
                _ => None,
            }
        }

        fn json(&self) -> Option<&[u8]> {
            self.json.map(str::as_bytes)
        }
    }

    fn find(routes: Vec<Route>, kind: &str, json: Option<&str>) -> Result<Vec<String>, RouteError> {
        Routes::new(routes).destinations("ehr", &Seen { kind, json })
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
        assert!(matched("subject == '' && urgent", None));
        assert!(matched("app == 'ehr'", None), "an attribute of the event does not say who sends");
        assert!(matched("data.items.exists(x, x > 2) && data.items.size() == 2", Some(r#"{"items":[1,3]}"#)));
        assert!(!matched("data != null && data.amount > 3", None));
    }

    #[test]
    fn broken_conditions_are_refused_when_compiled() {
        assert!(matches!(Condition::compile("type ==").err(), Some(ConditionError::Syntax(_))));
        assert_eq!(Condition::compile(&"x".repeat(5000)).err(), Some(ConditionError::TooLong));
    }
}
