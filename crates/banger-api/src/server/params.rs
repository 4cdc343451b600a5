//! Strict parameters, and refusals that name what is wrong and what was probably meant.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::contract::METHODS;
use crate::error::{ErrorKind, RpcError};

/// Longest piece of a client's own text that a message repeats, in characters.
const MAX_QUOTE: usize = 80;

/// Parses a method's parameters, which are passed by name; absent ones are `{}`.
pub(crate) fn parse_params<T: DeserializeOwned>(
    method: &str,
    params: Option<&RawValue>,
) -> Result<T, RpcError> {
    let text = params.map_or("{}", RawValue::get).trim_start();
    if !text.starts_with('{') {
        return Err(RpcError::new(
            ErrorKind::InvalidArgument,
            format!("the parameters of {method} are not a JSON object"),
        )
        .hint("pass parameters by name"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|e| explain(method, &e.path().to_string(), &e.inner().to_string()))
}

/// Turns serde's message into ours. The shapes matched here are serde's own (`serde::de::Error`); one that is not
/// recognised is passed on as it is.
fn explain(method: &str, path: &str, message: &str) -> RpcError {
    // serde_json ends with the place in the parameters' text, which means nothing to a caller.
    let message = message
        .rsplit_once(" at line ")
        .map_or(message, |(message, _)| message);
    let within = match path.rsplit_once('.') {
        Some((parent, _)) => format!(" in \"{}\"", shorten(parent)),
        None => String::new(),
    };
    let (text, hint) = if let Some(rest) = message.strip_prefix("unknown field `") {
        let (field, known) = split_names(rest);
        let hint = match nearest(field, known.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if known.is_empty() => "there are no parameters here".to_owned(),
            None => format!("known: {}", known.join(", ")),
        };
        (
            format!("unknown field \"{}\"{within}", shorten(field)),
            Some(hint),
        )
    } else if let Some(rest) = message.strip_prefix("unknown variant `") {
        let (value, known) = split_names(rest);
        let hint = match nearest(value, known.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("known: {}", known.join(", ")),
        };
        (
            format!("unknown value \"{}\" of \"{}\"", shorten(value), shorten(path)),
            Some(hint),
        )
    } else if let Some(field) = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'))
    {
        let within = if path == "." {
            String::new()
        } else {
            format!(" in \"{}\"", shorten(path))
        };
        (format!("missing field \"{field}\"{within}"), None)
    } else if path == "." {
        (shorten(message), None)
    } else {
        (format!("\"{}\": {}", shorten(path), shorten(message)), None)
    };
    let error = RpcError::new(ErrorKind::InvalidArgument, format!("{method}: {text}"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Splits "NAME`, expected one of `a`, `b`" into the name and the known ones. The name is the client's and may hold
/// anything; the known ones are ours and hold no backtick.
fn split_names(text: &str) -> (&str, Vec<&str>) {
    match text.rsplit_once("`, expected ") {
        Some((name, known)) => (name, known.split('`').skip(1).step_by(2).collect()),
        None => (text.split('`').next().unwrap_or(text), Vec::new()),
    }
}

/// The refusal of a method that does not exist.
pub(crate) fn unknown_method(method: &str) -> RpcError {
    let error = RpcError::new(
        ErrorKind::UnknownMethod,
        format!("unknown method \"{}\"", shorten(method)),
    );
    match nearest(method, METHODS.iter().copied()) {
        Some(near) => error.hint(format!("did you mean \"{near}\"?")),
        None => error.hint("rpc.discover lists the methods"),
    }
}

/// The known name that was probably meant: at most one slip for every three characters.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The distance takes time in the product of both lengths; nobody mistypes this much.
    if name.len() > MAX_QUOTE {
        return None;
    }
    let allowed = (name.chars().count() / 3).max(1);
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// A client's text, cut to what a message should hold.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::{ExecOpen, KernelAdd, VmCreate, VmRef};

    fn refuse<T: DeserializeOwned + std::fmt::Debug>(params: &serde_json::Value) -> String {
        let raw = serde_json::value::to_raw_value(params).unwrap();
        let error = parse_params::<T>("a.method", Some(&raw)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        match error.hint {
            Some(hint) => format!("{} ({hint})", error.message),
            None => error.message,
        }
    }

    #[test]
    fn refusals_name_the_field_and_what_was_meant() {
        let cases = [
            refuse::<VmCreate>(&json!({"image": "debian", "memroy": 1})),
            refuse::<VmCreate>(&json!({"image": "debian", "colour": 1})),
            refuse::<VmCreate>(&json!({"image": "debian", "vcpus": "2"})),
            refuse::<VmCreate>(&json!({"image": "debian", "vcpus": -1})),
            refuse::<VmCreate>(&json!({"image": "debian", "vmm": "qemo"})),
            refuse::<VmCreate>(&json!({})),
            refuse::<VmRef>(&json!({"vm": "a", "x` expected `y": 1})),
            refuse::<ExecOpen>(
                &json!({"vm": "a", "command": [], "terminal": {"term": "x", "rows": 1, "colums": 2}}),
            ),
            refuse::<ExecOpen>(
                &json!({"vm": "a", "command": [], "terminal": {"term": "x", "rows": 70000, "columns": 2}}),
            ),
            refuse::<ExecOpen>(&json!({"vm": "a", "command": ["a", 2]})),
            refuse::<KernelAdd>(&json!({"name": "a", "source": {"fil": "/x"}})),
            refuse::<VmRef>(&json!(["a"])),
            refuse::<VmRef>(&json!(null)),
        ];
        insta::assert_snapshot!(cases.join("\n"));
    }

    #[test]
    fn hostile_names_are_cut_and_cost_little() {
        let name = "x".repeat(1 << 19);
        assert!(refuse::<VmRef>(&json!({ name.as_str(): 1 })).len() < 300);
        assert!(unknown_method(&name).message.len() < 300);
    }

    #[test]
    fn a_near_method_is_suggested() {
        assert_eq!(
            unknown_method("vm.lst").hint.as_deref(),
            Some("did you mean \"vm.list\"?")
        );
        assert_eq!(
            unknown_method("images.list").hint.as_deref(),
            Some("did you mean \"image.list\"?")
        );
        assert_eq!(
            unknown_method("teapot").hint.as_deref(),
            Some("rpc.discover lists the methods")
        );
    }
}
