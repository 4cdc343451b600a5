//! The contract as an OpenRPC 1.3 document (<https://spec.open-rpc.org>), with JSON schemas (draft 7) from the wire types.
//!
//! OpenRPC knows calls only. A subscription carries its event's schema as `x-event`, a stream says so in `x-shape`.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::contract::Shape;
use crate::error::WireError;

/// Collects the methods.
pub(crate) struct OpenRpc {
    generator: SchemaGenerator,
    methods: Vec<Value>,
}

impl OpenRpc {
    /// An empty document.
    pub(crate) fn new() -> Self {
        let mut settings = SchemaSettings::draft07();
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        Self {
            generator: settings.into_generator(),
            methods: Vec::new(),
        }
    }

    /// Adds a method with parameters `P` and result, or event, `R`.
    pub(crate) fn method<P: JsonSchema, R: JsonSchema>(&mut self, name: &str, docs: &str, shape: Shape) {
        let summary: Vec<&str> = docs.lines().map(str::trim).collect();
        let mut method = json!({
            "name": name,
            "summary": summary.join(" ").trim(),
            "paramStructure": "by-name",
            "params": self.params::<P>(),
        });
        let result = match shape {
            Shape::Call => self.generator.subschema_for::<R>().to_value(),
            Shape::Subscription => json!({
                "type": "object",
                "properties": { "subscription": { "type": "integer", "format": "uint64", "minimum": 0 } },
                "required": ["subscription"],
            }),
            Shape::Stream => json!({
                "type": "object",
                "properties": { "stream": { "const": true } },
                "required": ["stream"],
            }),
        };
        method["result"] = json!({ "name": "result", "schema": result });
        match shape {
            Shape::Call => {}
            Shape::Subscription => {
                method["x-shape"] = "subscription".into();
                method["x-event"] = self.generator.subschema_for::<R>().to_value();
            }
            Shape::Stream => method["x-shape"] = "stream".into(),
        }
        method["errors"] = json!([{ "$ref": "#/components/errors/Error" }]);
        self.methods.push(method);
    }

    /// One content descriptor for each property of the parameters' schema.
    fn params<P: JsonSchema>(&mut self) -> Vec<Value> {
        let mut schema = P::json_schema(&mut self.generator);
        for transform in self.generator.transforms_mut() {
            transform.transform(&mut schema);
        }
        let Value::Object(mut schema) = schema.to_value() else {
            return Vec::new();
        };
        let required = match schema.remove("required") {
            Some(Value::Array(names)) => names,
            Some(_) | None => Vec::new(),
        };
        let properties = match schema.remove("properties") {
            Some(Value::Object(properties)) => properties,
            Some(_) | None => Map::new(),
        };
        properties
            .into_iter()
            .map(|(name, mut schema)| {
                let description = schema
                    .as_object_mut()
                    .and_then(|schema| schema.remove("description"));
                let mut param = Map::new();
                if let Some(description) = description {
                    param.insert("description".to_owned(), description);
                }
                param.insert(
                    "required".to_owned(),
                    required.contains(&Value::from(name.as_str())).into(),
                );
                param.insert("schema".to_owned(), schema);
                param.insert("name".to_owned(), name.into());
                Value::Object(param)
            })
            .collect()
    }

    /// The document.
    pub(crate) fn finish(mut self) -> Value {
        let error = self.generator.subschema_for::<WireError>().to_value();
        let schemas = self.generator.take_definitions(true);
        json!({
            "openrpc": "1.3.2",
            "info": {
                "title": "Banger",
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": env!("CARGO_PKG_LICENSE") },
            },
            "methods": self.methods,
            "components": {
                "schemas": schemas,
                "errors": { "Error": { "code": -32000, "message": "one line for people", "data": error } },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    /// A change to the contract changes this file, so that it is seen.
    #[test]
    fn the_contract() {
        let mut contract = crate::contract::openrpc();
        contract["info"]["version"] = "VERSION".into();
        insta::assert_snapshot!(serde_json::to_string_pretty(&contract).unwrap());
    }

    #[test]
    fn every_method_is_there_and_every_reference_leads_somewhere() {
        let contract = crate::contract::openrpc();
        let names: Vec<&str> = contract["methods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, crate::contract::METHODS);

        fn references(value: &serde_json::Value, found: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(members) => {
                    if let Some(serde_json::Value::String(target)) = members.get("$ref") {
                        found.push(target.clone());
                    }
                    members.values().for_each(|v| references(v, found));
                }
                serde_json::Value::Array(items) => items.iter().for_each(|v| references(v, found)),
                serde_json::Value::Null
                | serde_json::Value::Bool(_)
                | serde_json::Value::Number(_)
                | serde_json::Value::String(_) => {}
            }
        }
        let mut found = Vec::new();
        references(&contract, &mut found);
        assert!(!found.is_empty());
        for target in found {
            assert!(
                contract.pointer(target.strip_prefix('#').unwrap()).is_some(),
                "{target} leads nowhere"
            );
        }
    }
}
