//! The formats of listings and shows: a table for people, JSON or YAML of the wire types for programs, names for shells.
//!
//! A format is what was asked for and never guessed from where the output goes.

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::error::CliError;
use crate::stdio;

/// How a result is printed: for people, or the daemon's own types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Output flags of a listing or a show.
#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArgs {
    /// Format of the result: for people, or the daemon's own types
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) output: Format,
    /// Print only names, one a line; ids of what has no name
    #[arg(short, long, conflicts_with = "output")]
    pub(crate) quiet: bool,
}

impl OutputArgs {
    /// Prints a result: `names` for `--quiet`, `table` for people, `value` for programs.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        names: impl FnOnce(&T) -> Vec<&str>,
        table: impl FnOnce(&T) -> String,
    ) -> Result<u8, CliError> {
        if self.quiet {
            let text: String = names(value).into_iter().flat_map(|name| [name, "\n"]).collect();
            return stdio::finish(&text);
        }
        self.output.print(value, table)
    }
}

impl Format {
    /// Prints a result that has no names.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<u8, CliError> {
        stdio::finish(&self.render(value, table)?)
    }

    /// A result as text.
    pub(crate) fn render<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<String, CliError> {
        let failed = |error: &dyn std::error::Error| {
            CliError::general(format!("failed to format the result: {error}"))
        };
        Ok(match self {
            Self::Table => table(value),
            Self::Json => serde_json::to_string_pretty(value).map_err(|error| failed(&error))? + "\n",
            Self::Yaml => serde_yaml_ng::to_string(value).map_err(|error| failed(&error))?,
        })
    }
}

/// A value as one line of JSON, for results that come one after the other.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string(value)
        .map(|line| line + "\n")
        .map_err(|error| CliError::general(format!("failed to format the result: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let value = serde_json::json!([{"name": "dev", "memory": 1}]);
        let table = |_: &serde_json::Value| "NAME\n".to_owned();
        assert_eq!(Format::Table.render(&value, table).unwrap(), "NAME\n");
        insta::assert_snapshot!(Format::Json.render(&value, table).unwrap(), @r#"
        [
          {
            "name": "dev",
            "memory": 1
          }
        ]
        "#);
        insta::assert_snapshot!(Format::Yaml.render(&value, table).unwrap(), @r"
        - name: dev
          memory: 1
        ");
        assert_eq!(
            Format::Json.render(&serde_json::json!([]), table).unwrap(),
            "[]\n"
        );
    }
}
