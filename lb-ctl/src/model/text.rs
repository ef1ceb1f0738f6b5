//! From text to the model, with errors that name the field.

use serde::de::DeserializeOwned;

use super::{Backend, Kind, Problem};

/// Reads JSON.
///
/// # Errors
/// `malformed` if it is not JSON, else `schema` naming the field.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let detail = error.inner().to_string();
        match error.inner().classify() {
            serde_json::error::Category::Data => problem(error.path(), detail),
            // Line and column are in the text.
            _ => Problem::new(Kind::Malformed, detail),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Problem::new(Kind::Malformed, error.to_string()))?;
    Ok(value)
}

/// Reads a JSON value that has been parsed already.
///
/// # Errors
/// `schema` naming the field.
pub fn from_json_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| problem(error.path(), error.inner().to_string()))
}

/// Reads TOML.
///
/// # Errors
/// `malformed` if it is not TOML, else `schema` naming the field.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let malformed = |error: toml::de::Error| Problem::new(Kind::Malformed, error.to_string());
    let deserializer = toml::Deserializer::parse(text).map_err(malformed)?;
    serde_path_to_error::deserialize(deserializer)
        .map_err(|error| problem(error.path(), error.inner().to_string()))
}

/// Reads a weight.
///
/// # Errors
/// A sentence that says what a weight can be.
pub fn weight(text: &str) -> Result<u32, String> {
    let weight = text.parse().ok();
    weight
        .filter(|weight| *weight <= Backend::MAX_WEIGHT)
        .ok_or_else(|| {
            format!(
                "a weight is a whole number from 0 (drain) to {}",
                Backend::MAX_WEIGHT
            )
        })
}

fn problem(path: &serde_path_to_error::Path, detail: String) -> Problem {
    let problem = Problem::new(Kind::Schema, detail);
    let path = path.to_string();
    // "." is the document itself, "?" what serde could not tell.
    if path.is_empty() || path == "." || path == "?" {
        return problem;
    }
    problem.at(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Config;

    fn service(change: &str) -> String {
        format!(
            r#"{{"services":[{{"name":"web","vip":"203.0.113.10","port":80,"protocol":"tcp",
               "mode":"dr","backends":[{{"address":"203.0.113.21"{change}}}]}}]}}"#
        )
    }

    #[test]
    fn the_wrong_field_is_named() {
        for (change, field, reason) in [
            (
                r#","weight":-1"#,
                "services[0].backends[0].weight",
                "from 0 (drain) to 65535, not -1",
            ),
            (
                r#","weight":"1""#,
                "services[0].backends[0].weight",
                "invalid type",
            ),
            (
                r#","wieght":1"#,
                "services[0].backends[0].wieght",
                "unknown field `wieght`",
            ),
        ] {
            let problem = from_json::<Config>(service(change).as_bytes()).unwrap_err();
            assert_eq!(problem.status(), 422);
            assert_eq!(problem.field.as_deref(), Some(field));
            assert!(problem.detail.contains(reason), "{}", problem.detail);
        }
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for text in ["", "{", "{} x"] {
            assert_eq!(
                from_json::<Config>(text.as_bytes()).unwrap_err().status(),
                400
            );
        }
    }

    #[test]
    fn toml_says_the_same_as_json() {
        let toml = "[[services]]\nname = 'web'\nvip = '203.0.113.10'\nport = 80\n\
                    protocol = 'tcp'\nmode = 'dr'\n\
                    [[services.backends]]\naddress = '203.0.113.21'\n";
        let from_json: Config = from_json(service("").as_bytes()).unwrap();
        assert_eq!(from_toml::<Config>(toml).unwrap(), from_json);
        let problem = from_toml::<Config>(&format!("{toml}weight = -1\n")).unwrap_err();
        assert_eq!(
            problem.field.as_deref(),
            Some("services[0].backends[0].weight")
        );
        assert_eq!(from_toml::<Config>("[").unwrap_err().status(), 400);
    }
}
