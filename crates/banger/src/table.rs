//! Tables without borders, columns three blanks apart, as docker prints them.

use comfy_table::{ContentArrangement, Table, presets};

/// Renders a table: headers always, one line a row, no blanks at the line's end.
pub(crate) fn render<const N: usize>(
    headers: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    render_rows(&headers, rows.into_iter().map(Vec::from))
}

/// Renders a table of columns, each a header and what to say of an item; those that are of no use are left out.
pub(crate) fn render_columns<T>(columns: &[Column<'_, T>], items: &[T]) -> String {
    let shown: Vec<&Column<'_, T>> = columns.iter().filter(|column| column.shown).collect();
    let headers: Vec<&str> = shown.iter().map(|column| column.header).collect();
    let row = |item: &T| shown.iter().map(|column| (column.cell)(item)).collect();
    render_rows(&headers, items.iter().map(row))
}

/// A column of [`render_columns`].
pub(crate) struct Column<'a, T> {
    header: &'static str,
    shown: bool,
    cell: Box<dyn Fn(&T) -> String + 'a>,
}

impl<'a, T> Column<'a, T> {
    /// A column that is always there.
    pub(crate) fn new(header: &'static str, cell: impl Fn(&T) -> String + 'a) -> Self {
        Self {
            header,
            shown: true,
            cell: Box::new(cell),
        }
    }

    /// The column only where it says something.
    #[must_use]
    pub(crate) fn shown_if(mut self, shown: bool) -> Self {
        self.shown = shown;
        self
    }
}

fn render_rows(headers: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // A narrow terminal wraps the line itself; a listing that is piped has no width.
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers);
    for row in rows {
        // Every row stays one line, whatever a field holds.
        let cells = row
            .iter()
            .map(|cell| crate::error::printable(&cell.replace(['\n', '\r'], " ")));
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    finish(&table)
}

/// Renders `name: value` lines with the values in one column.
pub(crate) fn fields(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows {
        let name = if name.is_empty() {
            String::new()
        } else {
            format!("{name}:")
        };
        table.add_row([name, crate::error::printable(&value.replace(['\n', '\r'], " "))]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    finish(&table)
}

fn finish(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["dev".into(), "running".into()],
            ["a-longer-name".into(), "stop\nped\u{1b}[2J".into()],
        ];
        insta::assert_snapshot!(render(["NAME", "STATE"], rows), @r"
        NAME            STATE
        dev             running
        a-longer-name   stop ped\u{1b}[2J
        ");
    }

    #[test]
    fn empty_prints_headers_only() {
        assert_eq!(render(["NAME", "STATE"], []), "NAME   STATE\n");
    }

    #[test]
    fn names_and_values() {
        insta::assert_snapshot!(fields([("name", "dev".into()), ("created", "today".into())]), @r"
        name:     dev
        created:  today
        ");
    }
}
